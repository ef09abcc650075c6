"""The end of the chain."""

import jax
import jax.numpy as jnp
import numpy as np
from optim_reference import assert_all_close, directions, random_tree

from jaxnano.optim import constraint


def test_learning_rate():
    grads = random_tree(0, steps=2)
    got = directions(lambda h: constraint.learning_rate(h["lr"]), {"lr": 0.1}, grads)
    assert_all_close(got, {path: -0.1 * g for path, g in grads.items()}, 1e-6)


def test_hyperball():
    lr, grads, params = 0.3, random_tree(1, steps=2), random_tree(2)
    expected = {}
    for path, w in params.items():
        w = w.astype(np.float64)
        radius = np.linalg.norm(w)
        moved = [w - lr * radius * u / np.linalg.norm(u) for u in grads[path].astype(np.float64)]
        expected[path] = np.stack([v * radius / np.linalg.norm(v) - w for v in moved])
    got = directions(lambda h: constraint.hyperball(h["lr"]), {"lr": lr}, grads, params)
    assert_all_close(got, expected, 1e-5)


def test_hyperball_keeps_the_norm_of_every_matrix_of_a_stack():
    shapes = {"stack": (3, 4, 5), "vector": (4,)}
    params, grads = random_tree(3, shapes), random_tree(4, shapes)
    transform = constraint.hyperball(0.05)
    step = jax.jit(lambda w: jax.tree.map(jnp.add, w, transform.update(grads, transform.init(w), w)[0]))
    moved = params
    for _ in range(50):
        moved = step(moved)
    np.testing.assert_allclose(np.linalg.norm(moved["stack"], axis=(1, 2)),
                               np.linalg.norm(params["stack"], axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(moved["vector"]), np.linalg.norm(params["vector"]), rtol=1e-5)
    assert np.abs(moved["stack"] - params["stack"]).max() > 0.1


def test_hyperball_without_direction_or_weights_stays():
    w = {"still": jnp.ones((2, 2)), "zero": jnp.zeros((2, 2))}
    u = {"still": jnp.zeros((2, 2)), "zero": jnp.ones((2, 2))}
    step, _ = constraint.hyperball(0.1).update(u, constraint.hyperball(0.1).init(w), w)
    assert not np.any(step["still"]) and not np.any(step["zero"])
