"""From tokens to the residual stream: table, wires, learned positions, norm."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnano.config.block import Learned
from jaxnano.config.model import Model
from jaxnano.model.linear import declare
from jaxnano.model.norm import Norm
from jaxnano.model.wires import EMBEDDING, Shifts, Wires


class Embedding(nn.Module):
    """cfg: resolved model node. length: how many positions a learned table has."""

    cfg: Model
    length: int

    @nn.compact
    def __call__(
        self, tokens_BxL: jax.Array, positions_L: jax.Array, tables: dict[str, jax.Array], before: Shifts | None,
        dtype: Any,
    ) -> tuple[dict[str, jax.Array], Shifts, jax.Array]:
        """Returns: the stream [B, L, D] and taps of it by name, what shifts keep, and the table [V, D]."""
        m = self.cfg
        wires = Wires(self, m, EMBEDDING, tables, before)
        table_VxD = declare(self, "token", m.vocab, m.width)
        x_BxLxD = wires.into("embedding", jnp.take(table_VxD, tokens_BxL, axis=0).astype(dtype))
        if isinstance(m.position, Learned):
            positions_LxD = jnp.take(declare(self, "position", self.length, m.width), positions_L, axis=0)
            x_BxLxD = x_BxLxD + positions_LxD[None].astype(dtype)
        if m.embedding.norm:
            x_BxLxD = Norm(m.norm, name="norm")(x_BxLxD)
        wires.known["stream"] = x_BxLxD
        return wires.taps(), wires.kept, table_VxD
