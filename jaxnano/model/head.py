"""From the stream to logits and the loss, together, so that a large vocabulary can be taken in chunks of tokens."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnano.config.model import Model
from jaxnano.model import backend
from jaxnano.model.linear import declare

CHUNK_LOGITS = 1 << 28  # most float32 logits held at once: 1 GiB


class Head(nn.Module):
    """Declares the output map. cfg: resolved model node."""

    cfg: Model

    @nn.compact
    def __call__(self, table_VxD: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Returns: weight [D, V], the table's transpose if tied, and bias [V] or None."""
        m = self.cfg
        if m.embedding.tied:
            return table_VxD.T, None
        return declare(self, "weight", m.width, m.vocab), declare(self, "bias", m.vocab) if m.bias else None


def logits(x_BxLxD: jax.Array, weight_DxV: jax.Array, bias_V: jax.Array | None, cfg: Model,
           dtype: Any = jnp.float32) -> jax.Array:
    """Logits as the loss sees them [B, L, V], rounded to `dtype` before and after caps. cfg: resolved model node."""
    z = backend.linear(x_BxLxD, weight_DxV, bias_V).astype(dtype).astype(jnp.float32)
    if cap := cfg.head.softcap:
        z = cap.cap * jnp.tanh(z / cap.cap) if cap.kind == "tanh" else cap.cap * z * jax.lax.rsqrt(z * z + cap.cap**2)
    if cfg.head.logits is not None:
        z = jnp.broadcast_to(cfg.head.logits.apply(z=z), z.shape)
    return z.astype(dtype)


def token_losses(
    x_BxLxD: jax.Array, targets_BxL: jax.Array, weight_DxV: jax.Array, bias_V: jax.Array | None, cfg: Model,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each the mean over tokens; chunked by batch rows if large. dtype: of the logits that training sees.

    Returns: cross entropy of the next token in nats, in float32; what training predicts instead of it, by
    `head.targets` and `dtype`; and logsumexp(logits)**2.
    """

    def some(x: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        z = logits(x, weight_DxV, bias_V, cfg)
        square = jnp.square(jax.nn.logsumexp(z, axis=-1)) if cfg.head.z_loss is not None else jnp.zeros(())
        nats = aim = jnp.mean(backend.cross_entropy(z, targets))
        if dtype != jnp.float32 or cfg.head.targets:
            aim = _aim(z if dtype == jnp.float32 else logits(x, weight_DxV, bias_V, cfg, dtype), targets, cfg)
        return nats, aim, jnp.mean(square)

    rows = x_BxLxD.shape[0]
    chunks = max(1, min(rows, -(-targets_BxL.size * weight_DxV.shape[1] // CHUNK_LOGITS)))
    while rows % chunks:
        chunks += 1
    if chunks == 1:
        return some(x_BxLxD, targets_BxL)
    pieces: Any = [y.reshape(chunks, rows // chunks, *y.shape[1:]) for y in (x_BxLxD, targets_BxL)]
    found = jax.lax.map(lambda piece: jax.checkpoint(some)(*piece), tuple(pieces))
    return tuple(jnp.mean(part) for part in found)  # type: ignore[return-value]


def _aim(z_BxLxV: jax.Array, targets_BxL: jax.Array, cfg: Model) -> jax.Array:
    """Weighted cross entropies of tokens further on; those beyond the row have none."""
    total, place_1xL = jnp.zeros(()), jnp.arange(targets_BxL.shape[1])[None]
    for shift, weight in [(target.shift, target.weight) for target in cfg.head.targets] or [(1, 1.0)]:
        ahead = shift - 1
        nats_BxL = backend.cross_entropy(z_BxLxV, jnp.roll(targets_BxL, -ahead, axis=1))
        total += weight * jnp.mean(jnp.where(place_1xL < targets_BxL.shape[1] - ahead, nats_BxL, 0.0))
    return total
