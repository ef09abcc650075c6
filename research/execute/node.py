"""One worker slot on a cluster's node: a LocalExecutor of one place, and the way back for what its job leaves.

The job runs in a folder of the node's own, for the cluster need not share a file system. What the job writes there
travels to the loop ahead of its result, piece by piece; its progress travels as it is made. All methods run on one
thread, the actor's event loop, as a LocalExecutor asks.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from jaxnano.cli import UserError
from jaxnano.curves import METRICS
from research import machine
from research.execute import Job, Message
from research.execute.local import LocalExecutor, rss_limit_mb
from research.ledger.session import LOG_BYTES
from research.machine.place import Place, free_port, places, usable

CHUNK_BYTES = 16 * 2**20
LOG = "log.txt"
MODEL = "accelerator_type:"  # before a model's name among a node's resources
RANK = "ray.io/tpu-worker-id"  # Ray's label of a TPU host
_STAYS = frozenset({METRICS, LOG, "result.json"})  # the loop writes them itself, of what it is told


@dataclass(frozen=True)
class Chunk:
    """The next bytes of a file in the job's folder; path: below that folder, with slashes."""

    path: str
    data: bytes


@dataclass(frozen=True)
class Slot:
    """What one worker asks of the cluster. kind: GPU, TPU or CPU. amount: of that resource, on each of its hosts.
    share_bytes: of a host's memory. model: the accelerator's, as the cluster calls it. devices: that it trains on, on
    each host; of a CPU more than one are virtual. hosts: see research.execute.gang. slice: the TPU slice they make."""

    kind: str
    amount: float
    share_bytes: int
    model: str = ""
    devices: int = 1
    hosts: int = 1
    slice: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """As Ray takes it. An accelerator's worker asks for no CPU: the accelerator is what is scarce."""
        one_model = {"accelerator_type": self.model} if self.model else {}
        match self.kind:
            case "GPU":
                return {"num_gpus": self.amount, "num_cpus": 0, **one_model}
            case "TPU":
                return {"resources": {"TPU": self.amount}, "num_cpus": 0, **one_model}
        return {"num_cpus": self.amount}

    @property
    def bundle(self) -> dict[str, float]:
        """The same of a placement group, where a model is a resource of which Ray takes a thousandth."""
        return {self.kind: self.amount} | ({MODEL + self.model: 0.001} if self.model else {})


def model_of(resources: Mapping[str, float]) -> str:
    """The accelerators' model, as a node calls it; empty where it has none."""
    return next((name.removeprefix(MODEL) for name in sorted(resources) if name.startswith(MODEL)), "")


class Lost(Exception):
    """A worker of several processes is no more. reason: why. asked: whether it was told to end."""

    def __init__(self, reason: str, asked: bool) -> None:
        super().__init__(reason, asked)  # both, for it travels
        self.reason, self.asked = reason, asked


