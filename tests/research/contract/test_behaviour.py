"""What nothing reads: by the rules, and by what the compiled step's arguments really reach."""

import json

import jax
import numpy as np
import pytest
from jax.interpreters import partial_eval
from sessions import changes

from jaxnano import step
from jaxnano.config.base import ConfigError, leaves
from jaxnano.config.edit import ABSENT
from jaxnano.config.file import load
from jaxnano.config.recipe import hypers
from research.contract.behaviour import behaviour, needless, unread
from research.contract.gate import Gate
from research.contract.idea import ideas, part
from research.contract.part import IdeaEdit, Part
from research.contract.proposal import build, dead, live
from research.contract.track import CONFIGS, load_track
from research.lanes.protocol import Knowledge, Known
from research.lanes.tuner import Tuner

TRACK = load_track("tiny")
BASE = TRACK.base_recipe
MUON, TABLES = (part(ideas()[name]) for name in ("muon", "fast-tables"))
CHAIN = "optimizer.groups.matrices.chain"
SHADOWED = Part(name="ademamix", edits=(IdeaEdit(path=f"{CHAIN}.adam", new=ABSENT), IdeaEdit(
    path=f"{CHAIN}.ademamix", new={"kind": "ademamix"}, before="decay")))


def changed(*assignments):
    return load(CONFIGS / TRACK.base, assignments)


def read_by_program(recipe):
    """Paths of traced numbers on which state, losses or evaluated parameters depend, by dead-code elimination."""
    values = hypers(recipe, 100)
    names = sorted(values)

    def everything(*numbers):
        given = dict(zip(names, numbers, strict=True))
        state = step.init_state(recipe, np.uint32(0), given)
        batch = np.zeros((recipe.data.batch, recipe.data.length + 1), np.int32)
        state, metrics = step.train_step(recipe, state._replace(step=jax.numpy.int32(7)), batch, given)
        return state, metrics, step.optimizer_at(recipe, 7, given)[1].eval_params(state.optimizer)

    jaxpr = jax.make_jaxpr(everything)(*(values[name] for name in names)).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return {name for name, is_used in zip(names, used, strict=True) if is_used}


