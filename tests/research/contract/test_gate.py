"""Verdicts: what is frozen, too large or known already is refused, with path, value, rule and what would pass."""

import json

import pytest

from jaxnano.config.base import dump
from jaxnano.config.edit import ABSENT, Diff, Edit
from jaxnano.config.file import load
from jaxnano.config.recipe import Recipe, recipe_id
from jaxnano.cost import preflight
from research.contract.gate import Gate, behaviour
from research.contract.track import CONFIGS, load_track

TRACK = load_track("tiny")


@pytest.fixture
def gate():
    return Gate(TRACK)


def changed(*assignments: str) -> Recipe:
    return load(CONFIGS / TRACK.base, assignments)


def refused(verdict):
    """The problems of a refusal, each of which says where, what and why."""
    assert not verdict.accepted and verdict.problems
    assert verdict.as_dict()["accepted"] is False and len(verdict.as_dict()["refusals"]) == len(verdict.problems)
    assert all(problem.rule for problem in verdict.problems)
    return {problem.path: problem for problem in verdict.problems}


def test_a_change_of_what_is_free_is_accepted(gate):
    verdict = gate.judge(changed("model.attention.qk_norm=true"))
    assert verdict.accepted and verdict.problems == [] and verdict.ms > 0
    assert verdict.as_dict() == {"accepted": True, "refusals": [], "ms": verdict.ms}


def test_a_recipe_comes_as_itself_as_plain_data_or_as_a_diff(gate):
    edit = Edit(path="model.attention.qk_norm", old=False, new=True)
    verdicts = [gate.judge(changed("model.attention.qk_norm=true")), gate.judge(Diff(name="qk", edits=(edit,)))]
    verdicts.append(gate.judge({**changed("model.attention.qk_norm=true").model_dump(mode="json")}))
    assert len({recipe_id(v.recipe) for v in verdicts if v.recipe}) == 1 and all(v.accepted for v in verdicts)


@pytest.mark.parametrize(("assignment", "path", "value", "instead"), [
    ("data.batch=24", "data.batch", 24, f"{TRACK.base_recipe.data.batch} would do"),
    ("data.length=32", "data.length", 32, f"{TRACK.base_recipe.data.length} would do"),
    ("model.vocab=512", "model.vocab", 512, "would do"),
    ("train.remat=true", "train.remat", True, "would do"),
    ("train.loss_dtype=bfloat16", "train.loss_dtype", "bfloat16", "float32"),
    ("train.weights=upper_half", "train.weights", "upper_half", "float32"),
    ("data.documents={mask: true}", "data.documents", {}, "null would do"),
])
def test_what_is_frozen_is_refused(gate, assignment, path, value, instead):
    problem = refused(gate.judge(changed(assignment)))[path]
    assert problem.value == value and "frozen by track tiny" in problem.rule and instead in problem.rule


def test_limits_name_the_number_and_the_most(gate):
    wide = changed("model.width=96")
    problem = refused(gate.judge(wide))["model"]
    most = int(1.05 * TRACK.base_cost.parameters)
    assert problem.value == preflight(wide).parameters > most and f"{most:,}" in problem.rule
    tight = Gate(TRACK, device_bytes=1 << 20)
    problem = refused(tight.judge(changed("model.attention.qk_norm=true")))["model"]
    assert problem.value > 1 << 20 and "1.049e+06" in problem.rule
    costly = Gate(TRACK.model_copy(update={"limits": TRACK.limits.model_copy(update={"step_flops": 0.5})}))
    assert "training FLOPs" in refused(costly.judge(changed("model.attention.qk_norm=true")))["optimizer"].rule


@pytest.mark.parametrize(("data", "path"), [
    ({"model": {"width": "wide"}}, "model.width"),
    ({"model": {"depth": 0}}, "model.depth"),
    ({"model": {"witdh": 64}}, "model.witdh"),
    ({"model": {"ffn": {"kind": "moe"}}}, "model.ffn"),
    ({"optimizer": {"clip": -1.0}}, "optimizer.clip"),
    ({"optimizer": {"clip": float("nan")}}, "optimizer.clip"),
    ({"model": {"wires": [{"name": "a", "source": "nowhere"}]}}, "model.wires.a.source"),
    ({"model": {"attention": {"heads": 5}}}, "model"),
    ([1, 2], ""),
    ("recipe", ""),
])
def test_what_is_no_recipe_is_refused_where_it_is_wrong(gate, data, path):
    assert any(found.startswith(path) for found in refused(gate.judge(data)))


def test_a_stale_diff_is_refused(gate):
    edit = Edit(path="model.attention.heads", old=8, new=2)
    assert "model.attention.heads" in refused(gate.judge(Diff(name="stale", edits=(edit,))))
    edit = Edit(path="model.attention.wings", old=ABSENT, new=2)
    assert any("wings" in path for path in refused(gate.judge(Diff(name="nowhere", edits=(edit,)))))


def test_the_base_and_what_was_remembered_are_known(gate):
    assert "the same recipe" in refused(gate.judge(TRACK.base_recipe))[""].rule
    recipe = changed("model.attention.qk_norm=true")
    assert gate.judge(recipe).accepted and gate.judge(recipe).accepted  # judging alone makes nothing known
    gate.remember(recipe)
    assert f"the same recipe as {recipe_id(recipe)}" in refused(gate.judge(recipe))[""].rule


