"""Which edits make training diverge: a noisy-or over edits, each with its own Beta posterior.

Legend: D edits of the diverged runs, V leaves (edits that differ) of some recipes; each edit is a path and a value of
one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from research.learn.kernel import Features, Leaves, compared, leaves, likeness

BASE = {"": "base"}  # the cause that every recipe carries
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
    def _bad(self) -> Leaves:
        return leaves([BASE | {**f} for f in self.diverged])

    @cached_property
    def _all(self) -> tuple[Leaves, np.ndarray]:
        """The leaves of all runs, and how many runs have each."""
        runs = [*self.survived, *self.diverged]
        recipes = {id(f): f for f in runs}  # a recipe's features are mostly the same object
        number = {key: i for i, key in enumerate(recipes)}
        count_U = np.bincount([number[id(f)] for f in runs], minlength=len(recipes))
        found = leaves([BASE | {**f} for f in recipes.values()])
        return found, found.has_UxV.T @ count_U

    def _seen(self, asked: Leaves) -> np.ndarray:
        """For each leaf, how many runs had it or one like it."""
        every, count_V = self._all
        return compared(asked, every, self.length, likeness) @ count_V

    @cached_property
    def blame_V(self) -> np.ndarray:
        """For each leaf of the diverged runs, how many of them it is to blame for."""
        bad = self._bad
        has_UxV = bad.has_UxV.tocoo()
        run_D, leaf_D = has_UxV.coords
        blame_D = 1.0 / np.bincount(run_D)[run_D]
        seen_V, alike_VxV = self._seen(bad), compared(bad, bad, self.length, likeness)
        for _ in range(self.rounds):
            rate_V = self._rates(alike_VxV @ np.bincount(leaf_D, blame_D, len(seen_V)), seen_V)
            blame_D = rate_V[leaf_D] / np.maximum(_any(rate_V, bad), 1e-12)[run_D]
        return np.bincount(leaf_D, blame_D, len(seen_V))

    def _rates(self, blamed: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Posterior mean probability that each edit makes a run diverge."""
        return np.minimum((PRIOR[0] + blamed) / (sum(PRIOR) + seen), 1.0)

    def probability(self, recipes: Sequence[Features]) -> np.ndarray:
        """Probability that a run of each recipe diverges; 0 while no run has."""
        if not self.diverged or not recipes:
            return np.zeros(len(recipes))
        asked = leaves([BASE | {**f} for f in recipes])
        blamed_V = compared(asked, self._bad, self.length, likeness) @ self.blame_V
        return _any(self._rates(blamed_V, self._seen(asked)), asked)


def _any(rate_V: np.ndarray, found: Leaves) -> np.ndarray:
    """Probability, for each recipe, that at least one of its leaves makes a run diverge."""
    with np.errstate(divide="ignore"):
        return -np.expm1(found.has_UxV @ np.log1p(-rate_V))
