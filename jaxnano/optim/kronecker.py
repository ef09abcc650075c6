"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, for matrices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnano.optim.priced import UpdateCost
from jaxnano.optim.wrapper import Scalar

_EXACT = jax.lax.Precision.HIGHEST  # a basis built in TF32 or bfloat16 products is not orthogonal enough


class Factors(NamedTuple):
    """State of one matrix (m, n); every field has a leading batch axis inside the update.

    left_weight and square_weight are the weight the two averages hold so far, for bias correction.
    """

    mean: jax.Array  # m, n: averaged gradient, in the original basis
    square: jax.Array  # m, n: averaged square of the rotated gradient
    left: jax.Array  # m, m: averaged g g^T
    right: jax.Array  # n, n: averaged g^T g
    left_basis: jax.Array  # m, m: columns are eigenvectors
    right_basis: jax.Array  # n, n
    mean_weight: jax.Array  # scalar
    square_weight: jax.Array  # scalar


class SoapState(NamedTuple):
    """Number of updates so far, and the factors per path."""

    count: jax.Array
    factors: dict[str, Factors]


def soap(
    b1: Scalar,
    b2: Scalar,
    shampoo_beta: Scalar,
    eps: Scalar,
    refresh_every: int,
    bias_correction: bool = True,
) -> optax.GradientTransformation:
    """Adam's ratio taken on the gradient rotated into the eigenvectors of E[g g^T] and E[g^T g], and rotated back.

    A matrix takes its basis (an eigendecomposition) from its first non-zero gradient and does not move in that step, so
    that no gradient is measured in its own basis. (Behind projections that start at zero, first gradients are zero.)
    Afterwards the basis follows by one power iteration and QR every `refresh_every` steps.

    Args:
        b1, b2: decay of the first and second moment.
        shampoo_beta: decay of the two preconditioner averages.
        eps: added to the root of the second moment.
        refresh_every: steps from one basis to the next, at least 1.
        bias_correction: divide the moments by the weight they hold.
    Raises: ValueError for a leaf that is not two-dimensional.
    Source: Vyas et al. 2024, arXiv:2409.11321, algorithm 3; sorting of columns as in the authors' implementation.
    """

    def init_fn(params: Any) -> SoapState:
        return SoapState(jnp.zeros([], jnp.int32), {path: _init(path, w) for path, w in params.items()})

    def direction(g: jax.Array, f: Factors) -> tuple[jax.Array, Factors]:
        rotated = _rotate(f.left_basis.mT, g, f.right_basis)
        f = f._replace(
            mean=b1 * f.mean + (1 - b1) * g,
            square=b2 * f.square + (1 - b2) * jnp.square(rotated),
            mean_weight=b1 * f.mean_weight + (1 - b1),
            square_weight=b2 * f.square_weight + (1 - b2),
        )
        mean, square = _rotate(f.left_basis.mT, f.mean, f.right_basis), f.square
        if bias_correction:
            mean, square = mean / _column(f.mean_weight), square / _column(f.square_weight)
        return _rotate(f.left_basis, mean / (jnp.sqrt(square) + eps), f.right_basis.mT), f

    def update_batch(g: jax.Array, old: Factors, refresh: jax.Array | bool) -> tuple[jax.Array, Factors]:
        u, new = direction(g, old)
        left = shampoo_beta * old.left + (1 - shampoo_beta) * _product(g, g.mT)
        right = shampoo_beta * old.right + (1 - shampoo_beta) * _product(g.mT, g)
        known = _trace(old.left) > 0
        u = jnp.where(_column(known), u, 0.0)
        new = Factors(*(jnp.where(known.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(new, old, strict=True)))
        new = new._replace(left=left, right=right)
        new = jax.lax.cond(refresh, _power_iteration, lambda f: f, new)
        first = ~known & (_trace(left) > 0)
        return u, jax.lax.cond(jnp.any(first), lambda f: _eigenvectors(f, first), lambda f: f, new)

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[dict[str, jax.Array], SoapState]:
        del params
        refresh = (state.count > 0) & (state.count % refresh_every == 0)
        directions, factors = {}, {}
        for paths in _by_shape(updates):
            g = jnp.stack([updates[p] for p in paths]).astype(jnp.float32)
            stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *[state.factors[p] for p in paths])
            u, stacked = update_batch(g, stacked, refresh)
            for i, path in enumerate(paths):
                directions[path] = u[i]
                factors[path] = jax.tree.map(lambda x, i=i: x[i], stacked)
        return directions, SoapState(state.count + 1, factors)

    return optax.GradientTransformation(init_fn, update_fn)


