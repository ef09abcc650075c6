"""One compiled program per recipe, which all tests of the model share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnano.config.recipe import Recipe, at, hypers
from jaxnano.model import gpt, head
from jaxnano.model.specs import specs
from tests.jaxnano.recipes import RECIPES

PROGRESS = 0.6


class Outcome(NamedTuple):
    """What one recipe did on one batch. jacobian: |d features_t / d embedding_s|, [L, L], summed over channels."""

    params: dict[str, np.ndarray]
    batch: np.ndarray
    loss: float
    nats: float
    grads: dict[str, np.ndarray]
    logits: np.ndarray
    cached: np.ndarray
    jacobian: np.ndarray


def _program(recipe: Recipe, params: Any, batch_BxM: jax.Array, values: Any) -> Any:
    cfg = at(recipe, values, jnp.float32(PROGRESS))
    (loss, metrics), grads = jax.value_and_grad(gpt.loss, has_aux=True)(params, batch_BxM, cfg)
    tokens_BxL, length = batch_BxM[:, :-1], recipe.data.length

    def one(cache: Any, token_B: jax.Array) -> Any:
        z_Bx1xV, cache = gpt.logits(params, token_B[:, None], cfg, cache)
        return cache, z_Bx1xV[:, 0]

    _, cached_LxBxV = jax.lax.scan(one, gpt.empty_cache(recipe, *tokens_BxL.shape), tokens_BxL.T)
    x_BxLxD, pull, (weight, bias) = jax.vjp(lambda p: gpt.features(p, tokens_BxL, cfg)[:2], params, has_aux=True)
    weights_LxD = jnp.cos(jnp.arange(x_BxLxD[0].size, dtype=jnp.float32)).reshape(x_BxLxD[0].shape)

    def slopes(t: jax.Array) -> Any:
        return pull(jnp.zeros_like(x_BxLxD).at[0, t].set(weights_LxD[t]))[0]

    tables = [d_LxVxD for path, d_LxVxD in jax.vmap(slopes)(jnp.arange(length)).items()
              if path == "embedding/token" or path.startswith("tables/") and d_LxVxD.shape[1] == recipe.model.vocab]
    jacobian_LxL = sum(jnp.abs(d_LxVxD).sum(-1)[:, tokens_BxL[0]] for d_LxVxD in tables)
    plain = head.logits(x_BxLxD, weight, bias, cfg.model)
    return loss, metrics["loss"], grads, plain, cached_LxBxV.swapaxes(0, 1), jacobian_LxL


def run(function: Callable[..., Any], *args: Any) -> Any:
    """The function's values as NumPy arrays; compiled once and cheaply, since compiling is what takes the time."""
    program = jax.jit(function).lower(*args).compile(compiler_options={"xla_backend_optimization_level": "0"})
    return jax.tree.map(np.asarray, program(*args))


@cache
def outcome_of(name: str) -> Outcome:
    """Runs RECIPES[name] from random parameters, none of which is zero."""
    recipe, rng = RECIPES[name], np.random.default_rng(7)
    values, length = hypers(recipe, 100), recipe.data.length
    params = {path: (0.8 * (spec.role == "gain") + rng.normal(0, 0.2, spec.shape)).astype(np.float32)
              for path, spec in specs(recipe).items()}
    # no token comes twice in a row of the batch, so that a row of the table stands for one position
    rows = [rng.permutation(recipe.model.vocab)[: length + 1] for _ in range(recipe.data.batch)]
    batch = np.stack(rows).astype(np.int32)
    if recipe.data.documents is not None:
        batch = np.where(batch == recipe.data.separator, batch[:, [6]], batch)
        batch[:, 6] = recipe.data.separator
    return Outcome(params, batch, *run(partial(_program, recipe), params, batch, values))