FEW = ("model.depth=1", "model.width=16", "data.length=8")
RECIPES = {
    "base": FEW,
    "a schedule without decay": (*FEW, "optimizer.groups.rest.lr={kind: constant, value: 0.01, warmup: 0.1}"),
    "no attention": (*FEW, "model.attention.dropped=[0]", "model.attention.softcap=30.0",
                     "model.init.attention_std=0.1", "model.position={kind: rotary}",
                     "model.wires=[{name: quiet, to: branch, keep: {code: 'a * c', params: {a: 0.5}}}]"),
    "no FFN": (*FEW, "model.ffn.dropped=[0]", "model.init.ffn_std=0.3",
               "model.ffn.activation={kind: expression, code: x * sigmoid(a * x), params: {a: 1.5}}"),
    "own deviations": (*FEW, "model.init.attention_std=0.1", "model.init.ffn_std=0.1"),
    "a tied head's deviation": (*FEW, "model.init.head_std=0.1"),
    "an untied head": (*FEW, "model.init.head_std=0.1", "model.embedding.tied=false", "model.head.z_loss=1e-4"),
    "zero projections": (*FEW, "model.init.zero_projections=true", "optimizer.readout={kind: tail_ema}"),
    "rules for what starts": (*FEW, "model.init.rules=[{name: a, of: [matrix], draw: normal, code: 'a / fan_in', "
                              "params: {a: 0.5}}, {name: b, of: ['*/q'], draw: sign, code: b, params: {b: 0.1}}]"),
    "a group without members": (*FEW, "optimizer.groups.late={name: late, roles: [matrix], lr: 0.1, "
                                      "chain: [{kind: muon}, {kind: decay, rate: 0.2}]}"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_said_to_be_unread_is_what_the_program_does_not_depend_on(name):
    recipe = changed(*RECIPES[name])
    places = unread(recipe)
    said = {leaf.path for leaf in leaves(recipe) if any(f"{leaf.path}.".startswith(f"{place}.") for place in places)}
    cancels = {path for path in said if path.endswith(".floor")}  # floor + (1 - floor) * 1: the program computes it
    assert said - cancels == {leaf.path for leaf in leaves(recipe)} - read_by_program(recipe)
    assert said or name in ("base", "an untied head", "zero projections")


def test_an_edit_in_a_group_that_earlier_groups_leave_nothing_is_refused_with_real_paths():
    verdict = Gate(TRACK).judge_parts([MUON, TABLES, SHADOWED])
    assert not verdict.accepted and {p.path for p in verdict.problems} == {e.path for e in SHADOWED.edits}
    assert all("blocks_0/attention/q" in p.rule and "embedding/token" in p.rule for p in verdict.problems)
    assert Gate(TRACK).judge_parts([MUON, SHADOWED]).accepted  # the tables are still in it


def test_a_lanes_proposal_loses_its_dead_edits_and_an_emptied_group_goes():
    tuned = changes("tune", {"optimizer.groups.matrices.lr.value": 0.01, "optimizer.groups.rest.lr.value": 0.01})
    found = live(BASE, [SHADOWED, MUON, TABLES, tuned])
    assert [p.name for p in found] == [MUON.name, TABLES.name, "tune"]
    assert [e.path for e in found[-1].edits] == ["optimizer.groups.rest.lr.value"]
    assert build(BASE, found) == build(BASE, [SHADOWED, MUON, TABLES, tuned])
    assert "matrices" not in [g.name for g in build(BASE, found).optimizer.groups]
    assert not dead(BASE, found) and not needless(build(BASE, found))
    assert Knowledge(TRACK, [], frozenset()).fresh([SHADOWED, MUON, TABLES]) == (MUON, TABLES)


def test_a_recipe_with_a_group_nobody_is_in_is_refused():
    late = "optimizer.groups.late={name: late, roles: [gain], lr: 0.1, chain: [{kind: adam}]}"
    verdict = Gate(TRACK).judge(changed(late))
    assert [p.path for p in verdict.problems][0] == "optimizer.groups.late" and "without it" in verdict.problems[0].rule


def test_a_group_that_only_completes_the_roles_stays():
    """Nothing has the role `gate` here: a group for it alone is needed all the same."""
    recipe = build(BASE, [changes("no gains", {"model.norm": {"kind": "rmsnorm", "gain": False}, "model.bias": False})])
    assert [g.name for g in recipe.optimizer.groups] == ["matrices", "rest"] and not needless(recipe)
    assert unread(recipe).keys() >= {"optimizer.groups.rest.lr"}


SAME = {
    "a split into groups that do the same": (
        "optimizer.groups.gains={name: gains, roles: [gain], chain: [{kind: adam}], "
        "lr: {kind: cosine, value: 0.004, warmup: 0.05, floor: 0.1}}",
        "optimizer.groups.rest.roles=[bias, scalar, gate, gain]"),
    "the fourth digit": ("optimizer.groups.rest.lr.value=0.004001",),
    "a look-ahead of nothing": ("optimizer.wrapper={kind: ema_nesterov, beta: 0.0}",),
    "an average of weight 0": ("optimizer.readout={kind: tail_ema, weight: 0.0}",),
}


@pytest.mark.parametrize("name", SAME)
def test_other_spellings_of_the_base(name):
    assert behaviour(changed(*SAME[name])) == behaviour(BASE)


def test_a_constant_schedule_is_its_number_and_no_decay_is_a_decay_of_0():
    assert behaviour(changed("optimizer.groups.rest.lr={kind: constant, value: 0.01, floor: 0.5}")) == behaviour(
        changed("optimizer.groups.rest.lr=0.01"))
    assert behaviour(changed("optimizer.groups.matrices.chain.decay.rate=0.0")) == behaviour(
        build(BASE, [changes("x", {f"{CHAIN}.decay": ABSENT})]))


def test_recipes_that_differ_in_a_clock_behave_differently():
    place = "optimizer.groups.rest"
    clocks = ([], [f"{place}.every=2"], [f"{place}.every=3"], [f"{place}.frozen=[[0.0, 0.1]]"],
              [f"{place}.every=2", f"{place}.accumulate=true"])
    assert len({behaviour(changed(*clock)) for clock in clocks}) == len(clocks)


def test_the_tuner_moves_live_numbers_only():
    recipe = changed(*RECIPES["a group without members"][3:], "model.init.head_std=0.1")
    known = [Known("x", "x", recipe, (), 0.1, 0.01, 1, 0.1)]
    paths = set()
    for seed in range(200):
        found = Tuner()._move(Knowledge(TRACK, known, frozenset()), known[0], np.random.default_rng(seed))
        paths |= {edit.path for edit in found.edits} if found else set()
    assert len(paths) > 10 and not any("late" in path or "head_std" in path for path in paths)


def test_parts_that_do_not_apply_are_an_error_here_too():
    with pytest.raises(ConfigError):
        dead(BASE, [changes("x", {"model.nowhere": 1})])


@pytest.mark.parametrize(("code", "params", "named"), [
    ("x * sigmoid(x)", {}, "silu"), ("x / (1 + exp(-x))", {}, "silu"), ("relu(x) * maximum(x, 0)", {}, "relu2"),
    ("b * x * (1 + erf(x / 1.4142135623730951))", {"b": 0.5}, "gelu"),
])
def test_two_spellings_of_one_activation_are_one_recipe(code, params, named):
    def activated(node):
        return behaviour(changed(f"model.ffn.activation={json.dumps(node)}"))

    told = {"kind": named} | ({"approximate": False} if named == "gelu" else {})
    assert activated({"kind": "expression", "code": code, "params": params}) == activated(told)
    others = [{"kind": "gelu"}, {"kind": "expression", "code": f"{code} + 0.01 * tanh(x)", "params": params}]
    assert activated(told) not in map(activated, others)
