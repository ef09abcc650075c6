"""How branches join the residual stream, and the named wires that carry it across depth."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnano.config.model import Model, TokenGate
from jaxnano.model.attention import Attention, KeyValue
from jaxnano.model.documents import Row
from jaxnano.model.ffn import Ffn
from jaxnano.model.linear import declare
from jaxnano.model.norm import Norm


class Wire(nn.Module):
    """The stream plus coefficient * saved stream. cfg: a resolved coefficient."""

    cfg: Any

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, saved_BxLxD: jax.Array) -> jax.Array:
        scale = declare(self, "scale")
        if isinstance(self.cfg, TokenGate):
            weight_C = declare(self, "weight", self.cfg.channels).astype(x_BxLxD.dtype)
            scale = 2.0 * scale * jax.nn.sigmoid(x_BxLxD[..., : self.cfg.channels] @ weight_C)[..., None]
        return x_BxLxD + (scale * saved_BxLxD).astype(x_BxLxD.dtype)


class Block(nn.Module):
    """One transformer block: an attention branch and an FFN branch, either of which may be absent.

    cfg: the resolved model of this block.
    """

    cfg: Model
    block: int
    length: int

    @nn.compact
    def __call__(
        self, x_BxLxD: jax.Array, tables: dict[str, jax.Array], row: Row, cache: KeyValue | None
    ) -> tuple[jax.Array, KeyValue | None]:
        """Returns: the stream after the block, and the block's updated cache."""
        m = self.cfg
        if m.attention is not None:
            branch = Attention(m, self.block, self.length, name="attention")
            y, cache = branch(Norm(m.norm, name="attention_norm")(x_BxLxD), tables, row, cache)
            if m.residual.branch == "depth_scaled":
                y = y / math.sqrt(2 * m.depth)
            x_BxLxD = self._join(x_BxLxD, y, "attention")
        if m.ffn is not None:
            y = Ffn(m, name="ffn")(Norm(m.norm, name="ffn_norm")(x_BxLxD))
            x_BxLxD = self._join(x_BxLxD, y, "ffn")
        return x_BxLxD, cache

    def _join(self, x: jax.Array, y: jax.Array, name: str) -> jax.Array:
        if self.cfg.norm.placement == "sandwich":
            y = Norm(self.cfg.norm, name=f"{name}_post_norm")(y)
        if self.cfg.residual.scalars is None:
            return x + y
        stream, branch = declare(self, f"{name}_stream"), declare(self, f"{name}_branch")
        return (stream * x + branch * y).astype(x.dtype)


class ValueTables(nn.Module):
    """Rows of each value-embedding table for the tokens."""

    cfg: Model

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, dtype: Any) -> dict[str, jax.Array]:
        shape = (self.cfg.vocab, self.cfg.kv_heads * self.cfg.head_dim)
        return {t.name: jnp.take(declare(self, t.name, *shape), tokens_BxL, axis=0).astype(dtype)
                for t in self.cfg.residual.value_embeddings}
