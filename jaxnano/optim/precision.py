"""Weights of which the model sees less than the optimizer: their upper half, or what rounding leaves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnano.optim.chain import Params
from jaxnano.optim.memory import Updater


def upper_half(w: jax.Array) -> jax.Array:
    """Float32 without its lower 16 bits: truncated to bfloat16."""
    bits = jax.lax.bitcast_convert_type(w, jnp.uint32) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def rounded(w: jax.Array) -> jax.Array:
    """Float32 rounded to bfloat16; unlike a cast and back, no compiler takes it out."""
    return jax.lax.reduce_precision(w, 8, 7)


def with_weights(kind: str, optimizer: Updater) -> Updater:
    """The optimizer of `train.weights`. Of vectors and scalars everybody sees all."""
    if kind == "float32":
        return optimizer
    narrow = upper_half if kind == "upper_half" else rounded

    def seen(params: Params) -> Params:
        return {path: w if w.ndim < 2 else narrow(w) for path, w in params.items()}

    def kept(state: Any) -> Any:
        return state if kind == "upper_half" else state._replace(params=seen(state.params))

    return Updater(
        lambda params: kept(optimizer.init(params)), lambda state: seen(optimizer.grad_params(state)),
        lambda grads, state: kept(optimizer.update(grads, state)), lambda state: seen(optimizer.eval_params(state)))
