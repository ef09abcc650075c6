"""Optimizers that own their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from optim_reference import assert_all_close, random_tree

from jaxnano.optim import adam, constraint, wrapper

SHAPES = {"w": (4, 3), "b": (3,)}


def gradient(w, target):
    """Of a quadratic, so that it depends on where it is taken."""
    return {path: 2 * (w[path] - target[path]) for path in w}


def test_ema_nesterov():
    """Gradient at theta + beta * m, step from there, m an average of whole displacements; beta opens at step 3."""
    lr, gamma, betas, target = 0.1, 0.8, [0.0, 0.0, 0.5, 0.5, 0.5], random_tree(0, SHAPES)
    params = random_tree(1, SHAPES)

    @jax.jit
    def step(state, beta, lr, gamma):
        optimizer = wrapper.ema_nesterov(constraint.learning_rate(lr), gamma, beta)
        return optimizer.update(gradient(optimizer.grad_params(state), target), state)

    optimizer = wrapper.ema_nesterov(constraint.learning_rate(lr), gamma, 0.0)
    state = optimizer.init(params)
    expected = {path: w.astype(np.float64) for path, w in params.items()}
    m = {path: np.zeros_like(w) for path, w in expected.items()}
    for beta in betas:
        state = step(state, beta, lr, gamma)
        ahead = {path: w + beta * m[path] for path, w in expected.items()}
        new = {path: ahead[path] - lr * g for path, g in gradient(ahead, target).items()}
        m = {path: gamma * m[path] + (1 - gamma) * (new[path] - expected[path]) for path in m}
        expected = new
    assert_all_close(optimizer.eval_params(state), expected, 1e-5)
    assert_all_close(state.displacement, m, 1e-4)


def test_states_share_no_buffer_with_the_parameters_and_may_be_donated():
    params = {path: jnp.asarray(w) for path, w in random_tree(2, SHAPES).items()}
    transform = adam.adam(0.9, 0.95, 1e-8)
    for optimizer in (wrapper.from_transform(transform), wrapper.ema_nesterov(transform, 0.9, 0.5)):
        state = optimizer.init(params)
        step = jax.jit(lambda state, optimizer=optimizer: optimizer.update(optimizer.grad_params(state), state),
                       donate_argnums=0)
        first = step(state)
        second = step(first)
        assert all(np.isfinite(w).all() for w in params.values())
        assert all(np.isfinite(w).all() for w in optimizer.eval_params(second).values())
        assert first.params["w"].is_deleted()
