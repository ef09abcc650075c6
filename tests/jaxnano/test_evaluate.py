"""The loss that decides: the same windows for every run, and the plain mean over them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxnano import data
from jaxnano.config.base import dump_full
from jaxnano.config.recipe import at, hypers
from jaxnano.evaluate import eval_windows, evaluate
from jaxnano.model import gpt
from jaxnano.model.specs import specs
from tests.jaxnano.model.references import forward
from tests.jaxnano.recipes import TINY, edited

RECIPE = edited(TINY, {"data.batch": 4, "model.depth": 1, "model.head.z_loss": 0.01})


def test_windows_are_those_of_the_split_whatever_the_model() -> None:
    corpus = data.load(RECIPE.data)
    windows = eval_windows(corpus, "search", RECIPE, 1000)
    assert windows.shape == (15, 4, 17)
    np.testing.assert_array_equal(windows, eval_windows(corpus, "search", edited(RECIPE, {"model.width": 32}), 1000))
    assert not np.array_equal(windows, eval_windows(corpus, "protected", RECIPE, 1000))
    everything = eval_windows(corpus, "search", RECIPE, 10**12)[..., 1:]
    assert 0 < corpus.tokens("search").size - everything.size <= RECIPE.data.batch * RECIPE.data.length
    with pytest.raises(ValueError, match="no split 'secret'"):
        eval_windows(corpus, "secret", RECIPE)


def test_it_is_the_mean_cross_entropy_without_the_z_loss() -> None:
    windows = np.random.default_rng(0).integers(0, 256, (3, 4, 17), np.uint8)
    values = hypers(RECIPE, 1)
    rng = np.random.default_rng(1)
    params = {path: rng.normal(0, 0.3, spec.shape).astype(np.float32) for path, spec in specs(RECIPE).items()}
    forward = jax.jit(lambda tokens: gpt.logits(params, tokens, at(RECIPE, values, 1.0))[0])
    logits = forward(windows[..., :-1].reshape(12, 16).astype(np.int32))
    z = np.asarray(logits, np.float64)
    targets = windows[..., 1:].reshape(12, 16, 1).astype(int)
    nats = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, targets, -1)[..., 0]
    assert evaluate(RECIPE, params, windows) == pytest.approx(nats.mean(), abs=1e-5)


ATTACKS: dict[str, dict[str, Any]] = {  # what makes training's own loss smaller, or another
    "targets": {"model.head.targets": [{"name": "far", "shift": 3, "weight": 0.01}]},
    "narrow logits": {"train.loss_dtype": "bfloat16"},
    "rows that begin with documents": {"data.documents": {"mask": False, "align": True, "separator": 101}},
    "documents of one token": {"data.documents": {"most": 1, "separator": 101}},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_training_sees_otherwise_is_evaluated_on_the_same_tokens_and_targets(name: str) -> None:
    recipe, corpus = edited(RECIPE, ATTACKS[name]), data.load(RECIPE.data)
    windows = eval_windows(corpus, "search", recipe, 1000)
    np.testing.assert_array_equal(windows, eval_windows(corpus, "search", RECIPE, 1000))
    rng = np.random.default_rng(1)
    params = {path: rng.normal(0, 0.3, spec.shape).astype(np.float32) for path, spec in specs(recipe).items()}
    found = evaluate(recipe, params, windows[:2])
    if "documents of" not in name:
        assert found == evaluate(RECIPE, params, windows[:2])
    logits, nats, _ = forward(params, windows[:2].reshape(8, 17).astype(int), dump_full(recipe), 1.0)
    assert logits.shape == (8, 16, 256) and found == pytest.approx(nats, abs=1e-5)  # every target, separators too
