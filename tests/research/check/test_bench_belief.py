"""How well runs were foretold, told of a session; and a made-up ledger of many runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm
from sessions import Story

from jaxnano.cli import report_errors
from research.check.bench import __main__ as bench
from research.check.bench import belief, scale
from research.contract.track import load_track
from research.contract.trial import Trial
from research.decide.belief import Belief
from research.ledger.session import Session
from research.ledger.state import fold


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A session, its last run's recipe, and the belief before that run."""
    with (story := Story(tmp_path_factory.mktemp("told") / "s").search()).session:
        before, last = story.snapshot(), story.singles["qk-norm"]
        story.run(Trial(last, 0.25, 1))
        return story.session.path, last, before


def test_a_run_is_foretold_from_those_before_it_alone(told):
    path, last, before = told
    runs, leaders = belief.foretold(path)
    with Session.open(path) as session:
        state = fold(session.ledger.events())
    loss = state.losses(last, 0.25)[1]
    mean, sd = before.fitted.outcomes([before.by_id[last].candidate], [0.25], [1])
    assert (runs[-1].recipe_id, runs[-1].off, runs[-1].sd) == (last, -loss - mean[0], sd[0])
    assert abs(runs[-1].off) < 0.2 and leaders[0] == before.view().best.recipe_id
    assert runs[-1].nll == pytest.approx(-norm.logpdf(-loss, mean[0], sd[0]))
    first_of_their_cells = 1  # the base's in cell 0.25/1, once eight runs were there
    assert len(runs) == 14 - belief.LEAST - first_of_their_cells


def test_the_command_counts_sessions_together(told, capsys):
    path = str(told[0])
    assert bench.main(["belief", path, path, "--json"]) == 0
    one, other, both = json.loads(capsys.readouterr().out)
    assert one == other and both["runs"] == 2 * one["runs"] and both["nll"] == pytest.approx(one["nll"])
    assert bench.main(["belief", path]) == 0 and "90 % intervals cover" in capsys.readouterr().out
    assert report_errors(lambda: bench.main(["belief", "nowhere"])) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_made_up_session_is_one_that_the_loop_could_have_left(tmp_path):
    track = load_track("tiny")
    scale.written(tmp_path / "s", scale.events(track, 40, 5, 0))
    with Session.open(tmp_path / "s") as session:
        state = fold(session.ledger.events())
    assert len(state.trials) == 40 and state.counts() == {"completed": 40}
    assert all(len(t.result.curve) == 5 for t in state.trials.values())
    now = Belief(track).at(state)
    assert len(now.arms) == 17 and now.arms[0].candidate.features == {}
    assert np.isfinite(now.effects).all()
    found = scale.belief(tmp_path / "s", 2, 0)
    assert found["decision, median s"] > 0 and found["memory, GB"] > 0
