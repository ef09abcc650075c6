"""The invent lane: what it proposes is new, can be run and stays where it may; what is good is found and bred."""

import numpy as np
import pytest
from sitting import created
from stand_in import MICRO, StandIn

from jaxnano.config.base import overlap
from jaxnano.config.recipe import recipe_id
from research.contract.behaviour import behaviour
from research.contract.gate import Gate
from research.contract.idea import ideas, part
from research.contract.part import INVENT, IdeaEdit, Part
from research.contract.places import distance, places, values
from research.contract.proposal import build
from research.contract.track import load_track
from research.decide.scheduler import Scheduler
from research.lanes import lanes, lanes_of
from research.lanes.invent import NEW, Invent
from research.lanes.protocol import Knowledge, Known
from research.show.facts import Facts
from research.show.report import write_report

TRACK = load_track("tiny")
BASE = TRACK.base_recipe
WIRES = ("model.taps", "model.tables", "model.wires")


def known(parts, worth, track=TRACK):
    recipe = build(track.base_recipe, parts)
    return Known(recipe_id(recipe), "x", recipe, tuple(parts), worth, 0.01, 1, worth)


def rounds(worth, count, track=TRACK, start=()):
    """Proposals, turn by turn, of a session in which a recipe's effect is what `worth` says."""
    candidates = [known((), 0.0, track), *start]
    ids, found = {k.recipe_id for k in candidates}, []
    for turn in range(count):
        view = Knowledge(track, sorted(candidates, key=lambda k: -k.worth), frozenset(ids))
        proposal = Invent().propose(view, np.random.default_rng([turn, 3]))
        if proposal is None:
            continue
        recipe = build(track.base_recipe, proposal.parts)
        ids.add(recipe_id(recipe))
        found.append((proposal, recipe))
        candidates.append(known(proposal.parts, worth(recipe), track))
    return found


def test_a_norm_of_what_has_no_rows_is_no_number():
    place = next(place for place in places(BASE) if place.signature.reduces and place.signature.axes == 2)
    assert np.isnan(values(place, f"{place.needed} * columns(2)", {})).all()
    assert np.isfinite(values(place, f"{place.needed} * columns({place.needed})", {})).all()


@pytest.fixture(scope="module")
def brought():
    start = [known([part(ideas()[name], BASE) for name in ("muon", "rotary")], 0.3)]
    return rounds(lambda recipe: -0.05, 70, start=start)


def test_what_is_invented_is_accepted_and_new(brought):
    gate, accepted, seen = Gate(TRACK), 0, set()
    for proposal, recipe in brought:
        verdict = gate.judge_parts(proposal.parts)
        accepted += verdict.accepted
        seen.add(behaviour(recipe))
        assert proposal.lane == INVENT and NEW <= proposal.novelty <= 1 and proposal.hypothesis
    assert len(brought) >= 65 and accepted >= 0.9 * len(brought) and len(seen) == len(brought)


def test_inventions_are_of_many_places_and_their_numbers_can_be_tuned(brought):
    edits = [proposal.parts[-1].edits[0] for proposal, _ in brought]
    kinds = {path.partition(".invented")[0].partition("_")[0] for path in (edit.path for edit in edits)}
    assert {"model.ffn.activation", "model.head.logits", "model.attention.output", "model.attention.logit"} <= kinds
    assert any(".lr" in kind for kind in kinds) and any(".chain" in kind for kind in kinds)
    assert any(edit.path.startswith(WIRES) for edit in edits)
    formulas = [edit.new for edit in edits if isinstance(edit.new, dict) and "code" in edit.new]
    assert sum(bool(new.get("params")) for new in formulas) > len(edits) / 2


def test_it_follows_from_view_and_generator():
    view = Knowledge(TRACK, [known((), 0.0)], frozenset())
    one, other = (Invent().propose(view, np.random.default_rng(9)) for _ in range(2))
    assert one == other is not None


