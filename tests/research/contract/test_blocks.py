"""Diffs over depth before the gate, the behaviour that names them, and the posterior's features."""

import pytest

from jaxnano.config.base import validate
from jaxnano.config.edit import Diff, Edit, apply
from jaxnano.config.recipe import Recipe
from research.contract.behaviour import behaviour, unread
from research.contract.gate import Gate
from research.contract.track import load_track
from research.learn.features import features

TRACK = load_track("tiny")  # depth 3; data, batch and length are frozen
BASE = TRACK.base_recipe


def changed(*diffs, base=BASE, **edits):
    places = {"model.blocks": list(diffs)} if diffs else {}
    places |= {"model." + path.replace("__", "."): new for path, new in edits.items()}
    return apply(base, Diff(name="test", edits=tuple(Edit.to(base, path, new) for path, new in places.items())))


def named(name, at, **change):
    return {"name": name, "at": at, "set": change}


def test_what_a_track_freezes_is_frozen_in_every_block():
    frozen = TRACK.model_copy(update={"frozen": (*TRACK.frozen, "model.attention.heads", "model.ffn")})
    for change in ({"attention": {"heads": 2}}, {"ffn": {"ratio": 2.0}}, {"ffn": None}, {"attention": None}):
        verdict = Gate(frozen).judge(changed(named("mute", [{"block": 1}], **change)))
        assert not verdict.accepted and any("frozen by track tiny" in problem.rule for problem in verdict.problems)
    assert Gate(frozen).judge(changed(named("ok", [{"block": 1}], attention={"qk_norm": True}))).accepted


def test_what_a_track_freezes_is_frozen_when_the_model_is_evaluated():
    recipe = validate(Recipe, BASE.model_dump(mode="json") | {"evaluation": {"set": {"model": {"attention": {
        "window": 8}}}}})
    assert Gate(TRACK).judge(recipe).accepted and behaviour(recipe) != behaviour(BASE)
    for place in ("model.attention.window", "model.attention", "evaluation"):
        frozen = TRACK.model_copy(update={"frozen": (*TRACK.frozen, place)})
        assert "frozen by track" in Gate(frozen).judge(recipe).problems[0].rule


def test_limits_hold_for_what_the_blocks_make():
    verdict = Gate(TRACK).judge(changed(named("wide", "all", ffn={"ratio": 16.0})))
    assert not verdict.accepted and {p.path for p in verdict.problems} >= {"model"}


@pytest.mark.parametrize(("one", "other"), [
    (changed(named("far", [{"block": 2}], attention={"window": 16})), changed(attention__windows=[0, 0, 16])),
    (changed(named("far", [{"block": 2}], attention={"window": 16})),
     changed(named("near", [{"share": 0.7}], attention={"window": 16}))),
    (changed(named("all", "all", ffn={"ratio": 2.0})), changed(ffn__ratio=2.0)),
    (changed(named("mute", [{"block": 1}], attention=None)), changed(attention__dropped=[1])),
    (changed(named("far", [{"block": 2}], attention={"window": 64})), BASE),  # as long as the text
])
def test_spellings_of_one_model_behave_alike(one, other):
    assert behaviour(one) == behaviour(other) and one != other


def test_blocks_that_differ_do_not():
    far = [changed(named("far", [{"block": block}], attention={"window": 16})) for block in range(3)]
    assert len({behaviour(recipe) for recipe in (*far, BASE)}) == 4


def test_what_no_block_sees_is_a_dead_edit():
    recipe = changed(named("a", [{"block": 0}, {"block": 1}], attention={"window": 8, "qk_norm": True}),
                     named("b", [{"first": 0}], attention={"window": 16}),
                     named("c", [{"block": 2}], attention=None, ffn={"ratio": 2.0}))
    dead = unread(recipe)
    assert "model.blocks.a.set.attention.window" in dead and "model.blocks.a.set.attention.qk_norm" not in dead
    assert {"model.attention.window", "model.attention.qk_norm"} <= dead.keys()  # the third block attends to nothing
    assert "model.ffn.ratio" not in dead and "model.attention.heads" not in dead
    assert "model.blocks.c.set.attention" not in dead and "model.blocks.c.set.ffn.ratio" not in dead
    verdict = Gate(TRACK).judge(recipe)
    assert not verdict.accepted and "nothing reads it: none of its blocks sees it" in verdict.problems[0].rule


def test_features_are_what_blocks_have_by_their_share_of_the_depth():
    half = changed(named("far", [{"block": 0}, {"block": 1}], attention={"qk_norm": True}, ffn={"ratio": 8.0}))
    other = changed(named("another", [{"first": 1}], attention={"qk_norm": True}, ffn={"ratio": 8.0}))
    everywhere = changed(named("x", "all", attention={"qk_norm": True}, ffn={"ratio": 8.0}))
    plain = changed(attention__qk_norm=True, ffn__ratio=8.0)
    found, told = features(BASE, half), features(BASE, plain)
    assert found == features(BASE, other)  # the same share; names are no features
    assert found["model.ffn.ratio"] == pytest.approx(2 / 3 * told["model.ffn.ratio"])
    assert found["model.attention.qk_norm=True"] == pytest.approx(2 / 3)
    assert features(BASE, everywhere) == pytest.approx(told)
    assert features(half, half) == {} and features(half, BASE)["model.ffn.ratio"] == -found["model.ffn.ratio"]


def test_a_recipe_with_blocks_is_read_back():
    recipe = changed(named("far", [{"block": 0}], attention={"qk_norm": True}))
    assert validate(Recipe, recipe.model_dump(mode="json")) == recipe
