"""SOAP and Shampoo's roots against float64 references, and the properties that define the bases."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import STEPS, assert_all_close, chain_of, directions, factors_of, group, known_factor, random_tree

from jaxnano.config.base import ConfigError
from jaxnano.optim import kronecker

SHAPES = {"tall": (9, 5), "wide": (5, 9), "wide_again": (5, 9)}
B1, B2, BETA, EPS = 0.8, 0.9, 0.7, 1e-6


def soap(every, bias_correction=True):
    return {"kind": "soap", "b1": B1, "b2": B2, "shampoo_beta": BETA, "eps": EPS, "refresh_every": every,
            "bias_correction": bias_correction}


def reference(grads, left, right, refresh_every, bias_correction):
    """Vyas et al., algorithm 3, from step 1 on, starting at known (factor, basis) pairs."""
    (L, QL), (R, QR) = left, right
    m, v, out = 0.0, 0.0, []
    for t, g in enumerate(grads.astype(np.float64), 1):
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * (QL.T @ g @ QR) ** 2
        c1, c2 = (1 - B1**t, 1 - B2**t) if bias_correction else (1.0, 1.0)
        out.append(QL @ ((QL.T @ m @ QR / c1) / (np.sqrt(v / c2) + EPS)) @ QR.T)
        L, R = BETA * L + (1 - BETA) * g @ g.T, BETA * R + (1 - BETA) * g.T @ g
        if t % refresh_every == 0:
            rows = np.argsort(-np.diag(QL.T @ L @ QL))
            columns = np.argsort(-np.diag(QR.T @ R @ QR))
            v = v[rows][:, columns]
            QL, QR = np.linalg.qr(L @ QL[:, rows])[0], np.linalg.qr(R @ QR[:, columns])[0]
    return np.stack(out)


@pytest.mark.parametrize(("refresh_every", "bias_correction"), [(1, False), (2, True)])
def test_soap(refresh_every, bias_correction):
    grads = random_tree(0, SHAPES, STEPS)
    still = {path: jnp.zeros(shape) for path, shape in SHAPES.items()}
    chain = chain_of(group(soap(refresh_every, bias_correction)))
    state, expected = chain.init(still), {}
    for i, (path, (m, n)) in enumerate(SHAPES.items()):
        left, right = known_factor(m, 2 * i), known_factor(n, 2 * i + 1)
        state["q"].factors[path] = factors_of(left, right)
        expected[path] = reference(grads[path], left, right, refresh_every, bias_correction)
    state["q"] = state["q"]._replace(count=jnp.ones([], jnp.int32))
    got, update = {path: [] for path in SHAPES}, jax.jit(chain.update)
    for t in range(STEPS):
        moved, state = update({path: g[t] for path, g in grads.items()}, state, still)
        for path in SHAPES:
            got[path].append(-moved[path])
    assert_all_close({path: np.stack(u) for path, u in got.items()}, expected, 1e-4)


def test_basis_comes_from_the_first_gradient_that_is_not_zero():
    grads = random_tree(1, {"late": (4, 4), "early": (4, 4)}, steps=3)
    grads["late"][0] = 0
    still = {path: jnp.zeros((4, 4)) for path in grads}
    chain = chain_of(group(soap(100)))
    update, state = jax.jit(chain.update), chain.init(still)
    moved = {path: [] for path in grads}
    for t in range(3):
        new, state = update({path: g[t] for path, g in grads.items()}, state, still)
        for path in grads:
            moved[path].append(bool(np.any(new[path])))
    assert moved == {"late": [False, False, True], "early": [False, True, True]}
    held = state["v"].weight
    assert held["late"] == pytest.approx(1 - B2) and held["early"] == pytest.approx(1 - B2**2)
    for path, t in (("late", 1), ("early", 0)):
        u, _, vt = np.linalg.svd(grads[path][t])
        f = state["q"].factors[path]
        np.testing.assert_allclose(np.abs(f.left_basis.T @ u), np.eye(4), atol=1e-4)
        np.testing.assert_allclose(np.abs(f.right_basis.T @ vt.T), np.eye(4), atol=1e-4)


def test_directions_turn_with_the_gradients():
    """Rotating the rows and columns of every gradient rotates the directions: what Adam in a fixed basis cannot do."""
    grads = random_tree(2, {"w": (5, 5)}, steps=STEPS)
    left, right = (np.linalg.qr(np.random.default_rng(s).normal(size=(5, 5)))[0].astype(np.float32) for s in (7, 8))
    plain = directions(grads, soap(1))["w"]
    turned = directions({"w": left @ grads["w"] @ right}, soap(1))["w"]
    np.testing.assert_allclose(turned, left @ plain @ right, atol=5e-3)
    assert np.abs(plain[-1]).max() > 0.1


@pytest.mark.parametrize(("floor", "dropped"), [(1e-12, False), (0.5, False), (0.5, True)])
def test_roots_are_matrix_powers_of_the_factors(floor, dropped):
    """With the factors' own eigenvectors as bases, L^p x R^p by eigendecomposition; small eigenvalues are as told."""
    (left, left_basis), (right, right_basis) = known_factor(5, 0), known_factor(3, 1)
    x = random_tree(3, {"w": (5, 3)})["w"]

    def raised(matrix):
        values, vectors = np.linalg.eigh(matrix)
        least = floor * values.max()
        powers = np.where(values > least, values, np.inf if dropped else least) ** -0.25
        return (vectors * powers) @ vectors.T

    f = factors_of((left, left_basis), (right, right_basis))
    np.testing.assert_allclose(kronecker.root(f, x, -0.25, floor, dropped), raised(left) @ x @ raised(right), atol=1e-5)


