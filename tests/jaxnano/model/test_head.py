"""The head: caps bound and keep small logits, and a loss in chunks equals the loss in one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

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
    targets = [{"name": "a", "shift": 2}, {"name": "b", "shift": 3, "weight": 0.5}]
    m = model(head={"z_loss": 0.1, "targets": targets}).model

    def total(x: jax.Array) -> jax.Array:
        nats, aim, square = head.token_losses(x, TARGETS, WEIGHT, None, m)
        return nats + 2 * aim + square

    whole = run(jax.value_and_grad(total), X)
    monkeypatch.setattr(head, "CHUNK_LOGITS", 3 * 3 * 256)  # two or three rows
    pieces = run(jax.value_and_grad(total), X)
    np.testing.assert_allclose(pieces[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(pieces[1], whole[1], atol=1e-6)


def test_bfloat16_logits_and_their_log_softmax_are_rounded_and_what_is_told_is_not() -> None:
    """Rounding is to even, as ml_dtypes does it, before the cap, after it, and of the log-softmax."""
    m = model(head__softcap={"kind": "rsqrt", "cap": 5.0}).model
    x, weight = X.astype(np.float32), 3 * WEIGHT

    def short(y: np.ndarray) -> np.ndarray:
        return np.asarray(y).astype(jnp.bfloat16).astype(np.float64)

    def losses(x: jax.Array) -> Any:
        nats, aim, _ = head.token_losses(x, TARGETS, weight, None, m, jnp.dtype("bfloat16"))
        return aim, nats

    (aim, nats), slope = run(jax.value_and_grad(losses, has_aux=True), x)
    exact = np.asarray(x, np.float64) @ weight
    z = short(exact)
    z, sure = (5 * y / np.sqrt(y * y + 25) for y in (z, exact))
    z = short(z)
    logs = short(z - logsumexp(z, axis=-1, keepdims=True))
    picked = np.take_along_axis(logs, TARGETS[..., None], -1)
    assert aim == pytest.approx(-picked.mean(), rel=2e-4)
    told = logsumexp(sure, axis=-1) - np.take_along_axis(sure, TARGETS[..., None], -1)[..., 0]
    assert nats == pytest.approx(told.mean(), abs=1e-5) and abs(aim - nats) > 1e-4
    pull = (np.exp(logs) - (np.arange(256) == TARGETS[..., None])) / TARGETS.size * (1 + exact**2 / 25) ** -1.5
    np.testing.assert_allclose(slope, pull @ weight.T, atol=0.02 * np.abs(slope).max())
