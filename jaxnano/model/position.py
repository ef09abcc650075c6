"""Position signals that act inside attention: rotation of queries and keys, and distance penalties."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnano.config.block import Alibi, Rotary


def frequencies(cfg: Rotary, head_dim: int) -> jax.Array:
    """Radians per position of each channel pair, [K/2] float32; stationary pairs come last and are 0."""
    pairs = head_dim // 2
    turning = max(1, round(cfg.fraction * pairs))
    index = jnp.arange(turning, dtype=jnp.float32)
    power = index / max(turning - 1, 1) if cfg.spacing == "inclusive" else index / turning
    turn = jnp.exp(-power * jnp.log(jnp.asarray(cfg.base, jnp.float32)))
    if cfg.frequency is not None:
        turn = jnp.broadcast_to(cfg.frequency.apply(f=turn), turn.shape)
    return jnp.concatenate([turn, jnp.zeros(pairs - turning, jnp.float32)])


def rotate(x_BxLxHxK: jax.Array, frequencies_P: jax.Array, positions_L: jax.Array) -> jax.Array:
    """Rotate channel pairs (i, i + K/2) by position.

    Args: x_BxLxHxK: queries or keys, K even. frequencies_P: radians per position, P = K/2. positions_L: int.
    Returns: same shape and dtype; angles are computed in float32.
    Source: Su et al. 2021, arXiv:2104.09864.
    """
    angle_LxP = positions_L.astype(jnp.float32)[:, None] * frequencies_P[None, :]
    cos, sin = jnp.cos(angle_LxP)[None, :, None, :], jnp.sin(angle_LxP)[None, :, None, :]
    first, second = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1).astype(x_BxLxHxK.dtype)


def shift(k_BxLxGxK: jax.Array, share: float, by: int = 1) -> jax.Array:
    """Keys whose last `share` of channel pairs (i, i + K/2) is that of the token before; the first keeps its own.

    by: how far it lies back, where heads take turns in a row.

    Source: modded-nanogpt track 1, partial key offset: the stationary half, with rotary's `fraction` of a half.
    """
    if share == 0:
        return k_BxLxGxK
    pairs = max(1, k_BxLxGxK.shape[-1] // 2)
    first = min(round((1.0 - share) * pairs), pairs - 1)  # of those that are shifted
    late_K = jnp.arange(k_BxLxGxK.shape[-1]) % pairs >= first
    before = jnp.concatenate([k_BxLxGxK[:, :by], k_BxLxGxK[:, :-by]], axis=1)
    return jnp.where(late_K[None, None, None], before, k_BxLxGxK)


def alibi_slopes(position: Any, heads: int) -> jax.Array | None:
    """Score penalty per position of distance for each head, [H] float32; None without ALiBi."""
    if not isinstance(position, Alibi):
        return None
    return jnp.exp2(-position.reach * jnp.arange(1, heads + 1, dtype=jnp.float32) / heads)
