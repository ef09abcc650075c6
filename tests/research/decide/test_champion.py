"""The champion's folder: it is the one that the ledger crowned, whatever the loop was killed at, and text is text."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sessions import EVIL, changes, cut, old_session
from sitting import created, loop
from stand_in import MICRO, StandIn

from jaxnano import checkpoint, data, evaluate
from jaxnano.config.file import load
from jaxnano.config.recipe import recipe_id
from research.contract.track import load_track
from research.execute import measure
from research.ledger.events import Ledger
from research.ledger.session import Session, write_result
from research.show.card import write_change

PASSED, SHIPPED = "7bae8c5a1425c70c", 652183623


def test_a_name_from_outside_is_text_in_the_champions_folder(tmp_path):
    with created(tmp_path / "s") as session:
        parts = (changes("calm", {"optimizer.clip": 0.7}, why=EVIL + " is why"),)
        arm = replace(loop(session).snapshot.arms[0], name=f"{EVIL}\n# more", parts=parts)
        session.champion.mkdir()
        write_change(load_track(MICRO), session.champion, arm)
        text = (session.champion / "diff.md").read_text()
    assert "<script" not in text and "\x1b" not in text and "[x](y)" not in text and "\n# more" not in text
    assert "&lt;script&gt;" in text.splitlines()[0] and "is why" in text


@pytest.fixture
def passed(tmp_path):
    """A session, its loop gone, whose candidate has passed, with an older champion's folder in place."""
    path = cut(old_session(tmp_path), before="crowned")
    verified = next((path / "trials").glob(f"{PASSED}-1-{SHIPPED}"))
    (path / "champion" / "checkpoint").rename(verified / "checkpoint")
    (path / "champion" / "recipe.yaml").write_text("of before")
    return path


def stop_before(monkeypatch, step):
    """Have the loop die before it appends the event, or before its n-th rename of the champion's folders."""
    append, rename, renamed = Ledger.append, Path.rename, []

    def dying_append(self, kind, *rest):
        if kind == step:
            raise KeyboardInterrupt
        return append(self, kind, *rest)

    def dying_rename(self, target):
        renamed.extend([self] if self.name.startswith("champion") else [])
        if len(renamed) == step:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Ledger, "append", dying_append)
    monkeypatch.setattr(Path, "rename", dying_rename)


def crown(session):
    """As the loop crowns, with a worker for the held-out loss."""
    found = loop(session)
    found.prover.crown()
    if (trial := found.prover.opening) is not None:
        assert not session.ledger.events("crowned")
        found.dispatcher.measure(trial)
        found.dispatcher.measure(trial)  # one at a time
        (job,) = found.executor.jobs
        assert json.loads(json.dumps(job)) == job
        with pytest.raises(ValueError, match="is not the session's"):  # which is older than today's data
            measure.run_job(job["args"], print)
        here = {"data_hash": data.load(load(Path(job["dir"]) / "recipe.yaml").data).data_hash}
        write_result(Path(job["dir"]), job["attempt"], measure.run_job(job["args"] | here, print), job["id"])
        found.prover.crown()
    return found


@pytest.mark.parametrize("step", ["crowned", 1, 2])
def test_a_champion_is_installed_whole_and_known_whatever_the_loop_is_killed_at(passed, monkeypatch, step):
    opened, before = [], evaluate.evaluate
    monkeypatch.setattr(evaluate, "evaluate", lambda *args: opened.append(before(*args)) or opened[-1])
    with Session.open(passed, lock=True) as session, monkeypatch.context() as patch:
        stop_before(patch, step)
        with pytest.raises(KeyboardInterrupt):
            crown(session)
        known = [e.subject for e in session.ledger.events("crowned")]
    assert known == [] if step == "crowned" else known == [PASSED]
    if not known:  # what the ledger does not know is not the champion's folder
        assert (passed / "champion" / "recipe.yaml").read_text() == "of before"
    with Session.open(passed, lock=True) as session:
        found = crown(session)
        crowned = session.ledger.events("crowned")
    assert [e.subject for e in crowned] == [PASSED] and found.state.champion == PASSED
    assert opened == [crowned[0].body.heldout]  # once
    assert len(crowned[0].body.sample) > measure.WRITTEN / 2  # of bytes, some of which are no characters
    assert recipe_id(load(passed / "champion" / "recipe.yaml")) == PASSED
    assert checkpoint.load(passed / "champion")[2]["seed"] == SHIPPED == crowned[0].body.seed
    assert [p.name for p in passed.iterdir() if p.name.startswith("champion")] == ["champion"]


def test_a_folder_that_was_not_finished_is_made_again(passed):
    (passed / "champion.new").mkdir()
    (passed / "champion.new" / "recipe.yaml").write_text("half")
    with Session.open(passed, lock=True) as session:
        crown(session)
    assert recipe_id(load(passed / "champion" / "recipe.yaml")) == PASSED and not (passed / "champion.new").exists()


def test_a_held_out_loss_that_cannot_be_had_ends_the_sitting_and_crowns_nobody(passed):
    executor = StandIn(outcomes=lambda job: {"outcome": "failed", "reason": "no such luck"})
    with Session.open(passed, lock=True) as session:
        found = loop(session, executor, max_trials=1)
        assert found.run().startswith("the machine failed: 3 attempts at the held-out loss of ")
        assert found.trouble.endswith("no such luck") and not session.ledger.events("crowned")
    held_out = [job for job in executor.jobs if job["target"] == measure.TARGET]
    assert [job["attempt"] for job in held_out] == [1, 2, 3]
