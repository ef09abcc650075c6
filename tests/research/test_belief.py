"""The belief is a function of the ledger alone: the same prefix gives the same arms, posterior and decision."""

import numpy as np
import pytest
from sessions import Story

from research.belief import SEEDS, Belief
from research.proof import FRESH
from research.propose import Proposal, build
from research.propose.catalogue import ideas, part
from research.state import fold
from research.trial import Trial


@pytest.fixture
def story(tmp_path):
    with (found := Story(tmp_path / "s").search()).session:
        yield found


def test_a_belief_that_grew_decides_as_a_fresh_one(story):
    """Whatever was asked on the way: caches change the time an answer takes, never the answer."""
    events = story.session.ledger.events()
    grown = Belief(story.track)
    for n in range(2, len(events) + 1):
        if events[n - 1].kind != "result" and n < len(events):
            continue
        now = grown.at(fold(events[:n])).decide(3, n % 2, 1e6)
        assert now == Belief(story.track).at(fold(events[:n])).decide(3, n % 2, 1e6)
    assert now is not None and now[1]["as_of"] == events[-1].seq


def test_arms_are_in_the_order_of_their_proposals_whichever_was_judged_first(story):
    """A proposal of another process may wait for its verdict while the loop's own go on."""
    late, soon = (build(story.track.base_recipe, [part(ideas()[n])]) for n in ("swiglu", "rmsnorm"))
    grown = Belief(story.track)
    from jaxnano.config.base import dump
    from jaxnano.config.recipe import recipe_id

    for name, recipe in (("late", late), ("soon", soon)):
        proposal = Proposal(name, (), "", "catalogue").as_dict()
        story.write("proposal", recipe_id(recipe), {"proposal": proposal, "recipe": dump(recipe)})
    for recipe in (soon, late):
        story.write("verdict", recipe_id(recipe), {"accepted": True})
        grown.at(fold(story.session.ledger.events()))
    state = fold(story.session.ledger.events())
    names = [arm.name for arm in grown.at(state).arms]
    assert names == [arm.name for arm in Belief(story.track).at(state).arms]
    assert names[0] == "base" and names[-2:] == ["late", "soon"]


def test_verification_seeds_and_failures_teach_nothing(story):
    before = story.snapshot()
    assert FRESH >= SEEDS
    story.worth[story.best] = -5.0
    story.run(Trial(story.best, 1.0, FRESH + 5), "verify")
    story.run(Trial(story.best, 0.25, 3), outcome="failed", reason="ValueError", loss={})
    story.run(Trial(story.best, 0.5, 3), outcome="interrupted", reason="the loop ended", loss={})
    after = story.snapshot()
    np.testing.assert_array_equal(before.effects[0], after.effects[0])
    assert Trial(story.best, 0.5, 3) not in after.over[story.best]  # an interrupted run is run again
    assert after.broken(story.best) and not before.broken(story.best)


def test_a_broken_recipe_does_not_compete(story):
    index = story.snapshot().index[story.best]
    assert index in story.snapshot().pool()
    story.run(Trial(story.best, 0.5, 3), outcome="timeout", reason="slow", loss={})
    assert index not in story.snapshot().pool() and story.snapshot().pool()[0] == 0


def test_the_price_of_a_run_grows_with_its_horizon_and_falls_once_compiled(story):
    found = story.snapshot()
    arm = found.arms[found.index[story.best]]
    assert found.seconds(arm, 1.0, 0) > found.seconds(arm, 0.25, 0)
    fresh = story.propose([part(ideas()["swiglu"])], 0.0)
    found = story.snapshot()
    new = found.arms[found.index[fresh]]
    assert found.seconds(new, 0.25, 0) > found.seconds(arm, 0.25, 0)
    assert found.seconds(arm, 0.25, 1) > found.seconds(arm, 0.25, 0)  # worker 1 has yet to load the program
    story.start(Trial(fresh, 0.25, 0))
    assert story.snapshot().seconds(new, 0.25, 0) < found.seconds(new, 0.25, 0)


def test_nothing_is_decided_that_does_not_fit_into_the_time(story):
    found = story.snapshot()
    assert found.decide(0, 0, 0.1) is None
    shortest = min(found.belief.track.horizons)
    just = 1.001 * found.slowdown * found.seconds(found.arms[0], shortest, 0)
    trial, body = found.decide(0, 0, just)
    assert trial.horizon == shortest and body["left_s"] == just


def test_a_run_in_flight_is_not_given_twice(story):
    trial, body = story.snapshot().decide(0, 0, 1e6)
    story.start(trial, body["purpose"])
    again = story.snapshot().decide(0, 1, 1e6)
    assert again is not None and again[0] != trial and story.snapshot().running == [trial]


def test_effects_are_learnt_from_the_runs(story):
    mean, sd = story.snapshot().effects
    found = story.snapshot()
    assert mean[0] == pytest.approx(0.0, abs=1e-9)
    assert mean[found.index[story.best]] == pytest.approx(0.4, abs=0.05)
    assert mean[found.index[story.singles["qk-norm"]]] < 0.02 and sd[found.index[story.best]] < 0.1
    assert found.view().best.recipe_id == story.best
