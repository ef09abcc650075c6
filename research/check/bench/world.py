"""Made-up worlds: candidates made of edits, with pairwise interactions, effects that depend on the horizon, a level and
a similarity-dependent effect for each seed, and noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from research.learn.allocate import Action
from research.learn.posterior import Candidate

HORIZONS = (0.125, 0.25, 0.5, 1.0)
OVERHEAD = 0.03  # of a run, in full runs


@dataclass
class World:
    """Ground truth of one campaign. Candidate 0 is the base.

    pair_sd, drift_sd, seed_sd: nats, of what two edits do together, of what an edit's effect is off by at an eighth of
    the budget, and of what a candidate's is off by on a seed. diverging: share of the candidates that do not get as far
    as half of the budget.
    """

    seed: int
    n_candidates: int = 64
    n_edits: int = 24
    pair_sd: float = 0.006
    drift_sd: float = 0.015
    seed_sd: float = 0.004
    diverging: float = 0.0
    levels: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        sizes = rng.integers(1, 6, self.n_candidates - 1)
        picks = [rng.choice(self.n_edits, size, replace=False) for size in sizes]
        self.has = np.zeros((self.n_candidates, self.n_edits))
        for row, pick in enumerate(picks, start=1):
            self.has[row, pick] = 1.0
        pairs = np.triu(rng.normal(0, self.pair_sd, (self.n_edits, self.n_edits)), 1)
        self.value = self.has @ rng.normal(0, 0.015, self.n_edits) + np.einsum("ci,ij,cj->c", self.has, pairs, self.has)
        self.drift = self.has @ rng.normal(0, self.drift_sd, self.n_edits)
        self.candidates = [Candidate({f"edit_{j:02d}": "on" for j in np.flatnonzero(row)}) for row in self.has]
        distance = np.abs(self.has[:, None] - self.has[None]).sum(-1)
        order = rng.permutation(np.arange(1, self.n_candidates))
        self.fallen = frozenset(order[: round(self.diverging * self.n_candidates)].tolist())
        self.alike = np.linalg.cholesky(np.exp(-distance / 3.0) + 1e-9 * np.eye(self.n_candidates))

    def loss(self, run: Action) -> float:
        """Final loss of a run; the same run always ends the same."""
        shortness = -np.log2(run.horizon) / 3.0
        if run.seed not in self.levels:
            rng = np.random.default_rng([self.seed, 1, run.seed])
            level = 0.05 * rng.standard_normal()
            self.levels[run.seed] = level, self.seed_sd * self.alike @ rng.standard_normal(self.n_candidates)
        level, effects = self.levels[run.seed]
        rng = np.random.default_rng([self.seed, 2, run.seed, run.candidate, int(run.horizon * 1024)])
        effect = self.value[run.candidate] + shortness * self.drift[run.candidate] - effects[run.candidate]
        return float(1.6 + 0.6 * shortness + level - effect + (0.006 + 0.005 * shortness) * rng.standard_normal())


def cost(horizon: float) -> float:
    """Price of a run, in full runs."""
    return horizon + OVERHEAD
