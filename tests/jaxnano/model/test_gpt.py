"""The whole model, recipe by recipe: against the reference, causal, no dead parameter, the same with a cache."""

from __future__ import annotations

import numpy as np
import pytest

from jaxnano.config.base import dump_full
from jaxnano.config.recipe import Recipe
from tests.jaxnano.model.outcomes import PROGRESS, Outcome
from tests.jaxnano.model.references import forward


def test_logits_and_losses_equal_the_float64_reference(recipe: Recipe, outcome: Outcome) -> None:
    logits, nats, loss = forward(outcome.params, outcome.batch, dump_full(recipe), PROGRESS)
    np.testing.assert_allclose(outcome.logits, logits, atol=1e-4)
    assert outcome.nats == pytest.approx(nats, abs=1e-5)
    assert outcome.loss == pytest.approx(loss, abs=1e-5)


def test_features_depend_on_every_earlier_token_and_on_no_later_one(recipe: Recipe, outcome: Outcome) -> None:
    expected = np.tri(len(outcome.jacobian), dtype=bool)
    if (documents := recipe.data.documents) is not None:  # a separator is the seventh token
        place = np.arange(len(expected))
        begin = np.where(place < 6, 0, 6)
        piece = begin + (place - begin) // documents.most * documents.most
        expected &= piece[:, None] == piece[None]
    np.testing.assert_array_equal(outcome.jacobian != 0, expected)


def test_every_parameter_has_a_finite_gradient_and_none_is_dead(recipe: Recipe, outcome: Outcome) -> None:
    for path, gradient in outcome.grads.items():
        assert np.all(np.isfinite(gradient)), path
        # softmax does not see what all keys share, unless they are turned by position
        if not (path.endswith("/k_bias") and recipe.model.position.kind != "rotary"):
            assert np.abs(gradient).max() > 1e-7, path


def test_one_token_at_a_time_with_a_cache_gives_the_same_logits(outcome: Outcome) -> None:
    np.testing.assert_allclose(outcome.cached, outcome.logits, atol=1e-4)
