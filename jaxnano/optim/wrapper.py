"""Optimizers that own their parameters, because trained, gradient and evaluated parameters may differ."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = dict[str, jax.Array]
Scalar = Any  # a number, or a float32 scalar traced by jit; config nodes type both as Traced


class Optimizer(NamedTuple):
    """Pure functions over a state that holds the parameters. Built anew inside each step from that step's scalars.

    init(params) -> state; the state shares no buffer with params, so either may be donated.
    grad_params(state) -> params at which the next gradient is to be taken.
    update(grads, state) -> state.
    eval_params(state) -> params to evaluate, sample from and ship.
    """

    init: Callable[[Params], Any]
    grad_params: Callable[[Any], Params]
    update: Callable[[Params, Any], Any]
    eval_params: Callable[[Any], Params]


class TransformState(NamedTuple):
    """Parameters and the state of the transform that moves them."""

    params: Params
    inner: optax.OptState


def from_transform(transform: optax.GradientTransformation) -> Optimizer:
    """An optimizer whose trained, gradient and evaluated parameters are one.

    Args: transform: turns gradients into additive updates (its chain ends in `learning_rate` or `hyperball`).
    """

    def init(params: Params) -> TransformState:
        params = jax.tree.map(jnp.copy, params)
        return TransformState(params, transform.init(params))

    def update(grads: Params, state: TransformState) -> TransformState:
        updates, inner = transform.update(grads, state.inner, state.params)
        return TransformState(optax.apply_updates(state.params, updates), inner)

    def current(state: TransformState) -> Params:
        return state.params

    return Optimizer(init, current, update, current)


class EmaNesterovState(NamedTuple):
    """State of the wrapped optimizer, and the average displacement of its parameters per step."""

    inner: Any
    displacement: Params


def ema_nesterov(optimizer: Optimizer, gamma: Scalar, beta: Scalar) -> Optimizer:
    """Look ahead along the average displacement: move by beta * m, take the gradient there and step from there.

    m <- gamma * m + (1 - gamma) * (theta - theta_before); theta has no look-ahead and is what is evaluated.
    While beta is 0 (before a schedule opens it) m fills and nothing else changes. As the displacement holds the
    look-ahead too, m feeds itself: it is stable for beta < 1 only.

    Args:
        optimizer: one whose state is a named tuple with a field `params`, such as that of `from_transform`.
        gamma: decay of the average per step.
        beta: look-ahead, in average steps; 0 to 1.
    Source: modded-nanogpt track 3, 20260522_ema_nesterov_muon; arXiv:2605.25395.
    """

    def init(params: Params) -> EmaNesterovState:
        inner = optimizer.init(params)
        return EmaNesterovState(inner, optax.tree.zeros_like(inner.params))

    def grad_params(state: EmaNesterovState) -> Params:
        return jax.tree.map(lambda w, m: w + beta * m, state.inner.params, state.displacement)

    def update(grads: Params, state: EmaNesterovState) -> EmaNesterovState:
        def average(m: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
            return gamma * m + (1 - gamma) * (new - old)

        inner = optimizer.update(grads, state.inner._replace(params=grad_params(state)))
        return EmaNesterovState(inner, jax.tree.map(average, state.displacement, inner.params, state.inner.params))

    return Optimizer(init, grad_params, update, lambda state: optimizer.eval_params(state.inner))


def ema_nesterov_flops(shape: tuple[int, ...]) -> float:
    """Floating-point operations of one look-ahead and its average."""
    return 6.0 * prod(shape)


def ema_nesterov_state_floats(shape: tuple[int, ...]) -> int:
    """Float32 values the look-ahead keeps for a parameter of this shape."""
    return prod(shape)
