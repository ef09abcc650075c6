"""Which edits make training diverge: a noisy-or over edits, each with its own Beta posterior.

Legend: D edits of the diverged runs, Q edits of the recipes asked about, N edits of all runs; each edit is a path and a
value of one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from research.learn.kernel import Features, columns, likeness

BASE = ""  # the cause that every recipe carries
PRIOR = (0.02, 1.0)  # Beta counts of (diverged, survived) an edit starts with


class _Edits:
    """Edits of runs, path by path. run: the one that each belongs to. paths: where its edits are, numbers, choices."""

    def __init__(self, recipes: Sequence[Features]):
        found = columns([{BASE: BASE, **features} for features in recipes])
        self.runs, self.run = len(recipes), np.concatenate([np.zeros(0, int), *(run for run, *_ in found.values())])
        ends = np.cumsum([len(run) for run, *_ in found.values()])
        self.paths = {path: (slice(end - len(run), end), *values)
                      for end, (path, (run, *values)) in zip(ends, found.items(), strict=True)}


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
    def _bad(self) -> _Edits:
        return _Edits(self.diverged)

    @cached_property
    def _all(self) -> _Edits:
        return _Edits([*self.survived, *self.diverged])

    def _alike(self, edits: _Edits, others: _Edits, weight: np.ndarray) -> np.ndarray:
        """For each edit, the sum over the others of likeness times weight."""
        total = np.zeros(len(edits.run))
        for path, (at, numbers, choices) in edits.paths.items():
            if path in others.paths:
                other, other_numbers, other_choices = others.paths[path]
                if path == BASE:
                    total[at] = weight[other].sum()
                else:
                    total[at] = likeness(numbers, choices, other_numbers, other_choices, self.length) @ weight[other]
        return total

    @cached_property
    def blame_D(self) -> np.ndarray:
        """For each edit of a diverged run, the probability that it was a cause."""
        bad = self._bad
        count = np.bincount(bad.run, minlength=bad.runs)
        blame_D = 1.0 / count[bad.run]
        seen_D = self._alike(bad, self._all, np.ones(len(self._all.run)))
        for _ in range(self.rounds):
            rate_D = self._rates(self._alike(bad, bad, blame_D), seen_D)
            blame_D = rate_D / np.maximum(_any(rate_D, bad), 1e-12)[bad.run]
        return blame_D

    def _rates(self, blamed: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Posterior mean probability that each edit makes a run diverge."""
        return np.minimum((PRIOR[0] + blamed) / (sum(PRIOR) + seen), 1.0)

    def probability(self, recipes: Sequence[Features]) -> np.ndarray:
        """Probability that a run of each recipe diverges; 0 while no run has."""
        if not self.diverged or not recipes:
            return np.zeros(len(recipes))
        asked = _Edits(recipes)
        blamed_Q = self._alike(asked, self._bad, self.blame_D)
        seen_Q = self._alike(asked, self._all, np.ones(len(self._all.run)))
        return _any(self._rates(blamed_Q, seen_Q), asked)


def _any(rates: np.ndarray, edits: _Edits) -> np.ndarray:
    """Probability, for each run, that at least one of its edits makes it diverge."""
    with np.errstate(divide="ignore"):
        return -np.expm1(np.bincount(edits.run, np.log1p(-rates), minlength=edits.runs))
