"""Allocation policies on simulated campaigns: `python -m research.check.simulate --campaigns 24`.

A world has 64 candidates made of 24 edits, with pairwise interactions, effects that depend on the horizon, a level
and a similarity-dependent effect for each seed, and noise. Printed: median compute, in full runs, until the
recommended candidate stays within 0.005 nats of the best. A campaign that never gets there counts as the budget.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from jaxnano.cli import Command

PARSER = Command("research.check.simulate", __doc__)
PARSER.description, PARSER.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
PARSER.add_argument("--campaigns", type=int, default=24)
PARSER.add_argument("--budget", type=float, default=100.0, help="full runs, of random and ASHA")
PARSER.add_argument("--eig-budget", type=float, default=25.0, help="full runs, of EIG: it decides slowly")
PARSER.add_argument("--policies", help="comma-separated; all by default")
PARSER.early(__name__)

import numpy as np

from research.learn.allocate import Action, choose, recommend
from research.learn.posterior import Candidate, Observation, Posterior

HORIZONS = (0.125, 0.25, 0.5, 1.0)
GOAL = 0.005
OVERHEAD = 0.03


@dataclass
class World:
    """Ground truth of one campaign. Candidate 0 is the base.

    pair_sd, drift_sd: nats, of what two edits do together, and of what an edit's effect is off by at an eighth of the
    budget. diverging: share of the candidates that do not get as far as half of it.
    """

    seed: int
    n_candidates: int = 64
    n_edits: int = 24
    pair_sd: float = 0.006
    drift_sd: float = 0.015
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
            self.levels[run.seed] = level, 0.004 * self.alike @ rng.standard_normal(self.n_candidates)
        level, effects = self.levels[run.seed]
        rng = np.random.default_rng([self.seed, 2, run.seed, run.candidate, int(run.horizon * 1024)])
        effect = self.value[run.candidate] + shortness * self.drift[run.candidate] - effects[run.candidate]
        return float(1.6 + 0.6 * shortness + level - effect + (0.006 + 0.005 * shortness) * rng.standard_normal())


def cost(horizon: float) -> float:
    """Price of a run, in full runs."""
    return horizon + OVERHEAD


def eig(world: World, rng: np.random.Generator, horizons=HORIZONS) -> Iterator[tuple[float, int]]:
    """The project's own allocator; yields (price of the run, recommended candidate) after each run."""
    posterior, history, observations = Posterior(), [], []
    costs = np.tile([cost(h) for h in horizons], (world.n_candidates, 1))
    while True:
        fitted = posterior.fit(observations)
        decision = choose(fitted, world.candidates, history=history, pending=[], horizons=horizons, cost_s=costs,
                          max_seeds=8, epsilon=GOAL / 2, rng=rng)
        if decision is None:
            return
        run = decision.action
        history.append(run)
        features = world.candidates[run.candidate].features
        observations.append(Observation(features, run.horizon, run.seed, world.loss(run)))
        yield cost(run.horizon), recommend(posterior.fit(observations), world.candidates)


def random(world: World, rng: np.random.Generator) -> Iterator[tuple[float, int]]:
    """Full runs in random order, on one shared seed."""
    losses: dict[int, float] = {}
    for candidate in rng.permutation(world.n_candidates):
        losses[int(candidate)] = world.loss(Action(int(candidate), 1.0, 0))
        yield cost(1.0), min(losses, key=losses.__getitem__)


def asha(world: World, rng: np.random.Generator, eta: int = 3) -> Iterator[tuple[float, int]]:
    """Asynchronous successive halving on one shared seed (Li et al. 2018, arXiv:1810.05934); recommends the best at
    the top."""
    rungs = [float(eta) ** -k for k in range(int(np.log(8) / np.log(eta) + 1.2), -1, -1)]
    results: list[dict[int, float]] = [{} for _ in rungs]
    order = list(rng.permutation(world.n_candidates))
    while True:
        ranked = [sorted(rung, key=rung.__getitem__) for rung in results]
        ready = ((c, level) for level in range(len(rungs) - 1, 0, -1)
                 for c in ranked[level - 1][: len(ranked[level - 1]) // eta] if c not in results[level])
        candidate, level = next(ready, None) or (int(order.pop()) if order else None, 0)
        if candidate is None:
            return
        results[level][candidate] = world.loss(Action(candidate, rungs[level], 0))
        top = next(r for r in reversed(results) if r)
        yield cost(rungs[level]), min(top, key=top.__getitem__)


POLICIES: dict[str, Callable[[World, np.random.Generator], Iterator[tuple[float, int]]]] = {
    "random": random, "asha": asha, "eig": eig, "eig_full_horizon": lambda world, rng: eig(world, rng, (1.0,))}


def compute_to_goal(policy: str, seed: int, budget: float) -> float:
    """Compute, in full runs, after which the recommendation stays within the goal until the budget ends; inf if it
    does not."""
    world, spent, reached = World(seed), 0.0, np.inf
    for price, recommended in POLICIES[policy](world, np.random.default_rng([seed, 3])):
        spent += price
        if spent > budget:
            break
        reached = min(reached, spent) if world.value.max() - world.value[recommended] <= GOAL else np.inf
    return reached


def main() -> None:
    arguments = PARSER.options(None)
    print(f"{'policy':<18}{'median':>8}{'reached':>9}{'seconds':>9}")
    for policy in arguments.policies.split(",") if arguments.policies else POLICIES:
        budget = arguments.eig_budget if policy.startswith("eig") else arguments.budget
        start = time.perf_counter()
        spent = np.array([compute_to_goal(policy, seed, budget) for seed in range(arguments.campaigns)])
        median, seconds = np.median(np.minimum(spent, budget)), time.perf_counter() - start
        print(f"{policy:<18}{median:>8.1f}{np.isfinite(spent).mean():>9.0%}{seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
