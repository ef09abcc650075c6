"""Which training run is worth the next device-second, and which lane is asked for the next proposals.

A run is scored by its expected information gain (EIG) about the *value* of the best candidate at the full horizon,
averaged geometrically with what it is expected to add to the recommended candidate's value, per predicted
device-second. Two candidates of equal value leave nothing to learn, so ties cost nothing; differences below epsilon
do not matter. EIG alone goes on measuring the base against a champion that nothing can overtake any more; expected
improvement alone is blind to what only two runs together can show. A function of its arguments and its random
generator: a decision can be replayed. Source: max-value entropy search, Wang & Jegelka 2017, arXiv:1703.01968; here
from joint samples instead of Gumbel fits.

Legend: S samples, C candidates, A actions, Q quantile bins.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from research.learn.posterior import Candidate, Fitted, factor, rows_of

SAMPLES = 2048
BINS = 16
NOISE = 1e-9  # nats; a gain below it is rounding


class Action(NamedTuple):
    """One training run: the candidate's number, the horizon as a fraction of the full budget, the seed."""

    candidate: int
    horizon: float
    seed: int


@dataclass(frozen=True)
class Scored:
    """A possible run: its EIG (nats), the expected improvement of the recommendation (nats of loss), and its price
    (device-seconds, the base's run included in a new cell)."""

    run: Action
    eig: float
    improvement: float
    cost_s: float

    @property
    def score(self) -> float:
        """Geometric mean of the two gains, per device-second."""
        return math.sqrt(self.eig * self.improvement) / self.cost_s


@dataclass(frozen=True)
class Decision:
    """The run to start now, why, and what else there was.

    action: the run to start: the winner, or the base's run that its cell still lacks (then `purpose` is "base").
    winner: the best run, with the EIG and cost of the pair where the cell is new. runners_up: the next best, best
    first.
    """

    action: Action
    purpose: str
    winner: Scored
    runners_up: tuple[Scored, ...]


def open_runs(n: int, base: int, taken: Collection[Action], horizons: Sequence[float], max_seeds: int) -> list[Action]:
    """Each candidate's next run at each horizon: the first seed it has not taken; the base only follows the others."""
    seen, actions = set(taken), []
    for candidate in range(n):
        for horizon in horizons:
            seed = next((s for s in range(max_seeds) if Action(candidate, horizon, s) not in seen), None)
            if seed is not None and candidate != base:
                actions.append(Action(candidate, horizon, seed))
    return actions


@dataclass(frozen=True)
class Outlook:
    """What each action's outcome has to do with the candidates' full-horizon values, which are mean + lower @ normal.

    slope: of the outcome on those normals. remainder: the outcome's variance beside them (level of the cell, effects of
    horizon and seed, noise). shift: of the candidates' means, per standard deviation of the outcome.
    """

    mean_C: np.ndarray
    lower_CxC: np.ndarray
    slope_CxA: np.ndarray
    remainder_A: np.ndarray
    shift_CxA: np.ndarray


def outlook(fitted: Fitted, candidates: Sequence[Candidate], actions: Sequence[Action]) -> Outlook:
    """Joint distribution of the actions' outcomes and the candidates' values."""
    outcomes = rows_of([candidates[a.candidate] for a in actions], [a.horizon for a in actions],
                       [a.seed for a in actions])
    values = rows_of(candidates, 1.0)
    white_nxA = fitted.whiten(fitted.outcome_covariance(fitted.runs, outcomes))
    cross_nxC = fitted.effect_covariance(fitted.runs, values)
    white_nxC = fitted.whiten(cross_nxC)
    prior_CxC = fitted.effect_covariance(values, values)
    lower_CxC = factor(prior_CxC - white_nxC.T @ white_nxC)
    # a priori a run shares f alone with the full-horizon values: its g is independent of f
    shared_CxA = prior_CxC[:, [a.candidate for a in actions]] - white_nxC.T @ white_nxA
    slope_CxA = solve_triangular(lower_CxC, shared_CxA, lower=True, check_finite=False)
    noise = fitted.hypers.noise**2
    variance_A = np.maximum(fitted.outcome_variance(outcomes) - (white_nxA**2).sum(0), noise)
    remainder_A = np.maximum(variance_A - (slope_CxA**2).sum(0), 0.5 * noise)
    mean_C = fitted.config.trust * values.prior + fitted.alpha_n @ cross_nxC
    return Outlook(mean_C, lower_CxC, slope_CxA, remainder_A, shared_CxA / np.sqrt(variance_A))


