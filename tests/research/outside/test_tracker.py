"""Runs in an experiment tracker: each that ends, once, with its curve; whatever it does, the session goes on."""

import json

import pytest
from sessions import Story

from jaxnano.cli import report_errors
from research import loop
from research.contract.trial import Trial
from research.outside.tracker import Tracker


class Recorder:
    """A tracker's interface over a list."""

    def __init__(self, fails=False):
        self.runs, self.fails = [], fails

    def init(self, project, name=None, group=None, config=None, job_type=None):
        if self.fails:
            raise ConnectionError("away")
        self.runs.append(Kept(project=project, name=name, group=group, config=config, job_type=job_type))
        return self.runs[-1]


class Kept:
    def __init__(self, **about):
        self.about, self.rows, self.finished = about, [], False

    def log(self, row, step=None):
        self.rows.append((step, row))

    def finish(self):
        self.finished = True


@pytest.fixture
def story(tmp_path):
    story = Story(tmp_path / "s")
    story.base = story.propose()
    trial = Trial(story.base, 0.25, 0)
    story.start(trial, "base")
    rows = [{"step": 10, "progress": 0.5, "loss": 3.0}, {"step": 20, "progress": 1.0, "loss": None}]
    (story.session.trial_dir(trial.key) / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    story.trial = trial
    yield story
    story.session.close()


def test_each_run_that_ends_is_sent_once(story):
    module = Recorder()
    before = story.session.ledger.last()
    with Tracker(module, story.session.path, story.track, before, "mine"):
        story.finish(story.trial, "base", loss={"search": 2.5, "protected": 9.0})
        story.run(Trial(story.base, 0.25, 1), "base", outcome="diverged", loss={})
    first, second = module.runs
    assert first.about["project"] == "mine" and first.about["group"] == "base" and first.about["job_type"] == "seed 0"
    assert first.about["config"]["seed"] == 0 and first.about["config"]["recipe_id"] == story.base
    assert first.rows == [(10, {"progress": 0.5, "loss": 3.0}), (20, {"progress": 1.0}), (21, {"final_loss": 2.5})]
    assert second.about["config"]["outcome"] == "diverged" and second.rows == [] and second.finished
    with Tracker(module, story.session.path, story.track, story.session.ledger.last()):
        pass
    assert len(module.runs) == 2  # a session that is resumed sends nothing twice


def test_a_tracker_that_fails_is_told_and_costs_nothing(story, capsys):
    with Tracker(Recorder(fails=True), story.session.path, story.track, 0):
        story.finish(story.trial, "base")
    assert "tracker: ConnectionError: away; the session goes on without it" in capsys.readouterr().err


def test_one_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert report_errors(lambda: loop.parse(["--tracker", "trackio"]) and 0) == 2
    assert "--tracker: trackio: not installed; pip install trackio would do" in capsys.readouterr().err
