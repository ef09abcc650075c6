"""One trial: what it returns, what it repeats to the bit, and what becomes of runs that go wrong."""

import itertools
import json
import math

import jax
import numpy as np
import pytest
from stand_in import MICRO

from jaxnano import checkpoint, data, evaluate, step
from jaxnano.config.base import dump, validate
from jaxnano.config.recipe import Recipe, hypers, recipe_id
from jaxnano.cost import preflight
from jaxnano.model.specs import specs
from jaxnano.optim.build import members
from research.contract.track import load_track
from research.contract.trial import Trial
from research.execute import Cancelled, trial
from research.execute.trial import Pace, moving, paces, steps_within
from research.ledger.events import encode
from research.ledger.kinds import Result

STEPS = 25


def run_job(args, report, devices=1):
    """A trial on so many of the eight devices."""
    return trial.run_job(args, report, jax.devices()[:devices])


@pytest.fixture(scope="module")
def recipe():
    return load_track(MICRO).base_recipe


@pytest.fixture(scope="module")
def job(recipe):
    """Arguments of a short run, with changes."""
    data_hash = data.load(recipe.data).data_hash

    def build(**changes):
        return {"recipe": dump(recipe), "total_steps": STEPS, "seed": 3, "splits": {"search": 512},
                "data_hash": data_hash, "checkpoint": None} | changes

    return build


@pytest.fixture(scope="module")
def ran(job):
    """A run's result and its reports."""
    reports = []
    return run_job(job(), reports.append), reports


def test_a_key_names_recipe_horizon_and_seed():
    assert Trial("ab", 0.125, 7).key == "ab-0.125-7" and Trial("ab", 1.0, 7).key == "ab-1-7"


def test_a_result_says_what_a_run_cost_and_reached(ran, job):
    result, reports = ran
    assert (result["outcome"], result["steps"]) == ("completed", STEPS)
    assert [p for p, _ in result["curve"]] == [10 / STEPS, 20 / STEPS, 1.0] == [r["progress"] for r in reports]
    assert [loss for _, loss in result["curve"]] == [r["loss"] for r in reports]
    assert result["device_s"] > 0 and result["compile_s"] >= 0 and result["tokens_per_s"] > 0
    assert result["fingerprint"]["data"] == job()["data_hash"]
    assert set(result["loss"]) == {"search"}


def test_its_loss_is_that_of_the_trained_parameters(ran, recipe):
    """Against the training step called by hand."""
    corpus = data.load(recipe.data)
    init_seed, data_seed = step.seeds(3)
    batches = data.train_batches(corpus, recipe.data.batch, recipe.data.length, data_seed, step.STEPS_PER_CALL)
    program, values = step.program(recipe), hypers(recipe, STEPS)
    state = program.init(np.uint32(init_seed), values)
    for count in (10, 10, 5):
        state, _ = program.steps(state, next(batches), np.int32(count), values)
    windows = evaluate.eval_windows(corpus, "search", recipe, 512)
    assert evaluate.evaluate(recipe, program.params(state, values), windows) == ran[0]["loss"]["search"]


def test_the_same_trial_again_is_the_same_and_another_seed_is_not(ran, job):
    again = run_job(job(), lambda values: None)
    assert (again["loss"], again["curve"]) == (ran[0]["loss"], ran[0]["curve"])
    assert run_job(job(seed=4), lambda values: None)["loss"] != ran[0]["loss"]


def test_a_budget_of_seconds_decides_the_steps(recipe, job):
    """On a clock that goes on by 1/128 s whenever it is read, every call takes 1/128 s."""
    corpus, clock = data.load(recipe.data), itertools.count(0.0, 1 / 128)
    assert steps_within(recipe, 1.0, [1], corpus, lambda: next(clock)) == 128
    assert steps_within(recipe, 5.0, [1], corpus, lambda: next(clock)) == 5 * 6 * 128  # 6 steps a call are timed
    timed = run_job(job(seconds=0.05), lambda values: None)
    assert timed["curve"][-1][0] == 1.0 and timed["outcome"] == "completed"
    again = run_job(job(total_steps=timed["steps"]), lambda values: None)
    assert (again["loss"], again["curve"]) == (timed["loss"], timed["curve"])  # timing has left no trace


