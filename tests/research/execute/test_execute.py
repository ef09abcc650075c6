import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from executor_contract import ExecutorContract, wait_for, wait_until

from research.execute import ExecutorError, Job
from research.execute.local import LocalExecutor
from research.ledger.session import read_result
from research.machine import ROOT, cores, process_identity
from research.machine.place import Place
from tests.jaxnano import events

HERE = Path(__file__).parent.parent


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A factory of executors whose workers find the test targets; all are closed at the end."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    with contextlib.ExitStack() as stack:

        def build(count=1, places=None, **options):
            places = places or [Place(())] * count
            options = {"warm": (), **options}
            return stack.enter_context(contextlib.closing(LocalExecutor(places, tmp_path / "workers", **options)))

        yield build


class TestLocal(ExecutorContract):
    @pytest.fixture
    def executor(self, make):
        return make()


def test_job_runs_pinned_and_its_prints_stay_out_of_the_protocol(make, job, tmp_path):
    core = cores()[-1]
    executor = make(places=[Place((core,))])
    executor.submit(0, job("answer", loss=2.5))
    messages = wait_for(executor, "result")
    assert [m.kind for m in messages] == ["ready", "progress", "progress", "result"]
    assert [m.body for m in messages[1:3]] == [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]
    result = messages[-1]
    assert (result.id, result.attempt, result.worker) == ("trial", 1, 0)
    assert result.body["loss"] == {"search": 2.5} and result.body["wall_s"] > 0
    assert result.body["pid"] == executor.pid(0) == messages[0].body["pid"] != os.getpid()
    assert result.body["cores"] == ([core] if hasattr(os, "sched_getaffinity") else [])
    assert "device_count=1 --xla_cpu_multi_thread_eigen=false" in result.body["xla_flags"]
    assert result.body["stdin"] == ""
    assert read_result(tmp_path / "trial", 1) == result.body
    log = (tmp_path / "trial" / "log.txt").read_text()
    assert all(text in log for text in ("from print", "from C", "to stderr"))
    metrics = [json.loads(line) for line in (tmp_path / "trial" / "metrics.jsonl").read_text().splitlines()]
    assert metrics == [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]


def test_no_worker_is_given_a_key(make, job, monkeypatch):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://me:sesame@host")
    monkeypatch.setenv("OTHER", "stays")
    executor = make()
    executor.submit(0, job("environment"))
    found = wait_for(executor, "result")[-1].body["found"]
    assert "stays" in found and not any("sesame" in value for value in found)


def test_curves_go_to_event_files_if_asked_for(make, job, tmp_path):
    executor = make(tensorboard=True)
    executor.submit(0, Job(**job("answer", loss=2.5), about={"hypothesis": "it helps\x1b[2J"}))
    wait_for(executor, "result")
    written = events.read_events(tmp_path / "trial")
    curves = {"loss": events.of("loss", events.rows(tmp_path / "trial")), "final_loss/search": [(2, 2.5)]}
    assert events.scalars(written) == curves and curves["loss"] == [(2, 0.5)]
    assert b"    it helps [2J" in [t for e in written for v in e.summary.value for t in v.tensor.string_val]


def test_prints_between_jobs_go_to_the_worker_log(make, tmp_path):
    executor = make(warm=("this",))  # a module that prints when it is imported
    assert [m.kind for m in wait_for(executor, "ready")] == ["ready"]
    executor.close()
    assert "The Zen of Python" in (tmp_path / "workers" / "worker-0.log").read_text()


@pytest.mark.parametrize(("what", "reason"), [("room", "OSError: .*No space left"), ("memory", "MemoryError")])
def test_what_a_machine_has_no_room_for_is_interrupted_and_no_failure(make, job, tmp_path, what, reason):
    executor = make()
    executor.submit(0, job("run_out", what=what))
    found = wait_for(executor, "result")[-1].body
    assert (found["outcome"], found["machine"]) == ("interrupted", True) and re.match(reason, found["reason"])
    assert read_result(tmp_path / "trial", 1) == found


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("file", ["log.txt", "metrics.jsonl.tmp"])
def test_a_file_that_cannot_be_written_interrupts_the_run_and_not_the_worker(make, job, tmp_path, file):
    executor = make()
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / file).symlink_to("/dev/full")
    executor.submit(0, job("answer", loss=1.0))
    found = wait_for(executor, "result")[-1].body
    assert (found["outcome"], found["attempt"], found["machine"]) == ("interrupted", 1, True)
    assert "No space left" in found["reason"]
    executor.submit(0, job("answer", key="next", loss=1.0))
    after = wait_for(executor, "result")[-1].body
    assert after["outcome"] == "completed" and after["pid"] == executor.pid(0)


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no small disk can be had here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root of Linux can mount a small disk")
def test_on_a_full_disk_a_run_is_interrupted_and_completes_once_there_is_room(make, job, disk):
    executor = make()
    filler, folder = disk / "filler", disk / "trial"
    folder.mkdir()
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(4 * 2**20))
    for attempt in (1, 2):
        executor.submit(0, Job(**job("answer", attempt=attempt, loss=1.0) | {"dir": str(folder)}))
        found = wait_for(executor, "result")[-1].body
        assert (found["outcome"], found["attempt"]) == ("interrupted" if attempt == 1 else "completed", attempt)
        assert attempt == 2 or (found["machine"] and "No space left" in found["reason"])
        filler.unlink(missing_ok=True)
    assert read_result(folder, 2) == found and found["pid"] == executor.pid(0)


