"""Linear maps and the parameters that all modules declare."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnano.model import backend


def declare(module: nn.Module, name: str, *shape: int) -> jax.Array:
    """A float32 parameter of `module`. Its values come from the parameter table (`specs.initialize`)."""
    return module.param(name, nn.initializers.zeros, shape)


def declare_linear(module: nn.Module, name: str, inputs: int, outputs: int, bias: bool) -> tuple[jax.Array, Any]:
    """Weight [inputs, outputs] and bias [outputs] or None of one linear map."""
    return declare(module, name, inputs, outputs), declare(module, f"{name}_bias", outputs) if bias else None


INPUTS = "inputs"  # the collection with a blank for each map whose inputs the optimizer asks about


def watched(module: nn.Module, x: jax.Array, *names: str) -> jax.Array:
    """What maps of these names are given: where the optimizer asks, its second moments are told as a gradient."""
    for name in names:
        if (blank := module.get_variable(INPUTS, name)) is not None:
            x = backend.watch(x, blank)
    return x


def fused_linear(x: jax.Array, parts: list[tuple[jax.Array, Any]]) -> list[jax.Array]:
    """Several linear maps of one input as one matmul: parameters stay apart, for the optimizer's sake."""
    weight = jnp.concatenate([w for w, _ in parts], axis=1)
    bias = None if parts[0][1] is None else jnp.concatenate([b for _, b in parts])
    ends = [sum(w.shape[1] for w, _ in parts[: i + 1]) for i in range(len(parts) - 1)]
    return jnp.split(backend.linear(x, weight, bias), ends, axis=-1)
