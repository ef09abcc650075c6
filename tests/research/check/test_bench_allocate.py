"""Campaigns: on a table asking for a run returns it, every policy ends, and what is summed up is what was spent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxnano.cli import report_errors
from research.check.bench import __main__ as bench
from research.check.bench import allocate, peers, problems, table
from research.check.bench.world import World
from research.learn.allocate import Action
from research.ledger.state import State


@pytest.mark.parametrize(("path", "spent"), [
    ([], 9.0), ([[1.0, 0.1]], 9.0), ([[1.0, 0.1], [2.0, 0.005]], 2.0), ([[1.0, 0.0], [2.0, 0.01]], 9.0),
    ([[1.0, 0.0], [2.0, 0.01], [3.0, 0.004], [4.0, 0.0]], 3.0), ([[1.0, None], [2.0, 0.0]], 2.0),
    ([[1.0, 0.0], [2.0, None]], 9.0)])
def test_the_goal_is_reached_once_the_recommendation_stays(path, spent):
    assert allocate.to_goal(path, 9.0) == spent


def test_regret_is_that_of_the_last_recommendation():
    path = [[1.0, 0.2], [2.0, None], [3.0, 0.1]]
    assert [allocate.regret_at(path, at) for at in (0.5, 1.0, 2.5, 9.0)] == [math.inf, 0.2, math.inf, 0.1]


def test_a_campaign_on_a_table_returns_its_runs_and_pays_for_compiling_once(whole):
    problem = problems.DrawnTable(whole).draw(3)
    assert problem.rows[0] == 0 and len(problem.rows) == 20 and sorted(problem.order) == [0, 1]
    run = Action(5, 0.5, 1)
    assert problem.loss(run) == whole.at[problem.rows[5], 0.5, problem.order[1]].loss
    problem.table = whole.model_copy(update={"compile_s": (2.0,) * 20})
    first, again = problem.price(run), problem.price(run._replace(seed=0))
    assert first - again == pytest.approx(2.0 / problem.unit_s) and again == pytest.approx(1.0)
    fallen = [i for i, row in enumerate(problem.rows) if whole.value(row) == math.inf]
    assert fallen and all(problem.value_C[i] == -math.inf and problem.loss(Action(i, 1.0, 0)) is None for i in fallen)


LIKE = ("ours-flat", "ours-full", "ours-eig", "asha-8", "asha-p8", "hyperband-8")
SMALL = [policy for policy in allocate.POLICIES if policy not in LIKE]


@pytest.mark.parametrize("policy", SMALL)
def test_every_policy_ends_and_never_pays_twice(policy, whole, monkeypatch):
    """On a made-up world and on a table; ours has a small budget, since it thinks before each run."""
    pytest.importorskip("optuna")
    asked: list[Action] = []
    loss = problems.MadeUp.loss
    monkeypatch.setattr(problems.MadeUp, "loss", lambda self, run: asked.append(run) or loss(self, run))
    world = problems.MadeUp(World(1, n_candidates=6, n_edits=6, diverging=0.2), seeds=2)
    budget = 2.0 if policy.startswith("ours") else 50.0
    found = allocate.campaign(world, policy, 1, budget)
    assert found["path"] and len(asked) == len(set(asked)) and 0 < found["runs"] <= len(asked)
    assert all(regret is None or regret >= 0 for _, regret in found["path"])
    again = allocate.campaign(problems.MadeUp(World(1, n_candidates=6, n_edits=6, diverging=0.2), seeds=2), policy, 1,
                              budget)
    assert again["path"] == found["path"]
    on_table = allocate.campaign(problems.DrawnTable(whole).draw(1), policy, 1, 4.0)
    assert on_table["runs"] >= 3 and (on_table["path"][-1][1] or 0) < math.inf


def test_a_sitting_knows_of_a_table_what_it_has_run(whole):
    """And no more: the runs it was not given are in no state of its own."""
    problem = problems.DrawnTable(whole).draw(1)
    sitting = allocate.ours.Sitting(problem, allocate.ours.flat, full=False)
    steps = sitting.run(7)
    prices = [price for price, _ in (next(steps) for _ in range(5))]
    assert isinstance(sitting.state, State) and len(sitting.state.trials) == 5 and min(prices) > 0
    for record in sitting.state.trials.values():
        row = problem.rows[sitting.index[record.recipe_id]]
        run = whole.at[row, record.horizon, problem.order[record.seed]]
        assert record.loss.get("search") == run.loss and record.outcome == run.outcome
    assert all(not arm.candidate.promise for arm in sitting.snapshot.arms)


def test_an_exhaustive_peer_finds_the_best_of_a_quiet_world():
    world = World(2, n_candidates=8, n_edits=6)
    world.loss = lambda run: -float(world.value[run.candidate])  # type: ignore[method-assign]
    for policy in ("random", "1-3-8", "best-k", "asha-p2"):
        path = allocate.campaign(problems.MadeUp(world), policy, 0, 1e6)["path"]
        assert path[-1][1] == pytest.approx(0.0)


def test_ours_reaches_long_horizons_and_beats_random():
    """The trap: the first run at a new horizon teaches nothing by itself, and cheap horizons were ground for ever."""
    worlds, budget = range(4), {"ours": 10.0, "random": 66.0}
    spent = {policy: [allocate.to_goal(allocate.campaign(problems.MadeUp(World(n)), policy, n, most)["path"], most)
                      for n in worlds] for policy, most in budget.items()}
    assert np.median(np.where(np.array(spent["ours"]) < 10.0, spent["ours"], 25.0)) < 0.4 * np.median(spent["random"])


def test_worlds_are_reproducible_and_the_base_is_nil():
    one, other = World(3), World(3)
    assert one.loss(Action(5, 0.25, 1)) == other.loss(Action(5, 0.25, 1)) != one.loss(Action(5, 0.25, 2))
    assert one.value[0] == 0.0 and one.candidates[0].features == {}
    hard = problems.DrawnWorlds(problems.WORLDS["hard"]).draw(1)
    assert np.isinf(hard.value_C).sum() == 20 and hard.value_C[0] == 0.0
    fallen = int(np.argmin(hard.value_C))
    assert hard.loss(Action(fallen, 0.5, 0)) is None and hard.loss(Action(fallen, 0.25, 0)) is not None


def test_curves_are_paid_for_by_what_is_new_of_them():
    share = np.linspace(0, 1, 9)
    curve = (share, 3.0 - share)
    problem = problems.Curves([problems.Candidate({})], [[curve]], [2.0])
    assert problem.loss(Action(0, 0.25, 0)) == pytest.approx(2.75)
    assert problem.price(Action(0, 0.25, 0)) == pytest.approx(0.5)
    assert problem.price(Action(0, 1.0, 0)) == pytest.approx(1.5)
    assert problem.value_C.tolist() == pytest.approx([-2.0])


def test_results_go_on_where_they_ended_and_are_summed_up_in_pairs(tmp_path, capsys):
    folder = tmp_path / "b"
    command = ["allocate", str(folder), "--problems", "made-up", "--policies", "random,best-k", "--budget", "4"]
    assert bench.main([*command, "--others", "2"]) == 0
    with open(folder / "results.jsonl", "a") as file:
        file.write('{"problem": "made-up", "pol')  # torn
    before = allocate.read(folder / "results.jsonl")
    assert bench.main([*command, "--others", "3"]) == 0
    after = allocate.read(folder / "results.jsonl")
    assert after[:4] == before and len(after) == 6
    assert "| best-k | 3 |" in capsys.readouterr().out and (folder / "regret-made-up.svg").exists()


def test_ratios_are_of_the_same_campaigns():
    told = (("ours", 1.0, 4), ("asha-2", 2.0, 4), ("asha-3", 4.0, 2))
    lines = [{"problem": "p", "policy": policy, "campaign": n, "budget": 10.0, "path": [[spent * (n + 1), 0.0]]}
             for policy, spent, count in told for n in range(count)]
    about = allocate.summary([*lines, lines[0] | {"budget": 5.0, "path": []}], 10.0)["problems"]["p"]
    assert about["best_asha"] == about["best_peer"] == "asha-2"
    assert about["policies"]["ours"]["over_asha"] == {"ratio": 0.5, "interval": (0.5, 0.5), "n": 4}
    assert about["policies"]["asha-3"]["over_peer"]["n"] == 2


@pytest.mark.parametrize(("eta", "rungs"), [
    (2, [0.125, 0.25, 0.5, 1.0]), (3, [0.125, 0.5, 1.0]), (4, [0.125, 0.5, 1.0]), (8, [0.125, 1.0])])
def test_rungs_are_the_horizons_that_a_pruner_looks_at(eta, rungs):
    assert peers._rungs({0.125: 1, 0.25: 2, 0.5: 4, 1.0: 8}, eta) == rungs


@pytest.mark.parametrize(("options", "words"), [
    (["--policies", "luck"], "no such policy"), (["--problems", "life"], "no such problem"),
    (["--problems", "table"], "--table: absent"), (["--problems", "curves"], "--curves: absent"),
    (["--problems", "curves", "--curves", "."], "neither"), (["--budget", "0"], "above 0")])
def test_a_mistake_in_a_campaign_is_one_line(options, words, tmp_path, capsys):
    assert report_errors(lambda: bench.main(["allocate", str(tmp_path / "b"), *options])) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_a_table_of_too_few_is_refused(whole, tmp_path, capsys):
    table.write(whole.model_copy(update={"recipes": whole.recipes[:1], "runs": ()}), tmp_path / "t.jsonl")
    options = ["--problems", "table", "--table", str(tmp_path / "t.jsonl")]
    assert report_errors(lambda: bench.main(["allocate", str(tmp_path / "b"), *options])) == 2
    assert "fewer than two" in capsys.readouterr().err
