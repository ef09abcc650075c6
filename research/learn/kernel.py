"""Similarity of recipes, from the edits that separate them from the base.

Legend: U recipes on the left, W on the right; n, m rows (runs), each naming one recipe.

A recipe is {path: value} over the leaves it changes; the base is {}. A number is the signed displacement from the
base's value (from the node's default where the base has no such leaf), in units in which 1 is a step that matters (a
factor of e, a tenth of a range); 0 means "as in the base". A string is a choice, unordered.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Features = Mapping[str, float | str]
FULL_HORIZON_SPAN = 3.0  # log2 of the range of horizons: at 1/8 a horizon's own effect has unit prior scale


def columns(recipes: Sequence[Features]) -> dict[str, tuple[np.ndarray, ...]]:
    """path -> (recipe numbers, numeric values with NaN for choices, choices with "" for numbers)."""
    entries: dict[str, list[tuple[int, float, str]]] = {}
    for i, features in enumerate(recipes):
        for path, value in features.items():
            if not isinstance(value, str) and not math.isfinite(value):
                raise ValueError(f"feature {path} is {value}; a finite displacement from the base is needed")
            number, choice = (math.nan, value) if isinstance(value, str) else (float(value), "")
            entries.setdefault(path, []).append((i, number, choice))
    return {path: tuple(map(np.array, zip(*found, strict=True))) for path, found in entries.items()}


def likeness(numbers_u, choices_u, numbers_w, choices_w, length: float):
    """Correlation, before centring, of one path's values: RBF for two numbers, equality for two choices, else 0."""
    gap_UxW = numbers_u[:, None] - numbers_w[None, :]
    rbf_UxW = np.exp(-0.5 * (gap_UxW / length) ** 2)
    return np.where(np.isnan(rbf_UxW), (choices_u[:, None] == choices_w) & (choices_u != "")[:, None], rbf_UxW)


def departure(numbers, length: float) -> np.ndarray:
    """1 - likeness to the base's own value, in [0, 1]: 1 for a choice."""
    return np.where(np.isnan(numbers), 1.0, -np.expm1(-0.5 * (numbers / length) ** 2))


@dataclass(frozen=True)
class Rows:
    """Runs as arrays of n: which recipe, at which horizon (fraction of the full budget), on which seed, and the effect
    (nats) that each origin promises of it."""

    recipes: tuple[Features, ...]
    index: np.ndarray
    horizon: np.ndarray
    seed: np.ndarray
    promises: Mapping[str, np.ndarray]

    @cached_property
    def prior(self) -> np.ndarray:
        """What all origins promise together."""
        return sum(self.promises.values(), np.zeros(len(self.index)))

    @cached_property
    def shortness(self) -> np.ndarray:
        """0 at the full horizon, 1 at an eighth."""
        return np.maximum(0.0, -np.log2(self.horizon)) / FULL_HORIZON_SPAN

    @cached_property
    def columns(self) -> dict[str, tuple[np.ndarray, ...]]:
        return columns(self.recipes)

    def __len__(self) -> int:
        return len(self.index)


def rows(features: Sequence[Features], horizon, seed, prior) -> Rows:
    """Build Rows, keeping each distinct recipe once. prior: a number, or by origin, for each row or for all."""
    numbers: dict = {}
    index = np.array([numbers.setdefault(tuple(sorted(f.items())), len(numbers)) for f in features], dtype=int)
    n = len(index)
    priors = prior if isinstance(prior, Sequence | np.ndarray) else [prior] * n
    named = [p if isinstance(p, Mapping) else {"": p} for p in priors]
    promises = {o: np.array([p.get(o, 0.0) for p in named], float) for o in sorted({o for p in named for o in p})}
    horizons, seeds = (np.broadcast_to(np.asarray(c, float), n) for c in (horizon, seed))
    return Rows(tuple(dict(key) for key in numbers), index, horizons, seeds, promises)


