"""What is evaluated: the trained parameters, or a blend with their average over the tail of the run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnano.optim.wrapper import Params, Scalar, Updater


class TailEmaState(NamedTuple):
    """State of the wrapped optimizer, and the average of every parameter that is not excluded."""

    inner: Any
    average: Params


def tail_ema(
    optimizer: Updater,
    start: Scalar,
    time_constant: Scalar,
    weight: Scalar,
    progress: Scalar,
    total_steps: Scalar,
    exclude: Callable[[str], bool] = lambda path: False,
) -> Updater:
    """Evaluate (1 - weight) * W + weight * e; training is untouched.

    Before progress reaches `start`, e equals W. From then on e <- e + (W - e) * rate, where
    rate = min(1, 1 / (time_constant * total_steps)).

    Args:
        start: progress (0 to 1) from which e averages.
        time_constant: of the average, as a fraction of the run.
        weight: of the average in what is evaluated.
        progress, total_steps: of this step.
        exclude: whether the parameter at a path is evaluated as it is (and has no average).
    Source: modded-nanogpt track 3, 20260611_tailema_2720_submission: start 0.74, time constant 0.055, weight 0.6, the
        token embedding excluded.
    """
    rate = jnp.where(progress < start, 1.0, jnp.minimum(1.0, 1.0 / (time_constant * total_steps)))

    def averaged(params: Params) -> Params:
        return {path: w for path, w in params.items() if not exclude(path)}

    def init(params: Params) -> TailEmaState:
        inner = optimizer.init(params)
        return TailEmaState(inner, jax.tree.map(jnp.copy, averaged(optimizer.eval_params(inner))))

    def update(grads: Params, state: TailEmaState) -> TailEmaState:
        inner = optimizer.update(grads, state.inner)
        current = averaged(optimizer.eval_params(inner))
        return TailEmaState(inner, jax.tree.map(lambda e, w: rate * w + (1 - rate) * e, state.average, current))

    def eval_params(state: TailEmaState) -> Params:
        params = optimizer.eval_params(state.inner)
        return params | {path: (1 - weight) * params[path] + weight * e for path, e in state.average.items()}

    return Updater(init, lambda state: optimizer.grad_params(state.inner), update, eval_params)