def information(view: Outlook, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """EIG (nats) of each action about the best candidate's value, wanted to within epsilon: h(y) - E h(y | best).

    y is taken as Gaussian within a quantile bin of the best value. What of y goes by the candidates' values is
    sampled; the rest of its variance is exact: samples of all of y were too noisy to be divided by small costs.
    """
    normal_SxC = rng.standard_normal((SAMPLES, len(view.mean_C)))
    best_S = (view.mean_C + normal_SxC @ view.lower_CxC.T).max(1) + epsilon * rng.standard_normal(SAMPLES)
    explained_SxA = normal_SxC @ view.slope_CxA
    total_A = explained_SxA.var(0, ddof=1)
    bins = np.argsort(best_S, kind="stable").reshape(BINS, -1)
    within_QxA = np.stack([explained_SxA[samples].var(0, ddof=1) for samples in bins]) + view.remainder_A
    # the logarithm of a variance estimated from a bin's few samples is too low on average
    bias_A = 0.5 * BINS / SAMPLES * (total_A / (total_A + view.remainder_A)) ** 2
    return np.maximum(0.5 * (np.log(total_A + view.remainder_A) - np.log(within_QxA).mean(0)) - bias_A, 0.0)


def improvement(view: Outlook, epsilon: float) -> np.ndarray:
    """Expected rise (nats) of the recommended mean once each action's outcome is known: the knowledge gradient.

    Another candidate must be ahead by epsilon to be recommended instead, so that what cannot matter is worth
    nothing. Exact up to Gauss-Hermite quadrature. Source: Frazier, Powell & Dayanik 2009.
    """
    recommended = int(np.argmax(view.mean_C))
    start_C = view.mean_C - epsilon
    start_C[recommended] += epsilon
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    best_ZxA = np.stack([(start_C[:, None] + z * view.shift_CxA).max(0) for z in nodes])
    return np.maximum(weights @ best_ZxA / weights.sum() - start_C[recommended], 0.0)


def _gain(value: float) -> float:
    """A gain to as many digits as another order of the same sums agrees on; 0 where it is what rounding leaves of
    nothing. Else chance would order the runs, and a decision could not be replayed."""
    return float(f"{value:.9g}") if value > NOISE else 0.0


def _scored(fitted: Fitted, candidates: Sequence[Candidate], actions: Sequence[Action], price_A: Sequence[float],
            epsilon: float, rng: np.random.Generator) -> list[Scored]:
    """What each action may bring, as far as its run is likely to end, at its price in device-seconds."""
    view = outlook(fitted, candidates, actions)
    eig_A, improvement_A = information(view, epsilon, rng), improvement(view, epsilon)
    survival_C = 1.0 - fitted.divergence.probability([c.features for c in candidates])
    survival_A = survival_C[[action.candidate for action in actions]]
    return [Scored(action, _gain(eig), _gain(better), price) for action, eig, better, price
            in zip(actions, eig_A * survival_A, improvement_A * survival_A, price_A, strict=True)]


def choose(fitted: Fitted, candidates: Sequence[Candidate], *, history: Collection[Action], pending: Collection[Action],
           horizons: Sequence[float], cost_s: np.ndarray, max_seeds: int, epsilon: float, rng: np.random.Generator,
           limit_s: float = math.inf, names: Sequence[str] = (), base: int = 0, runners_up: int = 5) -> Decision | None:
    """The next run.

    Args:
        candidates: all that may be run, the base (features {}) among them at `base`.
        history: runs that are over, whatever came of them; pending: runs in flight. Neither is offered again.
        horizons: fractions of the full budget. cost_s: C x len(horizons) predicted device-seconds, compile included.
        max_seeds: seeds 0 .. max_seeds - 1 are common to all; a candidate takes them in order, at each horizon.
        epsilon: a difference of value that does not matter, nats.
        limit_s: what a run may cost, with the base's run in a new cell. names: of the candidates; they break ties.
    Returns: the decision, or None where every candidate has taken every seed at every horizon, or none is in the limit.
    Raises: ValueError if a cost is not positive and finite.
    """
    cost_s = np.asarray(cost_s, float)
    if cost_s.shape != (len(candidates), len(horizons)) or not (np.isfinite(cost_s).all() and (cost_s > 0).all()):
        shape = len(candidates), len(horizons)
        raise ValueError(f"costs need shape {shape} and positive seconds, got {cost_s.shape}")
    taken = {*history, *pending}
    actions = open_runs(len(candidates), base, taken, horizons, max_seeds)
    if not actions:
        return None
    bare = sorted({a[1:] for a in actions if a._replace(candidate=base) not in taken})
    # the base's run fixes a new cell's level and says next to nothing of any value: assume it, and charge for it
    assumed = [*sorted(pending), *(Action(base, *cell) for cell in bare)]
    foreseen = fitted.condition([candidates[r.candidate] for r in assumed], [r.horizon for r in assumed],
                                [r.seed for r in assumed])
    price_A = [float(cost_s[[a.candidate, base] if a[1:] in bare else [a.candidate], horizons.index(a.horizon)].sum())
               for a in actions]
    scored = [s for s in _scored(foreseen, candidates, actions, price_A, epsilon, rng) if s.cost_s <= limit_s]
    if not scored:
        return None
    named = names or [f"{i:08d}" for i in range(len(candidates))]
    scored.sort(key=lambda s: (-s.score, s.cost_s, named[s.run.candidate], *s.run[1:]))
    winner, rest = scored[0], tuple(scored[1 : runners_up + 1])
    if (cell := winner.run[1:]) in bare:
        return Decision(Action(base, *cell), "base", winner, rest)
    return Decision(winner.run, "search", winner, rest)


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
    total, even = sum(bounds), 1.0 / len(lanes)
    bandit = [b / total if total > 0 else even for b in bounds]
    return {lane: float(exploration * even + (1 - exploration) * b) for lane, b in zip(lanes, bandit, strict=True)}


def next_lane(shares: Mapping[str, float], asked: Mapping[str, int]) -> str:
    """The lane furthest behind its share, given how many proposals each was asked for so far; ties by order."""
    total = sum(asked.get(lane, 0) for lane in shares) + 1
    return max(shares, key=lambda lane: shares[lane] * total - asked.get(lane, 0))
