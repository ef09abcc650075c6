"""Which training run is worth the next device-second, and which lane is asked for the next proposals.

A run is worth its expected information gain (EIG, nats) about the *value* of the best candidate at the full horizon, per
predicted device-second. Two candidates of equal value leave nothing to learn, so ties cost nothing; and the value is only
wanted to within epsilon. A function of its arguments and its random generator: a decision can be replayed.
Source: max-value entropy search, Wang & Jegelka 2017, arXiv:1703.01968; here from joint samples instead of Gumbel fits.

Legend: S samples, C candidates, A actions, Q quantile bins.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from research.kernel import rows
from research.posterior import Candidate, Fitted, factor

SAMPLES = 2048
BINS = 16


class Run(NamedTuple):
    """One training run: the candidate's number, the horizon as a fraction of the full budget, the seed."""

    candidate: int
    horizon: float
    seed: int


@dataclass(frozen=True)
class Scored:
    """A possible run with its EIG (nats), its price (device-seconds, the base's run included in a new cell), and their ratio."""

    run: Run
    eig: float
    cost_s: float

    @property
    def score(self) -> float:
        return self.eig / self.cost_s


@dataclass(frozen=True)
class Decision:
    """The run to start now, why, and what else there was.

    action: the run to start: the winner, or the base's run that its cell still lacks (then `purpose` is "base").
    winner: the best run, with the EIG and cost of the pair where the cell is new. runners_up: the next best, best first.
    """

    action: Run
    purpose: str
    winner: Scored
    runners_up: tuple[Scored, ...]


def open_runs(n: int, base: int, taken: Collection[Run], horizons: Sequence[float], max_seeds: int) -> list[Run]:
    """Each candidate's next run at each horizon: the first seed it has not taken; the base only follows the others."""
    seen = set(taken)
    actions = []
    for candidate in range(n):
        for horizon in horizons:
            seed = next((s for s in range(max_seeds) if Run(candidate, horizon, s) not in seen), None)
            if seed is not None and candidate != base:
                actions.append(Run(candidate, horizon, seed))
    return actions


def within_bins(key_S: np.ndarray, outcomes_SxA: np.ndarray) -> np.ndarray:
    """Variance of each outcome within each quantile bin of `key`. Shape Q x A."""
    order_QxK = np.argsort(key_S, kind="stable").reshape(BINS, -1)
    return np.stack([outcomes_SxA[row].var(0, ddof=1) for row in order_QxK])


def gains(fitted: Fitted, candidates: Sequence[Candidate], actions: Sequence[Run], epsilon: float, rng) -> np.ndarray:
    """EIG (nats) of each action about how much the best candidate is worth beyond the one that would be recommended now.

    h(y) - E h(y | that value), y Gaussian within a quantile bin of it. A run's outcome y is a linear function of all the
    candidates' values, whose variance within a bin comes from samples, plus a remainder (level of the cell, effects of
    horizon and seed, noise) whose variance is exact: samples of y itself were too noisy to be divided by small costs.
    """
    chosen = [candidates[a.candidate] for a in actions]
    horizons, seeds = [a.horizon for a in actions], [a.seed for a in actions]
    outcomes = rows([c.features for c in chosen], horizons, seeds, [c.prior_mean for c in chosen])
    values = fitted.effect_rows(candidates, 1.0)
    white_nxA = fitted.whiten(fitted.outcome_covariance(fitted.runs, outcomes))
    cross_nxC = fitted.cross(values)
    white_nxC = fitted.whiten(cross_nxC)
    lower_CxC = factor(fitted.effect_covariance(values, values) - white_nxC.T @ white_nxC)
    shared_CxA = fitted.effect_covariance(values, outcomes) - white_nxC.T @ white_nxA
    slope_CxA = solve_triangular(lower_CxC, shared_CxA, lower=True, check_finite=False)
    outcome_A = fitted.outcome_variance(outcomes) - (white_nxA**2).sum(0)
    remainder_A = np.maximum(outcome_A - (slope_CxA**2).sum(0), 0.5 * fitted.hypers.noise**2)

    normal_SxC = rng.standard_normal((SAMPLES, len(candidates)))
    mean_C = fitted.config.trust * values.prior + fitted.alpha_n @ cross_nxC
    values_SxC = mean_C + normal_SxC @ lower_CxC.T
    beyond_S = values_SxC.max(1) - values_SxC[:, int(np.argmax(mean_C))] + epsilon * rng.standard_normal(SAMPLES)
    explained_SxA = normal_SxC @ slope_CxA
    total_A = explained_SxA.var(0, ddof=1)
    gain_A = 0.5 * np.log(total_A + remainder_A) - 0.5 * np.log(within_bins(beyond_S, explained_SxA) + remainder_A).mean(0)
    bias_A = 0.5 * BINS / SAMPLES * (total_A / (total_A + remainder_A)) ** 2  # E log of a bin's variance is too low
    return np.maximum(gain_A - bias_A, 0.0)


