"""One worker process: reads a job a line, runs it, writes its result, says so. `python -m research.execute.worker`.

It is alone on its core, outlives its jobs (so that compiled programs stay) and does not outlive the loop: Linux kills
it when the loop's thread that started it ends, and everywhere a thread watches stdin and exits at its end.

Lines in:  {"id", "attempt", "dir", "target", "args"} (a job) or {"cancel": id, "attempt", "reason"}.
Lines out: {"kind": "ready" | "progress" | "result", "id", "attempt", "body", "rss_mb"}.
Whatever a library prints goes to the trial's log.txt, or between trials to the worker's own log, never between these.
"""

import argparse
import ctypes
import importlib
import json
import os
import pkgutil
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxnano.curves import Curves
from research import machine
from research.execute import Cancelled, Job
from research.ledger.events import encode
from research.ledger.session import write_result
from research.text import clean

_PR_SET_PDEATHSIG = 1


class Inbox:
    """Jobs and cancellations from stdin, read by a thread of their own, which ends the process at stdin's end.

    cancelled: by id and attempt of a job, why it has to stop.
    """

    def __init__(self, stdin: int) -> None:
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.cancelled: dict[tuple[str, int], str] = {}
        threading.Thread(target=self._read, args=(stdin,), daemon=True).start()

    def _read(self, stdin: int) -> None:
        try:
            with open(stdin, encoding="utf-8") as lines:
                for line in lines:
                    message = json.loads(line)
                    if "cancel" in message:
                        self.cancelled = {(message["cancel"], message["attempt"]): message["reason"]}
                    else:
                        self.jobs.put(message)
        finally:  # the loop is gone, or said something unheard of: nothing this process does has a reader any more
            os._exit(0)


class Outbox:
    """The way back to the loop: a descriptor that no library knows of."""

    def __init__(self, descriptor: int) -> None:
        self._file = open(descriptor, "wb")  # noqa: SIM115 - until the process ends

    def send(self, kind: str, job: Job | None = None, body: Mapping[str, Any] | None = None) -> None:
        about = {"id": job["id"], "attempt": job["attempt"]} if job else {}
        line = encode({"kind": kind, **about, "body": body or {}, "rss_mb": round(machine.rss_mb(), 1)}) + "\n"
        self._file.write(line.encode())
        self._file.flush()


def main(argv: list[str] | None = None) -> None:
    """Run jobs until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m research.execute.worker")
    parser.add_argument("--parent", type=int, required=True, help="process number of the loop")
    parser.add_argument("--cores", type=int, nargs="*", default=[], help="cores to run on")
    parser.add_argument("--warm", nargs="*", default=[], help="modules to import before the first job")
    parser.add_argument("--join", nargs=3, metavar=("HOST:PORT", "N", "I"), help="where process 0 of a gang of N "
                        "processes listens, and which one this is")
    parser.add_argument("--tensorboard", action="store_true", help="write event files beside metrics.jsonl")
    options = parser.parse_args(argv)
    _die_with(options.parent)
    for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C and a closed terminal are the loop's to answer
        signal.signal(number, signal.SIG_IGN)
    if options.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, options.cores)
    outbox, inbox = Outbox(os.dup(1)), Inbox(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for module in options.warm:
        importlib.import_module(module)
    agree = _join(*options.join) if options.join else int
    outbox.send("ready")
    while True:
        job = inbox.jobs.get()
        result = run(job, inbox, outbox, options.tensorboard, agree)
        outbox.send("result", job, result)


def _join(coordinator: str, processes: str, process: str) -> Callable[[int], int]:
    """Become one process of a gang. Returns: what the first one says of a number, which all of them have to ask for."""
    from jaxnano import hosts  # which imports JAX: a worker by itself leaves that to its targets

    hosts.join(coordinator, int(processes), int(process))
    return hosts.agreed


def run(job: Job, inbox: Inbox, outbox: Outbox, tensorboard: bool = False, agree: Callable[[int], int] = int
        ) -> dict[str, Any]:
    """Run one job with its output in its log; returns the result as written to its folder.

    agree: see `_join`; a gang stops where its first process has heard that it should.

    What the machine fails at (a disk that is full or read-only, memory) ends it as `interrupted`, with `machine` true:
    it says nothing of what was run. Where not even that can be written, it is returned all the same.
    """
    try:
        return _run(job, inbox, outbox, tensorboard, agree)
    except OSError as error:  # of its folder, its log, its curves or its result
        return {"attempt": job["attempt"], **_interrupted(error)}


def _run(job: Job, inbox: Inbox, outbox: Outbox, tensorboard: bool, agree: Callable[[int], int]) -> dict[str, Any]:
    folder = Path(job["dir"])
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    about = {heading: clean(text) for heading, text in job.get("about", {}).items()}
    with _output_to(folder / "log.txt"), Curves(folder, tensorboard=tensorboard, about=about) as curves:
        print(f"--- attempt {job['attempt']}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}", flush=True)

        def report(values: Mapping[str, Any]) -> None:
            row = json.loads(encode(values))
            curves.write([row])
            outbox.send("progress", job, row)
            reason = inbox.cancelled.get((job["id"], job["attempt"]))
            if agree(reason is not None):
                raise Cancelled(reason or "the gang's first process was asked to stop")

        try:
            result = pkgutil.resolve_name(job["target"])(job["args"], report)
            if not isinstance(result, dict) or "outcome" not in result:
                raise TypeError(f"{job['target']} returned {result!r:.80}, not a dict with an outcome")
            plain = json.loads(encode(result))  # one that is not JSON data is the target's failure, not this worker's
            curves.final(plain.get("steps"), plain.get("loss") or {})
        except Cancelled as reason:
            result = {"outcome": "killed", "reason": str(reason)}
        except (OSError, MemoryError) as error:
            traceback.print_exc()
            result = _interrupted(error)
        except (Exception, SystemExit) as error:  # whatever a trial does, the worker goes on and the loop hears of it
            traceback.print_exc()
            result = {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
        return write_result(folder, job["attempt"], {"wall_s": time.perf_counter() - started, **result}, job["id"])


def _interrupted(error: BaseException) -> dict[str, Any]:
    return {"outcome": "interrupted", "machine": True, "reason": f"{type(error).__name__}: {error}"[:500]}


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send what Python and C print to the file, appended, for the time of the block."""
    sys.stdout.flush()
    saved = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # the log's disk is full: the streams must lead elsewhere again all the same
                stream.flush()
        for descriptor, number in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _die_with(parent: int) -> None:
    """Have the kernel end this process with the loop, and be the first to go when memory runs out (Linux)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(0)
    Path("/proc/self/oom_score_adj").write_text("500")


if __name__ == "__main__":
    main()
