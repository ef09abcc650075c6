"""Fixed lists of trials end to end: real workers on track micro."""

import argparse
import json
from pathlib import Path

import pytest
import yaml
from stand_in import MICRO, StandIn, completed

from jaxnano import data
from jaxnano.cli import Failure, UserError, report_errors
from jaxnano.config.recipe import recipe_id
from research import compare, qualify
from research.contract.track import load_track
from research.contract.trial import Trial
from research.execute import Offer, executors
from research.execute.batch import FEW_STEPS, all_losses, full_runs, run_batch
from research.ledger.kinds import Result
from research.ledger.placed import Placed

BASE = Path(MICRO).with_name("micro-base.yaml")


@pytest.fixture
def timed(tmp_path):
    """Writes track micro with another objective, and returns its path."""

    def write(devices=1, **objective):
        plain = yaml.safe_load(Path(MICRO).read_text()) | {"objective": objective, "base": str(BASE.resolve())}
        plain["devices"] = devices
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


def in_steps(workers, fails=()):
    """An offer of workers that run nothing, of which some fail at their first job; and what has been asked of them."""
    asked, started = [], []

    def outcomes(job):
        Path(job["dir"]).mkdir(exist_ok=True)
        number = int(Path(job["dir"]).name)
        started.append((number, job["args"]["total_steps"]))
        if number in fails and job["args"]["total_steps"] == FEW_STEPS:
            return None if number == 2 else {"outcome": "failed", "reason": "ValueError: no\nsuch chip"}
        return completed(job)

    def offer(options, count, devices):
        asked.append((options.platform, count, devices))
        places = min(workers, count or workers)
        place = Placed(kind="virtual", devices=options.devices_per_trial or devices)
        return Offer(places, None, place, lambda *_: StandIn(places, outcomes))

    return offer, asked, started


def test_every_place_trains_a_few_steps_before_a_track_is_measured(monkeypatch, capsys):
    offer, asked, started = in_steps(9)
    monkeypatch.setattr(executors, "offer", offer)
    assert report_errors(lambda: qualify.main([MICRO, "--json", "--platform", "virtual"])) in (0, 1)
    assert asked == [("virtual", None, 1)]
    assert started[:9] == [(number, FEW_STEPS) for number in range(9)] and len(started) == 9 + 2 * 2 + 4
    capsys.readouterr()
    monkeypatch.setattr(executors, "offer", in_steps(9, fails=(2, 5))[0])
    assert report_errors(lambda: qualify.main([MICRO])) == 1
    assert capsys.readouterr().err == (
        "error: 2 of 9 places do not train: worker 2 (core 2): the process ended by signal 9; "
        "worker 5 (core 5): ValueError: no such chip\n")


def test_compare_takes_no_more_places_than_it_has_runs(monkeypatch, capsys):
    offer, asked, started = in_steps(9)
    monkeypatch.setattr(executors, "offer", offer)
    command = [str(BASE), str(BASE), "--seeds", "2", "--track", MICRO, "--devices-per-trial", "2"]
    assert report_errors(lambda: compare.main(command)) == 0
    assert asked == [(None, None, 1), (None, 2, 1)] and [number for number, _ in started] == [0, 1]


@pytest.mark.parametrize("command", [[qualify, MICRO], [compare, str(BASE), str(BASE), "--track", MICRO]])
def test_places_that_do_not_fit_are_refused_in_one_line(monkeypatch, capsys, timed, command):
    for words, reason in ((["--platform", "virtual", "--devices-per-trial", "3"], "do not divide over 3 devices"),
                          (["--devices-per-trial", "2"], "--devices-per-trial: 2: a worker on a CPU has one device"),
                          (["--platform", "tpu"], "--platform: tpu: this machine offers no accelerator"),
                          (["--workers", "0"], "--workers: 0: above 0"), (["--ray-address", "auto"], "--executor ray")):
        module, *arguments = command
        assert report_errors(lambda: module.main([*arguments, *words])) == 2  # noqa: B023 - called at once
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and reason in err


def test_seconds_of_other_devices_are_refused(timed):
    track = load_track(str(timed(devices=2, kind="loss_at_seconds", seconds=5.0)))
    options = argparse.Namespace(executor="local", platform="virtual", devices_per_trial=4)
    with pytest.raises(UserError, match="--devices-per-trial: 4: track micro counts seconds of 2"):
        run_batch([], options=options, track=track)


@pytest.mark.parametrize(("device", "rate"), [("H100", 0.3 * 989e12), ("tpu V6", 0.3 * 918e12), ("cpu", 5e10)])
def test_an_estimate_runs_nothing(capsys, device, rate):
    assert report_errors(lambda: qualify.main(["one-gpu", "--estimate", device, "--price", "2.5", "--json"])) == 0
    found, track = json.loads(capsys.readouterr().out), load_track("one-gpu")
    seconds = 4800 * track.base_cost.flops_per_step / rate
    assert found["run_minutes"] == pytest.approx(seconds / 60) and found["runs"] == int(8 * 3600 / seconds)
    assert found["qualify_hours"] == pytest.approx(28 * seconds / 3600)
    assert found["run_tokens"] == 4800 * 512 * 128 and found["usd"] == 20.0


def test_an_estimate_of_an_unknown_device_names_those_there_are(capsys):
    assert report_errors(lambda: qualify.main(["one-gpu", "--estimate", "abacus"])) == 2
    assert "--estimate: abacus: no such device; cpu, B200, " in capsys.readouterr().err


def test_a_diverged_run_is_told_with_its_seeds():
    recipe = load_track(MICRO).base_recipe
    key = lambda seed: Trial(recipe_id(recipe), 1.0, seed).key  # noqa: E731
    results = {key(0): Result(attempt=1, outcome="completed", loss={"search": 2.0}),
               key(1): Result(attempt=1, outcome="diverged")}
    with pytest.raises(Failure, match="candidate: diverged on seed 1 of 2 seeds"):
        all_losses(results, recipe, 1.0, [0, 1], "search", "candidate")