def choose(
    fitted: Fitted,
    candidates: Sequence[Candidate],
    *,
    history: Collection[Run],
    pending: Collection[Run],
    horizons: Sequence[float],
    cost_s: np.ndarray,
    max_seeds: int,
    epsilon: float,
    rng: np.random.Generator,
    base: int = 0,
    runners_up: int = 5,
) -> Decision | None:
    """The next run.

    Args:
        candidates: all that may be run, the base (features {}) among them at `base`.
        history: runs that are over, whatever came of them; pending: runs in flight. Neither is offered again.
        horizons: fractions of the full budget. cost_s: C x len(horizons) predicted device-seconds, compile included.
        max_seeds: seeds 0 .. max_seeds - 1 are common to all; a candidate takes them in order, at each horizon.
        epsilon: a difference of value that does not matter, nats.
    Returns: the decision, or None where every candidate has taken every seed at every horizon.
    Raises: ValueError if a cost is not positive and finite.
    """
    cost_s = np.asarray(cost_s, float)
    if cost_s.shape != (len(candidates), len(horizons)) or not (np.isfinite(cost_s).all() and (cost_s > 0).all()):
        raise ValueError(f"costs need shape {(len(candidates), len(horizons))} and positive seconds, got {cost_s.shape}")
    taken = {*history, *pending}
    actions = open_runs(len(candidates), base, taken, horizons, max_seeds)
    if not actions:
        return None
    cells = {(a.horizon, a.seed) for a in actions}
    bare = sorted(cell for cell in cells if Run(base, *cell) not in taken)
    # the base's run fixes a new cell's level and says next to nothing of any value: assume it, and charge for it
    assumed = [*sorted(pending), *(Run(base, *cell) for cell in bare)]
    foreseen = fitted.condition([candidates[r.candidate] for r in assumed], [r.horizon for r in assumed], [r.seed for r in assumed])
    eig_A = gains(foreseen, candidates, actions, epsilon, rng)
    survival_C = 1.0 - np.array([fitted.p_diverge(c.features) for c in candidates])
    column = {h: j for j, h in enumerate(horizons)}
    scored = [
        Scored(
            a,
            float(eig * survival_C[a.candidate]),
            float(cost_s[a.candidate, column[a.horizon]] + ((a.horizon, a.seed) in bare) * cost_s[base, column[a.horizon]]),
        )
        for a, eig in zip(actions, eig_A, strict=True)
    ]
    scored.sort(key=lambda s: (-s.score, s.cost_s, s.run))
    winner = scored[0]
    first = Run(base, winner.run.horizon, winner.run.seed)
    is_new = (winner.run.horizon, winner.run.seed) in bare
    return Decision(first if is_new else winner.run, "base" if is_new else "search", winner, tuple(scored[1 : runners_up + 1]))


def recommend(fitted: Fitted, candidates: Sequence[Candidate], caution: float = 0.0) -> int:
    """Number of the candidate to stand behind: highest full-horizon mean, less `caution` standard deviations."""
    mean_C, covariance_CxC = fitted.predict(candidates)
    return int(np.argmax(mean_C - caution * np.sqrt(np.maximum(np.diag(covariance_CxC), 0.0))))


class Reward(NamedTuple):
    """What one of a lane's runs brought: the gain of the best so far (nats, >= 0), and what it cost."""

    lane: str
    gain: float
    device_s: float


def share(lanes: Sequence[str], rewards: Sequence[Reward], exploration: float = 0.3) -> Mapping[str, float]:
    """Share of the next proposals each lane is asked for; sums to 1.

    `exploration` is split evenly whatever happened; the rest goes by an upper confidence bound of the gain per
    device-second, so that a lane not tried yet is not starved.
    Raises: ValueError without a lane, or if exploration is outside [0, 1].
    """
    if not lanes or not 0.0 <= exploration <= 1.0:
        raise ValueError(f"a share needs at least one lane and exploration in [0, 1], got {list(lanes)}, {exploration}")
    rewards = [r for r in rewards if r.lane in lanes]
    typical_s = float(np.mean([r.device_s for r in rewards])) if rewards else 1.0
    overall = sum(r.gain for r in rewards) / max(sum(r.device_s for r in rewards), 1e-9)
    bounds = []
    for lane in lanes:
        own = [r for r in rewards if r.lane == lane]
        # two typical runs at the overall rate are what a lane is credited with before it has done anything
        rate = (sum(r.gain for r in own) + 2 * typical_s * overall) / (sum(r.device_s for r in own) + 2 * typical_s)
        bounds.append(rate + overall * np.sqrt(np.log1p(len(rewards)) / (len(own) + 1)))
    total = sum(bounds)
    bandit = [b / total if total > 0 else 1.0 / len(lanes) for b in bounds]
    return {lane: float(exploration / len(lanes) + (1 - exploration) * b) for lane, b in zip(lanes, bandit, strict=True)}


def next_lane(shares: Mapping[str, float], asked: Mapping[str, int]) -> str:
    """The lane furthest behind its share, given how many proposals each was asked for so far; ties by order."""
    total = sum(asked.get(lane, 0) for lane in shares) + 1
    return max(shares, key=lambda lane: shares[lane] * total - asked.get(lane, 0))
