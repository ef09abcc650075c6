"""Fixed lists of trials end to end: real workers on track micro."""

import json
from pathlib import Path

import pytest
import yaml
from stand_in import MICRO

from jaxnano import data
from jaxnano.cli import Failure, report_errors
from jaxnano.config.recipe import recipe_id
from research import compare, qualify
from research.contract.track import load_track
from research.contract.trial import Trial
from research.execute.batch import all_losses, full_runs
from research.ledger.kinds import Result

BASE = Path(MICRO).with_name("micro-base.yaml")


@pytest.fixture
def timed(tmp_path):
    """Writes track micro with another objective, and returns its path."""

    def write(**objective):
        plain = yaml.safe_load(Path(MICRO).read_text()) | {"objective": objective, "base": str(BASE.resolve())}
        path = tmp_path / "timed.yaml"
        path.write_text(yaml.safe_dump(plain))
        return path

    return write


def test_compare_trains_both_recipes_and_finds_the_better_one(capsys, tmp_path):
    better = yaml.safe_load(BASE.read_text())
    better["optimizer"]["groups"][0]["lr"]["value"] = 0.005
    path = tmp_path / "better.yaml"
    path.write_text(yaml.safe_dump(better))
    command = [str(BASE), str(path), "--seeds", "2", "--track", MICRO, "--json"]
    assert report_errors(lambda: compare.main(command)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 2 and found["effect"] > 0.1


def test_qualify_measures_the_grid_and_the_noise(capsys):
    code = report_errors(lambda: qualify.main([MICRO, "--json"]))
    found = json.loads(capsys.readouterr().out)
    assert code == 1 and not found["base_is_best"] and found["best"] == 0.005
    assert len(found["aa_losses"]) == 4 and found["seed_sd"] > 0


def test_full_runs_have_the_budget_of_time_that_the_loop_gives(timed):
    track = load_track(str(timed(kind="loss_at_seconds", seconds=3.5)))
    (job,) = full_runs(track, [track.base_recipe], [0], "d")
    assert job["args"]["seconds"] == 3.5


def test_where_the_base_sets_the_time_its_step_is_measured(timed):
    track = load_track(str(timed(kind="time_to_target", target=3.0)))
    corpus = data.load(track.base_recipe.data)
    other = qualify.at_value(track, 0.005)
    base, against = full_runs(track, [track.base_recipe, other], [0], corpus.data_hash)
    assert base["args"]["seconds"] is None and 0 < against["args"]["seconds"] < 60


def test_a_diverged_run_is_told_with_its_seeds():
    recipe = load_track(MICRO).base_recipe
    key = lambda seed: Trial(recipe_id(recipe), 1.0, seed).key  # noqa: E731
    results = {key(0): Result(attempt=1, outcome="completed", loss={"search": 2.0}),
               key(1): Result(attempt=1, outcome="diverged")}
    with pytest.raises(Failure, match="candidate: diverged on seed 1 of 2 seeds"):
        all_losses(results, recipe, 1.0, [0, 1], "search", "candidate")
