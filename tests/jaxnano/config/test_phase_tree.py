"""Phases as data: what a recipe is in each, what leaves no trace, what is refused, and when they begin."""

from __future__ import annotations

from typing import Any

import pytest

from jaxnano.config.base import ConfigError, dump, dump_full, leaves, validate
from jaxnano.config.edit import ABSENT, diff, read
from jaxnano.config.recipe import Recipe, beside, first_steps, hypers, recipe_id, shipped, stages, structure_id
from tests.jaxnano.recipes import TINY, edited, model

ROTARY = model(position={"kind": "rotary"})
HALF = {"name": "half", "start": 0.5}


def phased(*phases: dict[str, Any], base: Recipe = ROTARY, **changes: Any) -> Recipe:
    return validate(Recipe, {**dump(base), **changes, "phases": list(phases)})


THREE = phased(
    {"name": "wide", "start": 0.25, "set": {"data": {"batch": 4}, "model": {"attention": {"window": 8}}}},
    {"name": "muon", "start": 0.5, "set": {"model": {"attention": {"window": 0}}, "optimizer": {"groups": {
        "matrices": {"lr": 0.01, "chain": {"adam": {"kind": "muon"}}}, "rest": {"chain": {"adam": {"b1": 0.8}}}}}}},
    {"name": "untied", "start": 0.75, "set": {"model": {"embedding": {"tied": False}}, "train": {"remat": True}},
     "carry": {"head/weight": "embedding/token"}},
    evaluation={"set": {"model": {"attention": {"window": 4}}}})


def test_each_stage_is_the_recipe_with_what_the_phases_so_far_set() -> None:
    first, wide, muon, untied = (part.recipe for part in stages(THREE))
    assert first == ROTARY and [part.start for part in stages(THREE)] == [0.0, 0.25, 0.5, 0.75]
    assert wide == edited(ROTARY, {"data.batch": 4, "model.attention.window": 8})
    changes = {"optimizer.groups.matrices.lr": 0.01, "optimizer.groups.rest.chain.adam.b1": 0.8, "data.batch": 4}
    assert muon == edited(ROTARY, changes | {"optimizer.groups.matrices.chain": [{"kind": "muon"}, {"kind": "decay"}]})
    late = untied.model_copy(update={"evaluation": None})
    assert late == edited(muon, {"model.embedding.tied": False, "train.remat": True})
    assert stages(THREE)[3].carry == {"head/weight": "embedding/token"} and stages(ROTARY)[0].recipe is ROTARY


def test_what_is_shipped_is_the_last_phases_model_as_it_is_evaluated_on_the_data_of_the_start() -> None:
    last = shipped(THREE)
    assert last.model == edited(ROTARY, {"model.embedding.tied": False, "model.attention.window": 4}).model
    assert last.data == THREE.data and not last.phases and last.evaluation is None and last.train.remat


def test_a_phase_that_changes_nothing_is_no_phase() -> None:
    same = {"model": {"attention": {"window": 0}}, "data": {"batch": 2}, "optimizer": {"groups": {
        "rest": {"chain": {"adam": {"b2": 0.95}}}}}}
    assert recipe_id(phased({**HALF, "set": same})) == recipe_id(ROTARY)
    twice = phased({**HALF, "set": {"data": {"batch": 4}}}, {"name": "again", "start": 0.7, "set": {
        "data": {"batch": 4}, "train": {"remat": True}}})
    assert read(twice, "phases.again.set") == {"train": {"remat": True}}
    seen = phased({**HALF, "set": {"model": {"attention": {"window": 4}}}},
                  evaluation={"set": {"model": {"attention": {"window": 4}}}})
    assert seen.evaluation is None  # the last phase has it already


def test_an_absence_set_over_a_diff_that_says_nothing_of_it_stays() -> None:
    base = edited(ROTARY, {"model.blocks": [{"name": "late", "at": [{"block": 1}], "set": {"bias": True}}]})
    recipe = phased({**HALF, "set": {"model": {"blocks": {"late": {"set": {"attention": None}}}}}}, base=base)
    assert stages(recipe)[1].recipe.model.block(1).attention is None and stages(recipe)[1].recipe.model.block(1).bias
    gone = phased({**HALF, "set": {"model": {"blocks": {"late": None}}}}, base=base)
    assert stages(gone)[1].recipe.model == ROTARY.model


def test_phases_survive_a_round_trip_and_edits_reach_inside() -> None:
    assert validate(Recipe, dump_full(THREE)) == THREE and recipe_id(validate(Recipe, dump(THREE))) == recipe_id(THREE)
    other = edited(THREE, {"phases.wide.set.data.batch": 8, "phases.wide.set.data.length": 8,
                           "phases.untied.set.train": ABSENT, "phases.muon.start": 0.6})
    assert stages(other)[1].recipe.data == edited(ROTARY, {"data.batch": 8, "data.length": 8}).data
    assert read(THREE, "phases.wide.set.data.length") == ABSENT and not stages(other)[3].recipe.train.remat
    assert {edit.path for edit in diff(THREE, other).edits} == {
        "phases.wide.set.data.batch", "phases.wide.set.data.length", "phases.untied.set.train", "phases.muon.start"}
    less = edited(THREE, {"phases.muon": ABSENT})
    assert [phase.name for phase in less.phases] == ["wide", "untied"]