TAP = 'model.taps=[{"name": "s"}]'
SAME = {
    "explicit multi-head": ["model.attention.kv_heads=4"],
    "explicit head dim": ["model.attention.head_dim=16"],
    "windows as long as the text": ["model.attention.windows=[64]"],
    "windows longer than the text": ["model.attention.windows=[100, 0]"],
    "a tap nobody reads": [TAP],
    "a wire between taps that nobody reads": [TAP, 'model.wires=[{"name": "w", "source": "s", "to": "s"}]'],
    "a table nobody reads": ['model.tables=[{"name": "t"}]'],
    "blocks of windows that are not there": ["model.attention.window_block=16"],
    "a window that blocks round to the text": ["model.attention.window=40", "model.attention.window_block=32"],
    "a ratio that rounds to the same width": ["model.ffn.ratio=4.001"],
}
OTHER = {
    "fewer key heads": ["model.attention.kv_heads=2"],
    "a window within the text": ["model.attention.windows=[63]"],
    "one window within the text": ["model.attention.windows=[0, 32]"],
    "a tap that is read": [TAP, 'model.wires=[{"name": "w", "source": "s", "at": [{"block": -1}]}]'],
    "a wider ffn": ["model.ffn.ratio=4.1"],
    "heads in turns": ["model.attention.interleaved=2"],
    "shared weights": ["model.attention.mix_weights={kind: matrix}"],
    "a dropped block": ["model.attention.dropped=[1]"],
    "another learning rate": ["optimizer.groups.rest.lr.value=0.0041"],
}


@pytest.mark.parametrize("name", SAME)
def test_another_spelling_of_the_same_behaviour_is_refused(gate, name):
    recipe = changed(*SAME[name])
    assert recipe_id(recipe) != recipe_id(TRACK.base_recipe)
    assert f"another spelling as {recipe_id(TRACK.base_recipe)}" in refused(gate.judge(recipe))[""].rule


@pytest.mark.parametrize("name", OTHER)
def test_what_behaves_otherwise_has_another_name(name):
    assert behaviour(changed(*OTHER[name])) != behaviour(TRACK.base_recipe)


def test_every_problem_is_named_at_once(gate):
    found = refused(gate.judge(changed("data.batch=24", "model.width=96")))
    assert {"data.batch", "model"} <= found.keys()


def test_other_spellings_of_windows_and_of_documents():
    def same(a, b):
        return behaviour(changed(*a)) == behaviour(changed(*b))

    block = "model.attention.window_block"
    assert same(["model.attention.window=17", f"{block}=8"], ["model.attention.window=24", f"{block}=8"])
    assert not same(["model.attention.window=24"], ["model.attention.window=24", f"{block}=8"])
    near, mix = ["model.attention.window=24"], "model.attention.mix_weights={kind: vectors, window: %d}"
    assert same([*near, mix % 24], [*near, mix % 0]) and not same([*near, mix % 12], [*near, mix % 0])
    assert same(["data.documents={}"], ["data.documents={separator: 0, most: 64}"])
    assert not same(["data.documents={}"], ["data.documents={most: 63}"])


def test_names_and_order_of_targets_are_nothing():
    def one(*targets):
        written = ", ".join(f"{{name: {name}, shift: {shift}, weight: {weight}}}" for name, shift, weight in targets)
        return behaviour(changed(f"model.head.targets=[{written}]"))

    assert one(("a", 1, 1.0), ("b", 3, 0.0)) == behaviour(TRACK.base_recipe)
    assert one(("a", 2, 0.0)) not in (behaviour(TRACK.base_recipe), one(("a", 2, 1.0)))  # learns nothing
    assert one(("a", 1, 1.0), ("b", 2, 0.5)) == one(("x", 2, 0.5), ("y", 1, 1.0)) != one(("a", 1, 1.0), ("b", 2, 0.4))


@pytest.mark.parametrize(("pin", "refused"), [
    ([{"kind": "hyperball"}], True),
    ([{"name": "pin", "into": "W", "code": "(W0 - lr * u) * norm(W0) / maximum(norm(W0 - lr * u), 1e-30)"}], True),
    ([{"name": "grow", "into": "W", "code": "W0 * exp(-lr * u)"}], True), ([{"kind": "decay"}], False),
])
def test_what_starts_at_zero_and_would_stay_there_is_refused(gate, pin, refused):
    rule = {"name": "still", "of": ["blocks_0/ffn/down"], "draw": "constant", "code": "0 * fan_in"}
    group = {"name": "hidden", "roles": ["matrix"], "lr": 0.01, "chain": [{"kind": "adam"}, *pin]}
    groups = json.dumps([group, *dump(TRACK.base_recipe)["optimizer"]["groups"]])
    at_zero = gate.judge(changed(f"optimizer.groups={groups}", f"model.init.rules={json.dumps([rule])}"))
    assert at_zero.accepted != refused
    if refused:
        assert "optimizer.groups.hidden.chain" in at_zero.problems[0].path
        assert "blocks_0/ffn/down" in str(at_zero.problems[0])
    assert gate.judge(changed(f"optimizer.groups={groups}")).accepted


@pytest.mark.parametrize(("devices", "memory", "path", "rule"), [
    (2, 1 << 30, None, ""), (64, 1 << 30, None, ""), (3, 1 << 30, "data.batch", "a multiple of 3 would do"),
    (2, 1 << 14, "model", "on one of 2 devices"),
])
def test_a_place_of_several_devices_has_to_take_the_recipe(devices, memory, path, rule):
    """Over more than the batch has rows heads and channels are divided too; over three nothing is."""
    verdict = Gate(TRACK, memory, devices).judge(changed("model.attention.qk_norm=true"))
    assert verdict.accepted if path is None else rule in refused(verdict)[path].rule


def test_a_batch_that_fits_one_device_in_pieces_alone_fits_several():
    cost = preflight(changed("model.attention.qk_norm=true"))
    alone, several = (Gate(TRACK, cost.total_bytes - 1, n).judge(changed("model.attention.qk_norm=true"))
                      for n in (1, 2))
    assert refused(alone)["model"].value == cost.total_bytes and several.accepted
