"""Orthogonalisation: odd polynomials that push all singular values of a matrix towards 1."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxnano.model.backend import platform
from jaxnano.optim.share import shared

Steps = Sequence[tuple[float, float, float]]

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
PRENORM = {"polar_express": (1.02, 1e-6)}  # before the first step X is divided by factor * its norm + eps
ORDINARY = (1.0, 1e-7)


def polar(x: Any, coefficients: str | Steps, prenorm: str = "frobenius", weights: Sequence[float] = (),
          dtype: DTypeLike | None = None) -> jax.Array:
    """Push all singular values of each matrix towards 1, keeping its singular vectors.

    Args:
        x: [..., m, n], any m and n, of JAX or NumPy. A zero matrix stays zero.
        coefficients: a key of COEFFICIENTS, or the steps themselves.
        prenorm: "frobenius", or "schatten", the root of the norm of x x^T.
        weights: of the iterates, the first before any step; the result is their weighted sum.
        dtype: of the iteration; bfloat16 is what the records use on GPUs. None is that of x.
    Returns: the shape and dtype of x.
    """
    named = isinstance(coefficients, str)
    factor, eps = PRENORM.get(coefficients, ORDINARY) if named else ORDINARY
    kept, tall, xp = x.dtype, x.shape[-2] > x.shape[-1], np if isinstance(x, np.ndarray) else jnp
    x = x.mT if tall else x  # the Gram matrix on the short side
    norm = xp.linalg.norm(x if prenorm == "frobenius" else x @ x.mT, axis=(-2, -1), keepdims=True)
    x = x / (factor * (norm if prenorm == "frobenius" else xp.sqrt(norm)) + eps)
    x = x.astype(dtype or kept)
    total = weights[0] * x if weights else None
    for i, (a, b, c) in enumerate(COEFFICIENTS[coefficients] if named else coefficients, 1):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
        if total is not None and i < len(weights):
            total = total + weights[i] * x
    x = x if total is None else total
    return (x.mT if tall else x).astype(kept)


def polar_leaves(tree: dict[str, jax.Array], *args: Any) -> dict[str, jax.Array]:
    """`polar` of a flat tree of [..., m, n] leaves; shapes equal up to transposition share one batched call.

    Devices share it, and iterate in bfloat16 where they are GPUs or TPUs, as the records do.
    """
    dtype = None if platform() == "cpu" else jnp.bfloat16
    batches: dict[tuple[int, int], list[str]] = {}
    for path, x in tree.items():
        batches.setdefault((min(x.shape[-2:]), max(x.shape[-2:])), []).append(path)
    out = {}
    for (m, n), paths in batches.items():
        wide = [(tree[p].mT if tree[p].shape[-2] > m else tree[p]).reshape(-1, m, n) for p in paths]
        stack = shared(lambda x: polar(x, *args, dtype=dtype), jnp.concatenate(wide))
        start = 0
        for path, x in zip(paths, wide, strict=True):
            shape = tree[path].shape
            part = stack[start : start + x.shape[0]]
            start += x.shape[0]
            out[path] = (part.mT if shape[-2] > m else part).reshape(shape)
    return {path: out[path] for path in tree}


def polar_flops(shape: tuple[int, ...], coefficients: str | Steps) -> float:
    """Of one call: a step is two products of m m n and one of m m m (m <= n)."""
    m, n = sorted(shape[-2:])
    count = len(COEFFICIENTS[coefficients] if isinstance(coefficients, str) else coefficients)
    return prod(shape[:-2]) * (count * (4.0 * m * m * n + 2.0 * m**3) + 4.0 * m * n)
