"""tpu.sh: the commands it prints, what it refuses, and all that it asks of a cloud that only writes them down."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import FOLDER, bash, lines, program

PLACE = ["--zone", "us-east5-a", "--bucket", "gs://my-bucket/runs"]
TYPES = {"v6e-8": "v2-alpha-tpuv6e", "v5p-16": "v2-alpha-tpuv5"}  # a VM, a slice of two; and their software

# Writes down every call; answers `describe` and the worker's `status` with the next line of a file each.
GCLOUD = """#!/usr/bin/env bash
next() { line=$(head -n 1 "$1"); sed -i 1d "$1"; if [[ $line == NOT_FOUND ]]; then echo "$line" >&2; exit 1; fi
         echo "${line/:/ }"; }
cd "$(dirname "$0")"
echo "$*" >>calls
case "$*" in
  *queued-resources\\ describe*) next states ;;
  *tpu-vm\\ describe*) next nodes ;;
  *worker.sh\\ status*) next runs ;;
esac
"""


def printed(*arguments: str) -> list[list[str]]:
    """The commands of a dry run, split as a shell would."""
    done = bash("tpu.sh", arguments[0], arguments[1], "--dry-run", *arguments[2:])
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def remote(command: list[str]) -> list[str]:
    """What a command runs on the workers, as their shell splits it."""
    return shlex.split(next(word for word in command if word.startswith("--command=")).removeprefix("--command="))


def asked(folder: Path, command: str, *arguments: str, states: str = "", nodes: str = "", runs: str = ""
          ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """tpu.sh under a cloud with these answers, and all that it asked of the cloud meanwhile."""
    program(folder / "gcloud", GCLOUD)
    (folder / "calls").unlink(missing_ok=True)
    for name, answers in (("states", states), ("nodes", nodes), ("runs", runs)):
        (folder / name).write_text("".join(f"{line}\n" for line in answers.split()))
    done = bash("tpu.sh", command, "mine", *PLACE, *arguments, PATH=f"{folder}:{os.environ['PATH']}")
    return done, lines(folder / "calls")


def watched(folder: Path, **answers: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The watch, and what it changed."""
    done, calls = asked(folder, "watch", "--interval", "0", "--restarts", "1", "--", "--minutes", "9", **answers)
    verbs = ("create", "delete", "worker.sh setup", "worker.sh start")
    named = (next((verb for verb in verbs if verb in call), None) for call in calls)
    return done, [verb.removeprefix("worker.sh ") for verb in named if verb]


def test_one_vm_runs_the_loop() -> None:
    create, = printed("create", "mine", *PLACE)
    assert create == shlex.split("gcloud compute tpus queued-resources create mine --node-id=mine "
                                 "--accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e --spot --zone=us-east5-a")
    run, = printed("run", "mine", *PLACE, "--", "--minutes", "60")
    assert remote(run) == ["bash", "jaxnano/tpu/worker.sh", "start", "mine", "loop", "--minutes", "60"]


def test_a_slice_trains_on_all_workers_and_words_arrive_as_they_were() -> None:
    words = ["--config", "configs/a b.yaml", "--set", "x=$(rm -rf /)", "it's", ""]
    run, = printed("run", "mine", *PLACE, "--type", "v5p-16", "--project", "my-project", "--", *words)
    assert "--worker=all" in run and "--project=my-project" in run
    assert remote(run) == ["bash", "jaxnano/tpu/worker.sh", "start", "mine", "train", *words]
    create, = printed("create", "mine", *PLACE, "--type", "v5p-16", "--on-demand")
    assert "--runtime-version=v2-alpha-tpuv5" in create and "--spot" not in create


@pytest.mark.parametrize(("kind", "program", "start"), [
    ("v6e-8", "loop", ["loop"]), ("v6e-8", "train", ["train"]), ("v5p-16", "train", ["train"]),
    ("v5p-16", "loop", ["loop", "--devices-per-trial", "slice"])])
def test_either_program_runs_on_either_machine(kind: str, program: str, start: list[str]) -> None:
    run, = printed("run", "mine", *PLACE, "--type", kind, "--program", program, "--", "--steps", "9")
    assert "--worker=all" in run
    assert remote(run) == ["bash", "jaxnano/tpu/worker.sh", "start", "mine", *start, "--steps", "9"]