def _init(path: str, w: jax.Array) -> Factors:
    if w.ndim != 2:
        raise ValueError(f"{path}: shape {w.shape} is not a matrix; SOAP needs two axes (use adam for it)")
    m, n = w.shape
    return Factors(
        mean=jnp.zeros((m, n)),
        square=jnp.zeros((m, n)),
        left=jnp.zeros((m, m)),
        right=jnp.zeros((n, n)),
        left_basis=jnp.eye(m),
        right_basis=jnp.eye(n),
        mean_weight=jnp.zeros([]),
        square_weight=jnp.zeros([]),
    )


def _by_shape(tree: dict[str, jax.Array]) -> list[list[str]]:
    """Paths grouped by the shape of their leaves: the program then grows with the shapes, not with the layers."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, leaf in tree.items():
        groups.setdefault(leaf.shape, []).append(path)
    return list(groups.values())


def _power_iteration(f: Factors) -> Factors:
    """One step of the bases towards the eigenvectors, sorted by Rayleigh quotient; so is the second moment."""

    def follow(factor: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
        image = _product(factor, basis)
        order = jnp.argsort(-jnp.sum(basis * image, axis=-2), axis=-1)
        return jnp.linalg.qr(jnp.take_along_axis(image, order[:, None, :], axis=-1))[0], order

    left_basis, rows = follow(f.left, f.left_basis)
    right_basis, columns = follow(f.right, f.right_basis)
    square = jnp.take_along_axis(f.square, rows[:, :, None], axis=-2)
    square = jnp.take_along_axis(square, columns[:, None, :], axis=-1)
    return f._replace(left_basis=left_basis, right_basis=right_basis, square=square)


def _eigenvectors(f: Factors, where: jax.Array) -> Factors:
    """Bases by eigendecomposition, largest eigenvalue first, of the matrices marked in `where`."""

    def replace(factor: jax.Array, basis: jax.Array) -> jax.Array:
        vectors = jnp.linalg.eigh(factor)[1][..., ::-1]
        return jnp.where(_column(where), vectors, basis)

    return f._replace(left_basis=replace(f.left, f.left_basis), right_basis=replace(f.right, f.right_basis))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=_EXACT)


def _rotate(left: jax.Array, x: jax.Array, right: jax.Array) -> jax.Array:
    return _product(_product(left, x), right)


def _trace(x: jax.Array) -> jax.Array:
    return jnp.trace(x, axis1=-2, axis2=-1)


def _column(x: jax.Array) -> jax.Array:
    return x[:, None, None]


def soap_cost(shape: tuple[int, ...], refresh_every: int) -> UpdateCost:
    """Of one SOAP update on average; the single eigendecomposition at the start is left out.

    Three rotations and two Gram products each step; on refresh L Q and its QR (8/3 k^3, orthogonal factor formed).
    It keeps two moments, two factors with their bases, and two weights.
    """
    m, n = shape
    every_step = 8.0 * (m * m * n + m * n * n) + 14.0 * m * n
    refresh = (2.0 + 8.0 / 3.0) * (m**3 + n**3)
    return UpdateCost(every_step + refresh / refresh_every, 2 * m * n + 2 * (m * m + n * n) + 2)
