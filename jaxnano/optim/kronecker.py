"""Kronecker factors of matrices, the bases that follow them, and what is done in these."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnano.optim.share import shared

_EXACT = jax.lax.Precision.HIGHEST  # a basis built in TF32 or bfloat16 products is not orthogonal enough


class Factors(NamedTuple):
    """Of one matrix (m, n), or of a stack of them: averages of x x^T and x^T x, bases whose columns follow the
    eigenvectors, and the eigenvalues when these last did."""

    left: jax.Array  # m, m
    right: jax.Array  # n, n
    left_basis: jax.Array  # m, m
    right_basis: jax.Array  # n, n
    left_values: jax.Array  # m
    right_values: jax.Array  # n


class Triangles(NamedTuple):
    """Of one matrix (m, n), or of a stack of them: upper triangles that whiten what they are fitted to; 0 before."""

    left: jax.Array  # m, m
    right: jax.Array  # n, n


def init(x: jax.Array) -> Factors:
    """Empty factors of a matrix."""
    m, n = x.shape
    return Factors(jnp.zeros((m, m), x.dtype), jnp.zeros((n, n), x.dtype), jnp.eye(m, dtype=x.dtype),
                   jnp.eye(n, dtype=x.dtype), jnp.zeros(m, x.dtype), jnp.zeros(n, x.dtype))


def known(f: Factors) -> jax.Array:
    """Whether the bases are of something: one value per matrix, kept with axes of length 1."""
    return jnp.trace(f.left, axis1=-2, axis2=-1)[..., None, None] > 0


def rotate(f: Factors, x: jax.Array, back: bool = False) -> jax.Array:
    """x [..., m, n] in the bases of the factors, or back out of them."""
    left, right = f.left_basis, f.right_basis
    return _product(_product(left, x), right.mT) if back else _product(_product(left.mT, x), right)


def root(f: Factors, x: jax.Array, power: Any, floor: Any, dropped: bool) -> jax.Array:
    """L^power x R^power, by the bases and eigenvalues that the factors keep.

    Args: floor: share of the largest eigenvalue; smaller ones count as it, or as zero where `dropped`.
    """

    def powers(values: jax.Array) -> jax.Array:
        least = floor * jnp.max(values, axis=-1, keepdims=True)
        raised = jnp.maximum(jnp.maximum(values, least), jnp.finfo(x.dtype).tiny) ** power
        return jnp.where(values > least, raised, 0.0) if dropped else raised

    scales = powers(f.left_values)[..., :, None] * powers(f.right_values)[..., None, :]
    return rotate(f, rotate(f, x) * scales, back=True)


def advance(f: Factors, x: jax.Array, decay: Any, refresh: Any, passengers: tuple[jax.Array, ...]
            ) -> tuple[Factors, tuple[jax.Array, ...]]:
    """The factors after x [k, m, n], and what lives in their bases, in the order that these have then.

    Bases follow by one power iteration and QR, sorted by Rayleigh quotient, where `refresh`; those of a matrix without
    any come from an eigendecomposition, largest eigenvalue first.
    Source: Vyas et al. 2024, arXiv:2409.11321, algorithm 3; sorting of columns as in the authors' implementation.
    """
    was = known(f)
    f = f._replace(left=decay * f.left + (1 - decay) * _product(x, x.mT),
                   right=decay * f.right + (1 - decay) * _product(x.mT, x))
    f, passengers = jax.lax.cond(refresh, _follow, lambda *same: same, f, passengers)
    first = ~was & known(f)
    return jax.lax.cond(jnp.any(first), lambda f: _eigenvectors(f, first), lambda f: f, f), passengers


def _follow(f: Factors, passengers: tuple[jax.Array, ...]) -> tuple[Factors, tuple[jax.Array, ...]]:
    def follow(factor: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        image = _product(factor, basis)
        values = jnp.sum(basis * image, axis=-2)
        order = jnp.argsort(-values, axis=-1)
        image, was = (jnp.take_along_axis(x, order[:, None, :], axis=-1) for x in (image, basis))
        return _orthonormal(image, was), jnp.take_along_axis(values, order, axis=-1), order

    left_basis, left_values, rows = follow(f.left, f.left_basis)
    right_basis, right_values, columns = follow(f.right, f.right_basis)
    moved = tuple(jnp.take_along_axis(jnp.take_along_axis(p, rows[:, :, None], axis=-2), columns[:, None, :], axis=-1)
                  for p in passengers)
    return Factors(f.left, f.right, left_basis, right_basis, left_values, right_values), moved


def _eigenvectors(f: Factors, where: jax.Array) -> Factors:
    def replace(factor: jax.Array, basis: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        found, vectors = _one_by_one(lambda x: tuple(jnp.linalg.eigh(x)), factor, tpu=_jacobi)
        return (jnp.where(where, vectors[..., ::-1], basis), jnp.where(where[..., 0], found[..., ::-1], values))

    left_basis, left_values = replace(f.left, f.left_basis, f.left_values)
    right_basis, right_values = replace(f.right, f.right_basis, f.right_values)
    return Factors(f.left, f.right, left_basis, right_basis, left_values, right_values)


def no_inverse(w: jax.Array, numbers: int) -> jax.Array:
    """Room for so many numbers of inverses, of blocks of which each input of w is in one."""
    size = numbers // w.shape[0]
    return jnp.zeros((w.shape[0] // size, size, size), w.dtype)


def inverses(moments: dict[str, jax.Array], kept: dict[str, jax.Array], due: jax.Array, damping: Any
             ) -> dict[str, jax.Array]:
    """Of each matrix of each stack [k, n, n], with damping times its mean diagonal, and 1e-8, on the diagonal; else
    those that are kept."""
    found, sizes = {}, {}
    for path, c in moments.items():
        sizes.setdefault(c.shape[-1], []).append(path)
    for paths in sizes.values():
        c, was = (jnp.concatenate([tree[path] for path in paths]) for tree in (moments, kept))
        new, start = shared(_inverses, (c, was), due, damping), 0
        for path in paths:
            found[path] = new[start : start + len(moments[path])]
            start += len(moments[path])
    return found


def _inverses(stacks: tuple[jax.Array, jax.Array], due: jax.Array, damping: Any) -> jax.Array:
    c, was = stacks
    more = damping * jnp.trace(c, axis1=-2, axis2=-1)[:, None, None] / c.shape[-1] + 1e-8
    c = c + more * jnp.eye(c.shape[-1], dtype=c.dtype)[None]
    return jax.lax.cond(due, lambda c, _: _one_by_one(jnp.linalg.inv, c), lambda _, was: was, c, was)


def blockwise(a: jax.Array, x: jax.Array) -> jax.Array:
    """The product of a matrix [k, n, n] in blocks along its diagonal with x [k * n, m]."""
    return _product(a, x.reshape(len(a), -1, x.shape[-1])).reshape(x.shape)


def _one_by_one(function: Any, x: Any, tpu: Any = None) -> Any:
    """A decomposition of each matrix of a stack. tpu: of a stack, on TPUs.

    On CPU a batched one waits, in a thread of the pool, for others of the pool: as many at once as there are threads
    never end (jaxlib 0.10.2, two cores). One of a single matrix waits for nobody.
    """
    return jax.lax.platform_dependent(x, cpu=lambda x: jax.lax.map(function, x), tpu=tpu or function, default=function)


def _jacobi(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values and vectors by rotations: what JAX takes on TPUs by default compiles for minutes."""
    vectors, values = jax.lax.linalg.eigh(x, implementation=jax.lax.linalg.EighImplementation.JACOBI)
    return values, vectors


