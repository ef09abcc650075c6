"""The table of real runs, its runs made up: whole, the same whatever interrupted it, read back as it was written."""

from __future__ import annotations

import itertools
import math

import pytest
from made_up import PLAN, Killed, Mortal, recorded
from sitting import created
from stand_in import MICRO

from jaxnano.cli import report_errors
from research.check.bench import __main__ as bench
from research.check.bench import record, table
from research.contract.track import load_track
from research.ledger.session import Session


def test_every_recipe_has_a_run_in_every_cell(whole):
    assert len(whole.recipes) == PLAN["recipes"] and whole.whole == tuple(range(20))
    assert len(whole.runs) == len(whole.at) == 20 * 2 * 2
    lanes = [row.proposed.proposal.lane for row in whole.recipes]
    assert lanes[:4] == ["base", "ladder", "bad", "bad"]  # the second rung, Muon, finds no group of its own there
    assert {"tuner", "recombine"} <= set(lanes[4:]) <= set(PLAN["lanes"])
    bred = [row for row in whole.recipes[4:] if row.proposed.proposal.parents]
    assert bred and not {p for row in bred for p in row.proposed.proposal.parents} & {r.id for r in whole.recipes[1:4]}


def test_a_recipe_that_diverged_has_no_value(whole):
    fallen = [i for i in range(20) if any(run.outcome == "diverged" for run in whole.runs if run.recipe == i)]
    assert fallen and all(whole.value(i) == math.inf for i in fallen)
    losses = [whole.at[0, 1.0, seed].loss for seed in range(2)]
    assert whole.value(0) == pytest.approx(sum(losses) / 2)


def test_what_is_killed_in_runs_and_in_a_draw_goes_on_to_the_same_table(whole, tmp_path, monkeypatch):
    """A draw goes on before anything runs: else what ran in between would change what is drawn."""
    draws, draw = itertools.count(), record.Recorder.draw

    def dying(self):
        if next(draws) == 3:
            raise Killed
        draw(self)

    with created(tmp_path / "s", recorded=PLAN) as session:
        path = session.path
        with pytest.raises(Killed):
            recorded(session, Mortal(polls=13))
        assert 0 < len(table.table_of(session).runs) < len(whole.runs)
    with monkeypatch.context() as patched, Session.open(path, lock=True) as session:
        patched.setattr(record.Recorder, "draw", dying)
        with pytest.raises(Killed):
            recorded(session, Mortal())
    with Session.open(path, lock=True) as session:
        again = recorded(session, Mortal())
    assert again.recipes == whole.recipes and set(again.runs) == set(whole.runs)


def test_a_table_is_read_as_it_was_written(whole, tmp_path):
    table.write(whole, tmp_path / "t.jsonl")
    assert table.load(tmp_path / "t.jsonl") == whole
    assert whole.track == load_track(MICRO)


@pytest.mark.parametrize(("text", "words"), [
    (None, "No such file"), ("", "no header"), ('{"run": {"recipe": 1}}\n', "line 1"), ("[]\n", "line 1")])
def test_what_is_no_table_is_one_line(text, words, tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    if text is not None:
        path.write_text(text)
    assert report_errors(lambda: bool(table.load(path))) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_curves_are_thinned_evenly_and_keep_their_end():
    curve = [(i / 64, 5.0 - i / 64) for i in range(1, 65)]
    found = table.thinned(curve)
    assert len(found) == table.POINTS and found[-1] == (1.0, 4.0) and found[0] == (0.0312, 4.9688)
    assert table.thinned(curve[:7]) == tuple((round(a, 4), round(b, 4)) for a, b in curve[:7])
    assert table.thinned([(0.5, math.nan)]) == ((0.5, None),) and table.thinned([]) == ()


@pytest.mark.parametrize(("options", "words"), [
    (["--recipes", "0"], "whole number"), (["--lanes", "gossip"], "no such lane"), (["--track", "nowhere"], "tiny"),
    (["--seeds", "3"], "new folder"), (["--show"], "was not recorded")])
def test_a_mistake_is_one_line(options, words, tmp_path, capsys):
    body = {} if "--show" in options else {"recorded": PLAN | {"seeds": 2}}
    with created(tmp_path / "s", **body):
        pass
    command = ["record", str(tmp_path / "s"), "--track", MICRO, *options]
    try:
        assert report_errors(lambda: bench.main(command)) == 2
    except SystemExit as end:
        assert end.code == 2
    told = capsys.readouterr().err
    assert words in told and "Traceback" not in told