def test_flops():
    often, seldom = (kronecker.advance_flops((64, 64), every) for every in (1, 10))
    assert often > seldom > 4 * 64**3 and kronecker.rotation_flops((3, 5)) == 2 * (3 * 3 * 5 + 3 * 5 * 5)


def test_no_decomposition_on_cpu_takes_more_than_one_matrix():
    """Two batched ones at once wait for each other for ever where the pool has two threads."""
    x = jnp.zeros((2, 3, 5))
    factors = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), kronecker.init(x[0]))
    text = jax.jit(lambda f, x: kronecker.advance(f, x, 0.9, True, ())).lower(factors, x).as_text()
    calls = [line for line in text.splitlines() if "lapack_" in line]
    assert len(calls) >= 4 and not [line for line in calls if re.search(r"tensor<2x\d", line)]


def whitened(grads, decay, power):
    """Powers of both running covariances, this gradient's among them, around it; in float64, eigenvectors exact."""
    L, R, out = 0.0, 0.0, []
    for g in grads.astype(np.float64):
        L, R = decay * L + (1 - decay) * g @ g.T, decay * R + (1 - decay) * g.T @ g
        sides = []
        for factor in (L, R):
            values, vectors = np.linalg.eigh(factor)
            sides.append((vectors * np.maximum(values, 1e-6 * values.max()) ** power) @ vectors.T)
        out.append(sides[0] @ g @ sides[1])
    return np.stack(out)


def test_factors_that_go_ahead_hold_this_gradient_and_move_from_the_first():
    """Slowly turning gradients, so that one iteration a step keeps the bases; of a few steps the first are exact."""
    rng = np.random.default_rng(3)
    base = np.diag([8.0, 4.0, 2.0, 1.0]) + 0.02 * rng.standard_normal((4, 4))
    grads = {"w": np.stack([base + 0.01 * t * rng.standard_normal((4, 4)) for t in range(4)]).astype(np.float32)}
    steps = [{"kind": "factors", "name": "q", "decay": 0.9, "every": 1, "ahead": True},
             {"kind": "root", "name": "r", "by": "q", "power": -0.3, "of": "g"}]
    found = directions(grads, *steps)["w"]
    expected = whitened(grads["w"], 0.9, -0.3)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-5)  # bases are of the first at once
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02)
    behind = directions(grads, {**steps[0], "ahead": False}, steps[1])["w"]
    assert np.all(behind[0] == 0) and np.abs(behind[1] - expected[1]).max() > 0.1


def test_an_average_cannot_live_in_bases_that_go_ahead():
    with pytest.raises(ConfigError, match="ahead: false would do"):
        group({"kind": "factors", "name": "q", "ahead": True},
              {"kind": "rotate", "name": "turn", "by": "q", "into": "p"},
              {"kind": "average", "name": "v", "of": "p * p", "decay": 0.9, "basis": "q"},
              {"name": "ratio", "code": "p / sqrt(v)"}, {"kind": "rotate", "name": "back", "by": "q", "back": True})


