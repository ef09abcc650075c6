"""First-order directions against float64 references written from the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import STEPS, assert_all_close, directions, random_tree

from jaxnano.optim import adam

B1, B2, B3, ALPHA, EPS = 0.8, 0.9, 0.97, 3.0, 1e-3


def reference(step, grads):
    """Apply `step(g, memory, t) -> direction` to each leaf in float64; memory is a dict of zero-initialised arrays."""
    out = {}
    for path, g in grads.items():
        memory = {name: np.zeros(g.shape[1:]) for name in ("m", "v", "slow")}
        out[path] = np.stack([step(g[t].astype(np.float64), memory, t + 1) for t in range(len(g))])
    return out


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_adam(bias_correction, nesterov):
    def step(g, s, t):
        s["m"] = B1 * s["m"] + (1 - B1) * g
        s["v"] = B2 * s["v"] + (1 - B2) * g * g
        held = (lambda b, k: 1 - b**k) if bias_correction else (lambda b, k: 1.0)
        m = s["m"] / held(B1, t)
        if nesterov:
            m = B1 * s["m"] / held(B1, t + 1) + (1 - B1) * g / held(B1, t)
        return m / (np.sqrt(s["v"] / held(B2, t)) + EPS)

    grads = random_tree(0, steps=STEPS)
    got = directions(lambda h: adam.adam(h["b1"], h["b2"], h["eps"], bias_correction, nesterov),
                     {"b1": B1, "b2": B2, "eps": EPS}, grads)
    assert_all_close(got, reference(step, grads), 1e-5)


def test_bias_correction_stays_right_when_decay_is_scheduled():
    """With constant gradients every average equals the gradient, whatever the decays were; their ratio is 1."""
    decays = jnp.array([0.5, 0.9, 0.99, 0.7])
    update = jax.jit(lambda b, g, state: adam.adam(b, b, 1e-12).update(g, state))
    state = adam.adam(0.0, 0.0, 0.0).init({"w": jnp.zeros(3)})
    for b in decays:
        u, state = update(b, {"w": jnp.array([2.0, -3.0, 0.5])}, state)
        np.testing.assert_allclose(u["w"], [1, -1, 1], rtol=1e-5)


def test_ademamix():
    def step(g, s, t):
        s["m"] = B1 * s["m"] + (1 - B1) * g
        s["slow"] = B3 * s["slow"] + (1 - B3) * g
        s["v"] = B2 * s["v"] + (1 - B2) * g * g
        return (s["m"] / (1 - B1**t) + ALPHA * s["slow"]) / (np.sqrt(s["v"] / (1 - B2**t)) + EPS)

    grads = random_tree(1, steps=STEPS)
    got = directions(lambda h: adam.ademamix(h["b1"], h["b2"], h["b3"], h["alpha"], h["eps"]),
                     {"b1": B1, "b2": B2, "b3": B3, "alpha": ALPHA, "eps": EPS}, grads)
    assert_all_close(got, reference(step, grads), 1e-5)


def test_lion():
    def step(g, s, t):
        u = np.sign(B1 * s["m"] + (1 - B1) * g)
        s["m"] = B2 * s["m"] + (1 - B2) * g
        return u

    grads = random_tree(2, steps=STEPS)
    got = directions(lambda h: adam.lion(h["b1"], h["b2"]), {"b1": B1, "b2": B2}, grads)
    assert_all_close(got, reference(step, grads), 0)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd(nesterov):
    def step(g, s, t):
        s["m"] = B1 * s["m"] + g
        return g + B1 * s["m"] if nesterov else s["m"]

    grads = random_tree(3, steps=STEPS)
    got = directions(lambda h: adam.sgd(h["momentum"], nesterov), {"momentum": B1}, grads)
    assert_all_close(got, reference(step, grads), 1e-6)
