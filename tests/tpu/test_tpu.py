"""The cloud scripts: the commands they print, what they refuse, and the watch over a cloud that only records."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "tpu"
PLACE = ["--zone", "us-east5-a", "--bucket", "gs://my-bucket/runs"]
CREATE = "gcloud compute tpus queued-resources create mine --node-id=mine"

# Answers `describe` and the worker's `status` with the next line of a file each; writes down everything else.
GCLOUD = """#!/usr/bin/env bash
next() { line=$(head -n 1 "$1"); sed -i 1d "$1"; if [[ $line == NOT_FOUND ]]; then echo "$line" >&2; exit 1; fi
         echo "${line/:/ }"; }
cd "$(dirname "$0")"
case "$*" in
  *queued-resources\\ describe*) next states ;;
  *tpu-vm\\ describe*) next nodes ;;
  *worker.sh\\ status*) next runs ;;
  *) echo "$*" >>calls ;;
esac
"""
# Stands for the environment's Python: a session that leaves a ledger, a file, and the arguments it was given.
PYTHON = f"""#!/usr/bin/env bash
if [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi
session=$(sed 's/.*--session \\([^ ]*\\).*/\\1/' <<<"$*")
mkdir -p "$session/trials"
echo "$*" >>"$session/trials/calls"
{sys.executable} -c 'import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as ledger:
    ledger.execute("create table if not exists events (n)")
    ledger.execute("insert into events values (1)")' "$session/ledger.sqlite"
exit 3
"""


@pytest.fixture(scope="module", autouse=True)
def no_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever goes wrong here, no real cloud hears of it."""
    folder = tmp_path_factory.mktemp("no_cloud")
    (folder / "gcloud").write_text("#!/bin/sh\necho 'gcloud was called' >&2\nexit 99\n")
    (folder / "gcloud").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield


def bash(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(FOLDER / script), *arguments], text=True, capture_output=True, check=False,
                          timeout=60, env=os.environ | environment)


def printed(*arguments: str) -> list[list[str]]:
    """The commands of a dry run, split as a shell would."""
    done = bash("tpu.sh", arguments[0], arguments[1], "--dry-run", *arguments[2:])
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def remote(command: list[str]) -> list[str]:
    """What a command runs on the workers, as their shell splits it."""
    return shlex.split(next(word for word in command if word.startswith("--command=")).removeprefix("--command="))


@pytest.mark.parametrize("script", ["tpu.sh", "worker.sh"])
def test_the_scripts_are_bash(script: str) -> None:
    assert subprocess.run(["bash", "-n", str(FOLDER / script)], check=False).returncode == 0


def test_one_vm_runs_the_loop() -> None:
    create, = printed("create", "mine", *PLACE)
    assert create == shlex.split(f"{CREATE} --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e --spot "
                                 "--zone=us-east5-a")
    run, = printed("run", "mine", *PLACE, "--", "--minutes", "60")
    assert remote(run) == ["bash", "jaxnano/tpu/worker.sh", "start", "mine", "loop", "--minutes", "60"]


def test_a_slice_trains_on_all_workers_and_words_arrive_as_they_were() -> None:
    words = ["--config", "configs/a b.yaml", "--set", "x=$(rm -rf /)", "it's", ""]
    run, = printed("run", "mine", *PLACE, "--type", "v5p-16", "--project", "my-project", "--", *words)
    assert "--worker=all" in run and "--project=my-project" in run
    assert remote(run) == ["bash", "jaxnano/tpu/worker.sh", "start", "mine", "train", *words]
    create, = printed("create", "mine", *PLACE, "--type", "v5p-16", "--on-demand")
    assert "--runtime-version=v2-alpha-tpuv5" in create and "--spot" not in create


def test_a_dry_run_prints_the_whole_way() -> None:
    watch = [" ".join(command[:6]) for command in printed("watch", "mine", *PLACE, "--type", "v6e-16")]
    ssh, queue = "gcloud compute tpus tpu-vm ssh mine", "gcloud compute tpus queued-resources"
    assert [line for line in watch if line.startswith("gcloud")] == [
        f"{queue} describe mine", "gcloud compute tpus tpu-vm describe mine", f"{queue} delete mine",
        f"{queue} create mine", watch[6], ssh, ssh, ssh, ssh]
    assert watch[6].startswith("gcloud compute tpus tpu-vm scp")
    follow, = printed("logs", "mine", *PLACE)
    assert remote(follow) == ["tail", "-n", "100", "-F", "mine.log"]
    assert printed("collect", "mine", *PLACE, "--out", "here")[1] == [
        "gcloud", "storage", "rsync", "--recursive", "gs://my-bucket/runs/mine", "here/mine"]
    delete, = printed("delete", "mine", *PLACE)
    assert delete[3:] == ["queued-resources", "delete", "mine", "--force", "--quiet", "--zone=us-east5-a"]


