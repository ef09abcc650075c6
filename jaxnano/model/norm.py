"""Normalisation, in float32 whatever the activations are."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnano.config.block import LayerNorm
from jaxnano.model.linear import declare


def rms_normalize(x: jax.Array, eps: Any = 1e-6) -> jax.Array:
    """x / rms(x) over the last axis; same shape and dtype."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + eps)).astype(x.dtype)


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis. cfg: a resolved norm node."""

    cfg: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        if layer := isinstance(self.cfg, LayerNorm):
            x32 = x32 - jnp.mean(x32, -1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.cfg.eps)
        shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
        if self.cfg.gain:
            x32 = x32 * declare(self, "gain", x.shape[-1]).reshape(shape)
        if layer and self.cfg.bias:
            x32 = x32 + declare(self, "bias", x.shape[-1]).reshape(shape)
        return x32.astype(x.dtype)
