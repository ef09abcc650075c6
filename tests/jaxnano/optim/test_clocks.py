"""Groups that rest in some steps: what moves when, what is kept meanwhile, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import assert_all_close, group, optimizer, random_tree

from jaxnano.config.base import ConfigError, dump
from jaxnano.config.optimizer import Group
from jaxnano.config.recipe import hypers, recipe_id, structure_id
from jaxnano.cost import preflight
from jaxnano.optim.build import PENDING
from jaxnano.step import init_state
from tests.jaxnano.recipes import TINY, edited

SHAPES, STEPS = {"embedding/token": (3, 2), "head/weight": (2, 3)}, 10
CHAIN = [{"kind": "adam", "b1": 0.5, "b2": 0.5}, {"kind": "decay", "rate": 0.5}]
CLOCKS = {
    "every third": {"every": 3},
    "every third, summed": {"every": 3, "accumulate": True},
    "frozen": {"frozen": [[0.0, 0.2], [0.4, 0.7]]},
    "frozen, every second, summed": {"every": 2, "accumulate": True, "frozen": [[0.3, 0.5]]},
}


def run(clock, **fields):
    """Parameters after each step, and the last state."""
    grads = random_tree(0, SHAPES, STEPS)

    @jax.jit
    def step(state, t):
        at = optimizer(SHAPES, (t + 0.5) / STEPS, STEPS, chain=CHAIN, clock=clock, **fields)
        return at.update({path: jnp.asarray(g)[t] for path, g in grads.items()}, state)

    params = random_tree(1, SHAPES)
    state, out = optimizer(SHAPES, 0.05, STEPS, chain=CHAIN, clock=clock, **fields).init(params), []
    for t in range(STEPS):
        state = step(state, t)
        out.append(state.params)
    return {path: np.stack([w[path] for w in out]) for path in SHAPES}, state


def reference(clock, ahead=0.0):
    """AdamW in NumPy and float64 with its clock; ahead: share of the average displacement looked ahead along."""
    grads, params = random_tree(0, SHAPES, STEPS), random_tree(1, SHAPES)
    out, every = {}, clock.get("every", 1)
    for path, w in params.items():
        w, m, v, updates, pending, drift, ws = w.astype(np.float64), 0.0, 0.0, 0, 0.0, 0.0, []
        for t in range(STEPS):
            g, old = grads[path][t].astype(np.float64) + pending, w
            still = any(start <= (t + 0.5) / STEPS < end for start, end in clock.get("frozen", []))
            due = (t + 1) % every == 0 and not still
            if due:
                updates += 1
                m, v, start = 0.5 * m + 0.5 * g, 0.5 * v + 0.5 * g * g, w + ahead * drift
                held = 1 - 0.5**updates
                w = start - 0.1 * (m / held / (np.sqrt(v / held) + 1e-8) + 0.5 * start)
            pending = g if clock.get("accumulate") and not due and not still else 0.0
            drift = 0.5 * drift + 0.5 * (w - old)
            ws.append(w)
        out[path] = np.stack(ws)
    return out


@pytest.mark.parametrize("name", CLOCKS)
def test_a_group_moves_by_its_clock(name):
    got, _ = run(CLOCKS[name])
    assert_all_close(got, reference(CLOCKS[name]), 3e-6)
    assert all((np.diff(w, axis=0) == 0).all((1, 2)).any() for w in got.values())


def test_a_group_that_rests_does_not_go_where_gradients_are_taken():
    clock = {"every": 3}
    got, _ = run(clock, wrapper={"kind": "ema_nesterov", "gamma": 0.5, "beta": 0.5})
    assert_all_close(got, reference(clock, ahead=0.5), 3e-6)
    assert_all_close({path: w[:2] for path, w in got.items()},
                     {path: np.stack([w, w]) for path, w in random_tree(1, SHAPES).items()}, 0)


def test_other_groups_go_on_and_sums_are_emptied():
    _, state = run({"every": 5, "accumulate": True})
    assert not any(np.any(g) for g in state.chains["all"][PENDING].values())
    _, state = run({"every": 4, "accumulate": True})
    assert all(np.any(g) for g in state.chains["all"][PENDING].values())


EVERY = "optimizer.groups.matrices"


def test_a_clock_that_says_nothing_is_none():
    """The same id, and the same state and operations as without."""
    same = edited(TINY, {f"{EVERY}.every": 1, f"{EVERY}.frozen": []})
    assert recipe_id(same) == recipe_id(TINY) and structure_id(same) == structure_id(TINY)
    at = optimizer(SHAPES, 0.5, STEPS, chain=CHAIN)
    state = at.init(random_tree(0, SHAPES))
    assert "cond" not in str(jax.make_jaxpr(at.update)(random_tree(0, SHAPES), state))
    assert "every" not in str(dump(same))


def test_a_clock_is_in_the_cost():
    changes = {"none": {}, "rests": {f"{EVERY}.every": 2}, "sums": {f"{EVERY}.every": 2, f"{EVERY}.accumulate": True},
               "thaws": {f"{EVERY}.frozen": [[0.0, 0.5]]}}
    recipes = {name: edited(TINY, change) for name, change in changes.items()}
    costs = {name: preflight(recipe) for name, recipe in recipes.items()}
    assert costs["rests"].optimizer_bytes == costs["thaws"].optimizer_bytes == costs["none"].optimizer_bytes
    held = costs["sums"].optimizer_bytes - costs["none"].optimizer_bytes
    assert held and held == 4 * sum(w.size for w in sums_of(recipes["sums"]))
    flops = {name: cost.optimizer_flops_per_step for name, cost in costs.items()}
    assert flops["none"] > flops["sums"] > flops["rests"] == flops["thaws"]


def sums_of(recipe):
    """The sums that a fresh state of the recipe holds."""

    state = jax.eval_shape(lambda: init_state(recipe, np.uint32(0), hypers(recipe, 10)))
    return state.optimizer.chains["matrices"][PENDING].values()


@pytest.mark.parametrize(("fields", "message"), [
    ({"accumulate": True}, "accumulate: true: with every: 1 no step is left out; every: 2 would do"),
    ({"every": 0}, "every: 0: at least 1"),
    ({"frozen": [[0.2, 0.1]]}, "frozen: [[0.2, 0.1]]: shares of the run, each span after the one before"),
    ({"frozen": [[0.1, 0.2], [0.2, 0.3]]}, "and apart from it"),
    ({"frozen": [[0.5, 1.5]]}, "shares of the run"),
    ({"frozen": [[-0.5, 0.5]]}, "shares of the run"),
    ({"frozen": [[0.0, 1.0]]}, "and not the whole run; [[0.0, 0.1]] would do"),
    ({"frozen": [[0.0]]}, "frozen"),
])
def test_a_clock_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ConfigError) as caught:
        group(*CHAIN, **fields)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_share_of_steps_in_which_a_group_moves():
    assert isinstance(node := group(*CHAIN, every=2, frozen=[[0.0, 0.5]]), Group) and node.moving() == 0.25


def test_steps_of_the_run_are_in_scope_of_a_group_that_rests_in_some():
    """Adam every second step whose averages are corrected by the run's steps, which are twice its own."""
    grads, params = random_tree(0, SHAPES, STEPS), random_tree(1, SHAPES)
    chain = [{"kind": "average", "name": "m", "decay": 0.5},
             {"kind": "average", "name": "v", "of": "g * g", "decay": 0.7},
             {"name": "mean", "into": "mean", "code": "m / (1 - pow(m_decay, steps))"},
             {"name": "ratio", "code": "mean / (sqrt(v / (1 - pow(v_decay, steps))) + eps)", "params": {"eps": 1e-8}}]

    @jax.jit
    def step(state, t):
        at = optimizer(SHAPES, (t + 0.5) / STEPS, STEPS, chain=chain, clock={"every": 2})
        return at.update({path: jnp.asarray(g)[t] for path, g in grads.items()}, state)

    state = optimizer(SHAPES, 0.05, STEPS, chain=chain, clock={"every": 2}).init(params)
    for t in range(STEPS):
        state = step(state, t)
    expected = {}
    for path, w in params.items():
        w, m, v = w.astype(np.float64), 0.0, 0.0
        for t in range(2, STEPS + 1, 2):
            g = grads[path][t - 1].astype(np.float64)
            m, v = 0.5 * m + 0.5 * g, 0.7 * v + 0.3 * g * g
            w = w - 0.1 * (m / (1 - 0.5**t) / (np.sqrt(v / (1 - 0.7**t)) + 1e-8))
        expected[path] = w
    assert_all_close(state.params, expected, 1e-5)
