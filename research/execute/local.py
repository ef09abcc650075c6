"""Workers on this machine: one single-threaded process a core, or one a place of accelerators.

One thread a process is faster in sum than one process on all cores, and its results are bit-stable (LOG.md). A worker
grows with every structure it compiles and gives nothing back, so one that has outgrown its bound is replaced between
jobs: its successor starts, and imports, while the old one still works.
"""

import argparse
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from jaxnano.cgroup import memory_bytes
from jaxnano.cli import UserError
from research.execute import ExecutorError, Job, Message, Offer
from research.ledger.placed import Placed
from research.ledger.session import read_result
from research.machine import ROOT
from research.machine.place import Place, free_port, places

START_ATTEMPTS = 3  # a worker that dies so often before it is ready will not start at all
CLOSE_S = 2.0
WORKER_MB, MEMORY_SHARE = 3000.0, 0.7  # a worker above this is replaced: each new structure costs it 42 MB for good
KEYS = frozenset({"GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"})  # no run asks a model


def rss_limit_mb(workers: int) -> float:
    """Resident memory, in 2**20 bytes, above which one of so many workers on this machine is replaced."""
    return min(WORKER_MB, MEMORY_SHARE * memory_bytes() / 2**20 / workers)


def offer(options: argparse.Namespace, workers: int | None, devices: int | str) -> Offer:
    """So many of this machine's places, or all; the memory of a CPU is shared among them, and bounds them."""
    if devices == "slice":
        raise UserError("--devices-per-trial: slice: this machine is one host; --executor ray would reach the others")
    here = places(workers, devices, options.platform)
    first, count = here[0], len(here)
    place = Placed(kind=first.kind, model=first.model, devices=first.devices, processes=first.hosts)
    if first.accelerated:
        return Offer(count, None, place, partial(LocalExecutor, here))
    each_bytes = memory_bytes() // (count * first.devices)
    return Offer(count, each_bytes, place, partial(LocalExecutor, here, rss_limit_mb=rss_limit_mb(count)))


class _Process:
    """A worker's process and the bytes it has sent so far."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        with open(log, "ab") as stderr:
            # In a session of its own: the terminal's Ctrl-C and hang-up reach the loop alone.
            self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                                          env=dict(env), bufsize=0, start_new_session=True)
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.stdin: IO[bytes] = self.popen.stdin
        self.stdout: IO[bytes] = self.popen.stdout
        os.set_blocking(self.stdout.fileno(), False)
        self.ready = False
        self._buffer = b""

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one line; a process that died meanwhile is found by its closed stdout instead."""
        data = (json.dumps(message) + "\n").encode()
        try:
            while data:
                data = data[self.stdin.write(data) or 0 :]
        except BrokenPipeError:
            pass

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """Whole lines that have arrived, and whether the process closed its end."""
        ended = False
        while True:
            chunk = self.stdout.read(1 << 16)
            if not chunk:
                ended = chunk == b""  # None: nothing more for now
                break
            self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines], ended

    def end(self, wait_s: float = 0.0) -> int:
        """Close the pipes and make sure that the process is gone; returns its exit status, minus a signal."""
        for pipe in (self.stdin, self.stdout):
            pipe.close()
        try:
            return self.popen.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()


@dataclass
class _Slot:
    """One worker: its place, its process, the successor being started (if any) and the job it has (if any)."""

    number: int
    place: Place
    current: _Process
    successor: _Process | None = None
    job: Job | None = None
    failed_starts: int = 0


