"""Where trials run. An executor offers a number of workers, each of which runs one job at a time.

`local` keeps one process a core (or a device) alive between jobs; `ray` does so on a cluster. An executor knows nothing
of the ledger: it moves jobs and messages, and the loop writes down what they mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, Protocol, TypedDict

from jaxnano.cli import Failure
from research.ledger.placed import Placed

Report = Callable[[Mapping[str, Any]], None]  # what a target calls with its progress; raises Cancelled


class Job(TypedDict):
    """One attempt at a trial. Plain JSON data, since it may travel.

    id: the trial's key. attempt: 1, 2, ... dir: the trial's folder, absolute. target: "module:function", called as
    function(args, report) -> result (a dict with an `outcome`). args: what it is called with; paths below `dir` are
    the job's own and go where its folder goes. about: for people, shown beside its curves, by heading. brings: names of
    files and folders below `dir` that it reads, and that go there too.
    """

    id: str
    attempt: int
    dir: str
    target: str
    args: dict[str, Any]
    about: NotRequired[dict[str, str]]
    brings: NotRequired[list[str]]


@dataclass(frozen=True)
class Message:
    """What a worker tells the loop.

    kind: `ready`: a fresh process (body: its `pid`) stands by; what the one before had compiled is gone. `progress`:
    body is what the target reported (null for a number that is not finite). `result`: body is the result, already
    durable in the trial's folder. `died`: the process ended; body holds `exit` (status, or minus the signal),
    `reason`, and `lost` (true) if its machine went with it; another one is started.
    worker: 0, 1, ... id, attempt: the job's; None if there was none.
    """

    kind: Literal["ready", "progress", "result", "died"]
    worker: int
    id: str | None = None
    attempt: int | None = None
    body: dict[str, Any] = field(default_factory=dict)


class Cancelled(Exception):
    """The loop wants this job to stop; raised by a target's report(). str() is the reason.

    A target may catch it to return what it has (with outcome `killed`); if it does not, the worker does.
    """


class ExecutorError(Failure):
    """Workers cannot be kept running."""


class Executor(Protocol):
    """What the loop needs of an executor. None of these waits for a worker, save `poll` up to its timeout."""

    @property
    def workers(self) -> int:
        """Number of workers; they are numbered from 0."""
        ...

    def present(self, worker: int) -> bool:
        """Whether the worker is there to take a job; not so while a cluster has no place for it."""
        ...

    def submit(self, worker: int, job: Job) -> None:
        """Give an idle worker a job. Raises: ValueError if it has one."""
        ...

    def poll(self, timeout_s: float) -> list[Message]:
        """Messages since the last call; waits up to timeout_s seconds for the first one."""
        ...

    def cancel(self, worker: int, reason: str) -> None:
        """Ask the worker's job to stop at its next report; a result with outcome `killed` follows (unless it ends)."""
        ...

    def kill(self, worker: int) -> None:
        """End the worker's process at once; a `died` message follows."""
        ...

    def pid(self, worker: int) -> int:
        """Process number of the worker on its machine, for the ledger; 0 while it is not known."""
        ...

    def where(self, worker: int) -> str:
        """The worker and its place, for people."""
        ...

    def close(self) -> None:
        """End all workers; their jobs are lost."""
        ...


@dataclass(frozen=True)
class Offer:
    """What an executor could run on, known before anything is started.

    workers: how many. device_bytes: memory that one of its devices may fill; None if that is an accelerator's own.
    place: of each worker. start: the executor, its workers being started, from log_dir, for what workers say
    between jobs; warm, modules they import first; and tensorboard, whether event files are written beside
    metrics.jsonl (not by default).
    """

    workers: int
    device_bytes: int | None
    place: Placed
    start: Callable[..., Executor]
