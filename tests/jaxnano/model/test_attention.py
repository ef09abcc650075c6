"""Attention's parts: one matmul for several maps, and what a window or a group means."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnano.config.recipe import at, hypers
from jaxnano.model import backend, gpt
from jaxnano.model.backend import Scores, attend_cached
from jaxnano.model.linear import fused_linear
from jaxnano.model.specs import specs
from tests.jaxnano.recipes import RECIPES, model

RNG = np.random.default_rng(0)


def test_fused_maps_equal_separate_ones() -> None:
    x = RNG.normal(size=(2, 3, 5)).astype(np.float32)
    parts = [(RNG.normal(size=(5, n)).astype(np.float32), RNG.normal(size=n).astype(np.float32)) for n in (4, 2, 7)]
    for fused, (weight, bias) in zip(fused_linear(jnp.asarray(x), parts), parts, strict=True):
        np.testing.assert_allclose(fused, x @ weight + bias, rtol=1e-5, atol=1e-5)


def test_a_cache_is_read_up_to_the_query_and_no_further() -> None:
    q, k, v = (RNG.normal(size=(1, n, 2, 4)).astype(np.float32) for n in (2, 6, 6))
    read, first = partial(attend_cached, scores=Scores(0.5, window=3)), jnp.asarray(2)  # positions 2 and 3
    once = read(q, k, v, first)
    k[:, 4:], v[:, 4:] = 1e3, 1e3  # not written yet
    k[:, 0], v[:, 0] = -1e3, -1e3  # seen by position 2 alone, whose window it ends
    np.testing.assert_array_equal(read(q, k, v, first)[:, 1], once[:, 1])
    assert not np.allclose(read(q, k, v, first)[:, 0], once[:, 0])


def test_the_window_pattern_is_tiled_and_a_long_window_is_none() -> None:
    m = model(depth=5, attention__windows=[4, 0, 99]).model
    assert [m.block(block).window(16) for block in range(5)] == [4, None, None, 4, None]


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_says_what_kernels_are_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, asked = RECIPES[name], []

    def watched(q: jax.Array, k: jax.Array, v: jax.Array, scores: Scores) -> jax.Array:
        asked.append(scores.plain)
        return q

    monkeypatch.setattr(backend, "attention", watched)
    values, tokens = hypers(recipe, 1), jax.ShapeDtypeStruct((1, 4), jnp.int32)
    params = {path: jax.ShapeDtypeStruct(spec.shape, jnp.float32) for path, spec in specs(recipe).items()}
    jax.eval_shape(lambda p, x, v: gpt.logits(p, x, at(recipe, v, 0.0))[0], params, tokens, values)
    trees = [recipe.model.block(block) for block in range(recipe.model.depth)]
    assert asked == [tree.plain_scores(recipe.data.length) for tree in trees if tree.attention]
