"""Workers on a Ray cluster: one trial a GPU, a TPU chip, several of a host, or a CPU. Ray is an extra: see `connect`.

    python -m research.loop --executor ray                               # Ray on this machine
    python -m research.loop --executor ray --ray-address 10.0.0.1:6379   # a cluster this machine is a node of

Each slot is an actor that lives as long as the session, so that compiled programs stay (research.execute.node). The
ledger and the session's folder stay with the loop, and nodes share no files with it: results, curves, logs and the
checkpoint of a run that may be shipped travel as messages, and are on the loop's disk before it hears of a result.
All nodes have the loop's version of this package installed, which is checked; data is prepared and cached per node.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxnano.cli import Failure, UserError, above_zero
from jaxnano.curves import Curves
from research import machine
from research.execute import ExecutorError, Job, Message, Offer
from research.execute.local import CLOSE_S, START_ATTEMPTS
from research.execute.node import LOG, Chunk, Lost, NodeWorker, Slot, add, files, model_of
from research.ledger.placed import Placed
from research.ledger.session import write_result
from research.machine.accelerators import Accelerators
from research.machine.place import usable
from research.text import clean

KINDS = ("GPU", "TPU", "CPU")  # a cluster's workers are of the first kind that it has: results of two do not compare
STORE_BYTES = 2**28  # of a Ray of our own: for files under way, a few pieces at a time
CONNECT_S = 5.0
OF_CPUS = ("cpu", "virtual")  # platforms that use no accelerator


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what only a cluster needs."""
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="the cluster's head, or auto; a Ray here by default")
    parser.add_argument("--ray-cpus", type=float, default=1.0, help="a worker's, where the cluster has only CPUs (1)")


def check(options: argparse.Namespace) -> None:
    """Raises: UserError for options that cannot be used."""
    above_zero(options, "ray_cpus")
    if options.ray_address and options.executor != "ray":
        raise UserError(f"--ray-address: {options.ray_address}: --executor ray would use it")


def offer(options: argparse.Namespace, workers: int | None, devices: int | str) -> Offer:
    """The cluster's slots, so many at most."""
    return connect(options.ray_address, workers, options.ray_cpus, devices, options.platform)


