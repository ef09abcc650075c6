"""Attention's parts: one matmul for several maps, and what a window or a group means."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxnano.model.attention import attend_cached
from jaxnano.model.linear import fused_linear
from tests.jaxnano.recipes import model

RNG = np.random.default_rng(0)


def test_fused_maps_equal_separate_ones() -> None:
    x = RNG.normal(size=(2, 3, 5)).astype(np.float32)
    parts = [(RNG.normal(size=(5, n)).astype(np.float32), RNG.normal(size=n).astype(np.float32)) for n in (4, 2, 7)]
    for fused, (weight, bias) in zip(fused_linear(jnp.asarray(x), parts), parts, strict=True):
        np.testing.assert_allclose(fused, x @ weight + bias, rtol=1e-5, atol=1e-5)


def test_a_cache_is_read_up_to_the_query_and_no_further() -> None:
    q, k, v = (RNG.normal(size=(1, n, 2, 4)).astype(np.float32) for n in (2, 6, 6))
    options = {"scale": 0.5, "window": 3, "softcap": None, "bias_slopes": None}
    positions = jnp.asarray([2, 3])
    once = attend_cached(q, k, v, positions, **options)
    k[:, 4:], v[:, 4:] = 1e3, 1e3  # not written yet
    k[:, 0], v[:, 0] = -1e3, -1e3  # seen by position 2 alone, whose window it ends
    np.testing.assert_array_equal(attend_cached(q, k, v, positions, **options)[:, 1], once[:, 1])
    assert not np.allclose(attend_cached(q, k, v, positions, **options)[:, 0], once[:, 0])


def test_the_window_pattern_is_tiled_and_a_long_window_is_none() -> None:
    m = model(depth=5, attention__windows=[4, 0, 99]).model
    assert [m.window(block, 16) for block in range(5)] == [4, None, None, 4, None]
