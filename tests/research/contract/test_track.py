"""Tracks: the contract is read whole or refused, and gives every recipe the same training FLOPs."""

import math
from pathlib import Path

import pytest

from jaxnano.config.base import ConfigError
from jaxnano.config.edit import read
from jaxnano.config.file import load
from jaxnano.cost import preflight
from research.contract.gate import Gate
from research.contract.track import CONFIGS, load_track, tracks

MICRO = "tests/research/micro.yaml"


@pytest.mark.parametrize("name", [*tracks(), MICRO])
def test_a_shipped_track_agrees_with_its_base(name):
    track = load_track(name)
    assert track.horizons[-1] == 1.0 and list(track.horizons) == sorted(set(track.horizons))
    assert all(read(track.base_recipe, path) in track.grid.values for path in track.grid.paths)
    assert "the same recipe" in Gate(track).judge(track.base_recipe).problems[0].rule  # and nothing else is wrong
    assert len(Gate(track).judge(track.base_recipe).problems) == 1
    assert track.steps(track.base_recipe, 1.0) == track.full_steps


@pytest.mark.parametrize("changes", [("model.attention.kv_heads=1",), ("model.ffn.ratio=2.0",), ("model.depth=2",)])
@pytest.mark.parametrize("horizon", [0.125, 1.0])
def test_equal_flops_not_equal_steps(changes, horizon):
    track = load_track("tiny")
    recipe = load(CONFIGS / track.base, changes)
    steps, budget = track.steps(recipe, horizon), horizon * track.full_steps * track.base_cost.flops_per_step
    assert steps > track.steps(track.base_recipe, horizon)
    per_step = preflight(recipe).flops_per_step
    assert steps * per_step <= budget < (steps + 1) * per_step


def test_steps_to_target_counts_steps_whatever_they_cost():
    track = with_objective("optimizer-124m", kind="steps_to_target", target=3.28)
    assert track.steps(load(CONFIGS / "gpt2-tiny.yaml"), 0.5) == round(track.full_steps * 0.5)


def with_objective(name, **objective):
    track = load_track(name)
    return track.model_validate(track.model_dump(mode="json") | {"objective": objective}, strict=False)


def test_a_budget_of_time_is_shared_by_horizon():
    timed = with_objective("tiny", kind="loss_at_seconds", seconds=300.0)
    assert [timed.seconds(h, None) for h in timed.horizons] == [37.5, 75.0, 150.0, 300.0]
    raced = with_objective("tiny", kind="time_to_target", target=2.0)
    assert raced.seconds(0.5, None) is None  # nobody knows before the base has run
    assert raced.seconds(0.5, 0.25) == raced.full_steps * 0.5 * 0.25
    assert load_track("tiny").seconds(1.0, 0.25) is None


def test_a_target_is_reached_on_a_line_in_the_budgets_logarithm():
    target = with_objective("tiny", kind="steps_to_target", target=3.28).objective
    losses = {h: 3.28 - 0.1 * math.log(h / 0.6) for h in (0.125, 0.25, 0.5, 1.0)}
    assert target.reached(losses) == pytest.approx(0.6)
    assert target.reached({0.5: 3.4, 1.0: 3.3}) is None and target.reached({}) is None
    assert target.reached({0.5: 3.2, 1.0: 3.1}) == 0.5
    assert target.met([3.27] * 4) and not target.met([3.279] * 4) and not target.met([])


def test_identity_covers_contract_and_base(tmp_path):
    track = load_track(MICRO)
    assert track.identity == load_track(MICRO).identity != load_track("tiny").identity
    assert track.identity != track.model_copy(update={"epsilon": 0.01}).identity
    base = tmp_path / "base.yaml"
    base.write_text((CONFIGS / track.base).read_text().replace("5.0e-4", "6.0e-4"))
    (tmp_path / "track.yaml").write_text(Path(MICRO).read_text().replace(track.base, str(base)))
    elsewhere = load_track(str(tmp_path / "track.yaml"))
    assert elsewhere.base_recipe.optimizer.groups[0].lr.value == 6e-4
    same = elsewhere.model_copy(update={"base": track.base})  # what it has read is kept
    assert same.base == track.base and same.identity != track.identity


@pytest.mark.parametrize(("change", "words"), [
    (("full_steps: 160", "full_steps: 0"), "full_steps: 0"),
    (("horizons: [0.5, 1.0]", "horizons: [0.5, 2.0]"), "horizons.1: 2.0"),
    (("name: micro", "nmae: micro"), "nmae"),
    (("n: 4", "n: 1"), "significance.n: 1"),
])
def test_a_track_that_makes_no_sense_is_refused_by_path(tmp_path, change, words):
    path = tmp_path / "bad.yaml"
    path.write_text(Path(MICRO).read_text().replace(*change))
    with pytest.raises(ConfigError) as error:
        load_track(str(path))
    assert str(path) in str(error.value) and words in str(error.value)


def test_an_unknown_track_names_those_there_are():
    with pytest.raises(ConfigError, match='--track: "huge": no such track; .*tiny.* would do'):
        load_track("huge")
