"""Causal self-attention with its variants: grouped heads, windows, QK-norm, gates, wires into it, a cache."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnano.config.block import ConstantScale, HeadMatrix, HeadVectors, Rotary
from jaxnano.config.formulas import HeadInput
from jaxnano.config.model import Model
from jaxnano.model import backend
from jaxnano.model.documents import Row
from jaxnano.model.linear import declare, declare_linear, fused_linear, watched
from jaxnano.model.norm import rms_normalize
from jaxnano.model.position import alibi_slopes, frequencies, rotate, shift
from jaxnano.model.wires import Wires

KeyValue = tuple[jax.Array, jax.Array]


class Attention(nn.Module):
    """cfg: resolved model of the block. block: which one. length: training length, which windows are clipped to."""

    cfg: Model
    block: int
    length: int

    @nn.compact
    def __call__(
        self, x_BxLxD: jax.Array, wires: Wires, row: Row, cache: KeyValue | None
    ) -> tuple[jax.Array, KeyValue | None]:
        """Args: wires: of the block. cache: earlier keys and values, [B, T, G, K], or where n heads take turns,
        [B, n*T, G/n, K].

        Returns: the branch's output [B, L, D] and the updated cache.
        """
        m, a = self.cfg, self.cfg.attention
        heads, groups, dim = a.heads, m.kv_heads, m.head_dim
        q, k, v = self._project(wires.into("attention", x_BxLxD), heads * dim, groups * dim)
        wires.known["value"] = v
        v = wires.into("value", v, x_BxLxD)
        split = lambda y, n: y.reshape(*y.shape[:2], n, dim)  # noqa: E731
        q, k, v = split(q, heads), split(k, groups), split(v, groups)
        if a.qk_norm:
            q, k = rms_normalize(q), rms_normalize(k)
        q, k, v = (self._shaped(y, part, name) for y, part, name in zip((q, k, v), (a.query, a.key, a.value), "qkv",
                                                                      strict=True))
        own_BxLxHxK, row = v, row.interleaved(a.interleaved)
        q, k, v = (interleave(y, a.interleaved) for y in (q, k, v))
        if isinstance(m.position, Rotary):
            turn = frequencies(m.position, dim)
            q, k = rotate(q, turn, row.positions_L), rotate(k, turn, row.positions_L)
        scores, first = self._scores(x_BxLxD, row), row.positions_L[0]
        if cache is None:
            y_BxLxHxK = backend.attention(q, shift(k, a.key_shift, a.interleaved), v, scores)
        else:
            place = (0, first, 0, 0)
            keys, values = (jax.lax.dynamic_update_slice(old, new.astype(old.dtype), place)
                            for old, new in zip(cache, (k, v), strict=True))
            shifted = shift(keys, a.key_shift, a.interleaved)
            y_BxLxHxK, cache = backend.attend_cached(q, shifted, values, first, scores), (keys, values)
        y_BxLxHxK = separate(y_BxLxHxK, a.interleaved)
        if a.output is not None:
            own_BxLxHxK = jnp.repeat(own_BxLxHxK, heads // groups, axis=2)
            y = a.output.apply(y=y_BxLxHxK.astype(jnp.float32), v=own_BxLxHxK.astype(jnp.float32))
            y_BxLxHxK = jnp.broadcast_to(y, y_BxLxHxK.shape).astype(y_BxLxHxK.dtype)
        if a.gate:
            weight_CxH = declare(self, "output_gate", a.gate.channels, heads).astype(x_BxLxD.dtype)
            gate_BxLxH = jax.nn.sigmoid(x_BxLxD[..., : a.gate.channels] @ weight_CxH)
            y_BxLxHxK = y_BxLxHxK * gate_BxLxH[..., None]
        y = y_BxLxHxK.reshape(*y_BxLxHxK.shape[:2], heads * dim)
        weight, bias = declare_linear(self, "o", heads * dim, m.width, m.bias)
        return backend.linear(watched(self, y, "o"), weight, bias), cache

    def _shaped(self, x_BxLxHxK: jax.Array, cfg: HeadInput | None, name: str) -> jax.Array:
        """Queries, keys or values after their formula and their gain."""
        if cfg is None:
            return x_BxLxHxK
        y = jnp.broadcast_to(cfg.apply(x=x_BxLxHxK.astype(jnp.float32)), x_BxLxHxK.shape)
        if cfg.gain:
            y = y * declare(self, f"{name}_gain", y.shape[-1])[None, None, None]
        return y.astype(x_BxLxHxK.dtype)

    def _scores(self, x_BxLxD: jax.Array, row: Row) -> backend.Scores:
        """How queries weigh keys."""
        m, a = self.cfg, self.cfg.attention
        scale = a.scale.value if isinstance(a.scale, ConstantScale) else 1.0 / math.sqrt(m.head_dim)
        window, slopes = m.window(self.length), alibi_slopes(m.position, a.heads // a.interleaved)
        block = a.window_block if window is not None and a.window_block > 1 else None
        before, after = (self._mix(x_BxLxD, name) for name in ("mix_scores", "mix_weights"))
        return backend.Scores(scale, window, a.softcap, slopes, self._logit(), block, before, after, row.begins_BxL)

    def _mix(self, x_BxLxD: jax.Array, name: str) -> backend.Mix | None:
        """What heads share, by the node called `name`."""
        cfg, heads = getattr(self.cfg.attention, name), self.cfg.attention.heads
        if isinstance(cfg, HeadMatrix):
            return backend.Mix(declare(self, name, heads, heads))
        if not isinstance(cfg, HeadVectors):
            return None
        z_BxLxC = x_BxLxD[..., : cfg.channels]
        if cfg.hidden:
            z_BxLxC = jax.nn.gelu(backend.linear(z_BxLxC, declare(self, f"{name}_hidden", cfg.channels, cfg.hidden)))
        vectors = []
        for part in ("from", "to"):
            weight = declare(self, f"{name}_{part}", z_BxLxC.shape[-1], heads * cfg.rank)
            bias = declare(self, f"{name}_{part}_bias", heads * cfg.rank)
            y = backend.linear(z_BxLxC, weight).astype(jnp.float32) + bias[None, None]
            vectors.append(y.reshape(*y.shape[:2], heads, cfg.rank))
        unit = rms_normalize(vectors[0].swapaxes(2, 3)).swapaxes(2, 3)
        return backend.Mix(None, unit, vectors[1], cfg.window or None)

    def _logit(self) -> Any:
        """The formula of logits as the kernel calls it, or None."""
        formula, depth = self.cfg.attention.logit, self.cfg.depth
        heads = self.cfg.attention.heads // self.cfg.attention.interleaved
        if formula is None:
            return None
        known = {"heads": float(heads), "depth": self.block / max(1, depth - 1)}

        def logit(s: jax.Array, head: jax.Array, distance: jax.Array) -> jax.Array:
            return jnp.broadcast_to(formula.apply(s=s, head=head, distance=distance, **known), s.shape)

        return logit

    def _project(self, x: jax.Array, queries: int, keys: int) -> list[jax.Array]:
        parts = [declare_linear(self, n, self.cfg.width, w, self.cfg.bias) for n, w in zip("qkv", (queries, keys, keys),
                                                                                         strict=True)]
        return fused_linear(watched(self, x, *"qkv"), parts)


def interleave(y_BxLxHxK: jax.Array, heads: int) -> jax.Array:
    """Rows of so many heads side by side, which take turns at each token: [B, heads * L, H / heads, K].

    Source: modded-nanogpt track 1, 2026-01-07_PairedHeadAttention, with two heads.
    """
    if heads == 1:
        return y_BxLxHxK
    batch, length, count, dim = y_BxLxHxK.shape
    y = y_BxLxHxK.reshape(batch, length, count // heads, heads, dim).swapaxes(2, 3)
    return y.reshape(batch, length * heads, count // heads, dim)


def separate(y_BxLxHxK: jax.Array, heads: int) -> jax.Array:
    """What `interleave` was given."""
    if heads == 1:
        return y_BxLxHxK
    batch, length, count, dim = y_BxLxHxK.shape
    y = y_BxLxHxK.reshape(batch, length // heads, heads, count, dim).swapaxes(2, 3)
    return y.reshape(batch, length // heads, count * heads, dim)
