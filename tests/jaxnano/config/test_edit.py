"""Edits and diffs: applied, refused when stale, inverted, minimal, in conflict."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnano.config.base import ConfigError, Leaf, dump, leaves, validate
from jaxnano.config.edit import ABSENT, Diff, Edit, apply, conflicts, diff, invert, read, render
from jaxnano.config.recipe import Recipe, recipe_id
from tests.jaxnano.recipes import RECIPES, TINY, edited

PAIRS = [(a, b) for a in ("gpt2", "x0_skips", "scheduled") for b in RECIPES]
MUON = {"name": "hidden", "roles": ["matrix"], "lr": 0.02, "chain": [{"kind": "muon"}]}


def change(*edits: Edit, name: str = "test") -> Diff:
    return Diff(name=name, edits=edits)


def refusal(recipe: Recipe, *edits: Edit) -> str:
    with pytest.raises(ConfigError) as caught:
        apply(recipe, change(*edits))
    return str(caught.value)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_a_diff_leads_from_one_recipe_to_another_and_back(a: str, b: str) -> None:
    start, end = RECIPES[a], RECIPES[b]
    forward = diff(start, end)
    assert apply(start, forward) == end
    assert apply(end, invert(start, forward)) == start
    assert (forward.edits == ()) == (a == b)
    assert validate(Diff, dump(forward)) == forward  # a ledger's JSON carries it


@pytest.mark.parametrize("b", list(RECIPES))
def test_no_edit_of_a_diff_can_be_left_out(b: str) -> None:
    forward = diff(TINY, RECIPES[b])
    for left_out in forward.edits:
        rest = change(*(e for e in forward.edits if e is not left_out))
        with suppress(ConfigError):  # the others alone need be no valid recipe
            assert apply(TINY, rest) != RECIPES[b]
    paths = [edit.path for edit in forward.edits]
    assert not any(p != q and f"{p}.".startswith(f"{q}.") for p in paths for q in paths)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(list(leaves(TINY))), st.floats(0, 1), max_size=4))
def test_numeric_changes_are_one_edit_each(shares: dict[Leaf, float]) -> None:
    changes = {leaf.path: leaf.range.low + share * (leaf.range.high - leaf.range.low) for leaf, share in shares.items()}
    end = edited(TINY, changes)
    assert {edit.path for edit in diff(TINY, end).edits} == {p for p, v in changes.items() if read(TINY, p) != v}
    assert recipe_id(apply(end, diff(end, TINY))) == recipe_id(TINY)


def test_a_stale_edit_is_refused_with_what_stands_there() -> None:
    assert refusal(TINY, Edit(path="model.depth", old=7, new=3)) == "model.depth: 7: stale: 2 stands there"


@pytest.mark.parametrize(("path", "message"), [
    ("model.wide", 'model.wide: "wide": no such place; known: vocab, width'),
    ("model.width.x", "nothing is below a plain value"),
    ("optimizer.groups.hidden.lr", "known: matrices, rest"),
    ("model.attention.gate.channels", "nothing is below a plain value"),
    ("", "no such place"),
    ("model..width", "no such place"),
])
def test_a_path_that_leads_nowhere(path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Edit.to(TINY, path, 3)
    assert message in str(caught.value)


@pytest.mark.parametrize(("where", "order"), [
    ({"before": "matrices"}, ["hidden", "matrices", "rest"]),
    ({"before": "rest"}, ["matrices", "hidden", "rest"]),
    ({"after": "matrices"}, ["matrices", "hidden", "rest"]),
    ({"after": "rest"}, ["matrices", "rest", "hidden"]),
    ({}, ["matrices", "rest", "hidden"]),
])
def test_an_item_is_inserted_by_its_neighbour_and_removed_by_its_name(where: dict[str, str], order: list[str]) -> None:
    inserted = apply(TINY, change(Edit.to(TINY, "optimizer.groups.hidden", MUON, **where)))
    assert [group.name for group in inserted.optimizer.groups] == order
    assert apply(inserted, diff(inserted, TINY)) == TINY
    again = diff(TINY, inserted)
    assert [edit.path for edit in again.edits] == ["optimizer.groups.hidden"]
    assert apply(TINY, again) == inserted


def test_insertions_that_make_no_sense() -> None:
    def inserted(path: str, item: Any, before: str | None = None) -> str:
        return refusal(TINY, Edit(path=path, old=ABSENT, new=item, before=before))

    assert "no such neighbour; known" in inserted("optimizer.groups.hidden", MUON, before="x")
    assert "called 'other'" in inserted("optimizer.groups.other", MUON)
    assert "called 'first'" in inserted("model.attention.dropped.first", 1)
    assert "no group takes the role(s)" in refusal(TINY, Edit.to(TINY, "optimizer.groups.rest", ABSENT))


def test_a_transform_of_a_chain_is_replaced_by_its_kind() -> None:
    chain = "optimizer.groups.matrices.chain"
    lion = apply(TINY, change(Edit.to(TINY, f"{chain}.adam", ABSENT),
                              Edit.to(TINY, f"{chain}.lion", {"kind": "lion"}, before="decay")))
    assert [t.kind for t in lion.optimizer.groups[0].chain] == ["lion", "decay"]
    assert apply(lion, diff(lion, TINY)) == TINY


def test_a_reordering_is_said_whole() -> None:
    groups = read(TINY, "optimizer.groups")
    turned = edited(TINY, {"optimizer.groups": groups[::-1]})
    assert [edit.path for edit in diff(TINY, turned).edits] == ["optimizer.groups"]
    assert recipe_id(turned) != recipe_id(TINY)


def test_a_parameter_of_a_formula_is_a_place() -> None:
    swish = RECIPES["no_position_gate"]
    path = "model.ffn.activation.params.a"
    assert [e.path for e in diff(swish, edited(swish, {path: 2.0})).edits] == [path]


def test_removing_a_field_gives_its_default_back() -> None:
    deep = edited(TINY, {"model.bias": True})
    assert apply(deep, change(Edit(path="model.bias", old=True, new=ABSENT))) == TINY


def test_two_edits_of_one_place_are_refused() -> None:
    glu: Any = Edit.to(TINY, "model.ffn", {"kind": "glu"})
    assert refusal(TINY, glu, Edit.to(TINY, "model.ffn.ratio", 2.0)).startswith("model.ffn.ratio: 2.0: edited already")
    gated = RECIPES["no_position_gate"]
    off = Edit.to(gated, "model.attention.gate", None)
    assert "edited already" in refusal(gated, off, Edit.to(gated, "model.attention.gate.channels", 3))


@pytest.mark.parametrize(("a", "b", "clash"), [
    ("model.ffn", "model.ffn.ratio", True), ("model.ffn.ratio", "model.ffn", True), ("model.ffn", "model.ffn", True),
    ("model.ffn", "model.norm", False), ("model.ffn.ratio", "model.ffn.ratios", False),
])
def test_conflicts_are_prefixes(a: str, b: str, clash: bool) -> None:
    assert conflicts(change(Edit(path="train.remat"), Edit(path=a)), change(Edit(path=b))) == clash


def test_a_diff_reads_well() -> None:
    glu = change(Edit.to(TINY, "model.ffn", {"kind": "glu", "ratio": 2.0}), Edit.to(TINY, "optimizer.clip", None))
    assert render(glu) == "model.ffn: mlp() -> glu(ratio=2)\noptimizer.clip: 1 -> null"
