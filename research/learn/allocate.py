"""Which training run is worth the next device-second.

A run is worth what it is expected to add to the value of the candidate that would be recommended then (its knowledge
gradient), per predicted device-second. Its expected information gain (EIG) about the best candidate's value is told
beside it: alone or in a geometric mean with the gain it finds the best no sooner (docs/bench.md), and it takes samples.
Differences below epsilon do not matter, so that ties cost nothing. A function of its arguments and its random
generator: a decision can be replayed. Sources: Frazier, Powell & Dayanik 2009; max-value entropy search, Wang &
Jegelka 2017, arXiv:1703.01968, here from joint samples instead of Gumbel fits.

Legend: S samples, C candidates, K rivals (candidates that may be recommended), A actions, Q quantile bins, Z cells of a
standard normal variable.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import ndtr

from research.learn.kernel import Rows
from research.learn.posterior import Candidate, Fitted, factor, rows_of

SAMPLES, BINS = 2048, 16
NEGLIGIBLE = 1e-7  # nats; a gain below it is none, and all who are no rivals may add so much to any
RIVALS = 256  # at most; with more, `Rivals.left_out` says what that may cost
CHUNK = 8192  # actions looked at together: memory
ROOM = 12  # candidates that run in a cell before the next seed's is opened


class Action(NamedTuple):
    """One training run: the candidate's number, the horizon as a fraction of the full budget, the seed."""

    candidate: int
    horizon: float
    seed: int


@dataclass(frozen=True)
class Scored:
    """A possible run: the expected improvement of the recommendation (nats of loss), its price (device-seconds, the
    base's run included in a new cell), and its EIG (nats)."""

    run: Action
    improvement: float
    cost_s: float
    eig: float = math.nan

    @property
    def score(self) -> float:
        """The gain, per device-second."""
        return self.improvement / self.cost_s


By = Callable[[Scored], float]  # what a run is worth


@dataclass(frozen=True)
class Decision:
    """The run to start now, why, and what else there was.

    action: the run to start: the winner, or the base's run that its cell still lacks (then `purpose` is "base").
    winner: the best run, with the gain and cost of the pair where the cell is new. runners_up: the next best, best
    first.
    """

    action: Action
    purpose: str
    winner: Scored
    runners_up: tuple[Scored, ...]


def open_runs(who: Iterable[int], taken: Collection[Action], horizons: Sequence[float], max_seeds: int, base: int = 0,
              parents: Mapping[int, Collection[int]] | None = None, told: Collection[int] = ()) -> Iterator[Action]:
    """Each candidate's next run at each horizon: on a seed that it has not taken there; the least, for those who were
    told so.

    Where the base has run and there is room, in the cells of its parents first; else where the base has not; else
    where it is crowded. Of equals, each candidate starts with another, so that no seed's luck decides for all.
    """
    cells: dict[float, list[set[int]]] = {h: [set() for _ in range(max_seeds)] for h in horizons}
    for run in taken:
        if run.horizon in cells and run.seed < max_seeds:
            cells[run.horizon][run.seed].add(run.candidate)
    ranks = {h: [1 if base not in ran else 2 * (len(ran) > ROOM) for ran in by_seed] for h, by_seed in cells.items()}
    known = {h: set().union(*by_seed) for h, by_seed in cells.items()}
    strangers: dict[tuple[float, int], int | None] = {}  # what those get who have not run there, nor have parents

    def seed_for(number: int, horizon: float, kin: Collection[int]) -> int | None:
        by_seed = cells[horizon]
        if number in told:
            return next((seed for seed, ran in enumerate(by_seed) if number not in ran), None)
        return min(((rank, 0 if rank == 1 else -sum(k in by_seed[seed] for k in kin),
                     seed if rank == 1 else (seed - number) % max_seeds, seed)
                    for seed, rank in enumerate(ranks[horizon]) if number not in by_seed[seed]), default=(None,))[-1]

    for number in who:
        kin = (parents or {}).get(number, ())
        for horizon in horizons:
            if kin or number in known[horizon] or number in told:
                seed = seed_for(number, horizon, kin)
            else:
                if (key := (horizon, number % max_seeds)) not in strangers:
                    strangers[key] = seed_for(number, horizon, ())
                seed = strangers[key]
            if seed is not None:
                yield Action(number, horizon, seed)