def test_numbers_of_phases_are_no_structure_and_reach_the_stage() -> None:
    paths = {leaf.path for leaf in leaves(THREE)}
    assert {"phases.muon.start", "phases.muon.set.optimizer.groups.matrices.lr"} <= paths
    other = edited(THREE, {"phases.muon.set.optimizer.groups.matrices.lr": 0.02, "phases.muon.start": 0.6})
    assert structure_id(other) == structure_id(THREE) and recipe_id(other) != recipe_id(THREE)
    parts = [part.recipe for part in stages(phased({**HALF, "set": {"optimizer": {"clip": 0.5}}}))]
    assert structure_id(parts[0]) == structure_id(parts[1])
    assert hypers(parts[1], 9)["optimizer.clip"] == 0.5 and hypers(parts[0], 9)["optimizer.clip"] == 1.0


@pytest.mark.parametrize(("phase", "message"), [
    ({"set": {"data": {"kind": "text"}}}, "half.set.data.kind: \"text\": no such field; length, batch, documents wou"),
    ({"set": {"data": {"path": "x"}}}, "no such field"), ({"set": {"evaluation": {}}}, "no such field; model, optimi"),
    ({"set": {"model": {"vocab": 64}}}, "phases.half.set.model.vocab: 64: embedded data has 256 tokens; 256 would do"),
    ({"set": {"model": {"width": 18}}}, "phases.half.set.model.attention.heads: 4: width 18 is not divisible"),
    ({"set": {"model": {"ffn": None}}}, "phases.half.set.model.ffn: null: a map would do"),
    ({"set": {"model": None}}, "phases.half.set.model: null: a map of its fields would do"),
    ({"set": {"optimizer": {"groups": {"hidden": {"lr": 1.0}}}}},
     'phases.half.set.optimizer.groups.hidden: "hidden": no such item; matrices, rest would do'),
    ({"set": {"optimizer": {"groups": {"rest": {"chain": {"muon": {"momentum": 0.5}}}}}}}, "no such item; adam would"),
    ({"set": {"model": {"blocks": {"late": {"set": {}}}}}}, "no such item; none, as there is none, would do"),
    ({"set": {"optimizer": {"groups": {"matrices": None}}}}, "no group takes the role(s) matrix, embedding, head"),
    ({"set": {"data": {"length": 24}}}, "data.length: 16: divides the longest phase's 24, as windows are cut from "),
    ({"set": {"data": {"length": 128, "batch": 3}}}, "data.batch: 2: 10 steps fill whole windows of 128, the longest; "
                                                     "a multiple of 4 would do"),
    ({"set": {"data": {"documents": {"align": True}}}}, "phases.half.set.data.documents.align: true: rows begin with "
                                                        "documents in every phase, all of one length, or in none"),
    ({"set": {"train": {"remat": True}}, "start": 1.0}, "phases.half.start: 1.0: between 0.001 and 0.999"),
    ({"set": {"train": {"remat": True}}, "start": 0.2}, "the phase before begins at 0.25; more than that would do"),
])
def test_what_no_run_could_do_is_refused_with_what_would(phase: dict[str, Any], message: str) -> None:
    before = {"name": "first", "start": 0.25, "set": {"optimizer": {"clip": 2.0}}}
    with pytest.raises(ConfigError) as caught:
        phased(before, {**HALF, **phase})
    assert message in str(caught.value)


def test_learned_positions_are_as_many_in_every_phase() -> None:
    with pytest.raises(ConfigError, match="learned positions are as many as the recipe's; 16, or another"):
        phased({**HALF, "set": {"data": {"length": 32}}}, base=TINY)


def test_names_of_phases_are_unique() -> None:
    with pytest.raises(ConfigError, match="names in a list are unique"):
        phased({**HALF, "set": {"data": {"batch": 4}}}, {**HALF, "start": 0.6, "set": {"data": {"batch": 8}}})


def test_there_are_as_many_phases_as_compile_in_reasonable_time() -> None:
    many = [{"name": f"p{i}", "start": (i + 1) / 40, "set": {"data": {"batch": 4 + i}}} for i in range(33)]
    assert len(phased(*many[:32]).phases) == 32
    with pytest.raises(ConfigError, match="phases: .*: at most 32 items would do"):
        phased(*many)


def test_phases_begin_with_a_call_and_the_last_one_always_runs() -> None:
    assert first_steps(THREE, 400) == (0, 100, 200, 300)
    assert first_steps(THREE, 97) == (0, 20, 50, 70)  # 24.25, 48.5 and 72.75
    assert first_steps(THREE, 20) == (0, 0, 10, 10) and first_steps(THREE, 7) == (0, 0, 0, 0)
    late = edited(THREE, {"phases.untied.start": 0.999})
    assert first_steps(late, 100)[-1] == 90 and first_steps(late, 101)[-1] == 100 and first_steps(ROTARY, 5) == (0,)


def test_two_recipes_beside_each_other_over_a_run() -> None:
    other = phased({"name": "late", "start": 0.6, "set": {"data": {"batch": 8}}})
    pairs = [(round(share, 9), a.name, b.name) for share, a, b in beside(other, THREE)]
    assert pairs == [(0.25, "", ""), (0.25, "", "wide"), (0.1, "", "muon"), (0.15, "late", "muon"),
                     (0.25, "late", "untied")]
