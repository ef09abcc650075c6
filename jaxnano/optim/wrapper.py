"""Optimizers that own their parameters, because trained, gradient and evaluated parameters may differ."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = dict[str, jax.Array]
Scalar = Any  # a number, or a float32 scalar traced by jit; config nodes type both as Traced


class Updater(NamedTuple):
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


def from_transform(transform: optax.GradientTransformation) -> Updater:
    """An optimizer whose trained, gradient and evaluated parameters are one.

    Args: transform: turns gradients into additive updates (its chain ends in `learning_rate` or `hyperball`).
    """

    def init(params: Params) -> TransformState:
        params = _copy(params)
        return TransformState(params, transform.init(params))

    def update(grads: Params, state: TransformState) -> TransformState:
        return TransformState(*_step(transform, grads, state.inner, state.params))

    def current(state: TransformState) -> Params:
        return state.params

    return Updater(init, current, update, current)


class EmaNesterovState(NamedTuple):
    """Parameters, the average of their displacement per step, and the transform's state."""

    params: Params
    displacement: Params
    inner: optax.OptState


def ema_nesterov(transform: optax.GradientTransformation, gamma: Scalar, beta: Scalar) -> Updater:
    """Look ahead along the average displacement: move by beta * m, take the gradient there and step from there.

    m <- gamma * m + (1 - gamma) * (theta - theta_before); theta has no look-ahead and is what is evaluated.
    While beta is 0 (before a schedule opens it) m fills and nothing else changes. As the displacement holds the
    look-ahead too, m feeds itself: it is stable for beta < 1 only.

    Args:
        transform: turns gradients into additive updates.
        gamma: decay of the average per step.
        beta: look-ahead, in average steps; 0 to 1.
    Source: modded-nanogpt track 3, 20260522_ema_nesterov_muon; arXiv:2605.25395.
    """

    def init(params: Params) -> EmaNesterovState:
        params = _copy(params)
        return EmaNesterovState(params, {path: jnp.zeros_like(w) for path, w in params.items()}, transform.init(params))

    def grad_params(state: EmaNesterovState) -> Params:
        return jax.tree.map(lambda w, m: w + beta * m, state.params, state.displacement)

    def update(grads: Params, state: EmaNesterovState) -> EmaNesterovState:
        def average(m: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
            return gamma * m + (1 - gamma) * (new - old)

        ahead = grad_params(state)
        params, inner = _step(transform, grads, state.inner, ahead)
        return EmaNesterovState(params, jax.tree.map(average, state.displacement, params, state.params), inner)

    return Updater(init, grad_params, update, lambda state: state.params)


def _copy(params: Params) -> Params:
    return {path: jnp.copy(w) for path, w in params.items()}


def _step(
    transform: optax.GradientTransformation, grads: Params, inner: optax.OptState, params: Params
) -> tuple[Params, optax.OptState]:
    updates: Any
    updates, inner = transform.update(grads, inner, params)
    return {path: (w + updates[path]).astype(w.dtype) for path, w in params.items()}, inner