@dataclass(frozen=True)
class Rivals:
    """The candidates that may be recommended once one more run is in; the one that would be now is the first.

    gap_K: how far each has to rise for that, nats. weight_K: what of its effect counts: a gain, as far as its run is
    likely to end. left_out: at most so much do all others together add to the gain of any run, nats.
    """

    numbers: np.ndarray
    mean_K: np.ndarray
    gap_K: np.ndarray
    weight_K: np.ndarray
    white_nxK: np.ndarray
    left_out: float


def above(gap: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Expected excess of a centred Gaussian over a gap."""
    ratio = gap / np.maximum(sd, 1e-12)
    return np.maximum(sd * (_density(ratio) - ratio * ndtr(-ratio)), 0.0)


def _density(z: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


def rivals(fitted: Fitted, candidates: Sequence[Candidate], epsilon: float, survival_C: np.ndarray,
           out: Collection[int] = ()) -> Rivals:
    """Whoever may come out ahead by epsilon. out: who is not recommended, whatever is expected.

    By its difference to the first, whose standard deviation no single run can move it by more than, each is expected
    to gain so much at most; those with the most are kept.
    """
    looks = [*fitted.looks(candidates)]
    white_nxC = np.concatenate([look.white_nxC for look in looks], axis=1)
    mean_C = np.concatenate([fitted.mean(look) for look in looks])
    weight_C = np.where(mean_C > 0, survival_C, 1.0)
    value_C = weight_C * mean_C
    value_C[[*out]] = -1e6
    first = int(np.argmax(value_C))
    leading, values = rows_of([candidates[first]], 1.0), [look.points for look in looks]
    prior_C = np.concatenate([fitted.effect_covariance(leading, points)[0] for points in values])
    shared_C = prior_C - white_nxC[:, first] @ white_nxC
    variance_C = np.concatenate([fitted.effect_variance(points) for points in values]) - (white_nxC**2).sum(0)
    variance_C *= weight_C**2
    spread_C = variance_C + variance_C[first] - 2 * weight_C[first] * weight_C * shared_C
    gap_C = value_C[first] + epsilon - value_C
    most_C = above(gap_C, np.sqrt(np.maximum(spread_C, 0.0)))
    most_C[first], gap_C[first] = np.inf, 0.0
    order = np.argsort(-most_C, kind="stable")
    rest = np.append(np.cumsum(most_C[order[:0:-1]])[::-1], 0.0)  # of all that come after each
    kept = min(int(np.argmax(rest <= NEGLIGIBLE)) + 1, RIVALS)
    numbers = order[:kept]
    return Rivals(numbers, mean_C[numbers], gap_C[numbers], weight_C[numbers], white_nxC[:, numbers],
                  float(rest[kept - 1]))


@dataclass(frozen=True)
class Outlook:
    """What each action's outcome has to do with the rivals' full-horizon values: covariances, and its variance."""

    shared_KxA: np.ndarray
    variance_A: np.ndarray

    def only(self, picked: Sequence[int]) -> "Outlook":
        """That of some of the actions."""
        return Outlook(self.shared_KxA[:, [*picked]], self.variance_A[[*picked]])


def outlook(fitted: Fitted, candidates: Sequence[Candidate], rival: Rivals, actions: Sequence[Action]) -> Outlook:
    """Joint distribution of the actions' outcomes and the rivals' values."""
    values = rows_of([candidates[i] for i in rival.numbers], 1.0)
    shared, variance, noise = [], [], fitted.hypers.noise**2
    for start in range(0, len(actions), CHUNK):
        outcomes = _outcomes(candidates, actions[start : start + CHUNK])
        white_nxA = fitted.whiten(fitted.outcome_covariance(fitted.runs, outcomes))
        shared.append(fitted.effect_covariance(values, outcomes) - rival.white_nxK.T @ white_nxA)
        variance.append(np.maximum(fitted.outcome_variance(outcomes) - (white_nxA**2).sum(0), noise))
    return Outlook(np.concatenate(shared, axis=1), np.concatenate(variance))


def _outcomes(candidates: Sequence[Candidate], actions: Sequence[Action]) -> Rows:
    """Rows of the actions; each candidate's features are looked at once."""
    numbers = {number: i for i, number in enumerate(dict.fromkeys(a.candidate for a in actions))}
    points, at = rows_of([candidates[number] for number in numbers], 1.0), [numbers[a.candidate] for a in actions]
    return replace(points, index=points.index[at], horizon=np.array([a.horizon for a in actions]),
                   seed=np.array([a.seed for a in actions], float),
                   promises={origin: promise[at] for origin, promise in points.promises.items()})


def information(lower_KxK: np.ndarray, mean_K: np.ndarray, view: Outlook, noise: float, epsilon: float,
                rng: np.random.Generator) -> np.ndarray:
    """EIG (nats) of each action about the best rival's value, wanted to within epsilon: h(y) - E h(y | best).

    lower_KxK: Cholesky factor of the values' covariance. y is taken as Gaussian within a quantile bin of the best
    value. What of y goes by the rivals' values is sampled; the rest of its variance is exact: samples of all of y were
    too noisy to be divided by small costs.
    """
    slope_KxA = solve_triangular(lower_KxK, view.shared_KxA, lower=True, check_finite=False)
    remainder_A = np.maximum(view.variance_A - (slope_KxA**2).sum(0), 0.5 * noise**2)
    normal_SxK = rng.standard_normal((SAMPLES, len(mean_K)))
    best_S = (mean_K + normal_SxK @ lower_KxK.T).max(1) + epsilon * rng.standard_normal(SAMPLES)
    explained_SxA = normal_SxK @ slope_KxA
    total_A = explained_SxA.var(0, ddof=1)
    bins = np.argsort(best_S, kind="stable").reshape(BINS, -1)
    within_QxA = np.stack([explained_SxA[samples].var(0, ddof=1) for samples in bins]) + remainder_A
    # the logarithm of a variance estimated from a bin's few samples is too low on average
    bias_A = 0.5 * BINS / SAMPLES * (total_A / (total_A + remainder_A)) ** 2
    return np.maximum(0.5 * (np.log(total_A + remainder_A) - np.log(within_QxA).mean(0)) - bias_A, 0.0)


def shifts(rival: Rivals, view: Outlook) -> np.ndarray:
    """How far each rival comes up on the first for a standard deviation of each action's outcome. Shape K x A."""
    moved_KxA = rival.weight_K[:, None] * view.shared_KxA
    return (moved_KxA - moved_KxA[0]) / np.sqrt(view.variance_A)


EDGES_Z = np.arange(-4.5, 4.6, 0.75)
_ENDS_Z = np.concatenate([[-np.inf], EDGES_Z, [np.inf]])
_MASS_Z = np.diff(ndtr(_ENDS_Z))
_MEAN_Z = -np.diff(_density(_ENDS_Z)) / _MASS_Z
_TAIL = float(above(EDGES_Z[-1:], np.ones(1))[0])


def bounds(gap_K: np.ndarray, shift_KxA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `improvement` is between, for each action: the best of straight lines is convex, so that it is at least
    what it is at the mean of a cell of its variable, and at most what it is on the chord."""
    def best_A(z: float) -> np.ndarray:
        return (z * shift_KxA - gap_K[:, None]).max(0)

    low_A = _MASS_Z @ np.stack([best_A(mean) for mean in _MEAN_Z])
    at_ZxA = np.stack([best_A(edge) for edge in EDGES_Z])
    left, width = EDGES_Z[:-1, None], np.diff(EDGES_Z)[:, None]
    chord_ZxA = at_ZxA[:-1] + (at_ZxA[1:] - at_ZxA[:-1]) / width * (_MEAN_Z[1:-1, None] - left)
    tails_A = _MASS_Z[0] * at_ZxA[0] + _MASS_Z[-1] * at_ZxA[-1] + _TAIL * (shift_KxA.max(0) - shift_KxA.min(0))
    return low_A, _MASS_Z[1:-1] @ chord_ZxA + tails_A


def improvement(gap_K: np.ndarray, shift_K: np.ndarray) -> float:
    """Expected rise (nats) of the recommended value once an action's outcome is known: its knowledge gradient.

    Exact: from where each of the straight lines that make up the best, by the outcome, overtakes the one before.
    """
    lines: list[tuple[float, float]] = []
    overtakes: list[float] = []
    order = np.lexsort((-gap_K, shift_K))
    for slope, start in zip(shift_K[order].tolist(), (-gap_K[order]).tolist(), strict=True):
        if lines and slope == lines[-1][0]:
            lines.pop()
            del overtakes[len(lines) - 1 :]
        while lines:
            at = (lines[-1][1] - start) / (slope - lines[-1][0])
            if not overtakes or at > overtakes[-1]:
                overtakes.append(at)
                break
            lines.pop()
            overtakes.pop()
        lines.append((slope, start))
    steps = np.diff([slope for slope, _ in lines])
    return float(steps @ above(np.abs(overtakes), np.ones(len(overtakes)))) if len(steps) else 0.0


def _gain(value: float) -> float:
    """A gain to as many digits as another order of the same sums agrees on; 0 where it is what rounding leaves of
    nothing. Else chance would order the runs, and a decision could not be replayed."""
    return float(f"{value:.9g}") if value > NEGLIGIBLE else 0.0


def choose(fitted: Fitted, candidates: Sequence[Candidate], *, history: Collection[Action], pending: Collection[Action],
           horizons: Sequence[float], cost_s: np.ndarray, max_seeds: int, epsilon: float, rng: np.random.Generator,
           limit_s: float = math.inf, names: Sequence[str] = (), base: int = 0, runners_up: int = 5,
           parents: Mapping[int, Collection[int]] | None = None, told: Collection[int] = (),
           barred: Collection[int] = (), fallen: Collection[int] = (), by: By | None = None) -> Decision | None:
    """The next run.

    Args:
        candidates: all that there are, the base (features {}) among them at `base`.
        history: runs that are over, whatever came of them; pending: runs in flight. Neither is offered again.
        horizons: fractions of the full budget. cost_s: C x len(horizons) predicted device-seconds, compile included.
        max_seeds: seeds 0 .. max_seeds - 1 are common to all, see `open_runs`.
        epsilon: a difference of value that does not matter, nats.
        limit_s: what a run may cost, with the base's run in a new cell. names: of the candidates; they break ties.
        parents, told: see `open_runs`. barred: who is not run again; they and the fallen are not recommended.
        by: what to go by, per device-second, in the place of the improvement; it takes samples for every run.
    Returns: the decision, or None where every candidate has taken every seed at every horizon, or none is in the limit.
    Raises: ValueError if a cost is not positive and finite.
    """
    cost_s = np.asarray(cost_s, float)
    if cost_s.shape != (len(candidates), len(horizons)) or not (np.isfinite(cost_s).all() and (cost_s > 0).all()):
        shape = len(candidates), len(horizons)
        raise ValueError(f"costs need shape {shape} and positive seconds, got {cost_s.shape}")
    taken, column = {*history, *pending}, {horizon: i for i, horizon in enumerate(horizons)}
    who = [i for i in range(len(candidates)) if i != base and i not in {*barred}]
    offered = [*open_runs(who, taken, horizons, max_seeds, base, parents, told)]
    bare = sorted({cell for cell in {a[1:] for a in offered} if Action(base, *cell) not in taken})
    priced = [(a, cost_s[a.candidate, column[a.horizon]] + (a[1:] in bare) * cost_s[base, column[a.horizon]])
              for a in offered]
    actions, price_A = [a for a, price in priced if price <= limit_s], [p for _, p in priced if p <= limit_s]
    if not actions:
        return None
    # the base's run fixes a new cell's level and says next to nothing of any value: assume it, and charge for it
    assumed = [*sorted(pending), *(Action(base, *cell) for cell in bare)]
    foreseen = fitted.condition([candidates[r.candidate] for r in assumed], [r.horizon for r in assumed],
                                [r.seed for r in assumed])
    named = names or [f"{i:08d}" for i in range(len(candidates))]
    best = _best(foreseen, candidates, actions, np.array(price_A), epsilon, rng, {*barred, *fallen} - {base}, by,
                 runners_up, named)
    winner, rest = best[0], tuple(best[1:])
    if (cell := winner.run[1:]) in bare:
        return Decision(Action(base, *cell), "base", winner, rest)
    return Decision(winner.run, "search", winner, rest)


def _best(fitted: Fitted, candidates: Sequence[Candidate], actions: Sequence[Action], price_A: np.ndarray,
          epsilon: float, rng: np.random.Generator, out: Collection[int], by: By | None, runners_up: int,
          named: Sequence[str]) -> list[Scored]:
    """The best action and its runners-up: all whose gain may be among those, by its bounds, are looked at exactly."""
    survival_C = 1.0 - fitted.divergence.probability([c.features for c in candidates])
    rival = rivals(fitted, candidates, epsilon, survival_C, out)
    view = outlook(fitted, candidates, rival, actions)
    shift_KxA, survival_A = shifts(rival, view), survival_C[[a.candidate for a in actions]]
    least_A, most_A = (bound * survival_A for bound in bounds(rival.gap_K, shift_KxA))
    shown = min(runners_up + 1, len(actions))
    enough = np.partition(least_A / price_A, -shown)[-shown]
    looked = (most_A > NEGLIGIBLE) & (most_A / price_A >= enough * (1 - 1e-9)) | (by is not None)
    gain_A = np.zeros(len(actions))
    for i in np.flatnonzero(looked):
        gain_A[i] = _gain(survival_A[i] * improvement(rival.gap_K, shift_KxA[:, i]))

    def told(which: Sequence[int]) -> list[Scored]:
        values = rows_of([candidates[i] for i in rival.numbers], 1.0)
        lower_KxK = factor(fitted.effect_covariance(values, values) - rival.white_nxK.T @ rival.white_nxK)
        eig_A = information(lower_KxK, rival.mean_K, view.only(which), fitted.hypers.noise, epsilon, rng)
        return [Scored(actions[i], float(gain_A[i]), float(price_A[i]), _gain(survival_A[i] * eig))
                for i, eig in zip(which, eig_A, strict=True)]

    def last(run: Action) -> tuple:
        return named[run.candidate], *run[1:]

    if by is not None:
        return sorted(told(range(len(actions))), key=lambda s: (-by(s) / s.cost_s, s.cost_s, last(s.run)))[:shown]
    rate_A = gain_A / price_A
    least = np.partition(rate_A, -shown)[-shown]
    return told(sorted(np.flatnonzero(rate_A >= least).tolist(),
                       key=lambda i: (-rate_A[i], price_A[i], last(actions[i])))[:shown])


def recommend(fitted: Fitted, candidates: Sequence[Candidate], caution: float = 0.0) -> int:
    """Number of the candidate to stand behind: highest full-horizon mean, less `caution` standard deviations."""
    mean_C, covariance_CxC = fitted.predict(candidates)
    return int(np.argmax(mean_C - caution * np.sqrt(np.maximum(np.diag(covariance_CxC), 0.0))))
