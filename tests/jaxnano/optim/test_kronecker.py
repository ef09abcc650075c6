"""SOAP against a float64 reference, and the properties that define its basis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import STEPS, assert_all_close, directions, random_tree

from jaxnano.optim import kronecker

SHAPES = {"tall": (9, 5), "wide": (5, 9), "wide_again": (5, 9)}
HYPERS = {"b1": 0.8, "b2": 0.9, "beta": 0.7, "eps": 1e-6}


def build(refresh_every, bias_correction=True):
    return lambda h: kronecker.soap(h["b1"], h["b2"], h["beta"], h["eps"], refresh_every, bias_correction)


def known_factor(size, seed):
    """A preconditioner with separate eigenvalues, and its eigenvectors, largest first."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    return (basis * np.geomspace(8, 1, size)) @ basis.T, basis


def reference(grads, left, right, refresh_every, bias_correction):
    """Vyas et al., algorithm 3, from step 1 on, starting at known (factor, basis) pairs."""
    b1, b2, beta, eps = (HYPERS[k] for k in ("b1", "b2", "beta", "eps"))
    (L, QL), (R, QR) = left, right
    m, v, out = 0.0, 0.0, []
    for t, g in enumerate(grads.astype(np.float64), 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (QL.T @ g @ QR) ** 2
        c1, c2 = (1 - b1**t, 1 - b2**t) if bias_correction else (1.0, 1.0)
        out.append(QL @ ((QL.T @ m @ QR / c1) / (np.sqrt(v / c2) + eps)) @ QR.T)
        L, R = beta * L + (1 - beta) * g @ g.T, beta * R + (1 - beta) * g.T @ g
        if t % refresh_every == 0:
            rows = np.argsort(-np.diag(QL.T @ L @ QL))
            columns = np.argsort(-np.diag(QR.T @ R @ QR))
            v = v[rows][:, columns]
            QL, QR = np.linalg.qr(L @ QL[:, rows])[0], np.linalg.qr(R @ QR[:, columns])[0]
    return np.stack(out)


@pytest.mark.parametrize(("refresh_every", "bias_correction"), [(1, False), (2, True)])
def test_soap(refresh_every, bias_correction):
    grads = random_tree(0, SHAPES, STEPS)
    empty = kronecker.soap(0.0, 0.0, 0.0, 0.0, refresh_every).init({p: jnp.zeros(s) for p, s in SHAPES.items()})
    factors, expected = {}, {}
    for i, (path, (m, n)) in enumerate(SHAPES.items()):
        left, right = known_factor(m, 2 * i), known_factor(n, 2 * i + 1)
        f32 = [jnp.asarray(x, jnp.float32) for x in (left[0], right[0], left[1], right[1])]
        names = ("left", "right", "left_basis", "right_basis")
        factors[path] = empty.factors[path]._replace(**dict(zip(names, f32, strict=True)))
        expected[path] = reference(grads[path], left, right, refresh_every, bias_correction)
    state = kronecker.SoapState(jnp.ones([], jnp.int32), factors)
    got = directions(build(refresh_every, bias_correction), HYPERS, grads, state=state)
    assert_all_close(got, expected, 1e-4)


def test_basis_comes_from_the_first_gradient_that_is_not_zero():
    grads = random_tree(1, {"late": (4, 4), "early": (4, 4)}, steps=3)
    grads["late"][0] = 0
    transform = kronecker.soap(0.8, 0.9, 0.7, 1e-6, 100)
    update = jax.jit(transform.update)
    state = transform.init({path: jnp.zeros((4, 4)) for path in grads})
    moved = {path: [] for path in grads}
    for t in range(3):
        u, state = update({path: g[t] for path, g in grads.items()}, state)
        for path in grads:
            moved[path].append(bool(np.any(u[path])))
    assert moved == {"late": [False, False, True], "early": [False, True, True]}
    for path, t in (("late", 1), ("early", 0)):
        u, _, vt = np.linalg.svd(grads[path][t])
        f = state.factors[path]
        np.testing.assert_allclose(np.abs(f.left_basis.T @ u), np.eye(4), atol=1e-4)
        np.testing.assert_allclose(np.abs(f.right_basis.T @ vt.T), np.eye(4), atol=1e-4)


def test_directions_turn_with_the_gradients():
    """Rotating the rows and columns of every gradient rotates the directions: what Adam in a fixed basis cannot do."""
    grads = random_tree(2, {"w": (5, 5)}, steps=STEPS)
    left, right = (np.linalg.qr(np.random.default_rng(s).normal(size=(5, 5)))[0].astype(np.float32) for s in (7, 8))
    plain = directions(build(1), HYPERS, grads)["w"]
    turned = directions(build(1), HYPERS, {"w": left @ grads["w"] @ right})["w"]
    np.testing.assert_allclose(turned, left @ plain @ right, atol=5e-3)
    assert np.abs(plain[-1]).max() > 0.1


def test_a_vector_is_refused_by_name():
    with pytest.raises(ValueError, match=r"norm: shape \(4,\)"):
        kronecker.soap(0.9, 0.9, 0.9, 1e-8, 1).init({"norm": jnp.zeros(4)})


def test_costs():
    held = kronecker.soap(0.9, 0.9, 0.9, 1e-8, 1).init({"w": jnp.zeros((3, 5))}).factors["w"]
    assert sum(x.size for x in held) == kronecker.soap_cost((3, 5), 1).floats
    often, seldom = (kronecker.soap_cost((64, 64), every).flops for every in (1, 10))
    assert often > seldom > 16 * 64**3
