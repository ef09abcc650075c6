"""Proposals from the shell: verdict, trial and outcome, and one line for what is wrong."""

import json
import re

import pytest
from sitting import LR, created, drive, loop

from jaxnano.cli import report_errors
from research.propose import main


@pytest.fixture
def session(tmp_path):
    with created(tmp_path / "s") as session:
        loop(session)
        yield session


def propose(capsys, session, *argv):
    """Exit code, output and errors."""
    code = report_errors(lambda: main([str(session.path), *argv]))
    return code, *capsys.readouterr()


def test_an_accepted_one_says_its_trial_and_its_outcome(capsys, session):
    options = ("--set", f"{LR}=3e-3", "--why", "the base is timid", "--name", "bold", "--on", "base")
    code, out, err = propose(capsys, session, *options, "--effect", "0.05", "--json")
    verdict = json.loads(out)
    assert (code, err) == (0, "") and verdict["accepted"] and verdict["name"] == "bold"
    drive(session)
    code, out, _ = propose(capsys, session, *options)
    assert code == 1 and out.startswith("refused: bold\n") and "the same recipe" in out
    code, out, _ = propose(capsys, session, "--set", f"{LR}=0.004", "--why", "more", "--on", verdict["recipe_id"][:8])
    assert code == 0 and "accepted: lr.value" in out and "--resume" in out


def test_a_session_without_time_says_how_to_give_it_some(capsys, tmp_path):
    with created(tmp_path / "s", minutes=0.1) as session:
        drive(session)
        _, out, _ = propose(capsys, session, "--set", f"{LR}=3e-3", "--why", "bold", "--on", "base")
        assert re.search(r"--resume --session SESSION --minutes \d", out)


def test_waiting_prints_what_came_of_it(capsys, session, monkeypatch):
    monkeypatch.setattr("research.outside.inbox.time.sleep", lambda s: drive(session))  # the loop runs while it waits
    code, out, _ = propose(capsys, session, "--set", f"{LR}=0.003", "--why", "to see", "--on", "base", "--wait", "60")
    assert code == 0 and "its first run is over:" in out and "completed, on seed 0: +" in out and "over the base" in out
    assert "believed at the full horizon" in out


def test_edits_of_a_file_go_first(capsys, session, tmp_path):
    (tmp_path / "diff.yaml").write_text("edits:\n- {path: model.norm, new: {kind: rmsnorm}}\n")
    code, out, _ = propose(capsys, session, "--file", str(tmp_path / "diff.yaml"), "--why", "cheaper", "--on", "base",
                           "--set", "model.attention.qk_norm=true", "--json")
    number = json.loads(out)["number"]
    (part,) = next(e for e in session.ledger.events("submission") if e.seq == number).body.proposal["parts"]
    assert code == 0 and part["edits"] == [{"path": "model.norm", "new": {"kind": "rmsnorm"}},
                                           {"path": "model.attention.qk_norm", "new": True}]


@pytest.mark.parametrize(("argv", "words"), [
    ((), "--set: "), (("--set", "model.depth"), "written as path=value"),
    (("--file", "nowhere.yaml"), "cannot be read"), (("--file", "README.md"), "README.md"),
    (("--set", f"{LR}=1", "--on", "zzz"), "best, base or the id"),
    (("--set", f"{LR}=1", "--name", "x" * 99), "name"), (("--set", f"{LR}=[1"), "not YAML"),
    (("--set", f"{LR}=1", "--effect", "99"), "effect"),
])
def test_bad_input_is_one_line_and_submits_nothing(capsys, session, argv, words):
    code, out, err = propose(capsys, session, "--why", "x", *argv)
    assert code == 2 and out == "" and err.count("\n") == 1 and words in err
    assert session.ledger.events("submission") == []


def test_no_session_is_one_line(capsys, tmp_path):
    code = report_errors(lambda: main([str(tmp_path), "--why", "x", "--set", f"{LR}=1"]))
    assert code == 2 and "no session there" in capsys.readouterr().err
