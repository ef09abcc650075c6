"""Which edits make training diverge: a noisy-or over edits, each with its own Beta posterior."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from research.kernel import Features

BASE = ""  # the cause that every recipe carries
PRIOR = (0.02, 1.0)  # Beta counts of (diverged, survived) an edit starts with


@dataclass(frozen=True)
class Divergence:
    """A run diverges if any of its edits makes it diverge; a diverged run's blame is shared out by EM.

    Args: survived, diverged: features of the runs, one entry a run. length: of the likeness of two numbers.
    """

    survived: Sequence[Features]
    diverged: Sequence[Features]
    length: float
    rounds: int = 10

    @cached_property
    def blames(self) -> list[dict[str, float]]:
        """For each diverged run, the probability that each of its edits was a cause."""
        blames = [{cause: 1.0 / (len(f) + 1) for cause in (BASE, *f)} for f in self.diverged]
        for _ in range(self.rounds if blames else 0):
            blames = [self._share(features, blames) for features in self.diverged]
        return blames

    def _alike(self, path: str, value, features: Features) -> float:
        if path == BASE:
            return 1.0
        other = features.get(path, BASE)
        if isinstance(value, str) or isinstance(other, str):
            return float(value == other)
        return math.exp(-0.5 * ((value - other) / self.length) ** 2)

    def _rate(self, path: str, value, blames) -> float:
        """Posterior mean probability that this edit makes a run diverge."""
        pairs = zip(self.diverged, blames, strict=True)
        bad = PRIOR[0] + sum(self._alike(path, value, f) * blame.get(path, 0.0) for f, blame in pairs)
        alike = sum(self._alike(path, value, f) for f in (*self.survived, *self.diverged))
        return min(bad / (sum(PRIOR) + alike), 1.0)

    def _share(self, features: Features, blames) -> dict[str, float]:
        rates = {path: self._rate(path, value, blames) for path, value in ((BASE, BASE), *features.items())}
        total = 1.0 - math.prod(1.0 - r for r in rates.values())
        return {path: rate / max(total, 1e-12) for path, rate in rates.items()}

    def probability(self, features: Features) -> float:
        """Probability that a run of a recipe with these features diverges; 0 while no run has."""
        if not self.diverged:
            return 0.0
        rates = [self._rate(path, value, self.blames) for path, value in ((BASE, BASE), *features.items())]
        return 1.0 - math.prod(1.0 - r for r in rates)