def promised(left: Rows, right: Rows) -> np.ndarray:
    """Covariance of what unit doubt about each origin's promises does to two sets of runs. Shape n x m."""
    total_nxm = np.zeros((len(left), len(right)))
    for origin in left.promises.keys() & right.promises.keys():
        total_nxm += np.outer(left.promises[origin], right.promises[origin])
    return total_nxm


def additive(left: Rows, right: Rows, length: float) -> np.ndarray:
    """Sum over paths of half Cov(h(v) - h(base), h(w) - h(base)), h having `likeness` as covariance.

    The base gets 0, a changed choice 1, two different choices on one path 1/2 (the base's own value is common to both).

    Returns: U x W, over the distinct recipes of both sides.
    """
    total_UxW = np.zeros((len(left.recipes), len(right.recipes)))
    for path in sorted(left.columns.keys() & right.columns.keys()):
        i, numbers_u, choices_u = left.columns[path]
        j, numbers_w, choices_w = right.columns[path]
        far_UxW = departure(numbers_u, length)[:, None] + departure(numbers_w, length)[None, :]
        total_UxW[np.ix_(i, j)] += 0.5 * (far_UxW - 1.0 + likeness(numbers_u, choices_u, numbers_w, choices_w, length))
    return total_UxW


def additive_variance(points: Rows, length: float) -> np.ndarray:
    """Diagonal of `additive`: about how many of the base's leaves each recipe has left behind. Shape U."""
    total_U = np.zeros(len(points.recipes))
    for i, numbers, _ in points.columns.values():
        total_U[i] += departure(numbers, length)
    return total_U


@dataclass(frozen=True)
class Scales:
    """Fixed lengths of the kernels: `path` in units of a number, `seed_horizon` in doublings, the others in changed
    leaves."""

    path: float = 1.0
    interaction: float = 4.0
    seed: float = 3.0
    seed_horizon: float = 2.0


def components(left: Rows, right: Rows, scales: Scales) -> np.ndarray:
    """Unit-variance parts of the covariance of two sets of runs, in the order additive, interaction, horizon, seed.

    additive, interaction: f, nil at the base; the interaction sees whole recipes, bounded however many leaves they
    change. horizon: g, a random walk in log horizon that starts at 0 at the full one, so that f is the full-horizon
    effect. seed: e, within a seed only; its correlation falls with the number of leaves two recipes differ by.

    Returns: 4 x n x m array.
    """
    additive_UxW = additive(left, right, scales.path)
    left_U, right_W = (additive_variance(r, scales.path) for r in (left, right))
    distance_UxW = np.maximum(left_U[:, None] + right_W[None, :] - 2.0 * additive_UxW, 0.0)
    near_UxW = np.exp(-distance_UxW / scales.interaction)
    from_base = np.exp(-left_U / scales.interaction)[:, None] + np.exp(-right_W / scales.interaction)[None, :]
    interaction_UxW = 0.5 * (1.0 + near_UxW - from_base)
    pick = np.ix_(left.index, right.index)
    additive_nxm = additive_UxW[pick]
    walk_nxm = np.minimum(left.shortness[:, None], right.shortness[None, :])
    doublings_nxm = FULL_HORIZON_SPAN * np.abs(left.shortness[:, None] - right.shortness[None, :])
    seed_nxm = np.exp(-distance_UxW / scales.seed)[pick] * np.exp(-doublings_nxm / scales.seed_horizon)
    seed_nxm *= left.seed[:, None] == right.seed[None, :]
    return np.stack([additive_nxm, interaction_UxW[pick], additive_nxm * walk_nxm, seed_nxm])


def component_variances(points: Rows, scales: Scales) -> np.ndarray:
    """Diagonal of `components(points, points)`. Shape 4 x n."""
    additive_n = additive_variance(points, scales.path)[points.index]
    interaction_n = 1.0 - np.exp(-additive_n / scales.interaction)
    return np.stack([additive_n, interaction_n, additive_n * points.shortness, np.ones(len(points))])


def same_cell(left: Rows, right: Rows) -> np.ndarray:
    """1 where two runs share horizon and seed. Shape n x m."""
    return ((left.horizon[:, None] == right.horizon) & (left.seed[:, None] == right.seed)).astype(float)
