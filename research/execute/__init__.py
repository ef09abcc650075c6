"""Where trials run. An executor offers a number of workers, each of which runs one job at a time.

`local` keeps one process a core (or a device) alive between jobs. Other executors keep this protocol. An executor
knows nothing of the ledger: it moves jobs and messages, and the loop writes down what they mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypedDict

Report = Callable[[Mapping[str, Any]], None]  # what a target calls with its progress; raises Cancelled


class Job(TypedDict):
    """One attempt at a trial. Plain JSON data, since it may travel.

    id: the trial's key. attempt: 1, 2, ... dir: the trial's folder, absolute. target: "module:function", called as
    function(args, report) -> result (a dict with an `outcome`). args: what it is called with.
    """

    id: str
    attempt: int
    dir: str
    target: str
    args: dict[str, Any]


@dataclass(frozen=True)
class Message:
    """What a worker tells the loop.

    kind: `ready`: a fresh process (body: its `pid`) stands by; what the one before had compiled is gone. `progress`:
    body is what the target reported (null for a number that is not finite). `result`: body is the result, already
    durable in the trial's folder. `died`: the process ended; body holds `exit` (status, or minus the signal) and
    `reason`; another one is started.
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


class ExecutorError(RuntimeError):
    """Workers cannot be kept running; the message is one line for the user."""


class Executor(Protocol):
    """What the loop needs of an executor. None of these waits for a worker, save `poll` up to its timeout."""

    @property
    def workers(self) -> int:
        """Number of workers; they are numbered from 0."""
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
        """Process number of the worker, for the ledger."""
        ...

    def close(self) -> None:
        """End all workers; their jobs are lost."""
        ...
