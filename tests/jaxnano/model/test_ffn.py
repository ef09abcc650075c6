"""Activations at single points, by hand, and the shape of an expression that is constant somewhere."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnano.config.block import FormulaActivation, Gelu, ReluSquared, Silu
from jaxnano.model.ffn import activate


@pytest.mark.parametrize(("node", "expected"), [
    (Gelu(kind="gelu", approximate=False), 0.5 * (1 + math.erf(0.5 / math.sqrt(2))) * 0.5),
    (Gelu(kind="gelu"), 0.345714),
    (ReluSquared(kind="relu2"), 0.25),
    (Silu(kind="silu"), 0.5 / (1 + math.exp(-0.5))),
    (FormulaActivation(kind="expression", params={"a": 3.0}, code="a * x ** 2 - x / 4"), 0.625),
])
def test_activation_at_one_half(node: object, expected: float) -> None:
    assert float(activate(jnp.asarray(0.5), node)) == pytest.approx(expected, abs=1e-6)


def test_an_expression_keeps_dtype_and_has_a_finite_slope_where_sqrt_has_none() -> None:
    node = FormulaActivation(kind="expression", code="sqrt(relu(x)) + 1 / 3")
    x = jnp.asarray([0.0, -1.0, 4.0], jnp.bfloat16)
    y, pull = jax.vjp(lambda x: activate(x, node), x)
    assert y.dtype == jnp.bfloat16
    assert np.all(np.isfinite(np.asarray(pull(jnp.ones_like(y))[0], np.float32)))
