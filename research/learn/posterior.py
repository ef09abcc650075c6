"""What the finished runs say about every recipe: a Gaussian process over edits to the base.

    -loss(recipe, horizon, seed) = offset(horizon, seed) + f(recipe) + g(recipe, horizon) + e(recipe, seed) + noise

Effects (f, g) are in nats, relative to the base, positive = better than the base. A diverged run is no number: it
enters `p_diverge` only. What a promise is worth is learnt by its origin. Everything is a function of the observations
in their order, so that a decision can be replayed. Some hundreds of runs are all kept; of more, an active set tells
what the others say (active.py), and the newest are added to it as they are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from research.learn.active import active, summary
from research.learn.divergence import Divergence
from research.learn.kernel import (
    PARTS,
    Features,
    Rows,
    component_variances,
    components,
    covariance,
    joined,
    promised,
    rows,
    same_cell,
)
from research.learn.scales import Hypers, PosteriorConfig, factor, fitted

EFFECT = PARTS.index("seed")  # so many parts make up an effect
Promise = float | Mapping[str, float]  # nats; a number is the catalogue's, whose origin is ""
CHUNK = 1024  # candidates that are looked at at a time
NEWEST = 64  # runs, fewer than which are told beside an active set


@dataclass(frozen=True)
class Candidate:
    """A recipe, by its features, and the effect (nats, positive = better) promised before any run, by who promises."""

    features: Features
    promise: Promise = 0.0


@dataclass(frozen=True)
class Observation:
    """One run's loss (nats).

    noise_sd: what is known of this measurement's own error, beside the fitted noise.
    """

    features: Features
    horizon: float
    seed: int
    loss: float
    noise_sd: float = 0.0
    promise: Promise = 0.0


def _solved(lower_nxn: np.ndarray, right_nxm: np.ndarray) -> np.ndarray:
    return solve_triangular(lower_nxn, right_nxm, lower=True, check_finite=False)


def rows_of(candidates: Sequence[Candidate] | Sequence[Observation], horizon: Any, seed: Any = -1) -> Rows:
    """Runs of these recipes; horizon, seed: of each, or of all. Effects are of no seed."""
    return rows([c.features for c in candidates], horizon, seed, [c.promise for c in candidates])


def refit_at(n: int) -> int:
    """How many of n observations the scales are fitted to: a step of 4, doubling from 64 observations on."""
    return n - n % max(4, 1 << max(n.bit_length() - 4, 0))


class Told(NamedTuple):
    """What runs say: their outcomes, less the prior mean, and the covariance of their errors, or its diagonal. levels:
    of a loss, by horizon, that outcomes are told from."""

    runs: Rows
    outcome_n: np.ndarray
    error: np.ndarray
    levels: Mapping[float, float]

    @property
    def error_nxn(self) -> np.ndarray:
        """The covariance of the errors."""
        return np.diag(self.error) if self.error.ndim == 1 else self.error

    def at(self, which: slice) -> "Told":
        """Some of the runs, each with an error of its own."""
        numbers = np.arange(len(self.runs))[which]
        return self._replace(runs=self.runs.at(numbers), outcome_n=self.outcome_n[which], error=self.error[which])


class Look(NamedTuple):
    """Full-horizon effects, and what they have to do with runs: covariance, and that with the runs' factor solved."""

    points: Rows
    cross_nxC: np.ndarray
    white_nxC: np.ndarray


