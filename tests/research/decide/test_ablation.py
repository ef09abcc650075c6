"""Which parts go and which stay, on made-up losses: barnacles, stand-ins, dependants, dead parts, and doubt."""

import itertools
from dataclasses import replace

import pytest
from sessions import Story, changes
from test_proof import nominate, proof, run_wanted, settle

from jaxnano.config.recipe import recipe_id
from research.contract.idea import ideas, part
from research.contract.proposal import build, try_build, without
from research.contract.trial import Trial
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


def runs(story):
    """Full runs since the nomination, by recipe: their seeds."""
    found = {}
    since = story.snapshot().state.nominated[-1].seq
    for trial in story.snapshot().state.trials.values():
        if trial.attempts[0].seq > since:
            found.setdefault(trial.recipe_id, set()).add(trial.seed)
    return found


def test_barnacles_go_and_what_is_worth_something_stays(story):
    nominated(story, catalogue("qk-norm", "rotary", "logit-softcap-tanh", "relu-squared", "output-gate"), added)
    first, *_, last = ablate(story)
    assert first.believed.keys() == WORTH.keys() and not first.rows and first.more is not None
    assert last.kept == ("rotary", "relu-squared") and last.untested == {}
    assert set(last.removed) == {"qk-norm", "logit-softcap-tanh", "output-gate"}
    worth = {row["part"]: row["effect"] for row in last.rows if row["part"] in last.kept}
    assert worth == pytest.approx({"rotary": 0.35, "relu-squared": 0.05}, abs=0.02)
    assert all(row["p"] >= 0.9 and row["interval"][0] < row["effect"] for row in last.rows if row["part"] in last.kept)
    assert proof(story).final == last.recipe_id == story.best
    assert sum(map(len, runs(story).values())) < 3 * 7  # each part, the candidate and the base on three seeds


def test_nothing_rests_on_a_seed_that_picked_the_candidate_and_what_goes_is_confirmed_on_others(story):
    worth = {"rotary": 0.3, "qk-norm": 0.0, "output-gate": 0.2}
    for names in itertools.chain.from_iterable(itertools.combinations(worth, n) for n in (1, 2, 3)):
        found = recipe_id(build(story.track.base_recipe, parts := catalogue(*names)))
        story.worth[found] = sum(worth[name] for name in names)
    story.propose(parts, story.worth[found])
    for horizon, seed in ((1.0, 0), (0.25, 1), (0.25, 4)):
        story.run(Trial(found, horizon, seed))
    nominate(story, found)
    bodies = ablate(story)
    assert bodies[-1].removed == ("qk-norm",) and bodies[0].seeds[:3] == (2, 3, 5)
    assert not {0, 1, 4} & set.union(*runs(story).values())
    tried = [body for body in bodies if body.trying][-1]  # ran singly on other seeds, if at all
    singly = {seed for body in bodies for row in body.rows if row["part"] == "qk-norm"
              for seed in runs(story)[row["recipe_id"]] if row["recipe_id"] != tried.trying}
    assert not singly & set(tried.seeds[:2])


def test_of_parts_that_stand_in_for_each_other_as_many_go_as_may(story):
    """Any one of three does what all three do: two of them go, though without all three 0.2 is lost."""
    three = {"qk-norm", "logit-softcap-tanh", "output-gate"}
    nominated(story, catalogue("rotary", *sorted(three)), lambda names: 0.35 * ("rotary" in names) + 0.2 * any(
        name in names for name in three))
    bodies = ablate(story)
    kept = set(bodies[-1].kept)
    assert "rotary" in kept and len(kept & three) == 1 and len(bodies[-1].removed) == 2
    row = next(row for row in bodies[-1].rows if row["part"] in kept & three)
    assert row["effect"] == pytest.approx(0.2, abs=0.02)  # looked at again once the others were gone
    assert row["of"] == bodies[-1].recipe_id


def test_what_is_in_doubt_and_had_no_time_is_named_and_is_looked_at_first(story):
    nominated(story, catalogue("rotary", "relu-squared", "qk-norm"), added)
    settle(story)
    while proof(story).ablation.body.trying:  # what the belief had picked, if anything, has no time either
        settle(story)
    ablation = proof(story).ablation
    believed = ablation.body.believed
    assert list(ablation.variants) == sorted(believed, key=lambda name: believed[name][0])
    assert list(dict.fromkeys(t.recipe_id for t, _ in ablation.wanted()))[1:] == [
        v.recipe_id for v in ablation.variants.values()]
    last = settle(story)
    assert last.untested.keys() == believed.keys() and proof(story).final == last.recipe_id
    assert all("no time" in reason for reason in last.untested.values())


