"""Weights of which the model sees less: which bits, whose step, and what is evaluated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnano import step
from jaxnano.config.recipe import Recipe, hypers
from jaxnano.optim.precision import rounded, upper_half
from tests.jaxnano.recipes import TINY, edited

BATCH = np.random.default_rng(0).integers(0, 256, (2, 17))


def narrow(kind: str, w: np.ndarray) -> np.ndarray:
    """By the bits of float32, or by ml_dtypes."""
    if kind == "upper_half":
        return (w.view(np.uint32) >> 16 << 16).view(np.float32)
    return w.astype(jnp.bfloat16).astype(np.float32)


@pytest.mark.parametrize("kind", ["upper_half", "bfloat16"])
def test_bits(kind: str) -> None:
    w = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    found = np.asarray(jax.jit({"upper_half": upper_half, "bfloat16": rounded}[kind])(w))
    np.testing.assert_array_equal(found, narrow(kind, w))
    assert np.all(found != w)


def trained(recipe: Recipe, params: dict[str, np.ndarray] | None = None) -> tuple[dict, dict, float]:
    """What the optimizer holds after a step of SGD, what it ships, and the loss."""
    values = hypers(recipe, 10)

    @jax.jit
    def run(params):
        state = step.init_state(recipe, jnp.uint32(3), values)
        if params is not None:
            state = state._replace(optimizer=state.optimizer._replace(params=params))
        state, metrics = step.train_step(recipe, state, BATCH, values)
        return state.optimizer.params, step.optimizer_at(recipe, 1, values)[1].eval_params(state.optimizer), metrics

    held, shipped, metrics = jax.device_get(run(params))
    return held, shipped, metrics["loss"]


@pytest.mark.parametrize("kind", ["upper_half", "bfloat16"])
def test_the_model_sees_the_narrow_weights_and_the_optimizer_moves_what_it_holds(kind: str) -> None:
    groups = [{"name": "all", "roles": ["matrix", "embedding", "head", "gain", "bias", "scalar", "gate"], "lr": 0.1,
               "chain": [{"kind": "sgd", "momentum": 0.0, "nesterov": False}]}]
    plain = edited(TINY, {"optimizer.groups": groups, "optimizer.clip": None, "model.depth": 1})
    recipe = edited(plain, {"train.weights": kind})
    start = jax.device_get(step.init_state(plain, jnp.uint32(3), hypers(plain, 10)).optimizer.params)
    seen = {path: w if w.ndim < 2 else narrow(kind, w) for path, w in start.items()}
    moved, _, loss = trained(plain, seen)  # a step from what the model sees
    held, shipped, told = trained(recipe)
    assert told == pytest.approx(loss, rel=1e-6)
    for path, w in held.items():
        gradient = (seen[path] - moved[path]) / 0.1
        expected = (start if kind == "upper_half" else seen)[path] - 0.1 * gradient
        wide = kind == "upper_half" or w.ndim < 2
        np.testing.assert_allclose(w, expected, atol=1e-7 if wide else 2 * 2.0**-8 * np.abs(expected).max())
        assert wide or np.array_equal(w, narrow(kind, w)), path
        np.testing.assert_array_equal(shipped[path], w if w.ndim < 2 else narrow(kind, w))
