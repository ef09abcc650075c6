"""Tracks: the contract is read whole or refused, and gives every recipe the same training FLOPs."""

import math
from pathlib import Path

import pytest
import yaml

from jaxnano.config.base import ConfigError, dump_full, validate
from jaxnano.config.edit import read
from jaxnano.config.file import load
from jaxnano.cost import preflight
from research.contract.gate import Gate
from research.contract.track import CONFIGS, Track, load_track, tracks

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


def edited(path, **changes):
    """Track micro with other fields, as a file."""
    plain = yaml.safe_load(Path(MICRO).read_text()) | {"base": str(Path(MICRO).with_name("micro-base.yaml").resolve())}
    path.write_text(yaml.safe_dump(plain | changes))
    return str(path)


@pytest.mark.parametrize(("changes", "words"), [
    ({"objective": {"kind": "loss_at_seconds", "seconds": 5.0}}, "devices: null: how many its seconds are of; 1 would"),
    ({"objective": {"kind": "time_to_target", "target": 3.0}}, "devices: null: how many its seconds are of; 1 would"),
    ({"mesh": "fsdp=2"}, r"mesh: data=1,fsdp=2,tensor=1: the sizes multiply to the 1 device\(s\)"),
    ({"mesh": "width=2"}, "mesh: 'width=2': written as"),
    ({"devices": 8, "mesh": "fsdp=2"}, "data.batch: 4: its rows do not divide over 8 devices; a multiple of 8"),
    ({"devices": 3}, "data.batch: 4: its rows do not divide over 3 devices"),
    ({"set": ["model.depht=2"]}, "model.depht"), ({"set": ["model.depth"], "devices": 2}, "written as path=value")])
def test_devices_that_a_track_s_runs_cannot_have_are_refused_in_one_line(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words) as refused:
        _ = load_track(edited(tmp_path / "track.yaml", **changes)).base_recipe
    assert "\n" not in str(refused.value)


def test_devices_and_mesh_belong_to_the_contract(tmp_path):
    plain, two, laid = (load_track(edited(tmp_path / "track.yaml", **changes)) for changes in (
        {}, {"devices": 2}, {"devices": 2, "mesh": "fsdp=2"}))
    assert len({plain.identity, two.identity, laid.identity}) == 3
    with pytest.raises(ValueError, match=r"mesh: data=1,fsdp=2,tensor=1: .* the 1 device\(s\) there are"):
        laid.admit(1)
    laid.admit(4)
    big = laid.base_recipe.model_copy(update={"data": laid.base_recipe.data.model_copy(update={"batch": 6})})
    refused = Gate(laid.model_copy(update={"frozen": ()}), devices=4).judge(big).problems
    assert "do not divide over 4 devices" in refused[0].rule
    seconds = {"kind": "loss_at_seconds", "seconds": 5.0}
    timed = load_track(edited(tmp_path / "track.yaml", devices=2, objective=seconds))
    timed.admit(2)
    with pytest.raises(ValueError, match="--devices-per-trial: 4: track micro counts seconds of 2; that would do"):
        timed.admit(4)


def test_a_track_on_other_data_is_another_track(tmp_path):
    (tmp_path / "mine.txt").write_text("a line of text\n" * 9)
    changes = f"data={{kind: text, path: {tmp_path}, length: 16, batch: 4}}", "model.depth=2"
    found = load_track(MICRO, changes)
    assert found.base_recipe.data.path == str(tmp_path) and found.base_recipe.model.depth == 2
    assert found.set == changes and found.identity != load_track(MICRO).identity
    assert found.summary == f"{load_track(MICRO).summary}; {', '.join(changes)}"
    assert load_track(MICRO, found.set).identity == validate(Track, dump_full(found)).identity == found.identity
    own = load_track(edited(tmp_path / "track.yaml", set=["model.depth=2"]), changes[:1])
    assert own.base_recipe == found.base_recipe
    again = load_track(str(tmp_path / "track.yaml"), own.set)  # as a session that is resumed reads it
    assert (again.identity, again.set) == (own.identity, ("model.depth=2", changes[0]))


def test_an_unknown_track_names_those_there_are():
    with pytest.raises(ConfigError, match='--track: "huge": no such track; .*tiny.* would do'):
        load_track("huge")
