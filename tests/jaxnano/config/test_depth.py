"""Named diffs over blocks: places, merging, ids, edits that reach inside, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnano.config.base import ConfigError, dump, leaves, validate
from jaxnano.config.block import ConstantScale, Glu, Silu
from jaxnano.config.depth import DepthPlace, blocks_at
from jaxnano.config.edit import ABSENT, Diff, Edit, apply, diff, invert, read
from jaxnano.config.recipe import Recipe, at, hypers, recipe_id, shipped, structure_id
from jaxnano.cost import preflight
from jaxnano.evaluate import evaluate
from jaxnano.model import gpt
from jaxnano.model.specs import specs
from tests.jaxnano.recipes import TINY, model

LONG = {"name": "long", "at": [{"block": 0}, {"block": -1}], "set": {"attention": {"window": 8}}}
BASE = model(depth=4, attention__window=4)


def blocks(*diffs: dict[str, Any], **changes: Any) -> Recipe:
    return model(depth=4, attention__window=4, blocks=list(diffs), **changes)


@pytest.mark.parametrize(("places", "depth", "expected"), [
    ("all", 3, (0, 1, 2)), ([{"block": 1}, {"block": -1}], 4, (1, 3)),
    ([{"share": 0.0}, {"share": 0.5}], 6, (0, 3)),
    ([{"share": 0.99}], 3, (2,)), ([{"first": 1}], 4, (1, 2, 3)),
    ([{"first": 0, "last": -2, "every": 2}], 6, (0, 2, 4)),
    ([{"every": 3}], 7, (0, 3, 6)), ([{"last": 1}, {"block": 3}], 4, (0, 1, 3)),
])
def test_places(places: Any, depth: int, expected: tuple[int, ...]) -> None:
    found = "all" if places == "all" else tuple(validate(DepthPlace, place) for place in places)
    assert blocks_at(found, depth) == expected


@pytest.mark.parametrize(("change", "message"), [
    ({"at": [{"block": 4}]}, 'model.blocks.long.at: {"block": 4}: no block of a model of depth 4; 0..3, -1'),
    ({"at": [{"first": 2, "last": 1}]}, "no block of a model of depth 4"),
    ({"at": [{"block": 0}, {"share": 0.1}]}, "block 0 is among the places before it"),
    ({"at": []}, "at least one place, or all"),
    ({"at": [{}]}, "one of {block: 3}, {share: 0.5} and {first: 0, last: -1, every: 2} would do"),
    ({"at": [{"block": 1, "share": 0.5}]}, "one of {block: 3}"),
    ({"at": [3]}, "model.blocks.long.at.0: 3: a map of its fields would do"),
    ({"at": "some"}, 'model.blocks.long.at: "some"'),
    ({"set": {"attention": {"heads": 5}}}, "model.blocks.long.set.attention.heads: 5: width 16 is not divisible by 5"),
    ({"set": {"attention": {"hads": 2}}}, "model.blocks.long.set.attention.hads: 2: no such field; heads would do"),
    ({"set": {"ffn": {"ratio": 99.0}}}, "model.blocks.long.set.ffn.ratio: 99.0: at most 16 would do"),
    ({"set": {"ffn": {"kind": "moe"}}}, "model.blocks.long.set.ffn.kind: \"moe\": one of 'mlp', 'glu'"),
    ({"set": {"ffn": {"kind": ""}}}, "model.blocks.long.set.ffn.kind: \"\": one of 'mlp', 'glu'"),
    ({"set": {"ffn": {"kind": ["mlp"]}}}, "model.blocks.long.set.ffn.kind"),
    ({"set": {"ffn": {"kind": "same"}}}, "model.blocks.long.set.ffn.kind"),
    ({"set": {"attention": {"gate": {"kind": "tanh"}}}}, "model.blocks.long.set.attention.gate.kind"),
    ({"set": {"norm": None}}, "model.blocks.long.set.norm: null"),
    ({"set": {"attention.window": 8}}, "no such field"),
    ({"set": {"vocab": 8}}, "model.blocks.long.set.vocab: 8: no such field"),
    ({"set": {"attention": {"windows": [4]}}}, "windows says it already"),
])
def test_what_makes_no_sense_is_refused_where_it_stands(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        blocks(LONG | change)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_diff_that_says_it_is_blamed_not_a_later_one() -> None:
    wrong = {"name": "wrong", "at": "all", "set": {"attention": {"output": {"code": "v * nobody"}}}}
    with pytest.raises(ConfigError, match=r"model\.blocks\.wrong\.set\.attention\.output"):
        blocks(wrong, LONG)


def test_a_mapping_merges_another_kind_starts_from_its_defaults_and_null_takes_away() -> None:
    found = blocks(
        {"name": "gated", "at": [{"block": 1}], "set": {"ffn": {"kind": "glu"}, "attention": {"heads": 2}}},
        {"name": "same", "at": [{"block": 2}], "set": {"ffn": {"activation": {"kind": "silu"}}}},
        {"name": "mute", "at": [{"block": 3}], "set": {"attention": None}}, ffn__ratio=2.0).model
    trees = [found.block(block) for block in range(4)]
    assert trees[0].ffn == found.ffn and trees[0].attention == found.attention
    assert trees[1].ffn == Glu(kind="glu") and (trees[1].attention.heads, trees[1].attention.window) == (2, 4)
    assert trees[2].ffn == found.ffn.model_copy(update={"activation": Silu(kind="silu")})
    assert trees[3].attention is None and trees[3].ffn == found.ffn


def test_later_diffs_win_and_windows_and_dropped_say_the_same_as_before() -> None:
    found = blocks(LONG, {"name": "last", "at": [{"block": 3}], "set": {"attention": {"window": 2}}}).model
    assert [found.block(block).attention.window for block in range(4)] == [8, 4, 4, 2]
    old = model(depth=4, attention__windows=[8, 4], attention__dropped=[2], ffn__dropped=[0]).model
    trees = [old.block(block) for block in range(4)]
    assert [tree.attention and tree.attention.window for tree in trees] == [8, 4, None, 4]
    assert [tree.ffn is None for tree in trees] == [True, False, False, False]


def test_a_diff_that_changes_nothing_has_the_name_of_the_base() -> None:
    idle = {"name": "idle", "at": "all", "set": {"attention": {"window": 4, "heads": 4}, "ffn": {"kind": "mlp"}}}
    assert recipe_id(blocks(idle)) == recipe_id(BASE)
    kept = blocks(LONG | {"set": {"attention": {"window": 8, "heads": 4}}})
    assert kept == blocks(LONG) and dump(kept)["model"]["blocks"] == [LONG]
    undone = blocks(LONG, {"name": "back", "at": [{"block": 0}], "set": {"attention": {"window": 4}}})
    assert [b.name for b in undone.model.blocks] == ["long", "back"]  # it changes what the diff before it says
    assert undone.model.block(0).attention.window == 4


def test_traced_numbers_in_a_diff_are_leaves_like_any_other() -> None:
    scale = {"attention": {"scale": {"kind": "constant", "value": {"kind": "linear", "value": 0.4}}}}
    one, two = blocks(LONG | {"set": scale}), blocks(LONG | {"set": {"attention": {"scale": {
        "kind": "constant", "value": {"kind": "linear", "value": 0.2}}}}})
    place = "model.blocks.long.set.attention.scale.value.value"
    assert {leaf.path: leaf.value for leaf in leaves(one)}[place] == 0.4
    assert structure_id(one) == structure_id(two) != structure_id(BASE) and recipe_id(one) != recipe_id(two)
    resolved = at(one, hypers(one, 10), jnp.float32(0.5)).model
    assert isinstance(resolved.block(0).attention.scale, ConstantScale)
    np.testing.assert_allclose(resolved.block(0).attention.scale.value, 0.2, rtol=1e-6)
    assert resolved.block(1).attention.scale.kind == "inverse_sqrt"
    assert validate(Recipe, dump(one)) == one


def test_edits_reach_inside() -> None:
    recipe, place = blocks(LONG), "model.blocks.long.set.attention"
    assert read(recipe, f"{place}.window") == 8 and read(recipe, f"{place}.qk_norm") == ABSENT
    assert read(recipe, "model.blocks.long.set.ffn.ratio") == ABSENT and read(recipe, "model.blocks.short") == ABSENT
    changes = {f"{place}.qk_norm": True, "model.blocks.long.set.ffn.ratio": 2.0, f"{place}.window": 16}
    edited = apply(recipe, Diff(name="in", edits=tuple(Edit.to(recipe, path, new) for path, new in changes.items())))
    assert edited == blocks(LONG | {"set": {"attention": {"window": 16, "qk_norm": True}, "ffn": {"ratio": 2.0}}})
    told = diff(recipe, edited)
    assert {e.path: (e.old, e.new) for e in told.edits} == {
        f"{place}.window": (8, 16), f"{place}.qk_norm": (ABSENT, True),
        "model.blocks.long.set.ffn": (ABSENT, {"ratio": 2.0})}
    assert apply(recipe, told) == edited and apply(edited, invert(recipe, told)) == recipe
    gone = apply(recipe, Diff(name="off", edits=(Edit.to(recipe, f"{place}.window", ABSENT),)))
    assert recipe_id(gone) == recipe_id(BASE)
    null = apply(recipe, Diff(name="mute", edits=(Edit.to(recipe, place, None),)))
    assert null.model.block(0).attention is None and diff(recipe, null).edits[0].new is None


def test_the_table_and_the_cost_follow_the_blocks() -> None:
    recipe = blocks({"name": "mute", "at": [{"share": 0.5}], "set": {"attention": None}},
                    {"name": "wide", "at": [{"block": 0}], "set": {"ffn": {"ratio": 8.0}, "attention": {"window": 16}}})
    table = specs(recipe)
    assert table["blocks_0/ffn/up"].shape == (16, 128) and table["blocks_1/ffn/up"].shape == (16, 64)
    assert not any(path.startswith("blocks_2/attention") for path in table)
    gained = preflight(recipe).model_flops_per_token - preflight(BASE).model_flops_per_token
    scores = 3 * 4 * ((16 - 4) - 4) * 16  # 12 more positions in one block, 4 fewer in another
    assert gained == pytest.approx(scores + 6 * (2 * 16 * 64 - 4 * 16 * 16))


def test_a_value_table_needs_values_of_its_width() -> None:
    with pytest.raises(ConfigError, match="wires.v.to: \"value\": v has 16 channels and value only 8"):
        blocks({"name": "few", "at": [{"block": 0}], "set": {"attention": {"kv_heads": 2}}},
               tables=[{"name": "v"}], wires=[{"name": "v", "source": "v", "to": "value"}])


def test_blocks_have_no_learned_positions_of_their_own() -> None:
    with pytest.raises(ConfigError, match="blocks.long.set.position.*it is added to the embedding"):
        blocks(LONG | {"set": {"position": {"kind": "learned"}}}, position={"kind": "rotary"})


def evaluated(change: dict[str, Any]) -> Recipe:
    return validate(Recipe, dump(blocks(LONG)) | {"evaluation": {"set": {"model": change}}})


def test_an_evaluation_diff_reaches_windows_in_the_prototype_and_in_diffs() -> None:
    recipe = evaluated({"attention": {"window": 6}, "blocks": {"long": {"set": {"attention": {"window": 12}}}}})
    assert [recipe.model.block(i).attention.window for i in range(4)] == [8, 4, 4, 8]
    assert [shipped(recipe).model.block(i).attention.window for i in range(4)] == [12, 6, 6, 12]
    resolved = shipped(at(recipe, hypers(recipe, 10), jnp.float32(1.0)))
    assert [resolved.model.block(i).attention.window for i in range(4)] == [12, 6, 6, 12]
    assert validate(Recipe, dump(recipe)) == recipe and shipped(blocks(LONG)) == blocks(LONG)
    same = evaluated({"attention": {"window": 4}, "blocks": {"long": {"set": {"attention": {"window": 8}}}}})
    assert recipe_id(same) == recipe_id(blocks(LONG)) != recipe_id(recipe)


@pytest.mark.parametrize("change", [
    {"width": 8}, {"attention": {"heads": 2}}, {"attention": None}, {"blocks": {"long": None}}, {"depth": 2},
    {"blocks": {"long": {"set": {"ffn": {"ratio": 2.0}}}}},
    {"blocks": {"short": {"set": {"attention": {"window": 2}}}}},
    {"head": {"softcap": {"kind": "tanh"}}}, {"embedding": {"tied": False}}, {"blocks": {"long": {"at": "all"}}},
])
def test_evaluation_is_attacked_in_vain(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.set\.model\..*attention's windows alone may differ"):
        evaluated(change)
    for place in ({"data": {"batch": 1}}, {"train": {"dtype": "bfloat16"}}, {"optimizer": {"clip": None}}):
        with pytest.raises(ConfigError, match="no such field; model would do"):
            validate(Recipe, dump(TINY) | {"evaluation": {"set": place}})


def test_the_loss_is_that_of_the_windows_that_evaluation_names() -> None:
    """Weights trained in one window and evaluated in another: as if the recipe had had that window from the start."""
    short, long = model(attention__window=3), model(attention__window=9)
    both = validate(Recipe, dump(short) | {"evaluation": {"set": {"model": {"attention": {"window": 9}}}}})
    params = gpt.init(jax.random.key(0), short, hypers(short, 1))
    windows = np.random.default_rng(0).integers(0, 256, (2, 2, 17)).astype(np.int32)
    losses = [evaluate(recipe, params, windows) for recipe in (short, long, both)]
    assert losses[2] == losses[1] != losses[0]


def test_nothing_else_changes() -> None:
    assert TINY.model.block(0) is TINY.model and recipe_id(TINY) == recipe_id(validate(Recipe, dump(TINY)))


def test_a_diff_that_repeats_what_an_earlier_one_leaves_as_it_was_is_none() -> None:
    same = {"ffn": {"kind": "mlp", "dropped": []}}
    recipe = model(blocks=[{"name": "a", "at": [{"block": -1}], "set": {"ffn": {**same["ffn"], "ratio": 1.0}}},
                           {"name": "b", "at": [{"block": -1}], "set": same}])
    assert [diff.name for diff in recipe.model.blocks] == ["a"] and validate(Recipe, dump(recipe)) == recipe
