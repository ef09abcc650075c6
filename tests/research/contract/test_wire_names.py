"""Names of taps, tables and wires tell nothing, and what of them nothing reads is said."""

from __future__ import annotations

from typing import Any

import pytest

from jaxnano.config import wiring
from jaxnano.config.base import dump, validate
from jaxnano.config.recipe import Recipe, recipe_id
from research.contract.behaviour import behaviour, unread
from research.learn.features import features
from tests.jaxnano.recipes import RECIPES, TINY, edited, model

WIRED = ("x0_skips", "unet_values", "value_residual_gates", "two_lanes", "bigrams", "sandwich_smear")
NAMES = ("x0", "early", "outer", "middle", "v1", "words", "lane", "put", "pair", "far", "skip", "gated", "attend",
         "smear", "first", "word", "a0", "a1", "share", "shared")


def renamed(recipe: Recipe) -> Recipe:
    """With other names for everything that a wire, a tap or a table is called."""

    def called(data: Any) -> Any:
        match data:
            case dict():
                return {key: called(item) for key, item in data.items()}
            case list():
                return [called(item) for item in data]
        return f"other_{data}" if isinstance(data, str) and data in NAMES else data

    return validate(Recipe, called(dump(recipe)))


@pytest.mark.parametrize("name", WIRED)
def test_another_name_is_another_recipe_that_behaves_alike(name: str) -> None:
    recipe, other = RECIPES[name], renamed(RECIPES[name])
    assert recipe_id(recipe) != recipe_id(other) and behaviour(recipe) == behaviour(other)
    assert features(TINY, recipe) == features(TINY, other)
    assert not features(recipe, other)


def test_names_that_tell_nothing_are_still_apart() -> None:
    """One is called by a second table and one by the first, whose name the other begins with."""
    gate = {"code": "c * sigmoid(z)", "channels": 4}
    wires = [{"name": f"wire{i}", "source": f"table{1 - i}", "to": "stream", "add": gate} for i in range(2)]
    recipe = model(tables=[{"name": "table0"}, {"name": "table1", "channels": 4}], wires=wires)
    assert behaviour(recipe) == behaviour(renamed(recipe))
    assert len({wire.name for wire in wiring.renamed(recipe.model).wires}) == 2


@pytest.mark.parametrize("changes", [
    {"model.wires.first.keep.code": "c"}, {"model.wires.first.at": [{"block": 2}]},
    {"model.wires.first.keep.init": 0.4},
    {"model.wires.token.shift": 1}, {"model.wires.word.add.reads": ["here"]}, {"model.wires.gate.add.params.a": 0.1},
    {"model.taps.x0.after": {"block": 0}}, {"model.wires.first.add.key": "own"}, {"model.tables.words.channels": 4},
    {"model.ffn.reads": "x0"}, {"model.attention.writes": []},
])
def test_what_behaves_otherwise_is_told_apart(changes: dict[str, Any]) -> None:
    recipe = RECIPES["value_residual_gates"]
    other = edited(recipe, changes)
    assert behaviour(other) != behaviour(recipe) and features(recipe, other)


@pytest.mark.parametrize(("changes", "places"), [
    ({"taps": [{"name": "a"}]}, {"taps.a"}),
    ({"tables": [{"name": "t"}]}, {"tables.t"}),
    ({"taps": [{"name": "a"}], "wires": [{"name": "w", "source": "self", "to": "a"}]}, {"taps.a", "wires.w"}),
    ({"wires": [{"name": "w", "to": "value", "at": [{"block": 0}], "keep": {}}], "attention__dropped": [0]},
     {"wires.w"}),
    ({"wires": [{"name": "w", "keep": {"init": 0.5}}]},
     {"wires.w.add", "wires.w.shift", "wires.w.keep.reads", "wires.w.keep.channels"}),
    ({"wires": [{"name": "w", "source": "self", "add": {"code": "z"}}]}, {"wires.w.add.init"}),
    ({"wires": [{"name": "w", "source": "self", "add": {"key": "k", "code": "c + z"}, "keep": {"key": "k"}}]},
     {"wires.w.add.init", "wires.w.keep.reads", "wires.w.keep.channels"}),
])
def test_what_nothing_reads_is_named(changes: dict[str, Any], places: set[str]) -> None:
    found = {place.removeprefix("model.") for place in unread(model(**changes)) if ".wires." in place or ".ta" in place}
    assert found == places
