"""Which parts go and which stay, on made-up losses: barnacles, stand-ins, dependants, and what could not be tested."""

import itertools
from dataclasses import replace

import pytest
from sessions import Story, changes
from test_proof import nominate, proof, run_wanted, settle

from jaxnano.config.recipe import recipe_id
from research.contract.idea import ideas, part
from research.contract.proposal import build, try_build, without
from research.decide.claims import broken_claims

WORTH = {"rotary": 0.35, "relu-squared": 0.05, "qk-norm": 0.0, "logit-softcap-tanh": 0.0, "output-gate": 0.0}


@pytest.fixture
def story(tmp_path):
    with (found := Story(tmp_path / "s").search()).session:
        yield found


def nominated(story, parts, worth):
    """A candidate of these parts, nominated. worth: names of the parts in a recipe -> its effect, nats."""
    base = story.track.base_recipe
    for count in range(1, len(parts) + 1):
        for some in (s for s in itertools.combinations(parts, count) if try_build(base, s) is not None):
            story.worth[recipe_id(build(story.track.base_recipe, some))] = worth({p.name for p in some})
    found = recipe_id(build(story.track.base_recipe, parts))
    if found not in story.snapshot().index:
        story.propose(parts, story.worth[found])
    nominate(story, found)
    return found


def ablate(story, rounds=20):
    """All events of an ablation, each with the runs that it asks for made first."""
    bodies = []
    while proof(story).final is None:
        run_wanted(story)
        bodies.append(settle(story))
        assert len(bodies) < rounds
    return bodies


def catalogue(*names):
    return [part(ideas()[name]) for name in names]


def added(names):
    return sum(WORTH[name] for name in names)


def test_barnacles_go_and_what_is_worth_something_stays(story):
    nominated(story, catalogue("qk-norm", "rotary", "logit-softcap-tanh", "relu-squared", "output-gate"), added)
    bodies = ablate(story)
    last = bodies[-1]
    assert last.kept == ("rotary", "relu-squared") and last.untested == {}
    assert set(last.removed) == {"qk-norm", "logit-softcap-tanh", "output-gate"}
    assert {row["part"]: row["effect"] for row in last.rows} == pytest.approx(WORTH, abs=0.02)
    assert proof(story).final == last.recipe_id == story.best


def test_of_parts_that_stand_in_for_each_other_as_many_go_as_may(story):
    """Any one of three does what all three do: two of them go, though without all three 0.2 is lost."""
    three = {"qk-norm", "logit-softcap-tanh", "output-gate"}
    nominated(story, catalogue("rotary", *sorted(three)), lambda names: 0.35 * ("rotary" in names) + 0.2 * any(
        name in names for name in three))
    bodies = ablate(story)
    assert any((body.reduced_effect or 0.0) > 0.15 for body in bodies)  # all three at once: it lost
    kept = set(bodies[-1].kept)
    assert "rotary" in kept and len(kept & three) == 1 and len(bodies[-1].removed) == 2
    row = next(row for row in bodies[-1].rows if row["part"] in kept & three)
    assert row["effect"] == pytest.approx(0.2, abs=0.02)  # looked at again once the others were gone
    assert row["of"] == bodies[-1].recipe_id


def test_what_seemed_worth_little_and_had_no_time_for_another_look_is_named_and_is_looked_at_first(story):
    three = {"qk-norm", "logit-softcap-tanh", "output-gate"}
    nominated(story, catalogue("relu-squared", "rotary", *sorted(three)), lambda names: 0.35 * ("rotary" in names)
              + 0.03 * ("relu-squared" in names) + 0.2 * any(name in names for name in three))
    for _ in range(2):  # one by one, then all three
        run_wanted(story)
        body = settle(story)
    assert body.removed and body.more
    doubtful = [name for name in body.kept if name in three]
    assert doubtful and list(proof(story).ablation.variants) == [*sorted(doubtful, key=lambda name: next(
        row["effect"] for row in body.rows if row["part"] == name)), "relu-squared"]
    last = settle(story)  # as where no time is left
    assert last.untested.keys() == set(doubtful) and proof(story).final == last.recipe_id
    assert all("no time" in reason for reason in last.untested.values())


