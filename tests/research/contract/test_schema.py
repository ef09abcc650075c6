"""The description of what a recipe may hold is made from the nodes, whole, and small enough for a prompt."""

import json

import pytest

from jaxnano.config.base import ConfigError, kind_of, leaves, validate
from jaxnano.config.file import load
from jaxnano.config.optimizer import Group
from jaxnano.config.recipe import Recipe
from jaxnano.config.transforms import PRESETS
from research.contract.schema import describe
from research.contract.track import load_track
from research.machine import ROOT

FROZEN = load_track("tiny").frozen
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def nodes(schema):
    """Names of the fields in a JSON schema, by Pydantic's own account."""
    for definition in schema.get("$defs", {}).values():
        yield definition["title"], set(definition.get("properties", {})) - {"kind"}


def test_every_field_of_every_node_is_described():
    words = {line.strip().partition(":")[0] for line in describe()}
    schedules = "\n".join(describe())
    for title, fields in nodes(Recipe.model_json_schema()):
        missing = {f for f in fields - words if f"{f}," not in schedules and f"{f})" not in schedules}
        assert not missing, title


def test_every_traced_field_has_its_own_range():
    """Fields of one type with other ranges are not told as each other's."""
    lines = [line.strip() for line in describe("optimizer.groups.matrices.chain")]
    for line in ("b1: traced 0..0.99999 decay = 0.9", "eps: traced 1e-16..0.01 log = 1e-08", "alpha: traced 0..30 = 2"):
        assert line in lines


def test_a_preset_is_written_out_as_it_can_be_put_back():
    """What an agent copies is the preset again; with a change inside it is a chain of its own."""
    told = dict(line.split(" stands for: ") for line in describe("optimizer.groups.matrices.chain")
                if " stands for: " in line)
    assert told.keys() == {kind_of(preset) for preset in PRESETS}
    for kind, text in told.items():
        group = validate(Group, {"name": "g", "lr": 0.1, "chain": json.loads(text)})
        assert [item.kind for item in group.chain] == [kind]
    assert not any(" stands for: " in line for line in describe(""))


def test_it_fits_a_prompt_and_names_what_is_frozen_without_describing_it():
    lines = describe("", FROZEN)
    assert sum(map(len, lines)) < 26_000 and "  vocab: frozen" in lines and "data: frozen" in lines
    assert not any("shards" in line for line in lines)
    assert describe("data.kind", FROZEN) == ["data.kind: frozen by the track, with all of data"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_number_a_config_holds_can_be_looked_up(path):
    for leaf in leaves(load(path)):
        field = leaf.path.rpartition(".")[2]
        assert describe(leaf.path)[0].startswith(f"{field}: "), leaf.path


def test_ranges_and_defaults_are_the_nodes():
    assert describe("model.attention.softcap")[0] == "softcap: traced 0.5..1000 log or null = null"
    assert describe("model.position.base")[0] == "base: traced 10..1e+07 log = 1e+04"
    assert describe("model.attention.kv_heads")[0] == "kv_heads: whole number 1..256 or null = null"


@pytest.mark.parametrize("path", ["foo", "model.depth.x", "model.", "model..depth", "optimizer.groups.all.foo"])
def test_a_place_no_recipe_has_is_refused(path):
    with pytest.raises(ConfigError, match="no such place"):
        describe(path)
