"""No attempt is spent on what search seeds that did not pick it do not bear out, and the ledger says why."""

import pytest
from sessions import Story

from research.contract.trial import Trial
from research.decide.claims import broken_claims
from research.decide.futility import MOST
from research.decide.proof import Proof, under_way
from research.show.facts import Facts
from research.show.verdict import verdict


@pytest.fixture
def story(tmp_path):
    with (found := Story(tmp_path / "s").search()).session:
        yield found


def settled(story, worth):
    """The proof of `story.best`, its ablation over, whose gain on seeds that did not pick it is `worth`."""
    story.nominate()
    for seed in (1, 2):  # the story's replicates are made up anew
        assert {Trial(rid, 1.0, seed) for rid in (story.base, story.best)} <= {
            t.trial for t in story.snapshot().state.trials.values()}
    story.worth[story.best] = story.worth[story.base] + worth
    return now(story)


def now(story):
    event = story.snapshot().state.nominated[-1]
    return Proof(story.snapshot(), event.subject, event.body)


def test_a_gain_on_seeds_that_did_not_pick_it_is_worth_an_attempt(story):
    proof = settled(story, 0.4)
    assert proof.futility().seeds == [1, 2, 3, 4] and list(proof.futility().gains) == [1, 2]
    assert proof.wanted() == [] and proof.futility(6e-4).settle() is None


def test_runs_after_the_nomination_pick_nothing(story):
    story.run(Trial(story.best, 0.25, 1))
    proof = settled(story, 0.4)
    assert proof.futility().seeds == [2, 3, 4, 5]  # a short run on seed 1 came before, the replicates after it
    assert [t for t, _ in proof.wanted()] == [Trial(rid, 1.0, 3) for rid in (story.base, story.best)]
    for trial, purpose in proof.wanted():
        story.run(trial, purpose)
    assert now(story).futility(6e-4).settle() is None


def test_luck_on_the_seeds_that_picked_it_is_not(story):
    for seed in (1, 2):
        story.run(Trial(story.best, 0.25, seed))
    assert settled(story, 0.0).final == story.best  # it gained 0.4 on seeds 0 to 2, and gains nothing on others
    while wanted := now(story).wanted():
        for trial, purpose in wanted:
            assert purpose == "replicate" and trial.seed in (3, 4, 5, 6)
            story.run(trial, purpose)
    body = now(story).futility(6e-4).settle()
    assert body.why.startswith("an effect above 0.01 has probability") and body.p < 0.9 and len(body.gains) == MOST
    story.write("futile", story.best, body)
    assert now(story).done and under_way(story.snapshot()) is None
    events = story.session.ledger.events()
    assert not [line for line in broken_claims(events) if "futile" in line]
    _, state = story.end()
    kind, text = verdict(Facts.of(state))
    assert kind == "none" and "no attempt was spent on" in text and "has probability" in text


@pytest.mark.parametrize(("level", "why"), [(1e-30, "the test would pass it with probability 0.00, under 0.3")])
def test_an_attempt_that_would_hardly_pass_is_not_spent(story, level, why):
    assert settled(story, 0.4).futility(level).settle().why == why


def test_a_run_that_did_not_finish_speaks_against_it(story):
    story.run(Trial(story.best, 0.25, 1))
    settled(story, 0.4)
    story.run(Trial(story.base, 1.0, 3), "replicate")
    story.run(Trial(story.best, 1.0, 3), "replicate", outcome="diverged", loss={})
    assert now(story).futility().settle().why == "its run on seed 3 did not finish"
