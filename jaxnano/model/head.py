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


def logits(x_BxLxD: jax.Array, weight_DxV: jax.Array, bias_V: jax.Array | None, cfg: Model) -> jax.Array:
    """Logits as the loss sees them [B, L, V] in float32. cfg: resolved model node."""
    z = backend.linear(x_BxLxD, weight_DxV, bias_V).astype(jnp.float32)
    if cap := cfg.head.softcap:
        z = cap.cap * jnp.tanh(z / cap.cap) if cap.kind == "tanh" else cap.cap * z * jax.lax.rsqrt(z * z + cap.cap**2)
    if cfg.head.logits is not None:
        z = jnp.broadcast_to(cfg.head.logits.apply(z=z), z.shape)
    return z


def token_losses(
    x_BxLxD: jax.Array, targets_BxL: jax.Array, weight_DxV: jax.Array, bias_V: jax.Array | None, cfg: Model
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy in nats and logsumexp(logits)**2, each the mean over tokens; chunked by batch rows if large."""

    def some(x: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = logits(x, weight_DxV, bias_V, cfg)
        square = jnp.square(jax.nn.logsumexp(z, axis=-1)) if cfg.head.z_loss is not None else jnp.zeros(())
        return jnp.mean(backend.cross_entropy(z, targets)), jnp.mean(square)

    rows = x_BxLxD.shape[0]
    chunks = max(1, min(rows, -(-targets_BxL.size * weight_DxV.shape[1] // CHUNK_LOGITS)))
    while rows % chunks:
        chunks += 1
    if chunks == 1:
        return some(x_BxLxD, targets_BxL)
    pieces: Any = [y.reshape(chunks, rows // chunks, *y.shape[1:]) for y in (x_BxLxD, targets_BxL)]
    nats, squares = jax.lax.map(lambda piece: jax.checkpoint(some)(*piece), tuple(pieces))
    return jnp.mean(nats), jnp.mean(squares)