def fitted(q, more, less):
    """A step of one triangle, its size told from below by the longest column's two images."""
    h = more + less
    x = h @ h[:, np.argmax((h * h).sum(0))]
    return q - np.triu(more - less) @ q / np.linalg.norm(h @ x / np.linalg.norm(x))


def triangles(x, v, q, r):
    """PSGD's step in float64: the triangles after x against Gaussian v."""
    balance = np.sqrt(np.abs(r).max() / np.abs(q).max())
    q, r = q * balance, r / balance
    a, b = q @ x @ r.T, np.linalg.inv(q).T @ v @ np.linalg.inv(r)
    return fitted(q, a @ a.T, b @ b.T), fitted(r, a.T @ a, b.T @ b)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_triangles_are_fitted_as_defined(shape):
    rng = np.random.default_rng(2)
    x, v = rng.standard_normal((2, 2, *shape)) * np.reshape([0.01, 1.0], (2, 1, 1, 1))
    found = kronecker.blank(jnp.zeros(shape))
    found, (q, r) = jax.tree.map(lambda leaf: leaf[None], found), (None, None)
    for t in range(2):
        found = kronecker.fit(found, *(jnp.asarray(y[t][None], jnp.float32) for y in (x, v)), 1.0, jnp.asarray(t == 0))
        size = (x[0] ** 4).mean() ** (-1 / 32)
        q, r = triangles(x[t], v[t], *((size * np.eye(n) for n in shape) if t == 0 else (q, r)))
        for one, other in zip(found, (q, r), strict=True):
            np.testing.assert_allclose(one[0], other, rtol=2e-3, atol=2e-3 * np.abs(other).max())
            assert np.all(np.tril(np.asarray(one[0]), -1) == 0)
    white = kronecker.whiten(found, jnp.asarray(x[1][None], jnp.float32))[0]
    expected = q.T @ q @ x[1] @ r.T @ r
    np.testing.assert_allclose(white, expected, rtol=5e-3, atol=5e-3 * np.abs(expected).max())


def test_triangles_come_to_whiten_what_they_see():
    """Gradients of uneven rows and columns: what comes out at last is far evener than what went in."""
    rng, shape = np.random.default_rng(4), (6, 8)
    rows, columns = np.geomspace(0.1, 10, 6)[:, None], np.geomspace(3, 0.3, 8)
    grads = {"w": (rng.standard_normal((200, *shape)) * rows * columns).astype(np.float32)}
    found = directions(grads, {"kind": "triangles", "name": "q", "rate": 0.5},
                       {"kind": "whiten", "name": "w", "by": "q", "of": "g"})["w"][120:]
    before, after = grads["w"][120:].std(0), found.std(0)
    assert before.max() / before.min() > 100 and after.max() / after.min() < 3


def test_what_reads_factors_names_a_line_of_its_kind():
    q, m = {"kind": "factors", "name": "q"}, {"kind": "average", "name": "m", "decay": 0.9}
    for chain, kind in (([m, {"kind": "root", "name": "r", "by": "m"}], "factors"),
                        ([q, {"kind": "whiten", "name": "r", "by": "q", "of": "g"}], "triangles"),
                        ([{"kind": "triangles", "name": "q"}, {"kind": "rotate", "name": "r", "by": "q"}], "factors")):
        with pytest.raises(ConfigError, match=f"a line of kind {kind} would do"):
            group(*chain)


@pytest.mark.parametrize("values", [np.linspace(2, 0.5, 20), np.r_[np.ones(5), np.zeros(15)], np.zeros(20)])
def test_an_orthogonal_factor_in_panels_is_the_whole_one_s(values):
    """As TPUs take it: of what has full rank, and of what leaves columns free, which are orthogonal all the same."""
    rng, rank = np.random.default_rng(3), int((values > 0).sum())
    u, basis = (np.linalg.qr(rng.normal(size=(20, 20)))[0] for _ in range(2))
    x = ((u * values) @ u.T @ basis).astype(np.float32)
    q = np.asarray(kronecker._in_panels((jnp.asarray(x), jnp.asarray(basis, jnp.float32)), width=8), np.float64)
    np.testing.assert_allclose(q.T @ q, np.eye(20), atol=1e-5)
    expected = np.linalg.qr(x.astype(np.float64))[0][:, :rank]
    np.testing.assert_allclose(np.abs(np.sum(q[:, :rank] * expected, axis=0)), np.ones(rank), atol=1e-5)
