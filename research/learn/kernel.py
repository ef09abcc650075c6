"""Similarity of recipes, from the edits that separate them from the base.

Legend: U recipes on the left, W on the right, V and X their leaves; n, m rows (runs), each naming one recipe.

A recipe is {path: value} over the leaves it changes; the base is {}. A number is the signed displacement from the
base's value (from the node's default where the base has no such leaf), in units in which 1 is a step that matters (a
factor of e, a tenth of a range); 0 means "as in the base". A string is a choice, unordered.

What recipes share is summed over their leaves, and thousands of recipes are made of some hundreds of different leaves:
leaves are compared, recipes are sums (a sparse matrix says which has which).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array

Features = Mapping[str, float | str]
PARTS = ("effect", "interaction", "pairs", "horizon", "own", "seed")  # of an outcome; all but the last: of an effect
FULL_HORIZON_SPAN = 3.0  # log2 of the range of horizons: at 1/8 a horizon's own effect has unit prior scale


@dataclass(frozen=True)
class Leaves:
    """The different leaves of some recipes, path by path.

    spans: where each path's are. numbers, choices: their values, NaN and "" where a value is the other. has_UxV: 1
    where a recipe has a leaf.
    """

    spans: Mapping[str, slice]
    numbers: np.ndarray
    choices: np.ndarray
    has_UxV: Any  # a csr_array, whose shape has no type


def leaves(recipes: Sequence[Features]) -> Leaves:
    """What some recipes change. Raises: ValueError for a displacement that is no number."""
    owners: dict[str, dict[float | str, list[int]]] = {}
    for i, features in enumerate(recipes):
        for path, value in features.items():
            if not isinstance(value, str) and not math.isfinite(value):
                raise ValueError(f"feature {path} is {value}; a finite displacement from the base is needed")
            owners.setdefault(path, {}).setdefault(value, []).append(i)
    spans: dict[str, slice] = {}
    values: list[float | str] = []
    held: list[list[int]] = []
    for path in sorted(owners):
        spans[path] = slice(len(values), len(values) + len(owners[path]))
        values += owners[path]
        held += owners[path].values()
    of_V = np.repeat(np.arange(len(held)), [len(who) for who in held])
    who = np.array([i for who in held for i in who], int)
    return Leaves(spans, np.array([math.nan if isinstance(v, str) else v for v in values], float),
                  np.array([v if isinstance(v, str) else "" for v in values], str),
                  csr_array((np.ones(len(who)), (who, of_V)), shape=(len(recipes), len(values))))


def likeness(numbers_p, choices_p, other_p, others_p, length: float) -> np.ndarray:
    """Correlation, before centring, of pairs of values of one path: RBF of numbers, equality of choices, else 0."""
    rbf_p = np.exp(-0.5 * ((numbers_p - other_p) / length) ** 2)
    return np.where(np.isnan(rbf_p), (choices_p == others_p) & (choices_p != ""), rbf_p)


def departure(numbers: np.ndarray, length: float) -> np.ndarray:
    """1 - likeness to the base's own value, in [0, 1]: 1 for a choice."""
    return np.where(np.isnan(numbers), 1.0, -np.expm1(-0.5 * (numbers / length) ** 2))


def centred(numbers_p, choices_p, other_p, others_p, length: float) -> np.ndarray:
    """Half Cov(h(v) - h(base), h(x) - h(base)), h having `likeness` as covariance.

    The base gets 0, a changed choice 1, two different choices on one path 1/2 (the base's own value is common to both).
    """
    far_p = departure(numbers_p, length) + departure(other_p, length)
    return 0.5 * (far_p - 1.0 + likeness(numbers_p, choices_p, other_p, others_p, length))


def compared(left: Leaves, right: Leaves, length: float, how: Callable[..., np.ndarray] = centred) -> csr_array:
    """How leaves of the same path compare; leaves of different paths have nothing in common. Shape V x X."""
    spans = [(left.spans[path], right.spans[path]) for path in sorted(left.spans.keys() & right.spans.keys())]
    none = np.zeros(0, int)
    v = np.concatenate([none, *(np.repeat(np.arange(v.start, v.stop), x.stop - x.start) for v, x in spans)])
    x = np.concatenate([none, *(np.tile(np.arange(x.start, x.stop), v.stop - v.start) for v, x in spans)])
    found = how(left.numbers[v], left.choices[v], right.numbers[x], right.choices[x], length)
    return csr_array(coo_array((found, (v, x)), shape=(len(left.numbers), len(right.numbers))))