def connect(address: str | None = None, workers: int | None = None, cpus: float = 1.0, devices: int | str = 1,
            platform: str | None = None) -> Offer:
    """Connect to a cluster, or start a Ray on this machine alone.

    Args: address: host:port, or "auto" for the one this machine is a node of; None: RAY_ADDRESS, or a Ray of our own.
    workers: at most. cpus: for each worker where there are neither GPUs nor TPUs. devices, platform: see `offered`.
    Raises: ValueError if Ray is not installed or the address is none, or if it has no such devices; Failure if nothing
    answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # a lost node's last words would go through the display
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do one day, without its warning
    try:
        import ray
    except ImportError as error:
        raise UserError('--executor ray: Ray is not installed; pip install "jaxnano[ray]" would do') from error
    address = address or os.environ.get("RAY_ADDRESS")
    answers(address)
    here = usable(platform) if not address and platform not in OF_CPUS else None
    own = {"num_cpus": len(machine.cores()), "include_dashboard": False, "object_store_memory": STORE_BYTES,
           "num_gpus": len(here.ids) if here is not None and here.kind != "tpu" else 0}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True,
                 **({} if address else own))
    except (Exception, SystemExit) as error:  # SystemExit: Ray's way to say that what listens there is no Ray
        where = f"--ray-address: {address}" if address else "--executor ray: Ray did not start on this machine"
        raise Failure(f"{where}: {_line(error)}") from error
    nodes = [node for node in ray.nodes() if node["Alive"]]
    slots = tuple(offered(nodes, cpus, devices, platform))[:workers]
    if not slots:
        ray.shutdown()
        asked = f"{cpus:g} CPUs" if platform in OF_CPUS else f"{platform or 'a GPU, a TPU or CPUs'}"
        raise Failure(f"--ray-address: {address or 'this machine'}: {len(nodes)} nodes, none with {asked} for "
                      f"{'one ' * (devices == 'slice')}{devices}{' devices' * (devices != 'slice')} a worker")
    first = slots[0]
    shared = min(slot.share_bytes for slot in slots) // first.devices if first.kind == "CPU" else None
    return Offer(len(slots), shared, placed(first, here, platform), partial(RayExecutor, slots))


def placed(slot: Slot, here: Accelerators | None, platform: str | None) -> Placed:
    """A slot's place, called as the local executor would. here: this machine's accelerators, where Ray is its own."""
    if here is not None and slot.kind != "CPU":
        return Placed(kind=here.kind, model=here.model, devices=slot.devices * slot.hosts, processes=slot.hosts)
    gpu = "rocm" if slot.model.startswith("AMD") else "cuda"
    kind = platform or {"GPU": gpu, "TPU": "tpu", "CPU": "cpu"}[slot.kind]
    return Placed(kind=kind, model=slot.model, devices=slot.devices * slot.hosts, processes=slot.hosts)


def answers(address: str | None) -> None:
    """Raises: what `connect` does for an address; Ray itself would try for two minutes."""
    if address in (None, "auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise UserError(f"--ray-address: {clean(address)}: no HOST:PORT; that of the cluster's head, or auto, would do "
                        "on one of its nodes")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise Failure(f"--ray-address: {clean(address)}: no Ray answers there ({error}); `ray start --head "
                      f"--port={port}` on that machine, or another address, would do") from error


def offered(nodes: Sequence[Mapping[str, Any]], cpus: float = 1.0, devices: int | str = 1,
            platform: str | None = None) -> Iterator[Slot]:
    """The slots of nodes: of GPUs, or else of TPU chips, all of one model; or else of CPUs, `cpus` each.

    Results of two models do not compare, and neither do those of two hosts of unlike size: the commonest counts.

    Args: nodes: as ray.nodes() tells of them. devices: accelerators of each slot; "host": all of a node's; "slice": of
    several, see research.execute.gang; on CPUs, virtual ones. platform: see research.machine.place; by default what is
    there.
    """
    able = KINDS if platform is None else ("CPU",) if platform in OF_CPUS else ("TPU",) if platform == "tpu" else (
        "GPU",)
    held: list[Mapping[str, float]] = [node["Resources"] for node in nodes]  # memory in bytes
    kind = next((kind for kind in able if any(node.get(kind) for node in held)), able[-1])
    if devices == "slice" and (kind != "CPU" or platform == "virtual"):
        from research.execute.gang import gangs  # which imports Ray

        slots = list(gangs(nodes, kind, cpus))
    elif kind == "CPU":
        each, virtual = cpus, 1 if devices == "host" or platform != "virtual" else int(devices)
        if platform != "virtual" and devices != 1:
            raise UserError(f"--devices-per-trial: {devices}: a worker on a CPU has one device; 1 would do")
        slots = [Slot(kind, each, int(node.get("memory", 0.0)) // max(1, int(node.get(kind, 0.0) / each)), "", virtual)
                 for node in held for _ in range(int(node.get(kind, 0.0) / each))]
    else:
        slots = [slot for node in held for slot in _accelerated(node, kind, devices)]
    alike = Counter((slot.model, slot.devices, slot.hosts) for slot in slots).most_common(1)
    yield from (slot for slot in slots if [(slot.model, slot.devices, slot.hosts)] == [key for key, _ in alike])


def _accelerated(node: Mapping[str, float], kind: str, devices: int | str) -> list[Slot]:
    amount = int(node.get(kind, 0.0))
    each = amount if devices == "host" else int(devices)
    count = amount // each if each else 0
    return [Slot(kind, float(each), int(node.get("memory", 0.0)) // max(1, count), model_of(node), each)] * count


class Landing:
    """A job's folder on the loop's side, filled as its messages come."""

    def __init__(self, job: Job, tensorboard: bool) -> None:
        """Begin the folder's curves anew; nothing else in it changes before `finish`."""
        self.job, self._folder, self._stage = job, Path(job["dir"]), Path(job["dir"]) / "incoming"
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._stage, ignore_errors=True)
        about = {heading: clean(text) for heading, text in job.get("about", {}).items()}
        self.curves = Curves(self._folder, tensorboard=tensorboard, about=about)

    def add(self, chunk: Chunk) -> None:
        """Take in a piece of a file."""
        add(self._stage, chunk)

    def finish(self, result: Mapping[str, Any] | None) -> dict[str, Any]:
        """Put the files that have come into place, then the result, if there is one; returns it as written."""
        if self._stage.exists():
            for item in self._stage.iterdir():
                _put(item, self._folder / item.name)
        if result is not None:
            self.curves.final(result.get("steps"), result.get("loss") or {})
        self.drop()
        return write_result(self._folder, self.job["attempt"], result, self.job["id"]) if result is not None else {}

    def drop(self) -> None:
        """End it without the files that have come."""
        self.curves.close()
        shutil.rmtree(self._stage, ignore_errors=True)


