"""Averages that are evaluated but not trained."""

import jax
import jax.numpy as jnp
import numpy as np
from optim_reference import assert_all_close, random_tree

from jaxnano.optim import constraint, readout, wrapper

SHAPES = {"embedding/table": (3, 2), "head/weight": (2, 3)}
STEPS, START, TIME_CONSTANT, WEIGHT = 8, 0.5, 0.375, 0.6


def optimizer(progress, start=START, time_constant=TIME_CONSTANT, weight=WEIGHT):
    base = wrapper.from_transform(constraint.learning_rate(0.1))
    return readout.tail_ema(base, start, time_constant, weight, progress, jnp.float32(STEPS),
                            exclude=lambda path: path.startswith("embedding/"))


def test_tail_ema():
    grads, params = random_tree(0, SHAPES, STEPS), random_tree(1, SHAPES)
    state = optimizer(0.0).init({path: jnp.asarray(w) for path, w in params.items()})
    assert list(state.average) == ["head/weight"]
    step = jax.jit(lambda state, g, progress: optimizer(progress).update(g, state), donate_argnums=0)
    w = {path: x.astype(np.float64) for path, x in params.items()}
    e = w["head/weight"]
    for t in range(STEPS):
        state = step(state, {path: g[t] for path, g in grads.items()}, t / STEPS)
        w = {path: x - 0.1 * grads[path][t] for path, x in w.items()}
        e = w["head/weight"] if t / STEPS < START else e + (w["head/weight"] - e) / (TIME_CONSTANT * STEPS)
    blend = {**w, "head/weight": (1 - WEIGHT) * w["head/weight"] + WEIGHT * e}
    assert_all_close(optimizer(1.0).eval_params(state), blend, 1e-6)
    assert_all_close(optimizer(1.0).grad_params(state), w, 1e-6)
    assert np.abs(blend["head/weight"] - w["head/weight"]).max() > 0.01


def test_a_time_constant_below_one_step_follows_the_weights():
    params = {path: jnp.asarray(w) for path, w in random_tree(2, SHAPES).items()}
    opt = optimizer(1.0, time_constant=0.01)
    state = opt.update(params, opt.init(params))
    assert_all_close(opt.eval_params(state), opt.grad_params(state), 1e-6)
