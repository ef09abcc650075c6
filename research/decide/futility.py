"""Whether a candidate is worth an attempt, before anything is sealed: an attempt costs level that never comes back.

It is told by full search runs of candidate and incumbent on seeds that did not pick it: those on which neither the
nominated recipe nor what the ablation left of it had run before the nomination. LEAST of them are run, then one more at
a time while they do not say enough, MOST in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import special

from research.contract.trial import Trial
from research.decide.belief import SEEDS, Snapshot
from research.learn.anytime import predicted
from research.ledger.events import Event
from research.ledger.kinds import Futile, Nominated

LEAST, MOST = 2, 4  # seeds
SURE = 0.9  # probability that the effect is larger than epsilon
POWER = 0.3  # that the test would have, at least
DRAWS = 2000  # effects from their posterior, for the power


def unused(snapshot: Snapshot, nominated: Event[Nominated], *others: str) -> list[int]:
    """Seeds that did not pick a candidate: on which neither it nor others had run before its nomination."""
    picked = {trial.seed for trial in snapshot.state.trials.values()
              if trial.recipe_id in (nominated.subject, *others)
              and any(attempt.seq < nominated.seq for attempt in trial.attempts)}
    return [seed for seed in range(SEEDS + MOST) if seed not in picked]


@dataclass
class Futility:
    """What speaks for sealing a recipe.

    Args: final: what would be sealed. level: of the attempt that it would be; only the power needs it.
    """

    snapshot: Snapshot
    nominated: Event[Nominated]
    final: str
    level: float = 1.0

    @cached_property
    def seeds(self) -> list[int]:
        """MOST seeds that did not pick the candidate."""
        return unused(self.snapshot, self.nominated, self.final)[:MOST]

    @cached_property
    def gains(self) -> dict[int, float]:
        """By seed, what the candidate gains over the incumbent, in the order of the seeds, as far as they have run."""
        found = self.snapshot.state.gains(self.final, self.snapshot.incumbent, 1.0, self.snapshot.track.splits.search)
        return {seed: found[seed] for seed in self.seeds[:self.asked] if seed in found}

    @cached_property
    def asked(self) -> int:
        """How many seeds are wanted, as far as is known."""
        found = self.snapshot.state.gains(self.final, self.snapshot.incumbent, 1.0, self.snapshot.track.splits.search)
        for n in range(LEAST, MOST):
            there = [found[seed] for seed in self.seeds[:n] if seed in found]
            if len(there) < n or self._p(there) >= SURE:
                return n
        return MOST

    def wanted(self) -> list[tuple[Trial, str]]:
        """Runs that are wanted, over or not, with their purpose."""
        return [(Trial(recipe_id, 1.0, seed), "replicate") for seed in self.seeds[:self.asked]
                for recipe_id in (self.snapshot.incumbent, self.final)]

    def _p(self, gains: list[float]) -> float:
        """Posterior probability of an effect above epsilon, of normal gains whose mean and log SD could be anything."""
        mean, error = float(np.mean(gains)), float(np.std(gains, ddof=1)) / len(gains) ** 0.5
        above = mean - self.snapshot.track.epsilon
        return float(special.stdtr(len(gains) - 1, above / error)) if error > 0 else float(above > 0)

    def _power(self, gains: list[float]) -> float:
        """Probability that the sealed test passes, over the posterior of the effect in paired standard deviations."""
        n, rng = len(gains), np.random.default_rng(self.nominated.body.number)
        error = max(float(np.std(gains, ddof=1)), 1e-9)
        sd = error * np.sqrt((n - 1) / rng.chisquare(n - 1, DRAWS))
        effects = (float(np.mean(gains)) + sd * rng.standard_normal(DRAWS) / n**0.5) / sd
        return float(predicted(effects, self.snapshot.track.significance.n, self.level).passed_C.mean())

    def settle(self) -> Futile | None:
        """The `futile` event, where no attempt is to be spent; None where the candidate may be sealed."""
        gains = list(self.gains.values())
        found = Futile(nomination=self.nominated.body.number, recipe_id=self.final, level=self.level,
                       seeds=tuple(self.gains), gains=tuple(gains))
        broken = [trial for trial in self.snapshot.over.get(self.final, ()) if trial.horizon == 1.0
                  and trial.seed in self.seeds[:self.asked] and trial.seed not in self.snapshot.losses(self.final)]
        if broken:
            return found.model_copy(update={"why": f"its run on seed {broken[0].seed} did not finish"})
        if len(gains) < LEAST:
            return found.model_copy(update={"why": f"fewer than {LEAST} seeds that did not pick it were completed"})
        p, power = self._p(gains), self._power(gains)
        found, epsilon = found.model_copy(update={"p": p, "power": power}), self.snapshot.track.epsilon
        if p < SURE:
            why = f"an effect above {epsilon:g} has probability {p:.2f} on seeds that did not pick it, under {SURE:g}"
            return found.model_copy(update={"why": why})
        if power < POWER:
            return found.model_copy(update={"why": f"the test would pass it with probability {power:.2f}, "
                                                   f"under {POWER:g}"})
        return None