def test_a_part_is_ablated_with_what_cannot_stand_without_it_and_the_rest_of_that_stays(story):
    muon, tables = catalogue("muon", "fast-tables")
    group = muon.edits[0].path.split(".")[2]
    tuned = changes("tune", {f"optimizer.groups.{group}.lr.value": 0.03, "optimizer.groups.rest.lr.value": 0.008})
    alone = changes("tune muon", {f"optimizer.groups.{group}.chain.muon.momentum": 0.9})
    base, parts = story.track.base_recipe, (muon, tables, tuned, alone)
    left = without(base, parts, ["muon"])
    assert [p.name for p in left] == ["fast-tables", "tune"]
    assert [e.path for e in left[1].edits] == ["optimizer.groups.rest.lr.value"]
    assert without(base, parts, ["tune"]) == (muon, tables, alone)
    nominated(story, parts, lambda names: 0.3 * ("muon" in names))
    rebased = recipe_id(build(base, left))
    story.worth[rebased] = 0.0
    variants = proof(story).ablation.variants
    assert variants.keys() == {"muon", "fast-tables", "tune", "tune muon"}
    assert variants["muon"].gone == ("muon", "tune muon") and variants["muon"].recipe_id == rebased
    run_wanted(story)
    rows = {row["part"]: row for row in settle(story).rows}
    assert rows["muon"]["effect"] == pytest.approx(0.3, abs=0.02) and rows["muon"]["gone"] == ["muon", "tune muon"]


def test_a_part_that_could_not_be_run_without_is_named_with_the_reason(story):
    parts = catalogue("rotary", "relu-squared", "qk-norm")
    nominated(story, parts, added)
    variants = proof(story).ablation.variants
    for trial, purpose in proof(story).wanted():
        if trial.recipe_id == variants["relu-squared"].recipe_id:
            story.run(trial, purpose, outcome="diverged", loss={})
        elif trial.recipe_id != variants["rotary"].recipe_id or trial.seed > 2:
            story.run(trial, purpose)
    first, last = settle(story), settle(story)  # as where no time is left for another look
    assert first.removed == ("qk-norm",) and first.more and proof(story).final == last.recipe_id
    assert "did not finish" in first.untested["relu-squared"] and "no time" in first.untested["rotary"]
    assert "no time" in last.untested["relu-squared"] and last.untested.keys() == {"rotary", "relu-squared"}


def test_a_single_part_is_left_to_the_verification(story):
    nominate(story, story.singles["rotary"])
    run_wanted(story)
    assert "only part" in settle(story).untested["rotary"]
    assert proof(story).final == story.singles["rotary"]


def test_an_ablation_begun_by_version_0_2_goes_on(story):
    three = ("rotary", "qk-norm", "logit-softcap-tanh")
    nominated(story, catalogue(*three), added)
    run_wanted(story)
    new = proof(story).ablation.settle()
    old = {"rows": new.rows, "recipe_id": new.recipe_id, "trying": new.trying, "removed": new.removing,
           "kept": ["rotary"]}
    story.write("ablation", proof(story).recipe_id, old)
    assert proof(story).final is None
    bodies = ablate(story)
    assert bodies[-1].kept == ("rotary",) and set(bodies[-1].removed) == {"qk-norm", "logit-softcap-tanh"}


def test_what_an_ablation_kept_and_removed_follows_from_its_runs(story):
    nominated(story, catalogue("qk-norm", "rotary", "relu-squared"), added)
    ablate(story)
    events = story.session.ledger.events()
    assert [line for line in broken_claims(events) if "(ablation" in line] == []
    last = max(i for i, event in enumerate(events) if event.kind == "ablation")
    for forged in ({"removed": ()}, {"kept": ("rotary",)}, {"untested": {"rotary": "no time"}}, {"more": True}):
        told = [replace(e, body=e.body.model_copy(update=forged)) if i == last else e for i, e in enumerate(events)]
        found = [line for line in broken_claims(told) if "(ablation" in line]
        assert bool(found) == ("untested" not in forged), forged
