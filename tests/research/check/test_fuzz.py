"""A small version of `python -m research.check.fuzz`, and that the draw reaches every node there is."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np
import pytest

from jaxnano.config import model, optimizer, schedule, wires
from jaxnano.config.base import Node, dump_full
from jaxnano.config.edit import read
from jaxnano.config.recipe import recipe_id
from research.check import fuzz
from research.check.corrupt import corrupt, places
from research.check.fuzz import names_the_place, trains
from research.contract.draw import random_recipe
from research.contract.gate import Gate
from research.contract.track import load_track
from tests.jaxnano.recipes import edited
from tests.jaxnano.recipes import model as tiny

SHALLOW = tiny(depth=1)
TRACK = load_track("tiny")


def kinds(data: Any) -> set[str]:
    """Every `kind` below plain data."""
    if isinstance(data, dict):
        return {kind for kind in [data.get("kind")] if kind}.union(*(kinds(value) for value in data.values()))
    return set().union(*(kinds(v) for v in data)) if isinstance(data, list) else set()


def test_the_draw_reaches_every_kind_and_every_optional_node() -> None:
    rng = np.random.default_rng(3)
    drawn = [dump_full(random_recipe(rng, TRACK.base_recipe)) for _ in range(250)]
    declared = {kind for module in (model, optimizer, schedule, wires) for node in vars(module).values()
                if isinstance(node, type) and issubclass(node, Node) and "kind" in node.model_fields
                for kind in get_args(node.model_fields["kind"].annotation)}
    assert declared - set().union(*map(kinds, drawn)) == set()
    assert any(all(recipe["model"][part] for part in ("taps", "tables", "wires", "blocks")) for recipe in drawn)


def test_one_seed_draws_one_recipe() -> None:
    ids = [recipe_id(random_recipe(np.random.default_rng(seed), SHALLOW)) for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("seed", range(8))
def test_random_recipes_train_three_finite_steps(seed: int) -> None:
    assert trains(random_recipe(np.random.default_rng(seed), SHALLOW))


def test_a_recipe_that_overflows_is_told_from_one_that_trains() -> None:
    assert not trains(edited(SHALLOW, {
        "model.init.std": 2.0, "model.wires": [{"name": "loud", "keep": {"init": 10.0}}],
        "model.ffn": {"kind": "mlp", "activation": {"kind": "expression", "code": "1 / 0 * x"}},
    }))


def test_broken_recipes_are_refused_with_their_place_and_nothing_crashes() -> None:
    rng, gate = np.random.default_rng(0), Gate(TRACK)
    reasons = set()
    for _ in range(10):
        recipe = random_recipe(rng, TRACK.base_recipe)
        for _ in range(20):
            broken = corrupt(rng, recipe, TRACK.frozen)
            verdict = gate.judge(broken.data)
            assert names_the_place(verdict, broken.path), (broken.reason, broken.path, verdict.problems)
            reasons.add(broken.reason.split()[0])
    assert len(reasons) > 12


def test_places_are_paths_that_can_be_read() -> None:
    recipe = random_recipe(np.random.default_rng(5), TRACK.base_recipe)
    for place in places(recipe, recipe.model_dump(mode="json")):
        if ".at." not in place.path:  # places in depth have no names, so that no edit reaches into one
            read(recipe, place.path)


def test_the_command_judges_what_nodes_and_lanes_bring(capsys):
    assert fuzz.main(["--random", "12", "--train", "1", "--corrupt", "8", "--formulas", "40", "--seed", "3",
                      "--causality", "0"]) == 0
    said = capsys.readouterr().out
    assert "random: 12, accepted" in said and "trained: 1, not finite 0" in said and "hostile formulas: 40" in said


def test_lanes_propose_what_is_new_and_builds():
    found = [recipe_id(recipe) for recipe in itertools.islice(fuzz.proposed(np.random.default_rng(0), TRACK), 12)]
    assert len(set(found)) == len(found)
