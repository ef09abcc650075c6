"""Muon: momentum, then the nearest orthogonal matrix; NorMuon's second moment on top.

Weights are (in, out), used as x @ W, so fan-out is the last axis; papers and records write (out, in).
"""

from math import prod, sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jaxnano.optim.priced import UpdateCost
from jaxnano.optim.wrapper import Scalar

Steps = tuple[tuple[float, float, float], ...]

# One (a, b, c) a step of X <- a X + (b A + c A A) X with A = X X^T: each singular value s becomes a s + b s^3 + c s^5.
COEFFICIENTS: dict[str, Steps] = {
    # Steepest slope at zero; singular values end between about 0.7 and 1.2. https://kellerjordan.github.io/posts/muon/
    "quintic": ((3.4445, -4.7750, 2.0315),) * 5,
    # 1 is a fixed point with zero slope, so all but the tiniest singular values reach it. modded-nanogpt, track 3.
    "converged": ((2.0, -1.5, 0.5),) * 12,
    # Minimax-optimal step by step. Amsel et al. 2025, arXiv:2505.16932; the modded-nanogpt table, safety margin 0.02.
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}
# Before the first step X is divided by factor * ||X||_F + eps.
PRENORM = {"quintic": (1.0, 1e-7), "converged": (1.0, 1e-7), "polar_express": (1.02, 1e-6)}


