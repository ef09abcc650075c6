"""Orthogonalisation, against the same polynomials on singular values in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from polynomials import POLYNOMIALS, RANGES, conditioned, orthogonalized

from jaxnano.optim import polar


@pytest.mark.parametrize("kind", POLYNOMIALS)
def test_polar(kind):
    tree = {name: conditioned(shape) for name, shape in {"a": (8, 8), "b": (12, 5), "c": (5, 12)}.items()}
    tree["stacked"] = np.stack([conditioned((5, 12)), np.zeros((5, 12), np.float32)])
    got = jax.jit(polar.polar_leaves, static_argnums=1)(tree, kind)
    assert set(got) == set(tree)
    assert not np.any(got["stacked"][1])
    np.testing.assert_allclose(got["stacked"][0], got["c"], atol=1e-5)
    for path in "abc":
        np.testing.assert_allclose(got[path], orthogonalized(tree[path], kind), atol=1e-4)
        values = np.linalg.svd(got[path], compute_uv=False)
        assert RANGES[kind][0] < values.min() and values.max() < RANGES[kind][1]
        if kind == "converged":
            u, _, vt = np.linalg.svd(tree[path].astype(np.float64), full_matrices=False)
            np.testing.assert_allclose(got[path], u @ vt, atol=1e-4)


def test_coefficients_of_ones_own_another_norm_and_a_sum_of_iterates():
    x, steps, weights = conditioned((5, 12)), ((4.0848, -6.8946, 2.9270), (2.0, -1.5, 0.5)), (0.1, 0.3, 0.6)
    got = polar.polar(jnp.asarray(x), steps, "schatten", weights)
    np.testing.assert_allclose(got, orthogonalized(x, steps, power=4, weights=weights), atol=1e-5)


def test_polar_express_is_minimax():
    """The best approximation of 1 oscillates evenly about it, so the largest and smallest value are as far from it."""
    s = np.geomspace(3e-3, 1, 100_001) / 1.02
    for a, b, c in polar.COEFFICIENTS["polar_express"]:
        s = a * s + b * s**3 + c * s**5
    assert s.max() + s.min() == pytest.approx(2, abs=1e-5)


def test_bfloat16_iteration_returns_float32_within_its_precision():
    x = jnp.asarray(conditioned((6, 8), smallest=0.1))
    got = polar.polar(x, "quintic", dtype=jnp.bfloat16)
    assert got.dtype == jnp.float32
    values = np.linalg.svd(got, compute_uv=False)
    assert RANGES["quintic"][0] - 0.1 < values.min() and values.max() < RANGES["quintic"][1] + 0.1


def test_flops():
    assert polar.polar_flops((4, 8), "quintic") == polar.polar_flops((8, 4), "quintic")
    assert polar.polar_flops((64, 64), "quintic") == pytest.approx(5 * 6 * 64**3, rel=0.05)
