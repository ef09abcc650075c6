"""Weight decay and gradient clipping.

Decay adds to the direction, so the learning rate at the end of the chain multiplies it: W <- W - lr * (u + rate * W).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnano.optim.wrapper import Scalar


def decoupled_decay(rate: Scalar) -> optax.GradientTransformation:
    """Add rate * W to the direction.

    Args: rate: decay per step in units of the learning rate.
    Source: Loshchilov and Hutter, arXiv:1711.05101.
    """
    return optax.add_decayed_weights(rate)


def cautious_decay(rate: Scalar) -> optax.GradientTransformation:
    """Add rate * W only in the coordinates where the update shrinks the weight already (u * W > 0).

    The inequality is strict: a coordinate without an update (an unseen token's embedding) keeps its value.

    Args: rate: decay per step in units of the learning rate.
    Source: Chen et al. 2025, arXiv:2510.12402; modded-nanogpt track 1, 2025-11-10_CautiousWD.
    """

    def update_fn(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        return jax.tree.map(lambda u, w: u + rate * jnp.where(u * w > 0, w, 0.0), updates, params)

    return optax.stateless(update_fn)


def clip_gradients(grads: Any, max_norm: Scalar) -> Any:
    """Shrink all gradients by one factor so that their joint 2-norm is at most max_norm.

    A norm that is not finite makes every gradient NaN, so that divergence shows at once.
    """
    norm = optax.tree.norm(grads)
    factor = jnp.minimum(1.0, max_norm / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
    return jax.tree.map(lambda g: g * factor, grads)
