"""Every preset against a float64 reference written from its paper's formula; records write (out, in), so do these."""

import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import STEPS, assert_all_close, chain_of, directions, group, random_tree, trajectory
from polynomials import orthogonalized

from jaxnano.config import presets, transforms
from jaxnano.config.base import dump, kind_of
from jaxnano.config.recipe import structure_id
from tests.jaxnano.recipes import TINY, edited

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
    got = directions(grads, {"kind": "adam", "b1": B1, "b2": B2, "eps": EPS, "bias_correction": bias_correction,
                             "nesterov": nesterov})
    assert_all_close(got, reference(step, grads), 1e-5)


def test_bias_correction_stays_right_when_decay_is_scheduled():
    """With constant gradients every average equals the gradient, whatever the decays were; their ratio is 1."""
    g = {"w": jnp.array([2.0, -3.0, 0.5])}
    still = {"w": jnp.zeros(3)}
    node = group({"kind": "adam", "eps": 1e-12})
    state = chain_of(node).init(still)
    for b in (0.5, 0.9, 0.99, 0.7):
        values = {"chain.adam.b1": np.float32(b), "chain.adam.b2": np.float32(b), "chain.adam.eps": np.float32(1e-12),
                  "lr": np.float32(1)}
        moved, state = chain_of(node, values).update(g, state, still)
        np.testing.assert_allclose(moved["w"], [-1, 1, -1], rtol=1e-5)


def test_ademamix():
    def step(g, s, t):
        s["m"] = B1 * s["m"] + (1 - B1) * g
        s["slow"] = B3 * s["slow"] + (1 - B3) * g
        s["v"] = B2 * s["v"] + (1 - B2) * g * g
        return (s["m"] / (1 - B1**t) + ALPHA * s["slow"]) / (np.sqrt(s["v"] / (1 - B2**t)) + EPS)

    grads = random_tree(1, steps=STEPS)
    got = directions(grads, {"kind": "ademamix", "b1": B1, "b2": B2, "b3": B3, "alpha": ALPHA, "eps": EPS})
    assert_all_close(got, reference(step, grads), 1e-5)


def test_lion():
    def step(g, s, t):
        u = np.sign(B1 * s["m"] + (1 - B1) * g)
        s["m"] = B2 * s["m"] + (1 - B2) * g
        return u

    grads = random_tree(2, steps=STEPS)
    assert_all_close(directions(grads, {"kind": "lion", "b1": B1, "b2": B2}), reference(step, grads), 0)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd(nesterov):
    def step(g, s, t):
        s["m"] = B1 * s["m"] + g
        return g + B1 * s["m"] if nesterov else s["m"]

    grads = random_tree(3, steps=STEPS)
    got = directions(grads, {"kind": "sgd", "momentum": B1, "nesterov": nesterov})
    assert_all_close(got, reference(step, grads), 1e-6)


@pytest.mark.parametrize(("kind", "scale", "nesterov"), [
    ("quintic", "aspect", True), ("converged", "spectral_rms", False), ("polar_express", "none", True)])
def test_muon(kind, scale, nesterov):
    mu, grads = 0.9, random_tree(0, steps=STEPS)
    expected = {}
    for path, g in grads.items():
        m, out = np.zeros(g.shape[1:]), []
        for g_t in g.astype(np.float64):
            m = mu * m + (1 - mu) * g_t
            o = orthogonalized(mu * m + (1 - mu) * g_t if nesterov else m, kind)
            fan_in, fan_out = o.shape
            length = {"aspect": max(1, fan_out / fan_in) ** 0.5, "spectral_rms": 0.2 * max(o.shape) ** 0.5, "none": 1}
            out.append(o * length[scale])
        expected[path] = np.stack(out)
    got = directions(grads, {"kind": "muon", "momentum": mu, "nesterov": nesterov, "orthogonalizer": kind,
                             "scale": scale})
    assert_all_close(got, expected, 2e-3)


