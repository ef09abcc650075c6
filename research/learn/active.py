"""Many runs told by few: an active set of m values, with outcomes and errors that say what all n runs say.

Active are the full-horizon effects of leaves on their own and of the recipes that lead, what each origin's promises are
worth, a run in each cell, for its level, and runs of leaders while there is room. With K the prior covariance, L the
factor of K_mm, W = L^-1 K_mn and independent errors of variances r, what the active values do not tell of a run,
d = diag(K_nn - W^T W), counts as error of that run alone (Snelson & Ghahramani 2006, FITC). With R = diag(d + r),
S = W R^-1 W^T and b = W R^-1 y, the posterior at a point with covariance k to the active values has

    mean  k^T L^-T (I + S)^-1 b     variance  k_** - k^T L^-T (I - (I + S)^-1) L^-1 k,

which is what m runs with outcomes z = L S^-1 b and error covariance E = L S^-1 L^T would give (put in
(K_mm + E)^-1 = L^-T (I - (I + S)^-1) L^-1). So whoever has few runs with dependent errors need not know of the many.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from research.learn.kernel import Rows, joined, rows
from research.learn.scales import factor

NODES = 4  # values of a number that stand for all of them, at even shares of what was tried
VAGUE = 1e-6  # information that no active value has less of, in units of its prior's


def summary(prior_mxm: np.ndarray, cross_mxn: np.ndarray, variance_n: np.ndarray, error_n: np.ndarray,
            outcome_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes (m) and the covariance of their errors (m x m) that say what n runs say.

    Args: prior: covariance of the active values. cross: theirs with the runs. variance: of the runs. error: variances
    of the runs' own errors.
    """
    lower_mxm = factor(prior_mxm)
    white_mxn = solve_triangular(lower_mxm, cross_mxn, lower=True, check_finite=False)
    spread_n = np.maximum(variance_n - (white_mxn**2).sum(0), 0.0) + error_n
    inner = factor((white_mxn / spread_n) @ white_mxn.T + VAGUE * np.eye(len(lower_mxm)))
    half_mxm = solve_triangular(inner, lower_mxm.T, lower=True, check_finite=False)
    outcome_m = lower_mxm @ cho_solve((inner, True), white_mxn @ (outcome_n / spread_n))
    return outcome_m, half_mxm.T @ half_mxm


def active(runs: Rows, outcome_n: np.ndarray, most: int) -> Rows:
    """The active set of these runs: effects, which have no seed, and a run in each cell, the base's where it has one.

    Leaves have at most half of the room, those that most recipes have first; the rest goes to the recipes that did best
    in their cells, so that what is decided about is known best.
    """
    cells, cell_n = np.unique(np.stack([runs.horizon, runs.seed]), axis=1, return_inverse=True)
    cell_n, outcome_n = cell_n.reshape(-1), outcome_n.copy()
    base_n, first = np.array([not f for f in runs.recipes])[runs.index], []
    for cell in range(cells.shape[1]):
        there = np.flatnonzero(cell_n == cell)
        outcome_n[there] -= np.median(outcome_n[there])
        first.append(next((i for i in there if base_n[i]), there[0]))
    origins = list(runs.promises)
    room = max(most - len(first) - len(origins), 0)
    ranked, short = _ranked(runs.index, outcome_n), float(runs.horizon.min())
    often = np.bincount(runs.index[runs.horizon == short], minlength=len(runs.recipes)) > 1
    known = [(key, 1.0) for key in _alone(runs)[: room // 2]] + [(runs.keys[i], 1.0) for i in ranked]
    known += [(runs.keys[i], short) for i in ranked if often[i]]  # else what its runs there share would count as luck
    told = [one for one in dict.fromkeys(known) if one[0]][:room]  # the base's effect is none
    rank_n = np.argsort(ranked)[runs.index]
    more = [i for i in np.argsort(rank_n, kind="stable") if i not in {*first}][: room - len(told)]
    promises = [{origin: 1.0} for origin in origins] + [{}] * len(told)  # what an origin's word is worth is one too
    effects = rows([{}] * len(origins) + [dict(key) for key, _ in told], [1.0] * len(origins) + [h for _, h in told],
                   -1, promises)
    return joined(effects, runs.at(np.array([*first, *more])))


def _alone(runs: Rows) -> list[tuple]:
    """Recipes of one leaf, those first that most recipes have; of numbers, NODES a path."""
    found, count_V = [], runs.leaves.has_UxV.sum(0)
    for path, span in runs.leaves.spans.items():
        numbers, choices, count = runs.leaves.numbers[span], runs.leaves.choices[span], count_V[span]
        told = ~np.isnan(numbers)
        found += [(count[i], ((path, str(choices[i])),)) for i in np.flatnonzero(~told)]
        if told.any():
            nodes = np.unique(np.quantile(np.repeat(numbers[told], count[told].astype(int)), np.linspace(0, 1, NODES)))
            found += [(count[told].sum() / NODES, ((path, float(node)),)) for node in nodes]
    return [key for _, key in sorted(found, key=lambda one: -one[0])]


def _ranked(index: np.ndarray, outcome_n: np.ndarray) -> np.ndarray:
    """Numbers of the recipes, the best first, by the mean of what their runs had beyond their cells' others."""
    return np.argsort(-np.bincount(index, outcome_n) / np.bincount(index), kind="stable")
