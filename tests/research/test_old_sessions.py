"""A session that version 0.2 wrote still opens, and what it claims still holds.

session-0.2.tar.xz: track micro, `python -m research.loop --track tests/research/micro.yaml --minutes 20 --seed 1
--max-trials 9 --lanes tuner,recombine` at version 0.2, less logs, metrics, plots and report; the track's path in it is
that of the repository.
"""

import json

import pytest
from sessions import old_session

import jaxnano
from jaxnano import data
from jaxnano.cli import report_errors
from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe, recipe_id
from research import explain, replay, report, share, status
from research.ledger import __main__
from research.ledger.events import FILE, Ledger, encode
from research.ledger.names import handle
from research.ledger.state import fold

CROWNED = "7bae8c5a1425c70c"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The session's folder."""
    return old_session(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def state(old):
    with Ledger(old / FILE) as opened:
        return fold(opened.events())


@pytest.fixture(scope="module")
def same_data(state):
    """Whether this machine's packages are those whose text the session was trained on."""
    crowned = state.proposals[CROWNED].recipe
    recipe = validate(Recipe, crowned)
    return data.load(recipe.data).data_hash == state.session.data_hash


def test_its_rules_hold(old, capsys):
    assert __main__.main(["--check", str(old)]) == 0, capsys.readouterr()
    assert "no violation" in capsys.readouterr().out


def test_its_state_is_read(old, state, capsys):
    assert state.champion == CROWNED and len(state.ablations[CROWNED].rows) == 3
    assert report_errors(lambda: status.main([str(old), "--json"])) == 0
    found = json.loads(capsys.readouterr().out)
    assert CROWNED in json.dumps(found)


def test_what_was_read_would_be_written_again_and_what_it_did_not_say_has_a_default(old, state):
    with Ledger(old / FILE) as opened:
        for event, (*_, text, _) in zip(opened.events(), opened.raw(), strict=True):
            told = json.loads(text)
            if "proposal" in told:  # what is new since
                told["proposal"] |= {"novelty": None}
                told["proposal"]["parts"] = [part | {"why": ""} for part in told["proposal"]["parts"]]
            assert json.loads(encode(event.body)) == told
    assert state.ablations[CROWNED].more is None
    assert {decision.body.priced for decision in state.decisions} == {None}


def test_its_report_and_its_trials_are_explained(old, state, capsys):
    assert report_errors(lambda: report.main([str(old)])) == 0
    text = (old / "report.md").read_text()
    assert f"Improvement proven: {handle(CROWNED)} lowers" in text and "3 x tuned" in text
    for key in (state.crowned[-1].body.trial, next(iter(state.trials))):
        assert report_errors(lambda key=key: explain.main([str(old), key])) == 0
        assert key in capsys.readouterr().out


def test_its_champions_run_is_run_again(old, state, same_data, capsys):
    code = report_errors(lambda: replay.main([str(old), state.crowned[-1].body.trial, "--json"]))
    out, err = capsys.readouterr()
    if same_data:
        assert code == 0 and json.loads(out)["holds"]
    else:
        assert code == 2 and err.count("\n") == 1 and "data" in err


def test_its_champion_is_shared_and_opened(old, state, same_data, tmp_path, capsys):
    code = report_errors(lambda: share.main([str(old), str(tmp_path / "out"), "--json"]))
    out, err = capsys.readouterr()
    if same_data:
        assert code == 0 and json.loads(out)["champion"] == "3 x tuned", err
        recipe, _, about = jaxnano.load(tmp_path / "out")
        assert recipe_id(recipe) == about["card"]["recipe_id"] == CROWNED
    else:
        assert code == 2 and err.count("\n") == 1 and "data" in err