def orthogonalize(x: jax.Array, kind: str, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Push all singular values of each matrix towards 1, keeping its singular vectors.

    Args:
        x: [..., m, n], any m and n. A zero matrix stays zero.
        kind: a key of COEFFICIENTS.
        dtype: of the iteration; bfloat16 is what the records use on GPUs.
    Returns: float32, the shape of x.
    """
    factor, eps = PRENORM[kind]
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the Gram matrix on the short side
    x = x / (factor * jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + eps)
    x = x.astype(dtype)
    for a, b, c in COEFFICIENTS[kind]:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).astype(jnp.float32)


def orthogonalize_leaves(
    tree: dict[str, jax.Array], kind: str, dtype: DTypeLike = jnp.float32
) -> dict[str, jax.Array]:
    """`orthogonalize` a flat tree of [..., m, n] leaves; shapes equal up to transposition share one batched call."""
    batches: dict[tuple[int, int], list[str]] = {}
    for path, x in tree.items():
        if x.ndim < 2:
            raise ValueError(f"{path}: shape {x.shape} is not a matrix; Muon needs at least two axes (use adam for it)")
        batches.setdefault((min(x.shape[-2:]), max(x.shape[-2:])), []).append(path)
    out = {}
    for (m, n), paths in batches.items():
        wide = [(tree[p].mT if tree[p].shape[-2] > m else tree[p]).reshape(-1, m, n) for p in paths]
        stack = orthogonalize(jnp.concatenate(wide), kind, dtype)
        start = 0
        for path, x in zip(paths, wide, strict=True):
            shape = tree[path].shape
            part = stack[start : start + x.shape[0]]
            start += x.shape[0]
            out[path] = (part.mT if shape[-2] > m else part).reshape(shape)
    return {path: out[path] for path in tree}


def fan_scale(shape: tuple[int, ...], rule: str) -> float:
    """Length of an orthogonal update of this (in, out) shape.

    "aspect": sqrt(max(1, out/in)). "spectral_rms": 0.2 * sqrt(max(in, out)), so that entries have RMS 0.2 as Adam's
    do (arXiv:2502.16982). "none": 1.
    """
    fan_in, fan_out = shape[-2:]
    match rule:
        case "aspect":
            return sqrt(max(1.0, fan_out / fan_in))
        case "spectral_rms":
            return 0.2 * sqrt(max(fan_in, fan_out))
        case "none":
            return 1.0
    raise ValueError(f"scale {rule!r} is none of aspect, spectral_rms, none")


class MuonState(NamedTuple):
    """Averaged gradient per path."""

    momentum: dict[str, jax.Array]


def muon(
    momentum: Scalar, nesterov: bool, orthogonalizer: str, scale: str, dtype: DTypeLike = jnp.float32
) -> optax.GradientTransformation:
    """Orthogonalised momentum, for matrices only.

    Args:
        momentum: decay of m <- momentum * m + (1 - momentum) * g.
        nesterov: orthogonalise momentum * m + (1 - momentum) * g instead of m.
        orthogonalizer: "quintic", "converged" or "polar_express".
        scale: rule of `fan_scale`.
        dtype: of the iteration.
    Raises: ValueError for a leaf that is not a matrix.
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
    """

    def init_fn(params: Any) -> MuonState:
        return MuonState(optax.tree.zeros_like(params, dtype=jnp.float32))

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[dict[str, jax.Array], MuonState]:
        del params

        def average(m: jax.Array, g: jax.Array) -> jax.Array:
            return momentum * m + (1 - momentum) * g

        mean = jax.tree.map(average, state.momentum, updates)
        u = jax.tree.map(average, mean, updates) if nesterov else mean
        u = orthogonalize_leaves(u, orthogonalizer, dtype)
        return {path: fan_scale(x.shape, scale) * x for path, x in u.items()}, MuonState(mean)

    return optax.GradientTransformation(init_fn, update_fn)


class NorMuonState(NamedTuple):
    """Averaged squared update per path, one value per index of the long axis (the short one kept with length 1)."""

    square: dict[str, jax.Array]


def normuon(b2: Scalar, eps: Scalar = 1e-10) -> optax.GradientTransformation:
    """Even out the lengths of an orthogonal update's neurons by their running mean square; the Frobenius norm is kept.

    One second moment per output where out >= in, else per input: vectors indexed by the short axis of an orthogonal
    matrix have unit length already, only those indexed by the long axis differ. (The paper always takes outputs, the
    records the long axis.)

    Args: b2: decay of the mean square. eps: floor of the mean square.
    Source: Li et al. 2025, arXiv:2510.05491; modded-nanogpt track 1, 2025-10-24_NorMuon.
    """

    def init_fn(params: Any) -> NorMuonState:
        return NorMuonState({p: jnp.zeros_like(_mean_square(x), jnp.float32) for p, x in params.items()})

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[dict[str, jax.Array], NorMuonState]:
        del params
        square = {p: b2 * v + (1 - b2) * _mean_square(updates[p]) for p, v in state.square.items()}

        def normalize(u: jax.Array, v: jax.Array) -> jax.Array:
            even = u * jax.lax.rsqrt(jnp.maximum(v, eps))
            return even * (_norm(u) / jnp.maximum(_norm(even), 1e-30))

        return {p: normalize(u, square[p]) for p, u in updates.items()}, NorMuonState(square)

    return optax.GradientTransformation(init_fn, update_fn)


def _mean_square(x: jax.Array) -> jax.Array:
    fan_in, fan_out = x.shape[-2:]
    return jnp.mean(jnp.square(x), axis=-2 if fan_out >= fan_in else -1, keepdims=True)


def _norm(x: jax.Array) -> jax.Array:
    return jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)


def muon_cost(shape: tuple[int, ...], orthogonalizer: str) -> UpdateCost:
    """Of one Muon update: a step is two products of m m n and one of m m m (m <= n). It keeps the momentum."""
    m, n = sorted(shape[-2:])
    step, entries = 4.0 * m * m * n + 2.0 * m**3, 8.0 * m * n
    return UpdateCost(prod(shape[:-2]) * (len(COEFFICIENTS[orthogonalizer]) * step + entries), prod(shape))


def normuon_cost(shape: tuple[int, ...]) -> UpdateCost:
    """Of one NorMuon update; it keeps a value for each index of the long axis."""
    return UpdateCost(9.0 * prod(shape), prod(shape[:-2]) * max(shape[-2:]))
