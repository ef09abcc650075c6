"""Watching a running trial: whether it has broken, or is too late. One that only looks bad goes on.

A run that was predicted to lose used to be ended, on request: one such end in five was wrong and all of them saved 2 %
of the compute, of runs that had 8 % to go (LOG.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import numpy as np

Curve = Sequence[tuple[float, float]]  # (progress in 0..1, training loss in nats), oldest first


@dataclass(frozen=True)
class WatchConfig:
    """When to give a run up.

    rise: nats above its best at which a run has diverged, or half of what it had gained if that is more.
    stall_intervals: of the median interval between messages; at least stall_floor_s. first_message_s: for compiling.
    timeout_factor: of the predicted time, plus first_message_s.
    """

    rise: float = 0.5
    stall_intervals: float = 20.0
    stall_floor_s: float = 10.0
    first_message_s: float = 120.0
    timeout_factor: float = 4.0


@dataclass(frozen=True)
class Running:
    """A trial in flight, times in seconds on one clock: its start, each message's arrival, and how long it should
    take. first_message_s: how long it may be silent at its start, compiling; by default the configuration's. begins:
    progress at which about its phases begin, which compile too."""

    curve: Curve
    started_s: float
    predicted_s: float
    messages_s: Sequence[float] = field(default_factory=tuple)
    first_message_s: float | None = None
    begins: Sequence[float] = ()

    @property
    def compiles(self) -> bool:
        """Whether it may be compiling after its last message: a phase begins, or, with all trained, the evaluation."""
        before, last = [0.0, *(progress for progress, _ in self.curve)][-2:]
        return last >= 1.0 or any(abs(last - begin) <= last - before + 1e-9 for begin in self.begins)


@dataclass(frozen=True)
class Finding:
    """kind "ok" lets the run go on."""

    kind: Literal["ok", "nan", "diverged", "stalled", "timeout"]
    reason: str = ""


def _late(running: Running, now_s: float, config: WatchConfig) -> Finding | None:
    first_s, since_s = running.first_message_s or config.first_message_s, now_s - running.started_s
    allowed_s = config.timeout_factor * running.predicted_s + first_s
    if since_s > allowed_s:
        return Finding("timeout", f"{since_s:.0f} s, {allowed_s:.0f} s allowed")
    if not running.messages_s:
        return Finding("stalled", f"no message in the first {since_s:.0f} s") if since_s > first_s else None
    intervals = np.diff(np.asarray(running.messages_s, float)).tolist()
    patience_s = max(config.stall_floor_s, config.stall_intervals * median(intervals) if intervals else first_s)
    if running.curve and running.compiles:
        patience_s = max(patience_s, first_s)
    if (silence_s := now_s - running.messages_s[-1]) > patience_s:
        return Finding("stalled", f"silent for {silence_s:.0f} s, {patience_s:.0f} s allowed")
    return None


def _broken(running: Running, config: WatchConfig) -> Finding | None:
    points = np.asarray(running.curve, float).reshape(-1, 2)
    bad = np.flatnonzero(~np.isfinite(points[:, 1]))
    if len(bad):
        return Finding("nan", f"loss is {points[bad[0], 1]} at progress {points[bad[0], 0]:.2f}")
    begun = [begin for begin in running.begins if len(points) and begin < points[-1, 0]]
    points = points[points[:, 0] > max(begun, default=0.0)]  # a phase may begin with what is untrained
    if len(points) < 3:
        return None
    best, last = float(points[:, 1].min()), float(points[-3:, 1].min())  # one bad step is not divergence
    allowed = max(config.rise, 0.5 * (float(points[0, 1]) - best))
    if last > best + allowed:
        return Finding("diverged", f"loss {last:.3f} is {last - best:.3f} above its best, {allowed:.3f} allowed")
    return None


def watch(running: Running, now_s: float, config: WatchConfig = WatchConfig()) -> Finding:
    """Judge a running trial.

    Args: running: the trial. now_s: on the trial's clock.
    """
    return _broken(running, config) or _late(running, now_s, config) or Finding("ok")