def summed(left: Leaves, right: Leaves, leaf_VxX: csr_array) -> np.ndarray:
    """Sum, for two recipes, over their pairs of leaves. Shape U x W."""
    if left.has_UxV.shape[0] < right.has_UxV.shape[0]:  # what is dense in between has the shorter side
        return (right.has_UxV @ (leaf_VxX.T @ left.has_UxV.T).toarray()).T
    return left.has_UxV @ (leaf_VxX @ right.has_UxV.T).toarray()


@dataclass(frozen=True)
class Rows:
    """Runs as arrays of n: which recipe, at which horizon (fraction of the full budget), on which seed (-1: an effect,
    which is no run), and the effect (nats) that each origin promises of it."""

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
    def keys(self) -> tuple[tuple, ...]:
        """By which the same recipe is known among other rows."""
        return tuple(tuple(f.items()) for f in self.recipes)  # sorted, as `rows` has made them

    @cached_property
    def leaves(self) -> Leaves:
        """What the recipes change."""
        return leaves(self.recipes)

    def __len__(self) -> int:
        return len(self.index)

    def at(self, which: np.ndarray) -> "Rows":
        """Some of the rows, in the order of their numbers."""
        kept, index = np.unique(self.index[which], return_inverse=True)
        return Rows(tuple(self.recipes[i] for i in kept), index.reshape(-1), self.horizon[which], self.seed[which],
                    {origin: promise[which] for origin, promise in self.promises.items()})


def rows(features: Sequence[Features], horizon, seed, prior) -> Rows:
    """Build Rows, keeping each distinct recipe once. prior: a number, or by origin, for each row or for all."""
    numbers: dict = {}
    known: dict[int, int] = {}  # a recipe's features are mostly the same object
    index = np.empty(n := len(features), int)
    for i, f in enumerate(features):
        if (found := known.get(id(f))) is None:
            found = known[id(f)] = numbers.setdefault(tuple(sorted(f.items())), len(numbers))
        index[i] = found
    priors = prior if isinstance(prior, Sequence | np.ndarray) else [prior] * n
    named = [p if isinstance(p, Mapping) else {"": p} for p in priors]
    promises = {o: np.array([p.get(o, 0.0) for p in named], float) for o in sorted({o for p in named for o in p})}
    horizons, seeds = (np.broadcast_to(np.asarray(c, float), n) for c in (horizon, seed))
    return Rows(tuple(dict(key) for key in numbers), index, horizons, seeds, promises)


def joined(first: Rows, second: Rows) -> Rows:
    """These rows, then those."""
    told = [(r.recipes[i], {o: promise[n] for o, promise in r.promises.items()})
            for r in (first, second) for n, i in enumerate(r.index)]
    horizons, seeds = (np.append(getattr(first, name), getattr(second, name)) for name in ("horizon", "seed"))
    return rows([features for features, _ in told], horizons, seeds, [promise for _, promise in told])


def promised(left: Rows, right: Rows) -> np.ndarray:
    """Covariance of what unit doubt about each origin's promises does to two sets of runs. Shape n x m."""
    total_nxm = np.zeros((len(left), len(right)))
    for origin in sorted(left.promises.keys() & right.promises.keys()):
        total_nxm += np.outer(left.promises[origin], right.promises[origin])
    return total_nxm


def additive_variance(points: Rows, length: float, power: int = 1) -> np.ndarray:
    """Sum over paths of `centred` with itself, to a power: about how many leaves a recipe has changed. Shape U."""
    return points.leaves.has_UxV @ departure(points.leaves.numbers, length) ** power


@dataclass(frozen=True)
class Scales:
    """Fixed lengths of the kernels: `path` in units of a number, `seed_horizon` in doublings, the others in changed
    leaves."""

    path: float = 1.0
    interaction: float = 4.0
    seed: float = 3.0
    seed_horizon: float = 2.0


class Shared(NamedTuple):
    """What recipes have in common, U x W: at unit variance, and the number of leaves by which they differ."""

    additive: np.ndarray
    interaction: np.ndarray
    pairs: np.ndarray
    distance: np.ndarray