def test_normuon():
    b2, updates = 0.8, random_tree(4, steps=STEPS)
    expected = {}
    for path, u in updates.items():
        v, out = 0.0, []
        for o in u.astype(np.float64):
            o = o.T  # rows are outputs
            axis = 1 if o.shape[0] >= o.shape[1] else 0
            v = b2 * v + (1 - b2) * np.mean(o**2, axis=axis, keepdims=True)
            even = o / np.sqrt(v)
            out.append((even * np.linalg.norm(o) / np.linalg.norm(even)).T)
        expected[path] = np.stack(out)
    assert_all_close(directions(updates, {"kind": "normuon", "b2": b2}), expected, 1e-5)
    zero = {"w": np.zeros((STEPS, 2, 3), np.float32)}
    assert not np.any(directions(zero, {"kind": "normuon", "b2": b2})["w"])


def test_decay():
    grads, params = random_tree(0, steps=2), random_tree(1)
    got = directions(grads, {"kind": "decay", "rate": 0.3}, params=params)
    assert_all_close(got, {path: g + 0.3 * params[path] for path, g in grads.items()}, 1e-6)


def test_cautious_decay_acts_only_where_the_direction_shrinks_the_weight():
    grads, params = random_tree(2, steps=2), random_tree(3)
    grads["square"][0] = 0
    got = directions(grads, {"kind": "cautious_decay", "rate": 0.3}, params=params)
    for path, w in params.items():
        shrinking = np.sign(grads[path]) == np.sign(w)
        np.testing.assert_allclose(got[path] - grads[path], np.where(shrinking, 0.3 * w, 0), atol=1e-6)
        assert shrinking.any() and not shrinking.all()


def test_hyperball():
    lr, grads, params = 0.3, random_tree(1, steps=2), random_tree(2)
    expected = {}
    for path, w in params.items():
        out, w = [], w.astype(np.float64)
        radius = np.linalg.norm(w)
        for u in grads[path].astype(np.float64):
            moved = w - lr * radius * u / np.linalg.norm(u)
            out.append(w := moved * radius / np.linalg.norm(moved))
        expected[path] = np.stack(out)
    assert_all_close(trajectory(group({"kind": "hyperball"}, lr=lr), grads, params), expected, 1e-5)


def test_hyperball_keeps_the_norm_of_every_matrix_of_a_stack():
    shapes = {"stack": (3, 4, 5), "vector": (4,)}
    params, grads = random_tree(3, shapes), random_tree(4, shapes)
    grads = {path: np.repeat(g[None], 50, axis=0) for path, g in grads.items()}
    moved = trajectory(group({"kind": "hyperball"}, lr=0.05), grads, params)
    np.testing.assert_allclose(np.linalg.norm(moved["stack"][-1], axis=(1, 2)),
                               np.linalg.norm(params["stack"], axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(moved["vector"][-1]), np.linalg.norm(params["vector"]), rtol=1e-5)
    assert np.abs(moved["stack"][-1] - params["stack"]).max() > 0.1


def test_hyperball_without_direction_or_weights_stays():
    w = {"still": np.ones((2, 2), np.float32), "zero": np.zeros((2, 2), np.float32)}
    u = {"still": np.zeros((1, 2, 2), np.float32), "zero": np.ones((1, 2, 2), np.float32)}
    moved = trajectory(group({"kind": "hyperball"}, lr=0.1), u, w)
    np.testing.assert_array_equal(moved["still"][0], w["still"])
    np.testing.assert_array_equal(moved["zero"][0], w["zero"])


@pytest.mark.parametrize("preset", transforms.PRESETS, ids=kind_of)
def test_an_unmodified_expansion_is_the_preset_again(preset):
    """Whatever the choices: the same recipe, so the same name, and only a change inside makes another."""
    for chosen in [row for row in presets._templates() if row[0] is preset]:
        statics = {name: value for name, value in chosen[1].items() if not isinstance(value, presets._Hole)}
        node = preset(kind=kind_of(preset), **statics)
        written = [dump(step) for step in presets.expand(node)]
        assert group(*written).chain == (node,)
        if kind_of(preset) in ("adam", "muon"):
            chain = "optimizer.groups.matrices.chain"
            assert structure_id(edited(TINY, {chain: written})) == structure_id(edited(TINY, {chain: [dump(node)]}))
        written[0 if len(written) > 1 else -1]["name"] = "another"
        if len(written) == 1:
            assert group(*written).chain != (node,)


def test_a_scheduled_number_comes_back_too():
    node = group({"kind": "adam", "b1": {"kind": "linear", "value": 0.9}, "eps": {"kind": "cosine", "value": 1e-6}})
    assert group(*(dump(step) for step in node.steps[:-1])).chain == node.chain
