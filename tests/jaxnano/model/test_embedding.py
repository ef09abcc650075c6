"""Smear: the previous token reaches the next, the first token meets nothing, and a cache carries it on."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxnano.config.model import Smear as SmearNode
from jaxnano.model.embedding import Smear

X = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32)
PARAMS = {"params": {"weight": jnp.zeros(4), "scale": jnp.asarray(0.6)}}


def test_a_zero_weight_smears_half_the_scale() -> None:
    y = np.asarray(Smear(SmearNode(channels=4)).apply(PARAMS, X, jnp.zeros((1, 1, 8))))
    np.testing.assert_allclose(y[:, 1:], X[:, 1:] + 0.3 * X[:, :-1], rtol=1e-5)
    np.testing.assert_array_equal(y[:, 0], X[:, 0])


def test_in_two_pieces_it_is_the_same() -> None:
    smear = Smear(SmearNode(channels=4))
    whole = smear.apply(PARAMS, X, jnp.zeros((1, 1, 8)))
    rest = smear.apply(PARAMS, X[:, 3:], X[:, 2:3])
    np.testing.assert_allclose(rest, whole[:, 3:], rtol=1e-6)
