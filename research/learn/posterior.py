"""What the finished runs say about every recipe: a Gaussian process over edits to the base.

    -loss(recipe, horizon, seed) = offset(horizon, seed) + f(recipe) + g(recipe, horizon) + e(recipe, seed) + noise

Effects (f, g) are in nats, relative to the base, positive = better than the base. A diverged run is no number: it
enters `p_diverge` only. What a promise is worth is learnt by its origin. Everything is a function of the observations
in their order, so that a decision can be replayed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from research.learn.divergence import Divergence
from research.learn.kernel import Features, Rows, Scales, component_variances, components, promised, rows, same_cell

Promise = float | Mapping[str, float]  # nats; a number is the catalogue's, whose origin is ""


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


def rows_of(candidates: Sequence[Candidate] | Sequence[Observation], horizon: Any, seed: Any = -1) -> Rows:
    """Runs of these recipes; horizon, seed: of each, or of all. Effects are of no seed."""
    return rows([c.features for c in candidates], horizon, seed, [c.promise for c in candidates])


@dataclass(frozen=True)
class Hypers:
    """Standard deviations, in nats, of the parts of the model."""

    effect: float = 0.03
    interaction: float = 0.02
    horizon: float = 0.02
    seed: float = 0.02
    noise: float = 0.006

    def variances(self) -> np.ndarray:
        return np.square([self.effect, self.interaction, self.horizon, self.seed, self.noise])


@dataclass(frozen=True)
class PosteriorConfig:
    """Prior of the model. `median` and `spread` (in log units): log-normal priors of the scales.

    offset_sd: of a cell's unknown level, nats. trust, trust_sd: prior of the factor between what an origin
    promises of a candidate and what that is worth on this track; each origin's is learnt with the rest.
    """

    median: Hypers = Hypers()
    spread: float = 0.7
    offset_sd: float = 1.0
    trust: float = 0.5
    trust_sd: float = 0.5
    scales: Scales = Scales()


def factor(matrix_nxn: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor, with as little jitter on the diagonal as it takes."""
    scale = max(float(np.mean(np.diag(matrix_nxn))), 1e-12) if len(matrix_nxn) else 1.0
    for power in range(-11, 0):
        try:
            return cholesky(matrix_nxn + scale * 10.0**power * np.eye(len(matrix_nxn)), lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            continue
    raise FloatingPointError("covariance is not positive definite")


def _refit_at(n: int) -> int:
    """How many of n observations the scales are fitted to: a step of 4, doubling from 64 observations on."""
    return n - n % max(4, 1 << max(n.bit_length() - 4, 0))


@dataclass(frozen=True)
class Fitted:
    """The posterior. Made by `Posterior.fit`; holds no reference to the ledger."""

    config: PosteriorConfig
    hypers: Hypers
    runs: Rows
    lower_nxn: np.ndarray
    alpha_n: np.ndarray
    divergence: Divergence

    def effect_covariance(self, left: Rows, right: Rows, parts: int = 3) -> np.ndarray:
        """Prior covariance of f + g, or of as many `components`. Shape n x m."""
        found = np.tensordot(self.hypers.variances()[:parts], components(left, right, self.config.scales)[:parts], 1)
        return found + self.config.trust_sd**2 * promised(left, right)

    def outcome_covariance(self, left: Rows, right: Rows) -> np.ndarray:
        """Prior covariance of runs' outcomes, noise left out. Shape n x m."""
        return self.effect_covariance(left, right, 4) + self.config.offset_sd**2 * same_cell(left, right)

    def outcome_variance(self, points: Rows) -> np.ndarray:
        """Prior variance of runs' outcomes, noise included. Shape n."""
        variances = self.hypers.variances()
        parts = variances[:4] @ component_variances(points, self.config.scales)
        trust = self.config.trust_sd**2 * sum(promise**2 for promise in points.promises.values())
        return parts + trust + self.config.offset_sd**2 + variances[4]

    def whiten(self, cross_nxm: np.ndarray) -> np.ndarray:
        """Cross covariance with the runs -> coordinates in which conditioning is a subtraction. Shape n x m."""
        return solve_triangular(self.lower_nxn, cross_nxm, lower=True, check_finite=False)

    def predict(self, candidates: Sequence[Candidate], horizon: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Mean (C) and covariance (C x C) of the candidates' effects at a horizon; nats, positive = better than the
        base."""
        points = rows_of(candidates, horizon)
        cross_nxC = self.effect_covariance(self.runs, points)
        white_nxC = self.whiten(cross_nxC)
        mean_C = self.config.trust * points.prior + self.alpha_n @ cross_nxC
        return mean_C, self.effect_covariance(points, points) - white_nxC.T @ white_nxC

    def condition(self, candidates: Sequence[Candidate], horizons: Sequence[float], seeds: Sequence[int]) -> "Fitted":
        """The posterior once these runs are in, each with the outcome expected of it: means stay, variances shrink."""
        if not candidates:
            return self
        n = len(self.runs)
        known = [Candidate(self.runs.recipes[r], {origin: promise[i] for origin, promise in self.runs.promises.items()})
                 for i, r in enumerate(self.runs.index)]
        runs = rows_of([*known, *candidates], np.append(self.runs.horizon, horizons), np.append(self.runs.seed, seeds))
        new = rows_of(candidates, horizons, seeds)
        white = self.whiten(self.outcome_covariance(self.runs, new))
        corner = self.outcome_covariance(new, new) + self.hypers.noise**2 * np.eye(len(new)) - white.T @ white
        lower = np.block([[self.lower_nxn, np.zeros((n, len(new)))], [white.T, factor(corner)]])
        return replace(self, runs=runs, lower_nxn=lower, alpha_n=np.append(self.alpha_n, np.zeros(len(new))))


@dataclass
class Posterior:
    """Fits the model; keeps the last fitted scales so that they are not refitted for each new observation.

    The scales are those of the longest prefix of `_refit_at` observations, whatever was asked before: the cache changes
    the time it takes, never the answer.
    """

    config: PosteriorConfig = PosteriorConfig()
    _cached: tuple[list[Observation], Hypers] | None = field(default=None, init=False)

    def fit(self, observations: Sequence[Observation], diverged: Sequence[Features] = ()) -> Fitted:
        """Condition on all observations, oldest first.

        Args: observations: finished runs. diverged: the features of each run that diverged.
        Raises: ValueError if a loss is not finite or a horizon not positive.
        """
        for o in observations:
            if not (np.isfinite(o.loss) and o.horizon > 0 and o.noise_sd >= 0):
                raise ValueError(f"cannot learn from {o}: a finite loss, horizon > 0 and noise_sd >= 0 are needed")
        prefix = list(observations[: _refit_at(len(observations))])
        if self._cached is None or self._cached[0] != prefix:
            self._cached = (prefix, self._fit_scales(prefix))
        hypers = self._cached[1]
        divergence = Divergence([o.features for o in observations], list(diverged), self.config.scales.path)
        runs, target, variance = self._arrays(observations)
        empty = Fitted(self.config, hypers, runs, np.zeros((0, 0)), np.zeros(0), divergence)
        lower = factor(empty.outcome_covariance(runs, runs) + np.diag(variance + hypers.noise**2))
        return replace(empty, lower_nxn=lower, alpha_n=cho_solve((lower, True), target))

    def _arrays(self, observations) -> tuple[Rows, np.ndarray, np.ndarray]:
        """Runs, outcomes less their prior mean, and measurement variances."""
        runs = rows_of(observations, [o.horizon for o in observations], [o.seed for o in observations])
        outcome = -np.array([o.loss for o in observations], float)
        for horizon in np.unique(runs.horizon):  # a cell's level is unknown anyway: only numerically, near 0 is better
            outcome[runs.horizon == horizon] -= np.median(outcome[runs.horizon == horizon])
        variance = np.square(np.array([o.noise_sd for o in observations], float))
        return runs, outcome - self.config.trust * runs.prior, variance

    def _fit_scales(self, observations: Sequence[Observation]) -> Hypers:
        """Posterior mean of each variance: L-BFGS to the mode of the log scales, from the prior's median, then
        Laplace."""
        median = self.config.median
        start = 0.5 * np.log(median.variances())
        if not observations:
            return Hypers(*np.exp(start + self.config.spread**2))
        runs, target, variance = self._arrays(observations)
        parts = np.concatenate([components(runs, runs, self.config.scales), np.eye(len(runs))[None]])
        fixed = self.config.offset_sd**2 * same_cell(runs, runs) + np.diag(variance)
        fixed += self.config.trust_sd**2 * promised(runs, runs)

        def objective(log_sd):
            weights = np.exp(2 * log_sd)
            lower = factor(np.tensordot(weights, parts, 1) + fixed)
            inverse = cho_solve((lower, True), np.eye(len(target)), check_finite=False)
            alpha = inverse @ target
            pull = (log_sd - start) / self.config.spread
            value = 0.5 * target @ alpha + np.log(np.diag(lower)).sum() + 0.5 * pull @ pull
            slope = np.tensordot(parts, inverse - np.outer(alpha, alpha), 2) * weights + pull / self.config.spread
            return value, slope

        bounds = [(s - 5.0, s + 5.0) for s in start]
        best = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 30}).x
        # plugging in the mode gives 83 % coverage to 90 % intervals; the mean of each variance, by Laplace, gives 89 %
        steps = 0.05 * np.eye(len(best))
        hessian = np.stack([objective(best + step)[1] - objective(best - step)[1] for step in steps]) / 0.1
        curvature, axes = np.linalg.eigh(0.5 * (hessian + hessian.T))
        spread = (axes**2) @ (1.0 / np.maximum(curvature, self.config.spread**-2))
        log_sd = best + spread
        return Hypers(*np.exp(log_sd)) if np.all(np.isfinite(log_sd)) else median
