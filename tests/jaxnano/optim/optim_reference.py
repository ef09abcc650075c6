"""Random gradients, and one compiled run of a transform over them."""

import jax
import numpy as np

SHAPES = {"square": (6, 6), "tall": (9, 5), "wide": (5, 9), "wide_again": (5, 9)}
STEPS = 5


def random_tree(seed, shapes=None, steps=None):
    """{path: float32 array}, with a leading axis of steps if given."""
    rng = np.random.default_rng(seed)
    lead = () if steps is None else (steps,)
    return {path: rng.normal(size=lead + shape).astype(np.float32) for path, shape in (shapes or SHAPES).items()}


def directions(build, hypers, grads, params=None, state=None):
    """Outputs {path: [steps, ...]} of `build(hypers)` for gradients with a leading axis of steps; hypers are traced."""
    params = {path: np.zeros_like(g[0]) for path, g in grads.items()} if params is None else params

    @jax.jit
    def run(hypers, grads, params, state):
        transform = build(hypers)

        def step(state, g):
            u, state = transform.update(g, state, params)
            return state, u

        return jax.lax.scan(step, transform.init(params) if state is None else state, grads)[1]

    hypers = {name: np.float32(value) for name, value in hypers.items()}
    return {path: np.asarray(u) for path, u in run(hypers, grads, params, state).items()}


def assert_all_close(actual, expected, rtol):
    """Compare trees, each leaf relative to its largest entry."""
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(actual[path], value, rtol=0, atol=rtol * np.abs(value).max(), err_msg=path)
