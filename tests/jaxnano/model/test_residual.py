"""Wires and branches: what is identity at initial values, and recomputing blocks changes nothing."""

from __future__ import annotations

import jax
import numpy as np

from jaxnano.config.recipe import Recipe, at, hypers
from jaxnano.model import gpt
from tests.jaxnano.model.outcomes import PROGRESS, outcome_of, run
from tests.jaxnano.recipes import RECIPES, edited, model

TOKENS = np.arange(16, dtype=np.int32)[None]


def features(recipe: Recipe) -> np.ndarray:
    values = hypers(recipe, 10)
    params = gpt.init(jax.random.key(0), recipe, values)
    return run(lambda params: gpt.features(params, TOKENS, at(recipe, values, 0.0))[0], params)


def test_a_new_wire_and_unit_scalars_change_nothing_at_the_start() -> None:
    plain = model(depth=1)
    wired = model(depth=1, residual={
        "scalars": {}, "saves": [{"name": "x0", "after": 0}],
        "injections": [{"name": "skip", "source": "x0", "before": [1]}],
    })
    np.testing.assert_allclose(features(wired), features(plain), atol=1e-6)


def test_zero_projections_make_blocks_the_identity() -> None:
    deep = model(depth=2, init__zero_projections=True)
    none = model(depth=1, attention__dropped=[0], ffn__dropped=[0])
    np.testing.assert_allclose(features(deep), features(none), atol=1e-6)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    recipe, plain = edited(RECIPES["grouped_biases"], {"train.remat": True}), outcome_of("grouped_biases")
    cfg = at(recipe, hypers(recipe, 10), PROGRESS)
    grads = run(jax.grad(lambda params: gpt.loss(params, plain.batch, cfg)[0]), plain.params)
    for path, gradient in grads.items():
        np.testing.assert_allclose(gradient, plain.grads[path], atol=1e-6, err_msg=path)
