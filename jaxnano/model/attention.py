"""Causal self-attention with its variants: grouped heads, windows, QK-norm, gates, value embeddings, a cache."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnano.config.block import ConstantScale, Rotary
from jaxnano.config.formulas import HeadInput
from jaxnano.config.model import Model
from jaxnano.model import backend
from jaxnano.model.linear import declare, declare_linear, fused_linear
from jaxnano.model.norm import rms_normalize
from jaxnano.model.position import alibi_slopes, frequencies, rotate, shift

KeyValue = tuple[jax.Array, jax.Array]


class Attention(nn.Module):
    """cfg: resolved model of the block. block: which one. length: training length, which windows are clipped to."""

    cfg: Model
    block: int
    length: int

    @nn.compact
    def __call__(
        self, x_BxLxD: jax.Array, tables: dict[str, jax.Array], positions_L: jax.Array, cache: KeyValue | None
    ) -> tuple[jax.Array, KeyValue | None]:
        """Args: tables: value-embedding rows per table, [B, L, G*K]. cache: earlier keys and values, [B, T, G, K].

        Returns: the branch's output [B, L, D] and the updated cache.
        """
        m, a = self.cfg, self.cfg.attention
        heads, groups, dim = a.heads, m.kv_heads, m.head_dim
        q, k, v = self._project(x_BxLxD, heads * dim, groups * dim)
        for table in m.residual.value_embeddings:
            if self.block in table.blocks:
                own, other = declare(self, f"mix_{table.name}_value"), declare(self, f"mix_{table.name}_table")
                v = (own * v + other * tables[table.name]).astype(v.dtype)
        split = lambda y, n: y.reshape(*y.shape[:2], n, dim)  # noqa: E731
        q, k, v = split(q, heads), split(k, groups), split(v, groups)
        if a.qk_norm:
            q, k = rms_normalize(q), rms_normalize(k)
        q, k, v = (self._shaped(y, part, name) for y, part, name in zip((q, k, v), (a.query, a.key, a.value), "qkv",
                                                                      strict=True))
        if isinstance(m.position, Rotary):
            turn = frequencies(m.position, dim)
            q, k = rotate(q, turn, positions_L), rotate(k, turn, positions_L)
        scale = a.scale.value if isinstance(a.scale, ConstantScale) else 1.0 / math.sqrt(dim)
        scores = backend.Scores(scale, m.window(self.length), a.softcap, alibi_slopes(m.position, heads), self._logit())
        if cache is None:
            y_BxLxHxK = backend.attention(q, shift(k, a.key_shift), v, scores)
        else:
            place = (0, positions_L[0], 0, 0)
            keys, values = (jax.lax.dynamic_update_slice(old, new.astype(old.dtype), place)
                            for old, new in zip(cache, (k, v), strict=True))
            y_BxLxHxK, cache = backend.attend_cached(q, shift(keys, a.key_shift), values, positions_L[0],
                                                     scores), (keys, values)
        if a.output is not None:
            own_BxLxHxK = jnp.repeat(v, heads // groups, axis=2)
            y = a.output.apply(y=y_BxLxHxK.astype(jnp.float32), v=own_BxLxHxK.astype(jnp.float32))
            y_BxLxHxK = jnp.broadcast_to(y, y_BxLxHxK.shape).astype(y_BxLxHxK.dtype)
        if a.gate:
            weight_CxH = declare(self, "output_gate", a.gate.channels, heads).astype(x_BxLxD.dtype)
            gate_BxLxH = jax.nn.sigmoid(x_BxLxD[..., : a.gate.channels] @ weight_CxH)
            y_BxLxHxK = y_BxLxHxK * gate_BxLxH[..., None]
        y = y_BxLxHxK.reshape(*y_BxLxHxK.shape[:2], heads * dim)
        weight, bias = declare_linear(self, "o", heads * dim, m.width, m.bias)
        return backend.linear(y, weight, bias), cache

    def _shaped(self, x_BxLxHxK: jax.Array, cfg: HeadInput | None, name: str) -> jax.Array:
        """Queries, keys or values after their formula and their gain."""
        if cfg is None:
            return x_BxLxHxK
        y = jnp.broadcast_to(cfg.apply(x=x_BxLxHxK.astype(jnp.float32)), x_BxLxHxK.shape)
        if cfg.gain:
            y = y * declare(self, f"{name}_gain", y.shape[-1])[None, None, None]
        return y.astype(x_BxLxHxK.dtype)

    def _logit(self) -> Any:
        """The formula of logits as the kernel calls it, or None."""
        formula, heads, depth = self.cfg.attention.logit, self.cfg.attention.heads, self.cfg.depth
        if formula is None:
            return None
        known = {"heads": float(heads), "depth": self.block / max(1, depth - 1)}

        def logit(s: jax.Array, head: jax.Array, distance: jax.Array) -> jax.Array:
            return jnp.broadcast_to(formula.apply(s=s, head=head, distance=distance, **known), s.shape)

        return logit

    def _project(self, x: jax.Array, queries: int, keys: int) -> list[jax.Array]:
        parts = [declare_linear(self, n, self.cfg.width, w, self.cfg.bias) for n, w in zip("qkv", (queries, keys, keys),
                                                                                         strict=True)]
        return fused_linear(x, parts)