def test_workers_work_side_by_side(make, job):
    executor = make(2)
    executor.submit(0, job("spin", key="long"))
    wait_for(executor, "progress")
    executor.submit(1, job("answer", key="short", loss=1.0))
    messages = [m for m in wait_for(executor, "result") if m.worker == 1]
    assert messages[-1].id == "short"
    with pytest.raises(ValueError, match="worker 0 still has long"):
        executor.submit(0, job("answer"))


def test_idle_worker_killed_from_outside_is_replaced(make):
    executor = make()
    wait_for(executor, "ready")
    os.kill(executor.pid(0), signal.SIGKILL)
    died, ready = wait_for(executor, "ready")
    assert (died.kind, died.id) == ("died", None) and ready.body["pid"] == executor.pid(0)


def test_result_written_before_the_death_is_not_lost(make, job, tmp_path):
    executor = make()
    executor.submit(0, job("write_and_die", dir=str(tmp_path / "trial")))
    messages = [m for m in wait_for(executor, "died") if m.kind != "ready"]
    assert [(m.kind, m.id) for m in messages] == [("result", "trial"), ("died", None)]
    assert messages[0].body["loss"] == {"search": 1.0} and messages[1].body["exit"] == 3


def test_a_result_of_another_job_in_the_same_folder_is_not_taken_for_this_one(make, job, tmp_path):
    executor = make()
    executor.submit(0, job("answer", key="first", loss=1.0) | {"dir": str(tmp_path / "shared")})
    wait_for(executor, "result")
    executor.submit(0, job("hang", key="second") | {"dir": str(tmp_path / "shared")})
    wait_for(executor, "progress")
    executor.kill(0)
    messages = wait_for(executor, "died")
    assert messages[-1].id == "second" and all(m.kind != "result" for m in messages)
    assert read_result(tmp_path / "shared", 1, "first") is not None


def test_outgrown_worker_is_replaced_between_jobs(make, job):
    executor = make(rss_limit_mb=80.0)
    executor.submit(0, job("grow"))
    messages = wait_for(executor, "ready", count=2)
    assert [m.kind for m in messages] == ["ready", "progress", "result", "ready"]
    old, new = messages[2].body["pid"], messages[3].body["pid"]
    assert new == executor.pid(0) != old
    assert process_identity(old) is None
    executor.submit(0, job("answer", key="next", loss=1.0))
    assert wait_for(executor, "result")[-1].body["pid"] == new


def test_worker_that_cannot_start_is_reported_with_its_last_words(make):
    executor = make(warm=("no_such_module",))
    with pytest.raises(ExecutorError, match=r"worker 0 \(any core\) ended 3 times .*No module named 'no_such_module'"):
        wait_for(executor, "ready")


def test_ctrl_c_does_not_reach_workers_and_close_ends_them(make, job):
    executor = make(2)
    wait_for(executor, "ready", count=2)
    executor.submit(0, job("spin"))
    wait_for(executor, "progress")
    workers = [executor.pid(0), executor.pid(1)]
    assert all(os.getpgid(pid) != os.getpgid(0) for pid in workers)
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    wait_for(executor, "progress", count=20)
    assert [executor.pid(0), executor.pid(1)] == workers
    executor.close()
    assert all(process_identity(pid) is None for pid in workers)


def test_no_worker_outlives_a_killed_loop(tmp_path):
    path = os.pathsep.join([str(ROOT), str(HERE)])
    command = [sys.executable, str(HERE / "loop_process.py"), str(tmp_path / "session")]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True) as loop:
        assert loop.stdout is not None
        workers = json.loads(loop.stdout.readline())
        assert all(process_identity(pid) for pid in workers)
        loop.kill()
    wait_until(lambda: not any(map(process_identity, workers)), "workers of the killed loop are gone")


def test_worker_ends_with_its_stdin(job):
    command = [sys.executable, "-m", "research.execute.worker", "--parent", str(os.getpid())]
    pipe = subprocess.PIPE
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(json.dumps(job("hang")) + "\n")
        worker.stdin.flush()
        assert [json.loads(worker.stdout.readline())["kind"] for _ in range(2)] == ["ready", "progress"]
        worker.stdin.close()
        try:
            assert worker.wait(3.0) == 0
        finally:
            worker.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_worker_ends_with_its_parent_even_if_stdin_stays_open():
    start = "import os, subprocess, sys; command = [sys.executable, '-m', 'research.execute.worker', '--parent']\n"
    start += "subprocess.run([*command, str(os.getpid())])"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", start], env=env, stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdout is not None
        assert json.loads(parent.stdout.readline())["kind"] == "ready"
        parent.kill()
        ended, _, _ = select.select([parent.stdout], [], [], 3.0)
        assert ended and parent.stdout.read() == ""  # the worker, which held it open too, is gone