def test_a_group_s_clock_hides_none_of_what_it_costs_from_the_timing(recipe):
    """Which sees few steps, none of them perhaps one in which the group moves."""
    groups = dump(recipe)["optimizer"]["groups"]
    groups[0] |= {"every": 3, "accumulate": True, "frozen": [[0.25, 0.5]], "chain": [{"kind": "adam"}]}
    clocked = validate(Recipe, dump(recipe) | {"optimizer": {"groups": groups}})
    batches, held = next(step.batches_of(clocked, 1, 0, data.load(clocked.data))), members(
        clocked.optimizer, specs(clocked))[groups[0]["name"]]
    for pace, moves in zip(paces(clocked), (False, True), strict=True):
        compiled, values = step.program(pace), hypers(pace, 1)
        before = compiled.init(np.uint32(0), values).optimizer.params
        for count in (1, 5):
            state, _ = compiled.steps(compiled.init(np.uint32(0), values), batches, np.int32(count), values)
            changed = {path for path, w in state.optimizer.params.items() if (np.array(w) != before[path]).any()}
            assert changed.issuperset(held) if moves else changed.isdisjoint(held)
    groups[0]["accumulate"] = False
    clocked = validate(Recipe, dump(recipe) | {"optimizer": {"groups": groups}})
    assert moving(clocked, preflight(clocked)) == pytest.approx(0.25, rel=0.01)
    assert paces(recipe) == [recipe] and moving(recipe, preflight(recipe)) == 1.0


def test_a_run_with_phases_reports_all_of_them_and_its_loss_is_the_last_one_s(recipe, job):
    phases = [{"name": "more", "start": 0.4, "set": {"data": {"batch": 2 * recipe.data.batch}}},
              {"name": "untied", "start": 0.7, "set": {"model": {"embedding": {"tied": False}}}}]
    reports = []
    result = run_job(job(recipe=dump(recipe) | {"phases": phases}, total_steps=40), reports.append)
    assert [report["step"] for report in reports] == [10, 20, 30, 40] and result["outcome"] == "completed"
    assert result["steps"] == 40 and result["tokens_per_s"] > 0 and result["compile_s"] > 0 and result["loss"]
    pace = Pace(validate(Recipe, dump(recipe) | {"phases": phases}), 100)  # begin at 40 and 70
    for done, clock in ((10, 5.0), (20, 6.0), (30, 7.0), (40, 8.0), (50, 19.0), (60, 21.0), (70, 23.0), (80, 30.0)):
        pace.mark(done, clock)
    tokens = recipe.data.batch * recipe.data.length
    assert pace.tokens_per_s == pytest.approx(tokens * (40 + 30 * 2) / (40 * 0.1 + 30 * 0.2))
    assert pace.steady_s == pytest.approx(tokens * (40 + 2 * 30 + 2 * 10) / pace.tokens_per_s)


def test_a_checkpoint_is_this_attempt_s_whatever_an_earlier_one_left(ran, job, recipe, tmp_path):
    folder = tmp_path / "checkpoint"
    run_job(job(seed=9, checkpoint=str(folder)), lambda values: None)  # was interrupted before its result was written
    result = run_job(job(checkpoint=str(folder), splits={"protected": 512, "search": 512}), lambda values: None)
    assert result["loss"]["search"] == ran[0]["loss"]["search"]
    found, params, about = checkpoint.load(folder)
    assert (recipe_id(found), about["seed"], about["total_steps"]) == (recipe_id(recipe), 3, STEPS)
    windows = evaluate.eval_windows(data.load(recipe.data), "protected", recipe, 512)
    assert evaluate.evaluate(recipe, params, windows) == pytest.approx(result["loss"]["protected"], abs=1e-6)


def test_a_loss_that_is_not_finite_is_an_outcome_and_no_number(job, recipe, monkeypatch):
    def broken(recipe, steps, seed, batches, mesh, accumulate):
        for done, loss in ((10, 2.0), (20, math.nan), (25, 1.0)):
            yield step.Progress(done, np.full(10, loss), 0.0, None, True)

    monkeypatch.setattr(step, "run", broken)
    reports = []
    result = run_job(job(), reports.append)
    assert (result["outcome"], result["loss"], result["reason"]) == ("diverged", {}, "loss is nan at step 20 of 25")
    assert result["curve"] == [(0.4, 2.0)] and len(reports) == 1