class NodeWorker:
    """What runs on the node. Made an actor by research.execute.ray; methods are called from the loop."""

    def __init__(self, slot: Slot, warm: tuple[str, ...]) -> None:
        """Args: warm: modules it imports first."""
        self._slot, self._warm = slot, warm
        self._outgoing: Iterator[Message | Chunk] = iter(())
        self._local: LocalExecutor | None = None
        self._asked: dict[int, tuple[str, tuple[Any, ...]]] = {}
        self._brought: frozenset[str] = frozenset()  # what came with the job, and need not go back
        self._done = 0

    async def meeting(self) -> tuple[int, str]:
        """The host's number in its TPU slice, 0 elsewhere, and where a gang whose first member this is could meet."""
        import ray

        rank = ray.get_runtime_context().get_node_labels().get(RANK, "0")  # text, whatever its annotation says
        return int(str(rank)), f"{ray.util.get_node_ip_address()}:{free_port()}"

    async def start(self, join: tuple[str, ...] = ()) -> tuple[str, str]:
        """Start the worker; returns the node's name and the hash of its code. join: see research.execute.worker."""
        number, self._folder, self._lock = _claim(Path(tempfile.gettempdir()) / f"jaxnano-{os.getuid()}")
        shutil.rmtree(self._folder / "brought", ignore_errors=True)  # of a worker that ended before its job began
        place, limit_mb = self._place(number), None
        if not place.accelerated and not join:
            limit_mb = rss_limit_mb(max(1, int(len(machine.cores()) / self._slot.amount)))
        self._local = LocalExecutor([place], self._folder, rss_limit_mb=limit_mb, warm=self._warm, join=join)
        self._catch_up(self._local)
        return machine.host(), machine.code_hash()

    def _place(self, number: int) -> Place:
        """A core of the node's, or the accelerators that Ray has made visible to this process."""
        slot = self._slot
        if slot.kind != "CPU":
            if usable() is None:
                raise UserError(f"Ray offers a {slot.kind} on {machine.host()}, but none can be found there")
            place = places(1, slot.devices)[0]
            return replace(place, cores=(), hosts=slot.hosts, alone=place.alone and slot.hosts == 1)
        cores = machine.cores()
        ids = tuple(map(str, range(slot.devices)))
        return Place((cores[number % len(cores)],), "virtual" if slot.devices > 1 else "cpu", ids, slot.hosts)

    async def ask(self, number: int, what: str, *args: Any) -> None:
        """Do what the loop asks, in its order: Ray may deliver in another, and before `start` has run.

        Args: number: 1, 2, ... what: submit (job), cancel (reason) or kill (), see research.execute.Executor; or bring
        (chunk): of what the next job brings.
        """
        self._asked[number] = what, args
        if self._local is not None:
            self._catch_up(self._local)

    def _catch_up(self, local: LocalExecutor) -> None:
        while self._done + 1 in self._asked:
            self._done += 1
            match self._asked.pop(self._done):
                case "bring", (chunk,):
                    add(self._folder / "brought", chunk)
                case "submit", (job,):
                    local.submit(0, self._here(job))
                case "cancel", (reason,):
                    local.cancel(0, reason)
                case "kill", ():
                    local.kill(0)

    def _here(self, job: Job) -> Job:
        """The job in an empty folder here; paths below its own folder move with it."""
        here, brought = self._folder / "job", self._folder / "brought"
        shutil.rmtree(here, ignore_errors=True)
        if brought.exists():
            brought.rename(here)
        self._brought = frozenset(job.get("brings", ()))
        below = job["dir"] + os.sep
        args = {name: str(here / value.removeprefix(below)) if isinstance(value, str) and value.startswith(below)
                else value for name, value in job["args"].items()}
        return Job(**{**job, "dir": str(here), "args": args})

    async def receive(self) -> Message | Chunk:
        """The next thing to tell the loop, when there is one; asked once `start` has answered."""
        assert self._local is not None
        while True:
            for item in self._outgoing:
                return item
            if not (messages := self._local.poll(0.0)):
                await _readable(self._local.fileno())
            self._outgoing = self._news(messages)

    async def close(self) -> None:
        """End the worker and give up its number."""
        if self._local is not None:
            self._local.close()
            self._lock.close()

    def _news(self, messages: Iterable[Message]) -> Iterator[Message | Chunk]:
        """Messages, each end of a job with the files that it left before it."""
        for message in messages:
            if message.id is not None and message.kind in ("result", "died"):
                yield from _log(self._folder / "job" / LOG)
            if message.id is not None and message.kind == "result":
                left = files(self._folder / "job")
                yield from (chunk for chunk in left if chunk.path.partition("/")[0] not in self._brought)
            yield message


async def _readable(descriptor: int) -> None:
    """Until there is something to read."""
    stirs, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(descriptor, stirs.set)
    try:
        await stirs.wait()
    finally:
        loop.remove_reader(descriptor)


def _claim(root: Path) -> tuple[int, Path, IO[str]]:
    """The first of the node's worker folders that no living process holds: its number, it, and the lock that holds it.

    The number tells the slots of a node apart, those of other sessions too: each has a core of its own.
    """
    for number in itertools.count():
        folder = root / f"worker-{number}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115 - held until the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number, folder, lock
        except BlockingIOError:
            lock.close()
    raise AssertionError("numbers do not end")


def _log(log: Path) -> Iterator[Chunk]:
    """The log's last LOG_BYTES."""
    if log.exists():
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES))
            yield Chunk(LOG, file.read(LOG_BYTES))


def add(folder: Path, chunk: Chunk) -> None:
    """Take in a piece of a file."""
    path = folder / chunk.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        file.write(chunk.data)


def files(folder: Path, names: Collection[str] | None = None) -> Iterator[Chunk]:
    """All files of a folder but those that stay where they are written; an empty one too is a chunk.

    Args: names: of the files and folders in it, if not all.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        wanted = names is None or name.partition("/")[0] in names
        if path.is_file() and wanted and name not in _STAYS:
            with open(path, "rb") as file:
                yield Chunk(name, file.read(CHUNK_BYTES))
                while data := file.read(CHUNK_BYTES):
                    yield Chunk(name, data)
