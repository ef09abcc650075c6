"""Rotary and ALiBi: the frequencies by hand, and rotation's defining property."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnano.config.block import Alibi, NoPosition, Rotary
from jaxnano.config.formulas import Frequency
from jaxnano.model.position import alibi_slopes, frequencies, rotate


@pytest.mark.parametrize(("node", "expected"), [
    (Rotary(kind="rotary", base=10000.0), [1, 0.1, 0.01, 0.001]),
    (Rotary(kind="rotary", base=10000.0, fraction=0.5), [1, 0.01, 0, 0]),
    (Rotary(kind="rotary", base=1000.0, spacing="inclusive"), [1, 0.1, 0.01, 0.001]),
    (Rotary(kind="rotary", base=1024.0, fraction=0.5, spacing="inclusive"), [1, 1 / 1024, 0, 0]),
    (Rotary(kind="rotary", fraction=0.01), [1, 0, 0, 0]),
    (Rotary(kind="rotary", base=1e4, fraction=0.75, frequency=Frequency(code="f / 2 + a", params={"a": 3.0})),
     [3.5, 3 + 0.5 * 1e4 ** (-1 / 3), 3 + 0.5 * 1e4 ** (-2 / 3), 0]),
    (Rotary(kind="rotary", frequency=Frequency(code="0 * f + 2")), [2, 2, 2, 2]),
])
def test_frequencies(node: Rotary, expected: list[float]) -> None:
    np.testing.assert_allclose(frequencies(node, 8), expected, rtol=1e-5)


def test_a_product_of_rotated_vectors_depends_on_their_distance_alone() -> None:
    pair = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    q, k = np.broadcast_to(pair, (2, 1, 9, 1, 8))
    turn = frequencies(Rotary(kind="rotary", base=100.0), 8)
    turned_q, turned_k = (np.asarray(rotate(jnp.asarray(y), turn, jnp.arange(9)))[0, :, 0] for y in (q, k))
    products = turned_q @ turned_k.T
    for distance in range(-8, 9):
        np.testing.assert_allclose(np.diag(products, distance), np.diag(products, distance)[0], atol=1e-5)
    assert np.ptp(products[0]) > 0.1
    np.testing.assert_allclose(np.linalg.norm(turned_q, axis=1), np.linalg.norm(q[0, 0, 0]), rtol=1e-5)


def test_alibi_slopes_are_a_geometric_series() -> None:
    np.testing.assert_allclose(alibi_slopes(Alibi(kind="alibi"), 8), [2.0**-h for h in range(1, 9)], rtol=1e-6)
    assert alibi_slopes(NoPosition(kind="none"), 8) is None