class LocalExecutor:
    """An Executor over this machine's places. Create and use it from a thread that lives as long as it does."""

    def __init__(self, places: Sequence[Place], log_dir: Path, warm: Sequence[str] = ("jax",),
                 tensorboard: bool = False, *, rss_limit_mb: float | None = None, join: Sequence[str] = ()) -> None:
        """Start the workers, without waiting for them.

        Args: places: see research.machine.place. log_dir, warm, tensorboard: see research.execute.Offer.
        rss_limit_mb: a worker above this is replaced after its job. join: of the one worker's gang, see
        research.execute.worker.
        """
        self.workers = len(places)
        self._log_dir, self._rss_limit_mb, self._warm = log_dir, rss_limit_mb, list(warm)
        self._tensorboard, self._join = tensorboard, list(join)
        self._selector = selectors.DefaultSelector()
        self._pending: deque[Message] = deque()
        log_dir.mkdir(parents=True, exist_ok=True)
        self._slots = [_Slot(number, place, self._start(number, place)) for number, place in enumerate(places)]

    def pid(self, worker: int) -> int:
        """Process number of a worker's present process."""
        return self._slots[worker].current.popen.pid

    def present(self, worker: int) -> bool:
        """Always: this machine is where the loop is."""
        return True

    def where(self, worker: int) -> str:
        """The worker and its place."""
        return f"worker {worker} ({self._slots[worker].place})"

    def fileno(self) -> int:
        """A descriptor that can be read from when `poll` would not wait."""
        return self._selector.fileno()

    def submit(self, worker: int, job: Job) -> None:
        """Give an idle worker a job; one that is not ready yet takes it when it is.

        Raises: ValueError if the worker has a job.
        """
        slot = self._slots[worker]
        if slot.job is not None:
            raise ValueError(f"worker {worker} still has {slot.job['id']}")
        slot.job = job
        slot.current.send(job)

    def cancel(self, worker: int, reason: str) -> None:
        """Ask the worker's job to stop at its next report."""
        slot = self._slots[worker]
        if slot.job is not None:
            slot.current.send({"cancel": slot.job["id"], "attempt": slot.job["attempt"], "reason": reason})

    def kill(self, worker: int) -> None:
        """End the worker's process; `died` follows and a new process starts."""
        self._slots[worker].current.popen.kill()

    def poll(self, timeout_s: float) -> list[Message]:
        """Messages since the last call; waits up to timeout_s seconds for the first one.

        Raises: ExecutorError if a worker cannot be started.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            wait_s = 0.0 if self._pending else max(0.0, deadline - time.monotonic())
            ready = self._selector.select(wait_s)
            for key, _ in ready:
                if self._selector.get_map().get(key.fd) == key:  # not dropped by what was handled before it
                    self._receive(*key.data)
            if self._pending or (not ready and time.monotonic() >= deadline):
                messages = list(self._pending)
                self._pending.clear()
                return messages

    def close(self) -> None:
        """End all workers; returns when they are gone."""
        processes = [process for slot in self._slots for process in (slot.current, slot.successor) if process]
        for process in processes:
            process.stdin.close()
        deadline = time.monotonic() + CLOSE_S
        for process in processes:
            process.end(max(0.0, deadline - time.monotonic()))
        self._selector.close()
        self._slots = []

    def _start(self, number: int, place: Place) -> _Process:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        kept = {name: value for name, value in os.environ.items() if name not in KEYS}
        own = place.environment(free_port() if place.kind == "tpu" else 0)
        env = {name: value for name, value in {**kept, "PYTHONPATH": path, **own}.items() if value is not None}
        command = [sys.executable, "-m", "research.execute.worker", "--parent", str(os.getpid())]
        command += ["--cores", *map(str, place.cores), "--warm", *self._warm]
        command += ["--join", *self._join] if self._join else []
        command += ["--tensorboard"] * self._tensorboard
        process = _Process(command, env, self._log(number))
        self._selector.register(process.stdout, selectors.EVENT_READ, (number, process))
        return process

    def _log(self, number: int) -> Path:
        return self._log_dir / f"worker-{number}.log"

    def _receive(self, number: int, process: _Process) -> None:
        slot = self._slots[number]
        lines, ended = process.receive()
        for line in lines:
            self._take(slot, process, line)
        if ended and process in (slot.current, slot.successor):
            self._selector.unregister(process.stdout)
            self._bury(slot, process)

    def _take(self, slot: _Slot, process: _Process, line: dict[str, Any]) -> None:
        if line["kind"] == "ready":
            process.ready, slot.failed_starts = True, 0
            if process is slot.current:
                self._pending.append(Message("ready", slot.number, body={"pid": process.popen.pid}))
        else:
            self._pending.append(Message(line["kind"], slot.number, line["id"], line["attempt"], line["body"]))
            if line["kind"] == "result":
                slot.job = None
            outgrown = self._rss_limit_mb is not None and line["rss_mb"] > self._rss_limit_mb
            if outgrown and slot.successor is None:
                slot.successor = self._start(slot.number, slot.place)
        if slot.job is None and slot.successor is not None and slot.successor.ready:
            self._succeed(slot)

    def _succeed(self, slot: _Slot) -> None:
        """Replace an idle worker by its successor, which is ready."""
        assert slot.successor is not None
        self._selector.unregister(slot.current.stdout)
        slot.current.end(CLOSE_S)
        slot.current, slot.successor = slot.successor, None
        self._pending.append(Message("ready", slot.number, body={"pid": slot.current.popen.pid}))

    def _bury(self, slot: _Slot, process: _Process) -> None:
        """A process has ended: save the result it may have left, say so, and start another one."""
        status = process.end(CLOSE_S)
        if not process.ready:
            slot.failed_starts += 1
        if slot.failed_starts >= START_ATTEMPTS:
            log = self._log(slot.number)
            last = [*log.read_text(errors="replace").strip().splitlines()[-1:], "(empty)"][0]
            raise ExecutorError(f"{self.where(slot.number)} ended {START_ATTEMPTS} times before it was ready (exit "
                                f"{status}); see {log}: {last}")
        if process is slot.successor:
            slot.successor = None
            return
        job, slot.job = slot.job, None
        result = read_result(Path(job["dir"]), job["attempt"], job["id"]) if job else None
        if job and result is not None:  # it died after writing its result and before saying so
            self._pending.append(Message("result", slot.number, job["id"], job["attempt"], result))
            job = None
        reason = f"the process ended by signal {-status}" if status < 0 else f"the process ended with status {status}"
        about = (job["id"], job["attempt"]) if job else (None, None)
        self._pending.append(Message("died", slot.number, *about, {"exit": status, "reason": reason}))
        if slot.successor is not None:
            slot.current, slot.successor = slot.successor, None
            if slot.current.ready:
                self._pending.append(Message("ready", slot.number, body={"pid": slot.current.popen.pid}))
        else:
            slot.current = self._start(slot.number, slot.place)