def test_an_evaluation_that_is_not_finite_has_diverged_too(job, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", lambda recipe, params, windows: math.inf)
    result = run_job(job(), lambda values: None)
    assert result["outcome"] == "diverged" and result["loss"] == {} and "evaluated" in result["reason"]


def test_a_cancelled_run_says_what_it_has_cost(job):
    def cancel(values):
        if values["progress"] > 0.5:
            raise Cancelled("hopeless")

    result = run_job(job(splits={"search": 512}), cancel)
    assert (result["outcome"], result["reason"], result["loss"]) == ("killed", "hopeless", {})
    assert [p for p, _ in result["curve"]] == [10 / STEPS, 20 / STEPS]
    assert result["steps"] == 20 and result["device_s"] > 0


def test_another_place_than_the_session_s_is_the_machine_s_doing(job, ran):
    here = {name: ran[0]["topology"][name] for name in ("device", "devices", "processes")}
    for other in ({"device": "NVIDIA H100"}, {"devices": 4}, {"processes": 2}):
        with pytest.raises(OSError, match="this place, .* is not that of the session's results"):
            run_job(job(place=here | other), lambda values: None)


def test_other_data_than_the_session_s_are_refused(job):
    with pytest.raises(ValueError, match="is not the session's 000000000000"):
        run_job(job(data_hash="0" * 64), lambda values: None)


def test_a_trial_on_several_devices_is_that_on_one(job, recipe, tmp_path):
    """The micro base with rows for eight devices, and with Muon, whose matrices the devices share."""
    groups = [{"name": "matrices", "roles": ["matrix"], "lr": 0.01, "chain": [{"kind": "muon"}]},
              {"name": "rest", "roles": ["embedding", "head", "gain", "bias", "scalar", "gate"], "lr": 0.003,
               "chain": [{"kind": "adam"}]}]
    wide = dump(recipe) | {"data": dump(recipe)["data"] | {"batch": 16}, "optimizer": {"groups": groups}}
    folder = tmp_path / "checkpoint"
    arguments = job(recipe=wide, total_steps=20, splits={"search": 1024})
    parts = arguments | {"mesh": "fsdp=2"}
    kinds = (1, arguments), (2, parts), (8, arguments)
    one, two, eight = (run_job(found, lambda values: None, n) for n, found in kinds)
    again = run_job(arguments | {"checkpoint": str(folder)}, lambda values: None, 8)
    for found in (two, eight):
        np.testing.assert_allclose(np.array(found["curve"]), np.array(one["curve"]), rtol=0, atol=1e-5)
        assert found["loss"]["search"] == pytest.approx(one["loss"]["search"], abs=1e-5)
    assert (again["curve"], again["loss"]) == (eight["curve"], eight["loss"])
    told = validate(Result, json.loads(encode({"attempt": 1, **eight}))).topology
    assert told is not None and (told.devices, told.processes, told.mesh, told.accumulate) == (
        8, 1, "data=8,fsdp=1,tensor=1", (1,))
    assert two["topology"]["mesh"] == "data=1,fsdp=2,tensor=1"
    found, params, about = checkpoint.load(folder)  # on one device
    windows = evaluate.eval_windows(data.load(found.data), "search", found, 1024)
    assert evaluate.evaluate(found, params, windows) == pytest.approx(eight["loss"]["search"], abs=1e-5)
    assert {len(w.sharding.device_set) for w in params.values()} == {1}
    timed = run_job(parts | {"seconds": 0.05}, lambda values: None, 2)  # by programs that are compiled
    assert timed["outcome"] == "completed" and timed["topology"] == two["topology"]


def test_what_cannot_be_laid_over_the_devices_is_refused(job):
    with pytest.raises(ValueError, match="data.batch: 4: its rows do not divide over 3 devices"):
        run_job(job(), lambda values: None, 3)
