"""First-order directions: Adam and its relatives, elementwise.

Every function here returns an optax transform whose output points *along* the gradient; the learning rate and the
minus sign come last in the chain (`constraint.learning_rate`). Scalars may be traced.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxnano.optim.wrapper import Scalar


class AdamState(NamedTuple):
    """Moments per path, and the total weight each of the two averages holds so far (scalars, 0 to 1)."""

    mean: optax.Updates
    square: optax.Updates
    mean_weight: jax.Array
    square_weight: jax.Array


def adam(
    b1: Scalar, b2: Scalar, eps: Scalar, bias_correction: bool = True, nesterov: bool = False
) -> optax.GradientTransformation:
    """Ratio of the averaged gradient to the root of the averaged squared gradient.

    The averages start at zero; bias correction divides each by the weight it really holds. That is 1 - b^t for a
    constant b, and stays right when b is scheduled.

    Args:
        b1, b2: decay of the first and second moment per step.
        eps: added to the root, in units of the gradient.
        bias_correction: False leaves the averages short at first (step one is (1-b1)/sqrt(1-b2) of its due length).
        nesterov: one more step of momentum on the first moment (NAdam).
    Source: Kingma and Ba, arXiv:1412.6980; Dozat 2016 (Nesterov).
    """

    def init_fn(params: Any) -> AdamState:
        zeros = optax.tree.zeros_like(params, dtype=jnp.float32)
        return AdamState(zeros, optax.tree.zeros_like(zeros), jnp.zeros([]), jnp.zeros([]))

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[optax.Updates, AdamState]:
        del params
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.square, updates)
        mean_weight = b1 * state.mean_weight + (1 - b1)
        square_weight = b2 * state.square_weight + (1 - b2)
        now, ahead, root = 1.0, 1.0, 1.0
        if bias_correction:
            now, ahead, root = mean_weight, b1 * mean_weight + (1 - b1), jnp.sqrt(square_weight)

        def direction(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            numerator = b1 * m / ahead + (1 - b1) * g / now if nesterov else m / now
            return numerator / (jnp.sqrt(v) / root + eps)

        updates = jax.tree.map(direction, mean, square, updates)
        return updates, AdamState(mean, square, mean_weight, square_weight)

    return optax.GradientTransformation(init_fn, update_fn)


def ademamix(
    b1: Scalar, b2: Scalar, b3: Scalar, alpha: Scalar, eps: Scalar
) -> optax.GradientTransformation:
    """Adam whose numerator adds alpha times a second, much slower average of the gradient (b3, not bias-corrected).

    The paper warms up alpha and b3 over the run; here that is a schedule on either.
    Source: Pagliardini et al. 2024, arXiv:2409.03137.
    """
    return optax.contrib.scale_by_ademamix(b1, b2, b3, alpha, eps)


def lion(b1: Scalar, b2: Scalar) -> optax.GradientTransformation:
    """Sign of b1 * average + (1 - b1) * gradient; the average itself decays with b2.

    Source: Chen et al. 2023, arXiv:2302.06675.
    """
    return optax.scale_by_lion(b1, b2)


def sgd(momentum: Scalar, nesterov: bool = False) -> optax.GradientTransformation:
    """Gradient with heavy-ball or Nesterov momentum, m <- momentum * m + g: a sum, 1/(1-momentum) times an average.

    Source: Sutskever et al. 2013.
    """
    return optax.trace(momentum, nesterov)