def _put(item: Path, target: Path) -> None:
    """A file or folder in its place; a log is added to the attempts' before."""
    if item.name == LOG:
        with open(target, "ab") as log:
            log.write(item.read_bytes())
        return
    if target.is_dir():
        shutil.rmtree(target)
    item.replace(target)


@dataclass
class _Worker:
    """A slot in use: its actor, the answer of it that is awaited, and the job under way. room: of a gang's members."""

    number: int
    slot: Slot
    actor: Any = None
    room: Any = None
    answer: Any = None
    host: str = ""  # the node's; empty until the actor has a place
    pid: int = 0  # of the worker process; 0 until it is ready
    asked: int = 0  # of the actor, for it to keep the order
    landing: Landing | None = None
    failed_starts: int = 0


class RayExecutor:
    """An Executor over slots of the cluster that this process is connected to; `close` ends that connection."""

    def __init__(self, slots: Sequence[Slot], log_dir: Path, warm: tuple[str, ...], tensorboard: bool = False) -> None:
        """Ask for the actors, without waiting for them; see research.execute.Offer.

        log_dir is not used: what workers say between jobs stays on their nodes.
        """
        import ray

        self.workers, self._ray, self._warm, self._tensorboard = len(slots), ray, warm, tensorboard
        self._remote = ray.remote(NodeWorker)
        self._pending: list[Message] = []
        self._workers = [_Worker(number, slot) for number, slot in enumerate(slots)]
        for worker in self._workers:
            self._start(worker)

    def present(self, worker: int) -> bool:
        """Whether the worker's actor has a place and has said that it is ready."""
        return self._workers[worker].pid != 0

    def where(self, worker: int) -> str:
        """The worker and its node."""
        return f"worker {worker} on {self._workers[worker].host or 'a node'}"

    def pid(self, worker: int) -> int:
        """Process number of the worker on its node; 0 while it is not there."""
        return self._workers[worker].pid

    def submit(self, worker: int, job: Job) -> None:
        """Give an idle worker a job; one that is not present takes it when it is.

        Raises: ValueError if the worker has a job.
        """
        known = self._workers[worker]
        if known.landing is not None:
            raise ValueError(f"worker {worker} still has {known.landing.job['id']}")
        known.landing = Landing(job, self._tensorboard)
        for chunk in files(Path(job["dir"]), job.get("brings", ())):
            self._ask(known, "bring", chunk)
        self._ask(known, "submit", job)

    def cancel(self, worker: int, reason: str) -> None:
        """Ask the worker's job to stop at its next report."""
        self._ask(self._workers[worker], "cancel", reason)

    def kill(self, worker: int) -> None:
        """End the worker's process, or its actor where that has none yet; `died` follows and another is started."""
        known = self._workers[worker]
        if known.pid:
            self._ask(known, "kill")
        else:
            self._end(known)

    def poll(self, timeout_s: float) -> list[Message]:
        """Messages since the last call; waits up to timeout_s seconds for the first one.

        Raises: ExecutorError if a worker cannot be started, or is of another version.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = deadline - time.monotonic()
            awaited = {worker.answer: worker for worker in self._workers}
            done, _ = self._ray.wait(list(awaited), timeout=0.0 if self._pending else max(0.0, left_s))
            for answer in done:
                self._receive(awaited[answer])
            if left_s <= 0 or (self._pending and not done):
                messages, self._pending = self._pending, []
                return messages

    def close(self) -> None:
        """End all workers and leave the cluster."""
        ends = [worker.actor.close.remote() for worker in self._workers if worker.pid]
        if ends:
            self._ray.wait(ends, num_returns=len(ends), timeout=CLOSE_S)
        for worker in self._workers:
            self._end(worker)
            if worker.landing is not None:
                worker.landing.drop()
        self._workers = []
        self._ray.shutdown()

    def _ask(self, worker: _Worker, what: str, *args: Any) -> None:
        worker.asked += 1
        worker.actor.ask.remote(worker.asked, what, *args)

    def _start(self, worker: _Worker) -> None:
        """Ask for an actor; it starts when the cluster has room."""
        if worker.slot.hosts > 1:
            from research.execute.gang import begin

            worker.actor, worker.room = begin(worker.slot, self._warm)
        else:
            spread = self._remote.options(scheduling_strategy="SPREAD", **worker.slot.options)
            worker.actor = spread.remote(worker.slot, self._warm)
        worker.host, worker.pid, worker.asked, worker.answer = "", 0, 0, worker.actor.start.remote()

    def _end(self, worker: _Worker) -> None:
        """Kill the actor, and of a gang all members, at once: JAX catches the signals that ask."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker.actor)
        if worker.room is not None:
            self._ray.util.remove_placement_group(worker.room)
            worker.room = None

    def _receive(self, worker: _Worker) -> None:
        try:
            answer = self._ray.get(worker.answer)
        except self._ray.exceptions.RayTaskError as error:  # raised by the code there, and would be again
            if isinstance(gone := error.cause, Lost):
                return self._lost(worker, gone.reason, "creation task" in gone.reason, gone.asked)
            raise ExecutorError(f"worker {worker.number} on {worker.host or 'a node'}: {_line(error.cause)}") from error
        except self._ray.exceptions.RayError as error:
            broken = "creation task" in str(error)  # the package, or what it needs, cannot be imported there
            return self._lost(worker, _line(error), broken)
        worker.answer = worker.actor.receive.remote()
        match answer:
            case Chunk():
                if worker.landing is not None:
                    worker.landing.add(answer)
            case Message():
                self._take(worker, replace(answer, worker=worker.number))
            case (host, code):
                worker.host = clean(host)
                if code != machine.code_hash():
                    raise ExecutorError(f"node {worker.host} has other code ({code}) than the loop "
                                        f"({machine.code_hash()}); the same version on all nodes would do")

    def _take(self, worker: _Worker, message: Message) -> None:
        """Write down what a message brings, then pass it on."""
        landing = worker.landing
        if message.kind == "ready":
            worker.pid, worker.failed_starts = message.body["pid"], 0
        elif landing is not None and message.kind == "progress":
            landing.curves.write([message.body])
        elif landing is not None and message.id is not None:
            body = landing.finish(message.body if message.kind == "result" else None)
            message, worker.landing = replace(message, body=body or message.body), None
        self._pending.append(message)

    def _lost(self, worker: _Worker, why: str, broken: bool, asked: bool = False) -> None:
        """The actor has ended, or its node is out of reach: say so, and ask for another one.

        One that never began is no failure: for a while Ray asks a node for it that is gone.
        """
        worker.failed_starts += bool(worker.host) and not worker.pid
        if worker.failed_starts >= START_ATTEMPTS or broken:
            raise ExecutorError(f"worker {worker.number} cannot be started on {worker.host or 'a node'}: {why}")
        self._end(worker)  # out of reach is not gone: nothing it says will be read
        about: tuple[str | None, int | None] = (None, None)
        if worker.landing is not None:
            about = (worker.landing.job["id"], worker.landing.job["attempt"])
            worker.landing = worker.landing.drop()
        if worker.pid or about[0]:
            reason = f"the worker on {worker.host or 'a node'} was lost: {why}"
            body = {"exit": -signal.SIGKILL, "reason": reason, **({} if asked else {"lost": True})}
            self._pending.append(Message("died", worker.number, *about, body))
        self._start(worker)


def _line(error: BaseException) -> str:
    """The last line of an error, which in Ray's long ones says what happened."""
    lines = [clean(line).strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
