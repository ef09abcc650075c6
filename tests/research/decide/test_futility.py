"""No attempt is spent on what search seeds that did not pick it do not bear out, and the ledger says why."""

import pytest
from sessions import Story
from test_proof import nominate, proof, run_wanted, settle

from research.contract.trial import Trial
from research.decide.claims import broken_claims
from research.decide.futility import MOST
from research.decide.proof import under_way
from research.show.facts import Facts
from research.show.verdict import verdict


@pytest.fixture
def story(tmp_path):
    with (found := Story(tmp_path / "s").search()).session:
        yield found


def settled(story, worth=None, ran=()):
    """The proof of `story.best`, its ablation over. worth: of all recipes from the nomination on, else their own.
    ran: seeds on which it had a short run before."""
    for seed in ran:
        story.run(Trial(story.best, 0.25, seed))
    story.worth |= {} if worth is None else dict.fromkeys(story.worth, worth)
    nominate(story, story.best)
    while proof(story).final is None:
        run_wanted(story)
        settle(story)
    return proof(story)


def test_a_gain_on_seeds_that_did_not_pick_it_is_worth_an_attempt(story):
    found = settled(story)
    assert found.futility().seeds == [1, 2, 3, 4]
    run_wanted(story)
    assert list(proof(story).futility().gains) == [1, 2]
    assert proof(story).futility(6e-4).settle() is None


def test_runs_after_the_nomination_pick_nothing(story):
    found = settled(story, ran=[1])
    assert found.futility().seeds == [2, 3, 4, 5]  # a short run on seed 1 came before, its ablation's after it
    assert Trial(story.base, 1.0, 2) in [t for t, _ in found.wanted()]
    run_wanted(story)
    assert proof(story).futility(6e-4).settle() is None


def test_luck_on_the_seeds_that_picked_it_is_not(story):
    """It gained 0.4 on seed 0, and nothing gains anything on others."""
    final = settled(story, 0.0, ran=[1, 2]).final
    while wanted := proof(story).wanted():
        for trial, purpose in wanted:
            assert trial.seed in (3, 4, 5, 6)
            story.run(trial, purpose)
    body = proof(story).futility(6e-4).settle()
    assert body.why.startswith("an effect above 0.01 has probability") and body.p < 0.9 and len(body.gains) == MOST
    story.write("futile", story.best, body)
    assert body.recipe_id == final and proof(story).done and under_way(story.snapshot()) is None
    events = story.session.ledger.events()
    assert not [line for line in broken_claims(events) if "futile" in line]
    _, state = story.end()
    kind, text = verdict(Facts.of(state))
    assert kind == "none" and "no attempt was spent on" in text and "has probability" in text


@pytest.mark.parametrize(("level", "why"), [(1e-30, "the test would pass it with probability 0.00, under 0.3")])
def test_an_attempt_that_would_hardly_pass_is_not_spent(story, level, why):
    settled(story)
    run_wanted(story)
    assert proof(story).futility(level).settle().why == why


def test_a_run_that_did_not_finish_speaks_against_it(story):
    found = settled(story)
    seed = next(trial.seed for trial, _ in found.wanted() if trial.recipe_id == story.best)
    run_wanted(story, **{story.best: {"outcome": "diverged", "loss": {}}})
    assert proof(story).futility().settle().why == f"its run on seed {seed} did not finish"
