"""A run's curves on disk: metrics.jsonl, one object a line, and if asked for the same numbers for TensorBoard.

    tensorboard --logdir SESSION/trials         # a session's trials, one run each, under their names
    tensorboard --logdir DIR                    # what jaxnano.train wrote with --out DIR --tensorboard

The event file follows from the lines: a run that goes on, or begins anew, writes it again from the lines it keeps. So
no step is there twice, whatever the run was killed at, and the switch may be set as late as at `--resume`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxnano.cli import UserError

METRICS, EVENTS = "metrics.jsonl", "events.out.tfevents."  # names: the first whole, the second begun
PER_MILLE = 1000  # TensorBoard counts in whole steps; so finely is `loss_by_progress` told apart
_POSITION = frozenset({"step", "progress", "elapsed_s"})

Row = Mapping[str, Any]


def require_tensorboard(option: str = "--tensorboard") -> None:
    """Raises: ValueError, naming the option, if event files cannot be written here."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError(f'{option}: tensorboardX is not installed; pip install "jaxnano[tensorboard]" would do')


class Curves:
    """The files of one run; a context manager that closes them."""

    def __init__(self, folder: Path, kept: Sequence[Row] = (), *, tensorboard: bool = False,
                 about: Mapping[str, str] | None = None) -> None:
        """Begin with the rows in `kept`, and forget all others that are there.

        Args: folder: of the run; its last component is what TensorBoard calls it. tensorboard: write event files too.
        about: what to read beside the curves, by heading; shown as it is, never as markup.
        """
        for old in folder.glob(EVENTS + "*"):
            old.unlink()
        rewritten = folder / (METRICS + ".tmp")
        rewritten.write_text(_lines(kept), encoding="utf-8")
        rewritten.rename(folder / METRICS)
        self._file = open(folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
        self._events = _EventFile(folder, about or {}) if tensorboard else None
        if self._events:
            self._events.add(kept)

    def __enter__(self) -> Curves:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows of plain finite numbers or None; they are with the operating system when this returns.

        Args: rows: hold `step`, or are counted from 1; `progress` is in 0..1, `elapsed_s` seconds into the run.
        """
        self._file.write(_lines(rows))
        self._file.flush()
        if self._events:
            self._events.add(rows)

    def final(self, step: int | None, losses: Mapping[str, float | None]) -> None:
        """Show what the run came to, nats by split; in the event file alone, for the lines are of the way there.

        Args: step: the last; None: the last row's.
        """
        if self._events and losses:
            self._events.add([{"step": step} | {f"final_loss/{split}": loss for split, loss in losses.items()}])

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._events:
            self._events.close()


class _EventFile:
    """Numbers as TensorBoard reads them: step, time and value by tag."""

    def __init__(self, folder: Path, about: Mapping[str, str]) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # an extra; its SummaryWriter adds a queue and a thread
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import text

        self._event, self._summary, self._step = Event, Summary, 0
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        start = SessionLog(status=SessionLog.START)  # a reader forgets what it saw of an older file
        self._write(time.time(), step=0, session_log=start)
        for heading, content in about.items():
            self._write(time.time(), step=0, summary=text(heading, _verbatim(content)))
        self._writer.flush()

    def add(self, rows: Sequence[Row]) -> None:
        """Append the numbers of rows; the last one's time is now."""
        now, latest = time.time(), rows[-1].get("elapsed_s", 0.0) if rows else 0.0
        for row in rows:
            step = row.get("step", self._step + 1)
            self._step = self._step if step is None else step
            wall_time = now - (latest - row.get("elapsed_s", latest))
            values = {tag: value for tag, value in row.items() if tag not in _POSITION and _number(value)}
            self._scalars(wall_time, self._step, values)
            if _number(row.get("progress")) and "loss" in values:
                self._scalars(wall_time, round(PER_MILLE * row["progress"]), {"loss_by_progress": values["loss"]})
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _scalars(self, wall_time: float, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary(value=[self._summary.Value(tag=t, simple_value=v) for t, v in values.items()])
        self._write(wall_time, step=step, summary=summary)

    def _write(self, wall_time: float, **what: Any) -> None:
        self._writer.write_event(self._event(wall_time=wall_time, **what))


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _verbatim(content: str) -> str:
    """As a block of code, which is the one thing that Markdown leaves alone."""
    return "\n".join(f"    {line}" for line in content.splitlines())