def _orthonormal(x: jax.Array, fill: jax.Array) -> jax.Array:
    """The orthogonal factor of each matrix [k, n, n]. fill: columns that stand in for those that are all 0, on TPUs."""
    return _one_by_one(lambda both: jnp.linalg.qr(both[0])[0], (x, fill), lambda both: jax.lax.map(_in_panels, both))


def _in_panels(x_fill: tuple[jax.Array, jax.Array], width: int = 128) -> jax.Array:
    """An orthogonal factor, some columns at a time: XLA unrolls its own on TPUs, and compiles 3072 columns for minutes.

    Each panel is made orthogonal to those before it, and in itself, three times: the first finds what is new in it,
    which may be rounding alone; what that holds of those before goes in the second, and its rounding in the third.
    """
    x, fill = x_fill
    n, more = x.shape[-1], -x.shape[-1] % width
    if n <= width:
        return jnp.linalg.qr(x)[0]
    length = jnp.linalg.norm(x, axis=0, keepdims=True)
    x = jnp.where(length > 0, x / jnp.where(length > 0, length, 1.0), fill)
    x = jax.scipy.linalg.block_diag(x, jnp.eye(more, dtype=x.dtype))

    def add(i: jax.Array, q: jax.Array) -> jax.Array:
        new = jax.lax.dynamic_slice_in_dim(x, i * width, width, axis=1)
        new = jax.lax.fori_loop(0, 3, lambda _, p: jnp.linalg.qr(p - _product(q, _product(q.mT, p)))[0], new)
        return jax.lax.dynamic_update_slice_in_dim(q, new, i * width, axis=1)

    return jax.lax.fori_loop(0, (n + more) // width, add, jnp.zeros_like(x))[:n, :n]


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=_EXACT)