@dataclass
class Head:
    """Runs that go before those to come in many a posterior, with the factor of their outcomes' covariance. kept: what
    candidates have to do with them, by the number of the first; it saves time and changes nothing."""

    runs: Rows
    lower_mxm: np.ndarray
    kept: dict[int, tuple[list[Candidate], Look]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitted:
    """The posterior. Made by `Posterior.fit`; holds no reference to the ledger. runs: those that it rests on: all, or
    the active set and the newest; those of `head` first."""

    config: PosteriorConfig
    hypers: Hypers
    runs: Rows
    lower_nxn: np.ndarray
    alpha_n: np.ndarray
    divergence: Divergence
    head: Head
    levels: Mapping[float, float] = field(default_factory=dict)

    def effect_covariance(self, left: Rows, right: Rows, parts: int = EFFECT) -> np.ndarray:
        """Prior covariance of f + g, or of as many `components`. Shape n x m."""
        found = covariance(left, right, self.hypers.variances()[:parts], self.config.scales)
        return found + self.config.trust_sd**2 * promised(left, right)

    def outcome_covariance(self, left: Rows, right: Rows) -> np.ndarray:
        """Prior covariance of runs' outcomes, noise left out. Shape n x m."""
        return self.effect_covariance(left, right, len(PARTS)) + self.config.offset_sd**2 * same_cell(left, right)

    def effect_variance(self, points: Rows, parts: int = EFFECT) -> np.ndarray:
        """Diagonal of `effect_covariance`. Shape n."""
        found = self.hypers.variances()[:parts] @ component_variances(points, self.config.scales)[:parts]
        return found + self.config.trust_sd**2 * sum(promise**2 for promise in points.promises.values())

    def outcome_variance(self, points: Rows) -> np.ndarray:
        """Prior variance of runs' outcomes, noise included. Shape n."""
        cells = self.config.offset_sd**2 * (points.seed >= 0)
        return self.effect_variance(points, len(PARTS)) + cells + self.hypers.noise**2

    def whiten(self, cross_nxm: np.ndarray) -> np.ndarray:
        """Cross covariance with the runs -> coordinates in which conditioning is a subtraction. Shape n x m."""
        return _solved(self.lower_nxn, cross_nxm)

    def predict(self, candidates: Sequence[Candidate], horizon: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Mean (C) and covariance (C x C) of the candidates' effects at a horizon; nats, positive = better than the
        base."""
        points = rows_of(candidates, horizon)
        look = Look(points, cross_nxC := self.effect_covariance(self.runs, points), self.whiten(cross_nxC))
        return self.mean(look), self.effect_covariance(points, points) - look.white_nxC.T @ look.white_nxC

    def mean(self, look: Look) -> np.ndarray:
        """Of what was looked at, C."""
        return self.config.trust * look.points.prior + self.alpha_n @ look.cross_nxC

    def effects(self, candidates: Sequence[Candidate]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (C) of the candidates' full-horizon effects: thousands, without what they share.
        """
        return self._moments(self.looks(candidates), self.effect_variance)

    def looks(self, candidates: Sequence[Candidate]) -> Iterator[Look]:
        """The candidates' full-horizon effects, CHUNK after CHUNK."""
        m, head = len(self.head.runs), self.head
        tail = self.runs.at(np.arange(m, len(self.runs)))
        for start in range(0, len(candidates), CHUNK):
            some = list(candidates[start : start + CHUNK])
            if start not in head.kept or head.kept[start][0] != some:
                cross_mxC = self.effect_covariance(head.runs, points := rows_of(some, 1.0))
                head.kept[start] = some, Look(points, cross_mxC, _solved(head.lower_mxm, cross_mxC))
            points, cross_mxC, white_mxC = head.kept[start][1]
            cross_txC = self.effect_covariance(tail, points)
            white_txC = _solved(self.lower_nxn[m:, m:], cross_txC - self.lower_nxn[m:, :m] @ white_mxC)
            yield Look(points, np.concatenate([cross_mxC, cross_txC]), np.concatenate([white_mxC, white_txC]))

    def outcomes(self, candidates: Sequence[Candidate], horizons: Any, seeds: Any) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the negative loss that runs to come will have."""
        horizons, seeds = (np.broadcast_to(c, len(candidates)) for c in (horizons, seeds))
        some = (slice(start, start + CHUNK) for start in range(0, len(candidates), CHUNK))
        points = (rows_of(candidates[s], horizons[s], seeds[s]) for s in some)
        crossed = ((p, self.outcome_covariance(self.runs, p)) for p in points)
        mean, sd = self._moments((Look(p, c, self.whiten(c)) for p, c in crossed), self.outcome_variance)
        return mean - [self.levels.get(float(h), 0.0) for h in np.broadcast_to(horizons, len(candidates))], sd

    def _moments(self, looks: Iterable[Look], variance: Callable[[Rows], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        means, sds = [np.zeros(0)], [np.zeros(0)]
        for look in looks:
            means.append(self.mean(look))
            sds.append(np.sqrt(np.maximum(variance(look.points) - (look.white_nxC**2).sum(0), 0.0)))
        return np.concatenate(means), np.concatenate(sds)

    def condition(self, candidates: Sequence[Candidate], horizons: Sequence[float], seeds: Sequence[int]) -> "Fitted":
        """The posterior once these runs are in, each with the outcome expected of it: means stay, variances shrink."""
        if not candidates:
            return self
        new = rows_of(candidates, horizons, seeds)
        return self.beside(new, np.full(len(new), self.hypers.noise**2))

    def beside(self, new: Rows, error_t: np.ndarray) -> "Fitted":
        """The posterior with these runs and the outcomes that are expected of them. error: variances of their errors.
        """
        white = self.whiten(self.outcome_covariance(self.runs, new))
        corner = self.outcome_covariance(new, new) + np.diag(error_t) - white.T @ white
        lower = np.block([[self.lower_nxn, np.zeros((len(self.runs), len(new)))], [white.T, factor(corner)]])
        return replace(self, runs=joined(self.runs, new), lower_nxn=lower,
                       alpha_n=np.append(self.alpha_n, np.zeros(len(new))))


@dataclass
class Posterior:
    """Fits the model; keeps the last fitted scales, and what the active set says, so that these are not made again for
    each new observation.

    Both are those of a prefix of the observations, whatever was asked before: the cache changes the time it takes,
    never the answer.
    """

    config: PosteriorConfig = PosteriorConfig()
    _scales: tuple[list[Observation], Hypers] | None = field(default=None, init=False)
    _summary: tuple[list[Observation], Hypers, Told] | None = field(default=None, init=False)
    _head: tuple[Any, Head] | None = field(default=None, init=False)  # and which of the above it was made with

    def fit(self, observations: Sequence[Observation], diverged: Sequence[Features] = ()) -> Fitted:
        """Condition on all observations, oldest first.

        Args: observations: finished runs. diverged: the features of each run that diverged.
        Raises: ValueError if a loss is not finite or a horizon not positive.
        """
        for o in observations:
            if not (np.isfinite(o.loss) and o.horizon > 0 and o.noise_sd >= 0):
                raise ValueError(f"cannot learn from {o}: a finite loss, horizon > 0 and noise_sd >= 0 are needed")
        observations, n = list(observations), len(observations)
        prefix = observations[: refit_at(n)]
        if self._scales is None or self._scales[0] != prefix:
            self._scales = (prefix, self._fit_scales(prefix))
        divergence = Divergence([o.features for o in observations], list(diverged), self.config.scales.path)
        empty = self._empty(self._scales[1], divergence)
        if n <= self.config.exact:
            told = self._told(empty, observations)
            first, rest, key = told.at(slice(len(prefix))), told.at(slice(len(prefix), n)), self._scales
        else:
            some = n - n % NEWEST
            first = self._summarised(empty, observations[:some])
            rest, key = self._told(empty, observations[some:], first.levels), self._summary
        if self._head is None or self._head[0] is not key:
            covariance_mxm = empty.outcome_covariance(first.runs, first.runs) + first.error_nxn
            self._head = key, Head(first.runs, factor(covariance_mxm))
        head = self._head[1]
        begun = replace(empty, runs=head.runs, lower_nxn=head.lower_mxm, alpha_n=np.zeros(len(head.runs)), head=head,
                        levels=rest.levels)
        found = begun.beside(rest.runs, rest.error)
        outcome_n = np.append(first.outcome_n, rest.outcome_n)
        return replace(found, alpha_n=cho_solve((found.lower_nxn, True), outcome_n))

    def _empty(self, hypers: Hypers, divergence: Divergence) -> Fitted:
        """What is believed before any run."""
        none, nothing = rows_of([], [], []), np.zeros((0, 0))
        return Fitted(self.config, hypers, none, nothing, np.zeros(0), divergence, Head(none, nothing))

    def _told(self, empty: Fitted, observations: Sequence[Observation], levels: Mapping[float, float] = {}) -> Told:
        """What the observations say, each with an error of its own. levels: by horizon, where they are known."""
        runs = rows_of(observations, [o.horizon for o in observations], [o.seed for o in observations])
        loss = np.array([o.loss for o in observations], float)
        # a cell's level is unknown anyway: only numerically, near 0 is better
        levels = {h: float(np.median(loss[runs.horizon == h])) for h in np.unique(runs.horizon).tolist()} | {**levels}
        level = np.array([levels[h] for h in runs.horizon.tolist()])
        error_n = np.square(np.array([o.noise_sd for o in observations], float)) + empty.hypers.noise**2
        return Told(runs, level - loss - self.config.trust * runs.prior, error_n, levels)

    def _summarised(self, empty: Fitted, observations: list[Observation]) -> Told:
        """What the observations say, told by an active set."""
        if self._summary is None or self._summary[1] != empty.hypers or self._summary[0] != observations:
            told = self._told(empty, observations)
            few = active(told.runs, told.outcome_n, self.config.active)
            outcome_m, error_mxm = summary(
                empty.outcome_covariance(few, few), empty.outcome_covariance(few, told.runs),
                empty.outcome_variance(told.runs) - empty.hypers.noise**2, told.error, told.outcome_n)
            self._summary = observations, empty.hypers, Told(few, outcome_m, error_mxm, told.levels)
        return self._summary[2]

    def _fit_scales(self, observations: list[Observation]) -> Hypers:
        """The scales, from the runs of every so many recipes where there are many."""
        empty = self._empty(replace(self.config.median, noise=0.0), Divergence([], [], 1.0))
        runs, outcome_n, error_n, _ = self._told(empty, _some(observations, self.config.scaled))
        parts = np.stack([*components(runs, runs, self.config.scales), np.eye(len(runs))])
        fixed = self.config.offset_sd**2 * same_cell(runs, runs) + self.config.trust_sd**2 * promised(runs, runs)
        return fitted(self.config, parts, fixed + np.diag(error_n), outcome_n)


def _some(observations: list[Observation], most: int) -> list[Observation]:
    """The runs of every so many recipes, so that there are at most so many."""
    if len(observations) <= most:
        return observations
    index = rows_of(observations, 1.0).index
    step = next(step for step in range(1, len(index) + 1) if step == len(index) or (index % step == 0).sum() <= most)
    return [observations[i] for i in np.flatnonzero(index % step == 0)[:most]]
