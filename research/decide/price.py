"""What a run costs: predicted from what this session has measured, compiling included."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from research.decide.belief import Arm, Snapshot
from research.ledger.kinds import Result

NEW = -1  # a worker that has compiled nothing
COMPILE_S, SECONDS_PER_FLOP, ON_ACCELERATOR = 8.0, 3e-12, 1e-14  # before anything was measured
IN_MEMORY, ON_DISK = 0.01, 0.25  # shares of compiling where this worker, or another one, did it before: medians
PATIENCE_S = {"cpu": 120.0}  # at least, for the first message of a run, by backend; it tells that a run has compiled
LONG_PATIENCE_S, PATIENT = 1800.0, 4.0  # on another backend, or before anything was measured; compile times to wait
START_S = 0.3  # of a run, beside training
SLOWDOWN, FIRST_RUNS = 1.2, 4  # seconds per device-second before anything was measured; runs in which workers import


@dataclass
class Prices:
    """Seconds of runs, as of one snapshot."""

    snapshot: Snapshot

    def seconds(self, arm: Arm, horizon: float, worker: int) -> float:
        """Predicted device-seconds of a run, compiling included where the structure is new to the worker."""
        trained_s = self.budget_s(arm, horizon) or self.snapshot.track.flops(arm.flops, horizon) * self.flop_s
        return trained_s + self.begins_s(arm.structure, arm.programs, worker)

    def begins_s(self, structure: str, programs: int, worker: int) -> float:
        """Predicted device-seconds of a run beside training."""
        seen = self._compiled.get(structure)
        share = 1.0 if seen is None else IN_MEMORY if worker in seen else ON_DISK  # another worker's program is on disk
        return share * programs * self.compile_s + START_S

    def wall_s(self, arm: Arm, horizon: float, worker: int) -> float:
        """Predicted seconds until a run begun now is over: its device-seconds, as slow as this machine is."""
        return self.slowdown * self.seconds(arm, horizon, worker)

    def budget_s(self, arm: Arm, horizon: float) -> float | None:
        """Seconds a run may train for, where the track's budget is time; the base's steps set it where it is theirs."""
        track = self.snapshot.track
        own = track.objective.waits_for_base and arm is self.snapshot.arms[0]
        return None if own else track.seconds(horizon, self.base_step_s)

    @cached_property
    def _done(self) -> list[tuple[Arm, Result]]:
        """What was completed, oldest first."""
        completed = (trial for trial in self.snapshot.state.trials.values() if trial.loss)
        found = ((self.snapshot.by_id.get(trial.recipe_id), trial.result) for trial in completed)
        return [(arm, result) for arm, result in found if arm and result]

    @cached_property
    def base_step_s(self) -> float | None:
        """Seconds of the base's step, the median over its runs; None before the first."""
        base = self.snapshot.arms[0]
        rates = [result.tokens_per_s for arm, result in self._done if arm is base and result.tokens_per_s]
        return base.tokens / float(np.median(rates)) if rates else None

    @cached_property
    def _compiled(self) -> dict[str, set[int]]:
        """The workers whose present process was given each structure; none where only others, now gone, were."""
        found: dict[str, set[int]] = {}
        attempts = sorted((a for t in self.snapshot.state.trials.values() for a in t.attempts), key=lambda a: a.seq)
        latest = {a.worker: 0 if a.result and a.result.exit is not None else a.pid for a in attempts}  # 0: it died
        for trial in self.snapshot.state.trials.values():
            if (arm := self.snapshot.by_id.get(trial.recipe_id)) is not None:
                found.setdefault(arm.structure, set()).update(
                    a.worker for a in trial.attempts if a.pid and a.pid == latest[a.worker])
        return found

    def first_message_s(self, arm: Arm) -> float:
        """How long a run may be silent at its start: it compiles, a deeper model for longer.

        Before a run has told how long that takes here, long: a base that is given up ends the session.
        """
        if not self._done:
            return LONG_PATIENCE_S
        deeper = max(1.0, arm.recipe.model.depth / self.snapshot.arms[0].recipe.model.depth)
        least = max(PATIENCE_S.get(r.fingerprint.get("backend", "cpu"), LONG_PATIENCE_S) for _, r in self._done)
        return max(least, PATIENT * deeper * max(r.compile_s or 0.0 for _, r in self._done))

    @property
    def full_run_s(self) -> float:
        """Predicted seconds of a compiled full-horizon run; the budget is the same for all recipes."""
        track = self.snapshot.track
        flops = track.full_steps * track.base_cost.flops_per_step
        return (track.seconds(1.0, self.base_step_s) or flops * self.flop_s) + START_S

    @cached_property
    def flop_s(self) -> float:
        """Measured device-seconds per FLOP."""
        rates = [arm.tokens / (result.tokens_per_s * arm.flops)
                 for arm, result in self._done if result.device_s and result.tokens_per_s]
        session = self.snapshot.state.session
        devices = session.place.devices if session.place is not None else 1
        return _median(rates, ON_ACCELERATOR / devices if session.accelerator else SECONDS_PER_FLOP)

    @cached_property
    def compile_s(self) -> float:
        """Predicted seconds to compile a program nobody has seen: what each structure's took where it was new, which is
        the longest."""
        longest: dict[str, float] = {}
        for arm, result in self._done:
            took_s = (result.compile_s or 0.0) / arm.programs
            longest[arm.structure] = max(longest.get(arm.structure, 0.0), took_s)
        return _median([took_s for took_s in longest.values() if took_s > 1.0], COMPILE_S)

    @cached_property
    def slowdown(self) -> float:
        """Seconds that pass per device-second of a run, at the median: above 1 where others use the machine."""
        ratios = [r.wall_s / r.device_s for _, r in self._done if r.device_s and r.wall_s]
        return max(1.0, _median(ratios[FIRST_RUNS:], SLOWDOWN))  # a worker's first run imports what it needs


def _median(values: list[float], guess: float) -> float:
    return float(np.median(values)) if values else guess