def test_frozen_places_stay_as_they_are():
    track = TRACK.model_copy(update={"frozen": (*TRACK.frozen, "model.attention", *WIRES, "optimizer")})
    for proposal, _ in rounds(lambda recipe: -0.05, 12, track):
        assert not any(overlap(edit.path, path) for edit in proposal.parts[-1].edits for path in track.frozen)


def activation(recipe):
    """What a recipe's activation does on made-up values."""
    place = next(place for place in places(recipe) if place.path == "model.ffn.activation")
    return values(place, place.code, place.params)


def test_a_planted_formula_is_found_and_bred():
    """A world in which an activation is worth the more the nearer it comes to one that nobody knows."""
    others = ["model.attention", *WIRES, "model.head", "optimizer"]
    track = TRACK.model_copy(update={"frozen": (*TRACK.frozen, *others)})
    place = next(place for place in places(BASE) if place.path == "model.ffn.activation")
    goal = values(place, "relu(x) * (1 + 0.5 * tanh(x)) + 0.3 * x", {})
    far = distance(activation(BASE), goal)
    bred = [far - distance(activation(recipe), goal) for _, recipe in rounds(
        lambda recipe: far - distance(activation(recipe), goal), 80, track)]
    alone = [far - distance(activation(recipe), goal) for _, recipe in rounds(lambda recipe: -1.0, 80, track)]
    assert max(bred) > 0.5 * far and max(bred) > max(alone)
    assert np.mean(bred[40:]) > np.mean(bred[:20]) + 0.1 * far


def test_what_is_good_is_bred_from():
    edit = IdeaEdit(path="model.head.logits", new={"code": "z * sigmoid(a * z + 1)", "params": {"a": 0.7}})
    good = known([Part(name="invented head.logits 0000", edits=(edit,))], 0.5)
    found = rounds(lambda recipe: -0.5, 12, start=[good])
    children = [proposal for proposal, _ in found if proposal.parents == (good.recipe_id,)]
    assert len(children) >= len(found) / 2
    assert any(recipe.model.head.logits and "sigmoid" in recipe.model.head.logits.code for _, recipe in found)


@pytest.fixture(scope="module")
def sitting(tmp_path_factory):
    """A session on made-up losses in which inventions are worth nothing."""
    track = load_track(MICRO)
    with pytest.MonkeyPatch.context() as patch, created(tmp_path_factory.mktemp("invent") / "s") as session:
        patch.setattr("research.decide.choose.EXPLORED", 0.9)  # so much that gains alone would not bring it
        patch.setattr("research.decide.prove.crown", lambda session, track, arm, key: {"trial": key, "name": arm.name})
        scheduler = Scheduler(session, track, StandIn(), lanes_of(["tuner", INVENT], lanes()), budget_s=600.0,
                              max_trials=16)
        scheduler.record("end", "", {"reason": scheduler.run()})
        yield session.path, Facts.of(scheduler.state)


def test_inventions_have_their_share_of_the_search(sitting):
    _, facts = sitting
    owed = [event for event in facts.state.decisions if "an invention" in event.body.why]
    search = [event for event in facts.state.decisions if event.body.purpose == "search"]
    lanes = [facts.proposal(event.subject.partition("-")[0]).lane for event in search]
    assert 3 <= len(owed) < len(search) and lanes.count(INVENT) >= 0.6 * len(search) and "tuner" in lanes
    horizons = {facts.state.trials[event.subject].horizon for event in owed}
    assert horizons == {min(facts.track.horizons)}


def test_the_report_shows_what_was_invented(sitting):
    path, facts = sitting
    write_report(path)
    text, rows = (path / "report.md").read_text(), facts.inventions()
    assert "What was invented" in text and rows and all(f"{row['novelty']:.2f}" in text for row in rows)
    assert "invented" in (path / "plots" / "invention.svg").read_text()
