"""Ending runs early: counted as wrong where the run would have been the best, and told to pay only where it does."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxnano.cli import report_errors
from research.check.bench import __main__ as bench
from research.check.bench import kills, table


def cell(rng, n, cross_sd):
    """Runs with a lasting difference, and one that is gone by the end."""
    final = 1.6 + rng.normal(0, 0.04, n)
    passing = rng.normal(0, cross_sd, n)
    now = np.stack([final + passing * (1 - look) + 1.5 * (1 - look) ** 2 for look in kills.LOOKS], axis=1)
    return kills.Cell(now, final, np.ones(n), np.ones(n))


@pytest.mark.parametrize(("cross_sd", "saved"), [(0.005, 0.15), (0.3, 0.0)])
def test_runs_that_keep_their_rank_are_ended_and_those_that_cross_are_not(cross_sd, saved):
    rng, count = np.random.default_rng(0), kills.Count()
    for _ in range(40):
        kills.replayed(cell(rng, 24, cross_sd), range(24), 0.02, count)
    assert count.runs == count.cost == 40 * 24 and count.wrong_share <= 0.03
    assert count.saved_share > saved if saved else count.saved_share < 0.1


def test_an_end_is_wrong_where_the_run_would_have_been_the_best():
    now = np.array([[2.0, 2.0], [2.1, 2.1], [2.2, 2.2], [2.3, 2.3], [9.0, 9.0], [9.0, 9.0]])
    count, final = kills.Count(), np.array([1.0, 1.1, 1.2, 1.3, 0.5, 5.0])
    kills.replayed(kills.Cell(now, final, np.ones(6), np.ones(6)), range(6), 0.02, count)
    assert (count.runs, count.kills, count.wrong) == (6, 2, 1) and count.saved == pytest.approx(4 / 3)


def test_nothing_is_ended_before_enough_have_gone_to_the_end():
    count = kills.Count()
    now = np.array([[2.0, 2.0], [2.1, 2.1], [9.0, 9.0], [9.0, 9.0]])
    kills.replayed(kills.Cell(now, np.array([1.0, 1.1, 5.0, 5.0]), np.ones(4), np.ones(4)), range(4), 0.02, count)
    assert count.kills == 0


def test_a_look_sees_the_curve_before_it_and_no_more():
    share, loss = np.array([0.1, 0.3, 0.33, 0.5, 1.0]), np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    assert kills.level(share, loss, 1 / 3) == 3.5
    assert np.isnan(kills.level(share, loss, 0.05))


def test_the_command_counts_a_table(whole, tmp_path, capsys):
    table.write(whole, tmp_path / "t.jsonl")
    assert bench.main(["kills", "--table", str(tmp_path / "t.jsonl"), "--orders", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    completed = sum(run.loss is not None for run in whole.runs)
    assert [row["runs"] for row in rows] == [2 * completed] * len(kills.RISKS)
    assert report_errors(lambda: bench.main(["kills"])) == 2 and "absent" in capsys.readouterr().err