@pytest.mark.parametrize(("kind", "start"), [
    ("v6e-8", "loop --minutes 9"), ("v5p-16", "loop --devices-per-trial slice --minutes 9")])
def test_the_calls_of_a_session_that_is_preempted_and_goes_on(kind: str, start: str, tmp_path: Path) -> None:
    """Asked for, set up and begun; taken away; the same again, of which the worker makes a --resume; its end."""
    compute, zone = "compute tpus", "--zone=us-east5-a"
    ssh = f"{compute} tpu-vm ssh mine --worker={{}} --command={{}} --quiet"
    queue = f"{compute} queued-resources describe mine --format=value(state.state) {zone}"
    look = [queue, f"{compute} tpu-vm describe mine --format=value(state) {zone}",
            f"{ssh.format(0, 'bash jaxnano/tpu/worker.sh status mine')} {zone}"]
    create = (f"{compute} queued-resources create mine --node-id=mine --accelerator-type={kind} "
              f"--runtime-version={TYPES[kind]} --spot {zone}")
    delete = f"{compute} queued-resources delete mine --force --quiet {zone}"
    begin = [f"git -C {FOLDER.parent} archive --prefix=jaxnano/ --output={FOLDER.parent}/build/mine.tar.gz HEAD",
             f"{compute} tpu-vm scp {FOLDER.parent}/build/mine.tar.gz mine:jaxnano.tar.gz --worker=all --quiet {zone}",
             *(f"{ssh.format('all', words)} {zone}" for words in (
                 "tar --recursive-unlink -xzf jaxnano.tar.gz",
                 "bash jaxnano/tpu/worker.sh setup gs://my-bucket/runs",
                 f"bash jaxnano/tpu/worker.sh start mine {start}"))]
    program(tmp_path / "git", '#!/bin/sh\necho "git $*" >>"${0%git}calls"\n')
    done, calls = asked(
        tmp_path, "watch", "--type", kind, "--program", "loop", "--interval", "0", "--", "--minutes", "9",
        states="NOT_FOUND ACTIVE ACTIVE SUSPENDED ACTIVE ACTIVE", nodes="READY READY READY READY",
        runs="- running - ended:0")
    assert calls == [queue, create, *look, *begin, *look, queue, delete, create, *look, *begin, *look]
    assert done.returncode == 0 and done.stdout.splitlines() == [
        "mine: LOST (SUSPENDED); asking for another", "mine: the run has ended"]
    done, calls = asked(tmp_path, "collect", "--out", str(tmp_path / "here"))
    assert calls == [f"storage rsync --recursive gs://my-bucket/runs/mine {tmp_path}/here/mine"]
    assert done.returncode == 0 and (tmp_path / "here" / "mine").is_dir()
    assert asked(tmp_path, "delete")[1] == [delete]


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
    (["run", "mine", *PLACE, "--program", "sample"], "--program: 'sample': loop or train would do"),
    (["watch", "mine", *PLACE, "--interval", "1h"], "--interval: '1h'"),
])
def test_bad_input_is_one_line_and_code_2(arguments: list[str], reason: str) -> None:
    done = bash("tpu.sh", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and reason in done.stderr


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
    done, calls = watched(tmp_path, states="ACTIVE ACTIVE ACTIVE", nodes="READY READY READY",
                          runs="running ended:1 ended:0")
    assert done.returncode == 0 and calls == ["start"] and "the run has ended" in done.stdout


@pytest.mark.parametrize(("runs", "starts"), [("ended:1 ended:1", 1), ("ended:2", 0)])
def test_the_watch_gives_up_on_a_run_that_fails(runs: str, starts: int, tmp_path: Path) -> None:
    done, calls = watched(tmp_path, states="ACTIVE ACTIVE", nodes="READY READY", runs=runs)
    assert done.returncode == 1 and calls == ["start"] * starts and "tpu/tpu.sh logs" in done.stderr


SHELLCHECK = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_the_scripts_are_clean() -> None:
    done = subprocess.run([str(SHELLCHECK), *map(str, sorted(FOLDER.glob("*.sh")))], text=True, capture_output=True,
                          check=False)
    assert done.returncode == 0, done.stdout
