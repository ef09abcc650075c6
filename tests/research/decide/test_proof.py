"""From a nomination to a verdict, on made-up losses: what goes, what is sealed, what passes and what does not."""

import numpy as np
import pytest
from sessions import PROTECTED, Story, forge

from jaxnano.config.recipe import recipe_id
from research.contract.proposal import build
from research.contract.trial import FRESH, Trial
from research.decide.belief import Belief
from research.decide.proof import Proof, best_single
from research.ledger.registry import Entry


@pytest.fixture
def story(tmp_path):
    with (found := Story(tmp_path / "s").search()).session:
        yield found


def proof(story):
    """The proof of the last nomination, as of now."""
    snapshot = story.snapshot()
    event = snapshot.state.nominated[-1]
    return Proof(snapshot, event.subject, event.body)


def nominate(story, recipe):
    number = len(story.snapshot().state.nominated) + 1
    story.write("nominated", recipe, {"number": number, "mean": 0.1, "sd": 0.01, "parts": []})
    propose_variants(story)
    return proof(story)


def run_wanted(story, **outcomes):
    """All runs the present stage wants, until it wants no more; outcomes: recipe id -> body of its first one."""
    while wanted := proof(story).wanted():
        for trial, purpose in wanted:
            story.run(trial, purpose, **outcomes.pop(trial.recipe_id, {}))


def settle(story):
    """The next ablation event; what it wants to run is accepted, and is worth what `story.worth` says, or the most."""
    body = proof(story).ablation.settle()
    story.write("ablation", proof(story).recipe_id, body)
    propose_variants(story)
    return body


def propose_variants(story):
    for proposal in [] if proof(story).done else list(proof(story).ablation.proposals()):
        recipe = recipe_id(build(story.track.base_recipe, proposal.parts))
        story.propose(proposal.parts, story.worth.get(recipe, story.worth[story.best]))


def seal(story):
    snapshot = story.snapshot()
    entry = Entry(len(snapshot.state.sealed) + 1, PROTECTED)
    story.write("sealed", proof(story).final, proof(story).seal(story.base, best_single(snapshot), entry))
    return snapshot.state


def verify(story):
    body = proof(story).verify()
    story.write("verification", proof(story).sealed.subject, body)
    return body


def test_the_candidate_and_its_ablations_run_on_common_seeds_that_did_not_pick_it(story):
    found = nominate(story, story.best)
    assert found.wanted() == [] and list(found.ablation.proposals()) == [] and found.final is None
    believed = settle(story).believed
    assert all(mean > story.track.epsilon for mean, _ in believed.values())  # so each is taken off by itself
    wanted = proof(story).wanted()
    assert {(t.horizon, t.seed) for t, _ in wanted} == {(1.0, 1)}  # on seed 0 it ran in the search
    assert {t.recipe_id: purpose for t, purpose in wanted} == {
        story.best: "replicate", story.singles["rotary"]: "ablate", story.singles["relu-squared"]: "ablate"}


def test_a_part_that_earns_its_place_stays(story):
    nominate(story, story.best)
    while proof(story).final is None:
        run_wanted(story)
        body = settle(story)
    assert body.removed == () and body.recipe_id == story.best and body.untested == {}
    effects = {row["part"]: row["effect"] for row in body.rows}
    assert effects == pytest.approx({"rotary": 0.35, "relu-squared": 0.05}, abs=0.02)
    assert proof(story).final == story.best
    wanted = [trial for trial, _ in proof(story).wanted()]  # on seeds that did not pick it: 0 did
    assert proof(story).futility().seeds == [1, 2, 3, 4] and Trial(story.base, 1.0, 1) in wanted
    assert Trial(story.best, 1.0, 1) not in wanted  # it has run beside its ablations


def test_a_better_candidate_passes_on_fresh_seeds(story):
    story.nominate()
    seal(story)
    found = proof(story)
    seeds = found.seeds()
    assert len(set(seeds)) == 15 and min(seeds) >= FRESH
    wanted = found.wanted()
    assert {purpose for _, purpose in wanted} == {"verify"} and {t.seed for t, _ in wanted} == set(seeds[:3])
    assert [t.recipe_id for t, _ in wanted] == [story.base, story.best] * 3
    run_wanted(story)
    body = verify(story)
    assert body.passed and body.attempt == 1 and body.alpha == pytest.approx(0.006 / np.pi**2)
    assert list(body.seeds) == seeds[:6]  # two blocks say enough
    assert body.comparisons["incumbent"]["effect"] == pytest.approx(0.4, abs=0.02)
    assert body.comparisons["incumbent"]["p_value"] <= body.alpha and body.comparisons.keys() == {"incumbent"}
    assert proof(story).done and proof(story).wanted() == [] and proof(story).beside() == []
    story.write("crowned", story.best, {"trial": Trial(story.best, 1.0, seeds[0]).key, "seed": seeds[0]})
    assert [t for t, _ in proof(story).beside()] == [Trial(story.singles["rotary"], 1.0, s) for s in seeds[:6]]


def test_a_candidate_that_is_no_better_fails_on_all_seeds_and_attempts_share_alpha(story):
    story.nominate()
    seal(story)
    first = proof(story).seeds()
    story.worth[story.best] = story.worth[story.base] + 0.001
    run_wanted(story)
    body = verify(story)
    assert not body.passed and proof(story).done and proof(story).wanted() == [] and list(body.seeds) == first
    nominate(story, story.singles["rotary"])
    settle(story)
    seal(story)
    assert not set(first) & set(proof(story).seeds())
    run_wanted(story)
    body = verify(story)
    levels = [e.body.alpha for e in story.snapshot().state.sealed]
    assert body.attempt == 2 and body.alpha == levels[1] == pytest.approx(levels[0] / 4) and body.passed
    assert all(len(losses) == 6 for losses in body.losses.values())  # though some ran in the first attempt, too


@pytest.mark.parametrize("role", ["candidate", "incumbent"])
def test_a_verification_run_that_diverges_leaves_nothing_proven(story, role):
    story.nominate()
    seal(story)
    recipe = proof(story).contenders()[role]
    run_wanted(story, **{recipe: {"outcome": "diverged", "loss": {}}})
    body = verify(story)
    assert not body.passed and body.comparisons["incumbent"]["n"] == 2 and len(body.seeds) == 3


def test_nothing_of_the_protected_split_reaches_the_belief_or_the_lanes(story):
    """A proof's runs count by their search loss, and not before the attempt is judged."""
    def believed():
        found = story.snapshot()
        return [e.tolist() for e in found.effects], [(k.name, k.mean, k.sd) for k in found.view().known]

    story.nominate()
    seal(story)
    before = believed()
    story.worth[story.best] = -1.0
    run_wanted(story)
    assert believed() == before
    verify(story)
    after = believed()
    assert after != before
    forge(story.session.path, "result", lambda body, _: body["loss"].update(
        {PROTECTED: 9.0} if PROTECTED in body["loss"] else {}))
    story.events, story.belief = [], Belief(story.track)  # read anew
    assert any(9.0 in trial.loss.values() for trial in story.snapshot().state.trials.values())
    assert believed() == after