def rotation_flops(shape: tuple[int, ...]) -> float:
    """Of one rotation."""
    m, n = shape
    return 2.0 * (m * m * n + m * n * n)


def advance_flops(shape: tuple[int, ...], every: int) -> float:
    """Of one update on average: two Gram products, and on refresh L Q and its QR (8/3 k^3, orthogonal factor formed).

    The single eigendecomposition at the start is left out.
    """
    m, n = shape
    return rotation_flops(shape) + 2.0 * (m * m + n * n) + (2.0 + 8.0 / 3.0) * (m**3 + n**3) / every


def blank(x: jax.Array) -> Triangles:
    """Triangles of a matrix that were fitted to nothing yet."""
    return Triangles(*(jnp.zeros((size, size), x.dtype) for size in x.shape))


def fit(f: Triangles, x: jax.Array, v: jax.Array, rate: Any, first: jax.Array) -> Triangles:
    """One step of the triangles Q, R: towards Q^T Q x R^T R with the second moments of Gaussian numbers.

    Args: x, v: [k, m, n], what is to be whitened, and Gaussian numbers. first: whether to start from a multiple of the
        identity that fits the size of x.
    Source: Li 2024, arXiv:2402.04553, steps on triangular matrices; modded-nanogpt track 3, 20260527_psgd.
    """
    size = jnp.maximum(jnp.mean(x**4, axis=(-2, -1), keepdims=True), 1e-24) ** (-1 / 32)
    left, right = (jnp.where(first, size * jnp.eye(q.shape[-1], dtype=q.dtype)[None], q) for q in f)
    most = [jnp.max(jnp.abs(q), axis=(-2, -1), keepdims=True) for q in (left, right)]
    balance = jnp.sqrt(most[1] / most[0])
    left, right = left * balance, right / balance
    a = _product(_product(left, x), right.mT)
    b = _one_by_one(_under, (right, _one_by_one(_under, (left, v)).mT)).mT
    return Triangles(_fitted(left, _product(a, a.mT), _product(b, b.mT), rate),
                     _fitted(right, _product(a.mT, a), _product(b.mT, b), rate))


def whiten(f: Triangles, x: jax.Array) -> jax.Array:
    """Q^T Q x R^T R."""
    return _product(_product(f.left.mT, _product(_product(f.left, x), f.right.mT)), f.right)


def _under(q_x: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Q^-T x."""
    return jax.scipy.linalg.solve_triangular(*q_x, trans=1)


def _fitted(q: jax.Array, more: jax.Array, less: jax.Array, rate: Any) -> jax.Array:
    return q - rate / _largest(more + less) * _product(jnp.triu(more - less), q)


def _largest(h: jax.Array) -> jax.Array:
    """The largest eigenvalue of a positive matrix, from below: two iterations from its longest column."""
    scale = jnp.maximum(jnp.max(jnp.abs(h), axis=(-2, -1), keepdims=True), jnp.finfo(h.dtype).tiny)
    h = h / scale
    longest = jnp.argmax(jnp.sum(h * h, axis=-2), axis=-1)[..., None, None]
    x = _product(h, jnp.take_along_axis(h, longest, axis=-1))
    x = x / jnp.linalg.norm(x, axis=-2, keepdims=True)
    return scale * jnp.linalg.norm(_product(h, x), axis=-2, keepdims=True)


def fit_flops(shape: tuple[int, ...]) -> float:
    """Of one step of triangles: a product from both sides, two solutions, four Gram products, a triangle's product."""
    m, n = shape
    return 3.5 * rotation_flops(shape) + 2.0 * (m**3 + n**3)
