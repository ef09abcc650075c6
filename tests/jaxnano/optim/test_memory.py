"""Memories, and where trained, gradient and evaluated parameters differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import assert_all_close, optimizer, random_tree

from jaxnano.config.base import ConfigError, validate
from jaxnano.config.optimizer import Optimizer

SHAPES = {"embedding/token": (3, 2), "head/weight": (2, 3)}
STEPS = 8
TAIL = {"kind": "tail_ema", "start": 0.5, "time_constant": 0.375, "weight": 0.6}


def run(grads_at, fields, steps=STEPS, shapes=SHAPES):
    """Parameters at first, the state after `steps` of gradients `grads_at(t, where)`, and the optimizer of the end."""
    params = random_tree(1, shapes)

    def at(t):
        return optimizer(shapes, (t + 0.5) / STEPS, STEPS, **fields)

    step = jax.jit(lambda state, t: at(t).update(grads_at(t, at(t).grad_params(state)), state), donate_argnums=0)
    state = at(0).init({path: jnp.asarray(w) for path, w in params.items()})
    for t in range(steps):
        state = step(state, t)
    return params, state, at(steps - 1)


def constant(seed):
    grads = random_tree(seed, SHAPES, STEPS)
    return grads, lambda t, _: {path: jnp.asarray(g)[t] for path, g in grads.items()}


@pytest.mark.parametrize("fields", [
    {"readout": TAIL},
    {"memory": [{"name": "e", "start": 0.5, "time_constant": 0.375, "without": ["embedding/*"]}],
     "evaluated": {"code": "0.4 * W + weight * e", "params": {"weight": 0.6}}},
])
def test_an_average_over_the_tail_is_evaluated_and_not_trained(fields):
    grads, grads_at = constant(0)
    params, state, opt = run(grads_at, fields)
    (kept,) = state.memory.values()
    assert list(kept) == ["head/weight"]
    w = {path: x.astype(np.float64) for path, x in params.items()}
    e = w["head/weight"]
    for t in range(STEPS):
        w = {path: x - 0.1 * grads[path][t] for path, x in w.items()}
        e = w["head/weight"] if (t + 0.5) / STEPS < 0.5 else e + (w["head/weight"] - e) / (0.375 * STEPS)
    blend = {**w, "head/weight": 0.4 * w["head/weight"] + 0.6 * e}
    assert_all_close(opt.eval_params(state), blend, 1e-6)
    assert_all_close(opt.grad_params(state), w, 1e-6)
    assert np.abs(blend["head/weight"] - w["head/weight"]).max() > 0.01


def test_a_time_constant_below_one_step_follows_the_weights():
    _, state, opt = run(constant(2)[1], {"readout": TAIL | {"time_constant": 0.01}})
    assert_all_close(opt.eval_params(state), opt.grad_params(state), 1e-6)


@pytest.mark.parametrize("fields", [
    {"wrapper": {"kind": "ema_nesterov", "gamma": 0.8, "beta": 0.5}},
    {"memory": [{"name": "m", "of": "W - W0", "decay": 0.8}], "gradient": {"code": "W + b * m", "params": {"b": 0.5}}},
])
def test_looking_ahead_along_the_average_displacement(fields):
    """Gradient at theta + beta m, step from there, m an average of whole displacements."""
    target = random_tree(0, SHAPES)

    def gradient(w):
        return {path: 2 * (w[path] - target[path]) for path in w}

    params, state, opt = run(lambda t, where: gradient(where), fields, steps=5)
    w = {path: x.astype(np.float64) for path, x in params.items()}
    m = {path: np.zeros_like(x) for path, x in w.items()}
    for _ in range(5):
        ahead = {path: w[path] + 0.5 * m[path] for path in w}
        new = {path: ahead[path] - 0.1 * g for path, g in gradient(ahead).items()}
        m = {path: 0.8 * m[path] + 0.2 * (new[path] - w[path]) for path in m}
        w = new
    assert_all_close(opt.eval_params(state), w, 1e-5)
    assert_all_close(next(iter(state.memory.values())), m, 1e-4)


def test_an_outer_nesterov_step_every_few_steps():
    """D = a - W; M <- mu M + D; W <- a - eta (D + mu M); a <- W; inner states untouched."""
    eta, mu, every = 0.7, 0.5, 3
    grads, grads_at = constant(3)
    params, state, opt = run(grads_at, {
        "chain": [{"kind": "sgd", "momentum": 0.9}],
        "memory": [{"name": "a", "keep": "copy", "every": every},
                   {"name": "pushed", "of": "a - W", "keep": "sum", "decay": mu, "every": every}],
        "moves": [{"name": "outer", "every": every, "code": "a - eta * (a - W + mu * pushed)",
                   "params": {"eta": eta, "mu": mu}}]})
    w = {path: x.astype(np.float64) for path, x in params.items()}
    a, m, pushed = w, {path: 0.0 for path in w}, {path: 0.0 for path in w}
    for t in range(STEPS):
        m = {path: 0.9 * m[path] + grads[path][t] for path in w}
        w = {path: w[path] - 0.1 * m[path] for path in w}
        if (t + 1) % every == 0:
            d = {path: a[path] - w[path] for path in w}
            pushed = {path: mu * pushed[path] + d[path] for path in w}
            a = w = {path: a[path] - eta * (d[path] + mu * pushed[path]) for path in w}
    assert_all_close(opt.eval_params(state), w, 1e-5)


def test_states_share_no_buffer_with_the_parameters_and_may_be_donated():
    params = {path: jnp.asarray(w) for path, w in random_tree(2, SHAPES).items()}
    for fields in ({}, {"readout": TAIL}, {"memory": [{"name": "a", "keep": "copy"}], "evaluated": {"code": "a"}}):
        opt = optimizer(SHAPES, 0.1, STEPS, chain=[{"kind": "adam"}], **fields)
        state = opt.init(params)
        step = jax.jit(lambda state, opt=opt: opt.update(opt.grad_params(state), state), donate_argnums=0)
        first = step(state)
        second = step(first)
        assert all(np.isfinite(w).all() for w in params.values())
        assert all(np.isfinite(w).all() for w in opt.eval_params(second).values())
        assert first.params["head/weight"].is_deleted()


A = {"name": "a", "keep": "copy"}


@pytest.mark.parametrize(("fields", "message"), [
    ({"memory": [A]}, "memory.a: \"a\": no view, move or other memory reads it"),
    ({"evaluated": {"code": "b"}}, "evaluated.code: \"b\": no such memory; known: W, progress"),
    ({"memory": [A], "evaluated": {"code": "a + u"}}, "no such memory; known: W, a, progress"),
    ({"memory": [A | {"decay": 0.5}], "evaluated": {"code": "a"}}, "copy takes neither decay nor time_constant"),
    ({"memory": [{"name": "a"}], "evaluated": {"code": "a"}}, "average takes a decay or a time_constant"),
    ({"memory": [{"name": "s", "of": "a", "keep": "sum", "decay": 0.5}, A], "evaluated": {"code": "s + a"}},
     "known: W, W0, progress and the memories above it"),
    ({"memory": [A, {"name": "s", "of": "a", "keep": "sum", "decay": 0.5, "paths": ["head/*"]}],
      "evaluated": {"code": "s"}}, "it is kept for other parameters"),
    ({"readout": TAIL, "memory": [A], "evaluated": {"code": "a"}}, "readout says it already"),
    ({"memory": [A, A], "evaluated": {"code": "a"}}, "names in a list are unique"),
])
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ConfigError) as caught:
        validate(Optimizer, fields)
    assert message in str(caught.value)


def test_a_copy_stays_from_a_share_of_the_run_on():
    """What is evaluated goes on from a copy taken once, as if it were made by hand in that step."""
    grads, grads_at = constant(4)
    fields = {"memory": [{"name": "reference", "keep": "copy", "until": 0.5, "without": ["embedding/token"]}],
              "evaluated": {"code": "W + gamma * (W - reference)", "params": {"gamma": -0.075}}}
    params, state, opt = run(grads_at, fields)
    places = {path: w - 0.1 * np.cumsum(grads[path].astype(np.float64), axis=0) for path, w in params.items()}
    last = {path: w[-1] for path, w in places.items()}
    half = places["head/weight"][STEPS // 2 - 1]  # after the steps whose middle is before the half of the run
    np.testing.assert_allclose(state.memory["reference"]["head/weight"], half, atol=1e-6)
    blend = {**last, "head/weight": last["head/weight"] - 0.075 * (last["head/weight"] - half)}
    assert_all_close(opt.eval_params(state), blend, 1e-6)
    average = [{"name": "e", "decay": 0.5, "until": 0.3}]
    _, state, _ = run(grads_at, {"memory": average, "evaluated": {"code": "e"}})
    _, early, _ = run(grads_at, {"memory": average, "evaluated": {"code": "e"}}, steps=2)
    assert_all_close(state.memory["e"], early.memory["e"], 0)
