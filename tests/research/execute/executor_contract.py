"""What the loop needs of every executor. A new one adds a class that inherits this, with a fixture `executor`."""

import os
import signal
import time
import weakref

import pytest

from research.execute import Job
from research.ledger.session import read_result

DEADLINE_S = 300.0
EARLY = weakref.WeakKeyDictionary()  # messages by executor


def wait_for(executor, kind, worker=None, count=1):
    """All messages (of one worker, if it is named) up to the count-th of `kind`; fails when they do not come.

    What one poll brings beyond that one is kept for the next call.
    """
    messages, deadline, coming = [], time.monotonic() + DEADLINE_S, EARLY.pop(executor, [])
    while sum(message.kind == kind for message in messages) < count:
        assert time.monotonic() < deadline, f"no {kind} within {DEADLINE_S} s, only {messages}"
        coming = coming or executor.poll(0.5)
        if coming and worker in (None, coming[0].worker):
            messages.append(coming[0])
        coming = coming[1:]
    EARLY[executor] = coming
    return messages


def wait_until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        os.sched_yield() if hasattr(os, "sched_yield") else None


class ExecutorContract:
    """The fixture `executor`: one that has been started, whose workers find worker_targets and import nothing first."""

    def test_a_worker_outlives_its_jobs_and_their_failures(self, executor, job, tmp_path):
        reasons = {}
        for target in ("fail", "leave", "bad_result", "answer"):
            executor.submit(0, job(target, key=target, loss=1.0))
            last = wait_for(executor, "result", 0)[-1]
            reasons[target] = last.body
            assert (last.id, last.attempt) == (target, 1) and read_result(tmp_path / target, 1, target) == last.body
        assert reasons["fail"]["outcome"] == reasons["leave"]["outcome"] == reasons["bad_result"]["outcome"] == "failed"
        assert reasons["fail"]["reason"] == "ValueError: no such luck"
        assert reasons["answer"]["outcome"] == "completed"
        assert reasons["answer"]["pid"] == executor.pid(0)

    def test_what_a_job_brings_is_there_and_stays(self, executor, job, tmp_path):
        for attempt, size in ((1, 17 << 20), (2, 5)):  # more than a message holds, and of another attempt
            there = tmp_path / "trial" / "checkpoint"
            (there / "deep").mkdir(parents=True, exist_ok=True)
            (there / "deep" / "weights").write_bytes(bytes(size))
            (tmp_path / "trial" / "other").write_text("is not asked for")
            executor.submit(0, Job(**job("read_files", attempt=attempt, folder=str(there)), brings=["checkpoint"]))
            found = wait_for(executor, "result", 0)[-1].body
            assert (found["outcome"], found["found"]) == ("completed", {"deep/weights": size}), found
            assert (there / "deep" / "weights").stat().st_size == size

    @pytest.mark.parametrize(("target", "steps"), [("spin", None), ("stop_with_what_it_has", 7)])
    def test_cancel_ends_the_job_and_keeps_the_process(self, executor, job, target, steps):
        executor.submit(0, job(target))
        wait_for(executor, "progress")
        with pytest.raises(ValueError, match="worker 0 still has trial"):
            executor.submit(0, job("answer"))
        executor.cancel(0, "hopeless")
        result = wait_for(executor, "result")[-1].body
        assert (result["outcome"], result["reason"], result.get("steps")) == ("killed", "hopeless", steps)
        executor.cancel(0, "too late")  # no job: nothing happens, and the next one is not hit by it
        executor.submit(0, job("answer", key="next", loss=1.0))
        following = wait_for(executor, "result")[-1].body
        assert following["outcome"] == "completed" and following["pid"] == executor.pid(0)

    def test_kill_gives_died_with_the_job_and_a_fresh_worker(self, executor, job, tmp_path):
        executor.submit(0, job("answer", loss=1.0))
        wait_for(executor, "result")
        executor.submit(0, job("hang", attempt=2))
        wait_for(executor, "progress")
        before = executor.pid(0)
        executor.kill(0)
        *others, died = wait_for(executor, "died")
        assert (died.id, died.attempt, died.body["exit"]) == ("trial", 2, -signal.SIGKILL)
        assert all(m.kind != "result" for m in others) and read_result(tmp_path / "trial", 2) is None  # the first's
        executor.submit(0, job("answer", attempt=3, loss=1.0))
        messages = wait_for(executor, "result", 0)
        assert messages[0].kind == "ready" and messages[-1].body["pid"] == executor.pid(0) != before
        assert "attempt 2" in (tmp_path / "trial/log.txt").read_text(), "the log of the attempt that died came too"
