"""Loss on a fixed set of windows, the same for every run."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnano import sharding
from jaxnano.config.recipe import Recipe, at, hypers, shipped, structure_id, trained
from jaxnano.data import Corpus, eval_batches
from jaxnano.model import gpt
from jaxnano.step import Structure

EVAL_TOKENS = 1 << 16  # bytes (or tokens) of a split that decide its loss


def eval_windows(corpus: Corpus, split: str, recipe: Recipe, tokens: int = EVAL_TOKENS) -> np.ndarray:
    """Windows [n, B, L+1] of about `tokens` tokens, evenly spaced over the split; at least one batch.

    Raises: ValueError if the split is shorter than one batch.
    """
    data = recipe.data
    most = (corpus.tokens(split).size - 1) // data.length
    batches = max(1, min(tokens // data.length, most) // data.batch)
    return eval_batches(corpus, split, data.length, batches * data.batch, data.batch)


def evaluate(recipe: Recipe, params: gpt.Params, windows_NxBxM: np.ndarray) -> float:
    """Mean cross entropy in nats per token. params: what the optimizer evaluates (`eval_params`)."""
    recipe = trained(recipe)
    structure = Structure(structure_id(recipe), sharding.mesh_of(params), 1, recipe)
    windows = sharding.place_rows(windows_NxBxM, structure.mesh)
    return float(compiled(structure)(params, windows, hypers(recipe, 1)))


@lru_cache(maxsize=8)
def compiled(structure: Structure) -> Any:
    """The compiled program of an evaluation: (params, windows [n, B, L+1], hypers) -> mean loss."""
    recipe, mesh = structure.recipe, structure.mesh

    def mean_loss(params: gpt.Params, windows_NxBxM: jax.Array, values: Any) -> jax.Array:
        cfg = shipped(at(recipe, values, 1.0))
        with sharding.within(mesh):
            return jnp.mean(jax.lax.map(lambda batch: gpt.loss(params, batch, cfg)[1]["loss"], windows_NxBxM))

    if mesh is None:
        return jax.jit(mean_loss)
    rows, whole = sharding.rows(recipe.data.batch, mesh), jax.NamedSharding(mesh, jax.P())
    return jax.jit(mean_loss, in_shardings=(None, rows, None), out_shardings=whole)