@pytest.mark.parametrize(("arguments", "reason"), [
    ([], "COMMAND and NAME: missing"), (["begin", "mine", *PLACE], "COMMAND: 'begin'"),
    (["create", "Mine;rm", *PLACE], "NAME: 'Mine;rm': my-tpu would do"), (["create", "mine"], "--zone: ''"),
    (["create", "mine", *PLACE, "--type", "big"], "--type: 'big'"),
    (["create", "mine", *PLACE, "--type", "v9-8"], "--runtime: missing"),
    (["create", "mine", *PLACE, "--size", "8"], "--size: no such option"),
    (["create", "mine", "--zone"], "--zone: without a value"),
    (["watch", "mine", "--zone", "us-east5-a"], "--bucket: ''"),
    (["run", "mine", *PLACE, "--type", "v6e-16", "--program", "loop"], "v6e-16 has several hosts"),
    (["watch", "mine", *PLACE, "--interval", "1h"], "--interval: '1h'"),
])
def test_bad_input_is_one_line_and_code_2(arguments: list[str], reason: str) -> None:
    done = bash("tpu.sh", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and reason in done.stderr


def watched(folder: Path, states: str, nodes: str, runs: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The watch over a cloud with these answers, and the commands that changed something."""
    (folder / "gcloud").write_text(GCLOUD)
    (folder / "gcloud").chmod(0o755)
    for name, answers in (("states", states), ("nodes", nodes), ("runs", runs)):
        (folder / name).write_text("".join(f"{line}\n" for line in answers.split()))
    done = bash("tpu.sh", "watch", "mine", *PLACE, "--interval", "0", "--restarts", "1", "--", "--minutes", "9",
                PATH=f"{folder}:{os.environ['PATH']}")
    calls = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    verbs = ("create", "delete", "worker.sh\\ setup", "worker.sh\\ start")
    named = (next((verb for verb in verbs if verb in call.replace(" ", "\\ ")), None) for call in calls)
    return done, [verb.removeprefix("worker.sh\\ ") for verb in named if verb]


@pytest.mark.skipif(not (FOLDER.parent / ".git").exists(), reason="what is installed is the last commit")
def test_the_watch_creates_and_starts_again_after_each_preemption(tmp_path: Path) -> None:
    done, calls = watched(
        tmp_path,
        states="NOT_FOUND WAITING_FOR_RESOURCES ACTIVE ACTIVE ACTIVE SUSPENDING SUSPENDED PROVISIONING "
               "ACTIVE ACTIVE ACTIVE ACTIVE",
        nodes="CREATING READY READY READY PREEMPTED READY READY", runs="- running - - ended:0")
    again = ["delete", "create", "setup", "start"]
    assert calls == ["create", "setup", "start", *again, *again], calls
    assert done.returncode == 0 and done.stdout.splitlines() == [
        "mine: WAITING_FOR_RESOURCES", "mine: CREATING", "mine: SUSPENDING",
        "mine: LOST (SUSPENDED); asking for another", "mine: PROVISIONING",
        "mine: LOST (PREEMPTED); asking for another", "mine: the run has ended"]


def test_the_watch_ends_with_the_run(tmp_path: Path) -> None:
    done, calls = watched(tmp_path, "ACTIVE ACTIVE ACTIVE", "READY READY READY", "running ended:1 ended:0")
    assert done.returncode == 0 and calls == ["start"] and "the run has ended" in done.stdout


@pytest.mark.parametrize(("runs", "starts"), [("ended:1 ended:1", 1), ("ended:2", 0)])
def test_the_watch_gives_up_on_a_run_that_fails(runs: str, starts: int, tmp_path: Path) -> None:
    done, calls = watched(tmp_path, "ACTIVE ACTIVE", "READY READY", runs)
    assert done.returncode == 1 and calls == ["start"] * starts and "tpu/tpu.sh logs" in done.stderr


@pytest.mark.skipif(shutil.which("rsync") is None, reason="workers have rsync")
def test_a_worker_keeps_a_session_in_the_bucket_and_goes_on_from_it_elsewhere(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    for machine in ("one", "two"):
        home = tmp_path / machine
        (home / "venv" / "bin").mkdir(parents=True)
        (home / "jaxnano").mkdir()
        (home / "shared").symlink_to(bucket)
        (home / "venv" / "bin" / "python").write_text(PYTHON)
        (home / "venv" / "bin" / "python").chmod(0o755)
        done = bash("worker.sh", "run", "mine", "loop", "--minutes", "9", HOME=str(home))
        assert done.returncode == 0, done.stderr
        assert bash("worker.sh", "status", "mine", HOME=str(home)).stdout == "ended 3\n"
    first, second = (bucket / "mine" / "trials" / "calls").read_text().splitlines()
    assert first.endswith("--minutes 9") and second.endswith("--resume")
    with closing(sqlite3.connect(bucket / "mine" / "ledger.sqlite")) as ledger:
        assert ledger.execute("select count(*) from events").fetchone() == (2,)


def test_a_signal_to_the_worker_ends_the_run_as_its_own_code_says(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "jaxnano").mkdir()
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text("#!/usr/bin/env bash\ntrap 'exit 143' TERM\necho \"$*\"\nread -r <>\"$HOME/never\"\n")
    python.chmod(0o755)
    os.mkfifo(tmp_path / "never")
    command = ["bash", str(FOLDER / "worker.sh"), "run", "mine", "train", "--steps", "9"]
    environment = os.environ | {"HOME": str(tmp_path)}
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env=environment) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline().split() == [
            "-m", "jaxnano.train", "--distributed", "--out", f"{tmp_path}/shared/mine", "--resume", "--steps", "9"]
        worker.terminate()
        assert worker.wait(timeout=60) == 0 and (tmp_path / "mine.code").read_text() == "143\n"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_scripts_are_clean() -> None:
    done = subprocess.run(["shellcheck", *map(str, sorted(FOLDER.glob("*.sh")))], text=True, capture_output=True,
                          check=False)
    assert done.returncode == 0, done.stdout
