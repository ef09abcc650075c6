"""Norms: their invariances, and float32 inside whatever comes."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxnano.config.block import LayerNorm, RmsNorm
from jaxnano.model.norm import Norm, rms_normalize

X = np.random.default_rng(0).normal(2.0, 3.0, (2, 5, 16)).astype(np.float32)


def test_layernorm_takes_out_mean_and_scale() -> None:
    cfg = LayerNorm(kind="layernorm", gain=False, bias=False, eps=1e-12)
    y = np.asarray(Norm(cfg).apply({}, X))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(Norm(cfg).apply({}, 7 * X + 5), y, atol=1e-5)


def test_rmsnorm_takes_out_scale_and_keeps_the_mean() -> None:
    cfg = RmsNorm(kind="rmsnorm", gain=False, eps=1e-12)
    y = np.asarray(Norm(cfg).apply({}, X))
    np.testing.assert_allclose(np.square(y).mean(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(y, rms_normalize(jnp.asarray(X), 1e-12), atol=1e-6)
    assert np.all(np.sign(y) == np.sign(X))


def test_sums_are_in_float32() -> None:
    x = jnp.full((1, 4096), 0.1, jnp.bfloat16)  # in bfloat16 a sum of so many squares stops growing
    np.testing.assert_allclose(np.asarray(rms_normalize(x), np.float32), 1, rtol=1e-2)
