"""From tokens to the residual stream: table, learned positions, smear, norm."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnano.config.block import Learned
from jaxnano.config.model import Model
from jaxnano.model.linear import declare
from jaxnano.model.norm import Norm


class Smear(nn.Module):
    """Adds scale * sigmoid(w . first channels) of the previous token's embedding. cfg: resolved smear node."""

    cfg: Any

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, before_Bx1xD: jax.Array) -> jax.Array:
        """before_Bx1xD: the embedding just before the first token; zeros at the start of a document."""
        channels = self.cfg.channels
        weight_C = declare(self, "weight", channels).astype(x_BxLxD.dtype)
        gate_BxLx1 = declare(self, "scale") * jax.nn.sigmoid(x_BxLxD[..., :channels] @ weight_C)[..., None]
        previous_BxLxD = jnp.concatenate([before_Bx1xD.astype(x_BxLxD.dtype), x_BxLxD[:, :-1]], axis=1)
        return x_BxLxD + (gate_BxLx1 * previous_BxLxD).astype(x_BxLxD.dtype)


class Embedding(nn.Module):
    """cfg: resolved model node. length: how many positions a learned table has."""

    cfg: Model
    length: int

    @nn.compact
    def __call__(
        self, tokens_BxL: jax.Array, positions_L: jax.Array, before_Bx1xD: jax.Array | None, dtype: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns: the stream [B, L, D], the last raw embedding [B, 1, D] for a cache, and the table [V, D]."""
        m = self.cfg
        table_VxD = declare(self, "token", m.vocab, m.width)
        x_BxLxD = raw_BxLxD = jnp.take(table_VxD, tokens_BxL, axis=0).astype(dtype)
        if m.embedding.smear:
            before = jnp.zeros_like(raw_BxLxD[:, :1]) if before_Bx1xD is None else before_Bx1xD
            x_BxLxD = Smear(m.embedding.smear, name="smear")(x_BxLxD, before)
        if isinstance(m.position, Learned):
            positions_LxD = jnp.take(declare(self, "position", self.length, m.width), positions_L, axis=0)
            x_BxLxD = x_BxLxD + positions_LxD[None].astype(dtype)
        if m.embedding.norm:
            x_BxLxD = Norm(m.norm, name="norm")(x_BxLxD)
        return x_BxLxD, raw_BxLxD[:, -1:], table_VxD
