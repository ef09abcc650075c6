"""The head: caps bound and keep small logits, and a loss in chunks equals the loss in one."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxnano.model import head
from tests.jaxnano.model.outcomes import run
from tests.jaxnano.recipes import model

RNG = np.random.default_rng(0)
X, WEIGHT = RNG.normal(size=(6, 3, 16)).astype(np.float32), RNG.normal(size=(16, 256)).astype(np.float32)
TARGETS = RNG.integers(0, 256, (6, 3))


@pytest.mark.parametrize("kind", ["tanh", "rsqrt"])
def test_a_cap_bounds_large_logits_and_leaves_small_ones(kind: str) -> None:
    m = model(head__softcap={"kind": kind, "cap": 5.0}).model
    large, small = (np.asarray(head.logits(scale * X, WEIGHT, None, m)) for scale in (1e3, 1e-3))
    assert np.abs(large).max() <= 5.0 and np.abs(large).max() > 4.99
    np.testing.assert_allclose(small, 1e-3 * X @ WEIGHT, rtol=1e-4, atol=1e-6)


def test_chunks_of_rows_give_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model(head__z_loss=0.1).model

    def total(x: jax.Array) -> jax.Array:
        nats, square = head.token_losses(x, TARGETS, WEIGHT, None, m)
        return nats + square

    whole = run(jax.value_and_grad(total), X)
    monkeypatch.setattr(head, "CHUNK_LOGITS", 3 * 3 * 256)  # two or three rows
    pieces = run(jax.value_and_grad(total), X)
    np.testing.assert_allclose(pieces[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(pieces[1], whole[1], atol=1e-6)
