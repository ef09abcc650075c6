"""One run in several processes: how they join, stop together, and end when one of them is lost.

Every process runs the same command over the same files, and is told where process 0 listens and which one it is. On a
TPU pod and under SLURM it finds that out by itself:

    python -m jaxnano.train --config C --out DIR --coordinator 10.0.0.1:8476 --processes 4 --process 2
    python -m jaxnano.train --config C --out DIR --distributed
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxnano.cli import Failure, UserError, report_errors

HEARTBEAT_S = 30  # silence after which a process counts as lost; one that is killed is noticed at once
JOIN_S = 300  # how long the first process waits for the last
APART = "the processes of this run did not meet; all of them, with one coordinator and one number, would do"
LOST = "a process of this run was lost; start all of them again with --resume"


def run_jointly(options: argparse.Namespace, command: Callable[[], int]) -> int:
    """Run a command as one process of those that `options` (of `jaxnano.train`) name, or alone if they name none.

    A process that fails ends at once, without waiting for the others: they notice, and end too.
    Returns: the command's exit code.
    Raises: ValueError for options that do not fit each other.
    """
    if not _asked(options):
        return command()
    met = _last_word(APART)
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Gloo prints on file 1, which is for the command's own output
    try:
        join(options.coordinator, options.processes, options.process)
    finally:
        met()
    ended = _last_word(LOST)
    code = report_errors(lambda: _translated(command))
    if code in (1, 2, 130):
        ended()
        sys.stdout.flush()
        os._exit(code)  # a common end would wait for processes that wait for this one
    jax.distributed.shutdown()
    ended()
    return code


def first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """What the first process says of a number, an int32, that each has measured."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def gathered(tree: Any) -> Any:
    """What lies over the devices of several processes, as NumPy arrays, whole, in each of them."""
    return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def _asked(options: argparse.Namespace) -> bool:
    """Whether there are other processes. Raises: ValueError for options that do not fit each other."""
    place = (options.coordinator, options.processes, options.process)
    if options.distributed and place != (None, None, None):
        raise UserError("--distributed: finds the others by itself; without it, --coordinator, --processes and "
                        "--process say where they are")
    if options.distributed or place == (None, None, None):
        return options.distributed
    if None in place:
        raise UserError("--coordinator, --processes, --process: one without the others; "
                        "--coordinator 127.0.0.1:8476 --processes 2 --process 0 would do")
    host, _, port = options.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator: {options.coordinator!r} is no HOST:PORT; 127.0.0.1:8476 would do")
    if not 0 <= options.process < options.processes:
        raise UserError(f"--process: {options.process} of {options.processes}; 0 to {options.processes - 1} would do")
    return True


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Become one of several processes, before JAX knows of any device; what is left out is found out.

    Args: coordinator: host:port where process 0 listens. processes: how many. process: which one this is, from 0.
    Raises: ValueError if there is nothing to find it out from; Failure if they do not meet.
    """
    try:
        jax.distributed.initialize(
            coordinator, processes, process, initialization_timeout=JOIN_S, heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=HEARTBEAT_S, cluster_detection_method="deactivate" if coordinator else None)
    except ValueError as error:
        raise UserError("--distributed: this is no TPU pod and no SLURM job; "
                        "--coordinator HOST:PORT --processes N --process I would do") from error
    except jax.errors.JaxRuntimeError as error:
        raise Failure(f"--coordinator: {coordinator}: {_line(error)}") from error


def _translated(command: Callable[[], int]) -> int:
    """The command, with the errors that collectives raise when a process is missing put into words."""
    try:
        return command()
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            raise Failure(f"{LOST} ({_line(error)})") from error
        if not isinstance(error, UserError | Failure | OSError):
            traceback.print_exc()
            raise Failure(f"process {jax.process_index()}: {_line(error)}") from error
        raise


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _last_word(line: str) -> Callable[[], None]:
    """Have a line printed if this process ends without calling what is returned.

    JAX aborts a process that waits for a missing one, and leaves no chance to say so; a shell at a pipe's end can.
    """
    script = 'read -r ended || echo "error: $0" >&2'
    shell = subprocess.Popen(["sh", "-c", script, line], stdin=subprocess.PIPE, start_new_session=True)

    def ended() -> None:
        shell.communicate(b"ended\n")

    return ended


class Stop:
    """SIGTERM and Ctrl-C, for a loop to end by after what it is doing. number: the signal that came, or None.

    With several processes a signal to one stops all of them, after the same call.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._calls = 0

    def due(self) -> bool:
        """Whether to stop now; every process asks once a call."""
        self._calls += 1
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._calls):
            self.number = signal.SIGTERM
        return self.number is not None

    def note(self, number: int, _: object) -> None:
        """The handler of a signal in this process; a second Ctrl-C ends at once."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's own handler tells the other processes
        else:
            self.number = number


@contextmanager
def signals() -> Iterator[Stop]:
    """Collect signals while the context is open."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # a notebook's worker: signals are not ours
        yield stop
        return
    ours = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, stop.note) for number in ours}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