def test_a_part_is_ablated_with_what_cannot_stand_without_it_and_the_rest_of_that_is_looked_at_again(story):
    muon, tables = catalogue("muon", "fast-tables")
    group = muon.edits[0].path.split(".")[2]
    tuned = changes("tune", {f"optimizer.groups.{group}.lr.value": 0.03, "optimizer.groups.rest.lr.value": 0.008})
    alone = changes("tune muon", {f"optimizer.groups.{group}.chain.muon.momentum": 0.9})
    base, parts = story.track.base_recipe, (muon, tables, tuned, alone)
    left = without(base, parts, ["muon"])
    assert [p.name for p in left] == ["fast-tables", "tune"]
    assert [e.path for e in left[1].edits] == ["optimizer.groups.rest.lr.value"]
    assert without(base, parts, ["tune"]) == (muon, tables, alone)
    nominated(story, parts, lambda names: 0.2 * ("tune" in names) + 0.2 * ("fast-tables" in names))
    for some, worth in ((left, 0.4), (left[:1], 0.2), (left[1:], 0.2)):  # rebuilt, the rates do what they did
        story.worth[recipe_id(build(base, some))] = worth
    variants = proof(story).ablation.variants
    assert variants.keys() == {"muon", "fast-tables", "tune", "tune muon"}
    assert variants["muon"].gone == ("muon", "tune muon")
    last = ablate(story)[-1]
    assert last.kept == ("fast-tables", "tune") and set(last.removed) == {"muon", "tune muon"} and not last.untested
    assert {row["part"]: row["of"] for row in last.rows}["tune"] == last.recipe_id == recipe_id(build(base, left))


def test_parts_without_which_the_loss_is_the_same_to_the_last_digit_go_at_once(story):
    dead, helps = {"qk-norm", "logit-softcap-tanh"}, ("output-gate", "rotary")

    def worth(names):
        return sum(0.3 for name in names if name in helps)

    nominated(story, catalogue(helps[0], *sorted(dead), helps[1]), worth)
    there, bodies = {}, []
    while proof(story).final is None:
        for trial, purpose in proof(story).wanted():
            alive = frozenset(p.name for p in story.snapshot().by_id[trial.recipe_id].parts if p.name not in dead)
            loss = there.setdefault((alive, trial.seed), 2.0 - worth(alive) + 0.004 * story.rng.standard_normal())
            story.run(trial, purpose, loss={"search": loss})
        bodies += [settle(story)] if not proof(story).wanted() else []
    assert set(bodies[-1].removed) == dead and bodies[-1].kept == helps
    assert {body.reduced_effect for body in bodies if body.removed and body.more} == {0.0}
    tried = {body.trying for body in bodies if body.trying}
    assert all(len(seeds) == 1 for rid, seeds in runs(story).items() if rid in tried - {bodies[-1].recipe_id})


def test_a_part_that_could_not_be_run_without_is_named_with_the_reason(story):
    worth = {"output-gate": 0.3, "qk-norm": 0.0, "logit-softcap-tanh": 0.2}
    nominated(story, catalogue(*worth), lambda names: sum(worth[name] for name in names))
    while proof(story).final is None:
        while wanted := proof(story).wanted():
            for trial, purpose in wanted:
                names = {p.name for p in story.snapshot().by_id[trial.recipe_id].parts}
                bad = {"outcome": "diverged", "loss": {}} if "logit-softcap-tanh" not in names else {}
                story.run(trial, purpose, **bad)
        last = settle(story)
    assert last.kept == ("output-gate", "logit-softcap-tanh") and last.removed == ("qk-norm",)
    assert last.untested == {"logit-softcap-tanh": "runs without it did not finish"}


def test_a_single_part_is_left_to_the_verification(story):
    nominate(story, story.singles["rotary"])
    assert proof(story).wanted() == []
    assert "only part" in settle(story).untested["rotary"]
    assert proof(story).final == story.singles["rotary"]


@pytest.mark.parametrize("more", [{}, {"more": False}])
def test_an_ablation_begun_by_an_earlier_version_goes_on(story, more):
    """0.2 said `removed` of what it tried."""
    three = ("rotary", "qk-norm", "logit-softcap-tanh")
    nominee = nominated(story, catalogue(*three), added)
    rest = proof(story).ablation._less(three[1:])
    if rest.recipe_id not in story.worth:
        story.propose(rest.parts, WORTH["rotary"])
    rows = [{"part": name, "recipe_id": proof(story).ablation.variants[name].recipe_id, "of": nominee, "gone": [name],
             "effect": WORTH[name], "n": 3, "p_value": 0.5} for name in three]
    story.write("ablation", nominee, {"rows": rows, "recipe_id": nominee, "trying": rest.recipe_id,
                                      "removed": three[1:], "kept": ["rotary"]} | more)
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
