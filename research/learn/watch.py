"""Watching a running trial: is it worth letting it finish?

A trial is hopeless when its *predicted final* loss, not its curve, is worse than the best finished run of its cell
(same horizon, same seed, so the same batches). Curves cross: 0.19 nats ahead at 20 % of a run was seen to end 0.1
behind.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import numpy as np
from scipy import special

Curve = Sequence[tuple[float, float]]  # (progress in 0..1, training loss in nats), oldest first


@dataclass(frozen=True)
class Reference:
    """A finished run of the same cell: its curve and its final loss on the search split, nats."""

    curve: Curve
    final_loss: float


@dataclass(frozen=True)
class WatchConfig:
    """When to give a run up.

    first_kill: progress before which no run is hopeless. min_references: finished runs needed to predict. risk:
    probability that a run killed as hopeless would have come within `margin` nats of the best of its cell.
    catch_up_sd: nats two runs may drift apart between progress 0 and 1, by prior; it counts as `catch_up_weight`
    references. window: stretch of progress a curve is averaged over. rise: nats above its best at which a run has
    diverged, or half of what it had gained if that is more. stall_intervals: of the median interval between
    messages; at least stall_floor_s. first_message_s: for compiling. timeout_factor: of the predicted time, plus
    first_message_s.
    """

    first_kill: float = 0.3
    min_references: int = 4
    risk: float = 0.02
    margin: float = 0.0
    catch_up_sd: float = 0.1
    catch_up_weight: float = 3.0
    window: float = 0.1
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
    """kind "ok" lets the run go on. final_mean, final_sd: its predicted final loss (nats), where there was a
    prediction."""

    kind: Literal["ok", "nan", "diverged", "hopeless", "stalled", "timeout"]
    reason: str = ""
    final_mean: float | None = None
    final_sd: float | None = None


def level(curve: Curve, progress: float, window: float) -> float:
    """Mean loss over the stretch of progress (progress - window, progress]; the last point before it if that is
    empty."""
    points = np.asarray(curve, float).reshape(-1, 2)
    before = points[points[:, 0] <= progress + 1e-9]
    if not len(before):
        return float("nan")
    recent = before[before[:, 0] > before[-1, 0] - window]
    return float(recent[:, 1].mean())


@dataclass(frozen=True)
class Prediction:
    """Student-t predictive distribution of a final loss, nats."""

    mean: float
    scale: float
    freedom: float

    @property
    def sd(self) -> float:
        return self.scale * float(np.sqrt(self.freedom / max(self.freedom - 2.0, 0.5)))

    def below(self, bound: float) -> float:
        """Probability of a final loss below the bound."""
        return float(special.stdtr(self.freedom, (bound - self.mean) / self.scale))


def predict(curve: Curve, progress: float, references: Sequence[Reference], config: WatchConfig) -> Prediction | None:
    """Final loss from the loss now, by regression over the finished runs of the cell at equal progress.

    Every pair of finished runs tells how much of a difference now is left at the end; taken together that is the
    regression of the final loss on the loss now. The scatter around it is pooled with a prior, because the next run
    may cross the others as none of them crossed yet. None without enough references.
    """
    now = np.array([level(r.curve, progress, config.window) for r in references])
    final = np.array([r.final_loss for r in references], float)
    usable = np.isfinite(now) & np.isfinite(final)
    now, final, mine = now[usable], final[usable], level(curve, progress, config.window)
    n = len(now)
    if n < max(config.min_references, 2) or not np.isfinite(mine):
        return None
    prior = (config.catch_up_sd * (1.0 - progress)) ** 2 + 1e-8
    centred = now - now.mean()
    # slope shrunk to 1 (a difference stays): a few finished runs that are much alike do not determine it
    spread = float(centred @ centred) + prior
    slope = float(centred @ (final - final.mean()) + prior) / spread
    residual = final - final.mean() - slope * centred
    freedom = config.catch_up_weight + n - 1.0
    variance = (config.catch_up_weight * prior + float(residual @ residual)) / freedom
    scale = float(np.sqrt(variance * (1.0 + 1.0 / n + (mine - now.mean()) ** 2 / spread)))
    return Prediction(float(final.mean() + slope * (mine - now.mean())), scale, freedom)


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


def watch(running: Running, references: Sequence[Reference], now_s: float, config: WatchConfig = WatchConfig()
          ) -> Finding:
    """Judge a running trial.

    Args: running: the trial. references: finished runs at the same horizon and seed. now_s: on the trial's clock.
    """
    verdict = _broken(running, config) or _late(running, now_s, config)
    if verdict or not running.curve:
        return verdict or Finding("ok")
    progress = running.curve[-1][0]
    prediction = predict(running.curve, progress, references, config) if progress < 1.0 else None
    if prediction is None:
        return Finding("ok")
    best = min(r.final_loss for r in references if np.isfinite(r.final_loss)) + config.margin
    chance = prediction.below(best)
    hopeless = progress >= config.first_kill and chance < config.risk
    reason = f"{chance:.1%} chance to end below {best:.3f}: predicted {prediction.mean:.3f} +- {prediction.sd:.3f} nats"
    return Finding("hopeless" if hopeless else "ok", reason, prediction.mean, prediction.sd)


def is_audited(trial_key: str, fraction: float = 0.1) -> bool:
    """Whether this trial, if found hopeless, is finished all the same, to know what killing costs; fixed by its key."""
    digest = hashlib.sha256(f"audit {trial_key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64
