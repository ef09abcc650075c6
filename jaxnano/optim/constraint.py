"""The end of a chain: turn a direction into the additive update of the parameters."""

import jax
import jax.numpy as jnp
import optax

from jaxnano.optim.wrapper import Scalar


def learning_rate(lr: Scalar) -> optax.GradientTransformation:
    """The ordinary end: W <- W - lr * u."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u: -lr * u, updates))


def hyperball(lr: Scalar) -> optax.GradientTransformation:
    """Step of relative length lr against the direction, then back to the norm the matrix had.

    With V = W - lr * ||W|| * u / ||u||, W' = V * ||W|| / ||V||; Frobenius norms of each matrix (the last two axes; the
    whole of a vector). lr is about the angle turned, in radians. A zero direction moves nothing, and a zero matrix
    stays zero, so initial values must not be.

    Source: "Fantastic Pretraining Optimizers 2.1: Hyperball"; modded-nanogpt track 3, 20260430_muonh.
    """

    def step(u: jax.Array, w: jax.Array) -> jax.Array:
        radius = frobenius(w)
        moved = w - lr * radius * _over(u, frobenius(u))
        return jnp.where(frobenius(u) > 0, radius * _over(moved, frobenius(moved)) - w, 0.0)

    def update_fn(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        return jax.tree.map(step, updates, params)

    return optax.stateless(update_fn)


def frobenius(x: jax.Array) -> jax.Array:
    """Norm over the last two axes, kept with length 1 (over all axes of a vector or scalar)."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(-min(2, x.ndim), 0)), keepdims=True))


def _over(x: jax.Array, norm: jax.Array) -> jax.Array:
    return x / jnp.where(norm > 0, norm, 1.0)
