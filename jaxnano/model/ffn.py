"""The feed-forward branch: a plain or a gated two-layer network, with any activation of the tree."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnano.config import expression
from jaxnano.config.block import FormulaActivation, Gelu, Glu, ReluSquared, Silu
from jaxnano.config.model import Model
from jaxnano.model import backend
from jaxnano.model.linear import declare_linear, fused_linear, watched


def activate(x: jax.Array, cfg: Any) -> jax.Array:
    """The activation of a resolved node, elementwise; same shape and dtype."""
    match cfg:
        case Gelu(approximate=approximate):
            return jax.nn.gelu(x, approximate=approximate)
        case ReluSquared():
            return jnp.square(jax.nn.relu(x))
        case Silu():
            return jax.nn.silu(x)
        case FormulaActivation(code=code, params=params):
            return jnp.broadcast_to(expression.evaluate(code, {**params, "x": x}), x.shape).astype(x.dtype)
    raise ValueError(f"{cfg!r}: no such activation")


class Ffn(nn.Module):
    """cfg: resolved model node."""

    cfg: Model

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        m, width = self.cfg, self.cfg.ffn_width
        up, x_BxLxD = declare_linear(self, "up", m.width, width, m.bias), watched(self, x_BxLxD, "up", "gate")
        if isinstance(m.ffn, Glu):
            gate_BxLxF, up_BxLxF = fused_linear(x_BxLxD, [declare_linear(self, "gate", m.width, width, m.bias), up])
            hidden_BxLxF = activate(gate_BxLxF, m.ffn.activation) * up_BxLxF
        else:
            hidden_BxLxF = activate(backend.linear(x_BxLxD, *up), m.ffn.activation)
        down = declare_linear(self, "down", width, m.width, m.bias)
        return backend.linear(watched(self, hidden_BxLxF, "down"), *down)