def shared(left: Rows, right: Rows, scales: Scales) -> Shared:
    """Of the recipes of two sets of runs."""
    leaf_VxX = compared(left.leaves, right.leaves, scales.path)
    additive_UxW = summed(left.leaves, right.leaves, leaf_VxX)
    left_U, right_W = (additive_variance(r, scales.path) for r in (left, right))
    distance_UxW = np.maximum(left_U[:, None] + right_W[None, :] - 2.0 * additive_UxW, 0.0)
    from_base = np.exp(-left_U / scales.interaction)[:, None] + np.exp(-right_W / scales.interaction)[None, :]
    squares_UxW = summed(left.leaves, right.leaves, leaf_VxX.power(2))
    return Shared(additive_UxW, 0.5 * (1.0 + np.exp(-distance_UxW / scales.interaction) - from_base),
                  0.5 * (additive_UxW**2 - squares_UxW), distance_UxW)


def components(left: Rows, right: Rows, scales: Scales) -> Iterator[np.ndarray]:
    """Unit-variance parts of the covariance of two sets of runs, n x m, in the order of PARTS.

    additive, interaction, pairs: f, nil at the base. The interaction sees whole recipes, bounded however many leaves
    they change; pairs are what each two paths do together, the second elementary symmetric polynomial of the paths'
    covariances k: (A^2 - sum k^2) / 2 with A = sum k. horizon: g, a random walk in log horizon that starts at 0 at the
    full one, so that f is the full-horizon effect; own: the same, of one recipe alone. seed: e, within a seed only; its
    correlation falls with the number of leaves two recipes differ by.
    """
    for variances in np.eye(len(PARTS)):
        yield covariance(left, right, variances, scales)


def covariance(left: Rows, right: Rows, variances: np.ndarray, scales: Scales) -> np.ndarray:
    """As many `components` as there are variances, together. Shape n x m."""
    effect, interaction, pairs, horizon, own, seed = np.append(variances, np.zeros(len(PARTS) - len(variances)))
    found, pick = shared(left, right, scales), np.ix_(left.index, right.index)
    total_nxm = (effect * found.additive + interaction * found.interaction + pairs * found.pairs)[pick]
    early_n, early_m = np.flatnonzero(left.shortness), np.flatnonzero(right.shortness)
    if len(early_n) and len(early_m):
        some = np.ix_(early_n, early_m)
        walk = np.minimum(left.shortness[early_n, None], right.shortness[early_m])
        total_nxm[some] += walk * (horizon * found.additive[np.ix_(left.index[early_n], right.index[early_m])]
                                   + own * same_recipe(left, right)[some])
    if seed:
        at_n, at_m = np.nonzero(same_seed(left, right))
        doublings = FULL_HORIZON_SPAN * np.abs(left.shortness[at_n] - right.shortness[at_m])
        distance = found.distance[left.index[at_n], right.index[at_m]]
        total_nxm[at_n, at_m] += seed * np.exp(-distance / scales.seed - doublings / scales.seed_horizon)
    return total_nxm


def component_variances(points: Rows, scales: Scales) -> np.ndarray:
    """Diagonal of `components(points, points)`. Shape parts x n."""
    additive_n, squares_n = (additive_variance(points, scales.path, power)[points.index] for power in (1, 2))
    interaction_n = 1.0 - np.exp(-additive_n / scales.interaction)
    changed_n = np.array([bool(f) for f in points.recipes], float)[points.index]
    return np.stack([additive_n, interaction_n, 0.5 * (additive_n**2 - squares_n), additive_n * points.shortness,
                     changed_n * points.shortness, (points.seed >= 0).astype(float)])


def same_recipe(left: Rows, right: Rows) -> np.ndarray:
    """1 where two runs are of one recipe that is not the base. Shape n x m."""
    number = {key: i for i, key in enumerate(left.keys)}
    right_m = np.array([number.get(key, -1) if key else -1 for key in right.keys], int)[right.index]
    return (left.index[:, None] == right_m).astype(float)


def same_seed(left: Rows, right: Rows) -> np.ndarray:
    """Where two runs share a seed; an effect has none. Shape n x m."""
    return (left.seed[:, None] == right.seed) & (right.seed >= 0)


def same_cell(left: Rows, right: Rows) -> np.ndarray:
    """1 where two runs share horizon and seed. Shape n x m."""
    return ((left.horizon[:, None] == right.horizon) & same_seed(left, right)).astype(float)
