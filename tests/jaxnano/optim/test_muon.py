"""Muon and NorMuon against float64 references; records write (out, in), so the references work on transposes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import STEPS, assert_all_close, directions, random_tree

from jaxnano.optim import muon

POLYNOMIALS = {
    "quintic": [(3.4445, -4.7750, 2.0315)] * 5,
    "converged": [(2, -1.5, 0.5)] * 12,
    "polar_express": [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ],
}
# Where singular values end that start between 0.3 % and 100 % of the Frobenius norm.
RANGES = {"quintic": (0.68, 1.21), "converged": (0.9999, 1.0001), "polar_express": (0.85, 1.15)}


def orthogonalized(x, kind):
    """The iteration in float64, on the singular values alone: X = U f(S) V^T."""
    u, s, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    factor, eps = (1.02, 1e-6) if kind == "polar_express" else (1.0, 1e-7)
    s = s / (factor * np.sqrt(np.sum(s**2)) + eps)
    for a, b, c in POLYNOMIALS[kind]:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


def conditioned(shape, smallest=0.01):
    """A random matrix whose singular values run geometrically from `smallest` to 1."""
    rng = np.random.default_rng(sum(shape))
    u, _, vt = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    return ((u * np.geomspace(smallest, 1, min(shape))) @ vt).astype(np.float32)


@pytest.mark.parametrize("kind", POLYNOMIALS)
def test_orthogonalize(kind):
    tree = {name: conditioned(shape) for name, shape in {"a": (8, 8), "b": (12, 5), "c": (5, 12)}.items()}
    tree["stacked"] = np.stack([conditioned((5, 12)), np.zeros((5, 12), np.float32)])
    got = jax.jit(muon.orthogonalize_leaves, static_argnums=1)(tree, kind)
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


def test_polar_express_is_minimax():
    """The best approximation of 1 oscillates evenly about it, so the largest and smallest value are as far from it."""
    s = np.geomspace(3e-3, 1, 100_001) / 1.02
    for a, b, c in muon.COEFFICIENTS["polar_express"]:
        s = a * s + b * s**3 + c * s**5
    assert s.max() + s.min() == pytest.approx(2, abs=1e-5)


def test_bfloat16_iteration_returns_float32_within_its_precision():
    x = jnp.asarray(conditioned((6, 8), smallest=0.1))
    got = jax.jit(muon.orthogonalize, static_argnums=(1, 2))(x, "quintic", jnp.bfloat16)
    assert got.dtype == jnp.float32
    values = np.linalg.svd(got, compute_uv=False)
    assert RANGES["quintic"][0] - 0.1 < values.min() and values.max() < RANGES["quintic"][1] + 0.1


@pytest.mark.parametrize(
    ("kind", "scale", "nesterov"),
    [("quintic", "aspect", True), ("converged", "spectral_rms", False), ("polar_express", "none", True)],
)
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
    got = directions(lambda h: muon.muon(h["mu"], nesterov, kind, scale), {"mu": mu}, grads)
    assert_all_close(got, expected, 2e-3)


def test_a_vector_is_refused_by_name():
    with pytest.raises(ValueError, match=r"blocks_0/norm: shape \(4,\)"):
        muon.orthogonalize_leaves({"blocks_0/norm": jnp.zeros(4)}, "quintic")


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="aspect, spectral_rms, none"):
        muon.fan_scale((2, 2), "spectral")


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
    got = directions(lambda h: muon.normuon(h["b2"], h["eps"]), {"b2": b2, "eps": 1e-10}, updates)
    assert_all_close(got, expected, 1e-5)
    zero = {"w": np.zeros((STEPS, 2, 3), np.float32)}
    assert not np.any(directions(lambda h: muon.normuon(h["b2"]), {"b2": b2}, zero)["w"])


def test_costs():
    assert muon.muon_cost((4, 8), "quintic") == muon.muon_cost((8, 4), "quintic")
    assert muon.muon_cost((64, 64), "quintic").flops == pytest.approx(5 * 6 * 64**3, rel=0.05)
    transform = muon.normuon(0.9)
    for shape in ((4, 8), (8, 4), (3, 4, 8)):
        held = transform.init({"w": jnp.zeros(shape)}).square["w"]
        assert held.size == muon.normuon_cost(shape).floats
