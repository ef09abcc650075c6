"""The lanes: what each proposes is new, can be built, and follows from the view and the generator alone."""

from dataclasses import replace

import numpy as np
import pytest
from sessions import changes

from jaxnano.config.base import Leaf, Range, leaves, overlap
from jaxnano.config.recipe import Recipe, recipe_id, structure_id
from research.contract.idea import ideas, part
from research.contract.part import Part, conflict, prior
from research.contract.proposal import build, replaces
from research.contract.track import Track, load_track
from research.lanes import NAMES, lanes
from research.lanes.catalogue import Catalogue, by_family, drawn, offered, ranked
from research.lanes.protocol import Knowledge, Known
from research.lanes.recombine import Recombine
from research.lanes.simplify import Simplify
from research.lanes.tuner import Tuner, moved


@pytest.fixture(scope="module")
def track() -> Track:
    return load_track("tiny")


def known(track: Track, parts: tuple[Part, ...], mean: float | None = None) -> Known:
    """A candidate that has run, with the sum of its prior effects for an effect unless `mean` is given."""
    recipe = build(track.base_recipe, parts)
    mean = sum(p.effect for p in parts) if mean is None else mean
    return Known(recipe_id(recipe), " + ".join(p.name for p in parts) or "base", recipe, parts, mean, 0.01, 1, mean)


def idea(*names: str) -> tuple[Part, ...]:
    return tuple(part(ideas()[name], load_track("tiny").base_recipe) for name in names)


def tuned(path: str, new: float) -> Part:
    return changes(f"tune {path}", {path: new})


def view(track: Track, candidates: list[Known], refused: tuple[str, ...] = ()) -> Knowledge:
    """What proposers see once these candidates have run."""
    ranked = sorted([known(track, ()), *candidates], key=lambda k: -k.mean)
    return Knowledge(track, ranked, frozenset(k.recipe_id for k in ranked) | frozenset(refused))


def several(track: Track) -> list[Known]:
    names = [("rotary",), ("muon",), ("relu-squared",), ("swiglu",), ("untied",), ("tail-ema",), ("smear", "rmsnorm")]
    tune = tuned("optimizer.groups.hidden.lr.value", 0.03)
    return [known(track, idea(*n)) for n in names] + [known(track, (*idea("muon"), tune), 0.07)]


def test_help_names_the_lanes_there_are():
    assert tuple(lanes()) == NAMES


def test_rounds_of_all_lanes_bring_only_new_recipes_that_build(track):
    rng, candidates, brought = np.random.default_rng(0), [], dict.fromkeys(lanes(), 0)
    for turn in range(10):
        for name, lane in lanes().items():
            now = view(track, candidates)
            proposal = lane.propose(now, np.random.default_rng([turn, 7]))
            if proposal is None:
                continue
            recipe = build(track.base_recipe, proposal.parts)
            assert recipe_id(recipe) not in now.proposed
            assert proposal.lane == name and proposal.name and proposal.hypothesis and proposal.origin
            assert set(proposal.parents) <= {k.recipe_id for k in now.known}
            brought[name] += 1
            candidates.append(known(track, proposal.parts, proposal.expected_effect + rng.normal(0, 0.02)))
    assert min(brought.values()) >= 3, brought


@pytest.mark.parametrize("name", lanes())
def test_a_lane_follows_from_view_and_generator(track, name):
    now = view(track, several(track))
    first, second = (lanes()[name].propose(now, np.random.default_rng(3)) for _ in range(2))
    assert first == second


def test_without_candidates_catalogue_tuner_and_invent_speak(track):
    spoken = {name for name, lane in lanes().items() if lane.propose(view(track, []), np.random.default_rng(0))}
    assert spoken == {"catalogue", "tuner", "invent"}


@pytest.fixture
def promising(monkeypatch):
    """A catalogue that goes by its promises alone."""
    monkeypatch.setattr("research.lanes.catalogue.UNSEEN", 0.0)


def test_half_of_what_the_catalogue_brings_is_of_ideas_that_have_not_run(track):
    ran = {p.name for p in ranked(track)[::2]}
    now, unseen = replace(view(track, [known(track, idea("rotary"))]), ran=frozenset(ran)), []
    for seed in range(120):
        proposal = Catalogue().propose(now, np.random.default_rng(seed))
        assert proposal is not None
        unseen += [proposal.parts[-1].name] if proposal.parts[-1].name not in ran else []
    assert 45 <= len(unseen) <= 75 and len({*unseen}) > 25  # by lot
    assert len({ideas()[name].prior for name in unseen}) >= 4


def test_a_lot_is_drawn_class_by_class_and_leaves_nothing_out(track):
    parts = list(offered(track).values())
    firsts = [next(drawn(parts, np.random.default_rng(seed))) for seed in range(100)]
    classes = {ideas()[p.name].prior for p in parts}
    shares = [sum(ideas()[p.name].prior == prior for p in firsts) / 100 for prior in classes]
    assert min(shares) > 0.3 / len(classes)
    for flat in (False, True):
        drew = [*drawn(parts, np.random.default_rng(1), flat)]
        assert len(drew) == len(parts) and {p.name for p in drew} == {p.name for p in parts}


def test_without_priors_the_catalogue_promises_nothing_and_no_class_comes_first(track):
    now, names, brought = replace(view(track, []), flat=True), [p.name for p in ranked(track)], []
    for seed in range(60):
        proposal = Catalogue().propose(now, np.random.default_rng(seed))
        assert proposal is not None and proposal.expected_effect == 0.0
        brought.append(names.index(proposal.parts[-1].name) / len(names))
    assert 0.35 < np.mean(brought) < 0.65


def test_families_hold_what_is_offered(track):
    found = by_family(track)
    assert sorted(name for names in found.values() for name in names) == sorted(offered(track))
    assert "rotary" in found["position"] and not {name for name in offered(track) if name not in ideas()}


def test_catalogue_brings_the_most_promising_first_and_soon_other_mechanisms(track, promising):
    brought: list[Part] = []
    for _ in range(12):
        now = view(track, [known(track, (p,), -0.1) for p in brought])
        proposal = Catalogue().propose(now, np.random.default_rng(0))
        assert proposal is not None and len(proposal.parts) == 1
        brought += proposal.parts
    assert brought[0].effect == max(part(i, epsilon=track.epsilon).effect for i in ideas().values())
    written = {edit.path for p in brought for edit in p.edits}
    assert {"model.position", "model.ffn.activation", "optimizer.groups.hidden", "model.head.softcap"} <= written


def test_of_equals_comes_first_what_the_field_had_first_and_the_plain_before_its_variants(track):
    place = {p.name: i for i, p in enumerate(ranked(track))}
    names = ["rotary", "muon", "qk-norm", "value-residual", "value-embedding", "ema-nesterov"]  # as their records came
    assert names == sorted(names, key=place.__getitem__) and max(place[name] for name in names) < 20
    variants = [name for name, i in ideas().items() if i.evidence.startswith("brings Muon") and name in place]
    assert len(variants) > 20 and all(place["muon"] < place[name] for name in variants)


def test_catalogue_goes_on_from_the_best_and_replaces_what_it_supersedes(track, promising):
    alone = [known(track, idea(name), -1.0) for name in ideas()]
    best = known(track, (*idea("rotary", "sgd-momentum"), tuned("optimizer.groups.hidden.lr.value", 0.3)), 0.4)
    now, seen, expected = view(track, [*alone, best]), [], []
    for _ in range(48):
        proposal = Catalogue().propose(now, np.random.default_rng(0))
        assert proposal is not None and proposal.parents == (best.recipe_id,)
        seen.append([p.name.split()[0] for p in proposal.parts])
        expected.append(proposal.expected_effect)
        fresh = recipe_id(build(track.base_recipe, proposal.parts))
        now = Knowledge(track, now.known, now.proposed | {fresh})
    assert expected == sorted(expected, reverse=True)
    assert ["rotary", "muon-squared"] in seen  # the matrices' old optimizer goes, and its rate
    assert ["rotary", "sgd-momentum", "tune", "relu-squared"] in seen


def test_replaces_and_conflict():
    ffn, ratio, both = (changes(n, dict.fromkeys(paths, 0)) for n, paths in (
        ("ffn", ["model.ffn"]), ("ratio", ["model.ffn.ratio"]), ("both", ["model.ffn.ratio", "model.bias"])))
    assert replaces(ffn, ratio) and not replaces(ratio, ffn) and not replaces(ffn, both)
    assert conflict(ffn, ratio) and conflict(ratio, ffn) and conflict(ffn, both)
    assert not conflict(ffn, changes("norm", {"model.ffn_norm": 0}))


def test_prior_counts_no_place_twice():
    a, b, c = (changes(name, {path: 0}, effect=effect) for name, path, effect in (
        ("a", "model.position", 0.3), ("b", "model.position.base", 0.35), ("c", "model.bias", -0.1)))
    assert prior([a, c]) == pytest.approx(0.2)
    assert prior([a, b]) == pytest.approx(0.35) and prior([b, a]) == pytest.approx(0.35)


def test_tuner_compiles_nothing_and_stays_where_it_may(track):
    now = view(track, several(track))
    by_id = {k.recipe_id: k for k in now.known}
    touched = set()
    for seed in range(60):
        proposal = Tuner().propose(now, np.random.default_rng(seed))
        assert proposal is not None
        parent, recipe = by_id[proposal.parents[0]], build(track.base_recipe, proposal.parts)
        assert structure_id(recipe) == structure_id(parent.recipe)
        paths = changed(parent.recipe, recipe)
        assert 1 <= len(paths) <= 2 and not any(overlap(p, f) for p in paths for f in track.frozen)
        touched |= paths
    assert len(touched) > 15


def test_tuner_moves_a_number_again_and_keeps_the_other(track):
    old = changes("tune both", {f"optimizer.groups.{group}.lr.value": 0.003 for group in ("matrices", "rest")})
    start = known(track, (*idea("rotary"), old))
    for seed in range(40):
        proposal = Tuner().propose(Knowledge(track, [start], frozenset()), np.random.default_rng(seed))
        assert proposal is not None
        paths = [edit.path for p in proposal.parts for edit in p.edits]
        assert len(paths) == len(set(paths))
        assert len(changed(start.recipe, build(track.base_recipe, proposal.parts))) <= 2


@pytest.mark.parametrize("span", [Range(1e-4, 1.0, "log"), Range(0.0, 0.99999), Range(-10.0, 10.0), Range(0.0, 0.9)])
@pytest.mark.parametrize("value", [1e-4, 0.05, 0.5, 0.9])
def test_a_moved_number_is_another_one_within_its_range(span, value):
    found = {moved(Leaf("x", value, span), np.random.default_rng(seed)) for seed in range(30)}
    assert all(span.low <= new <= span.high for new in found)
    assert len(found) > 3 and min(found) < value < max(found) or value in (span.low, span.high)


def test_a_moved_beta_stays_a_beta():
    found = [moved(Leaf("b2", 0.999, Range(0.0, 0.99999, "decay")), np.random.default_rng(seed)) for seed in range(30)]
    assert 0.996 < min(found) < 0.999 < max(found) < 0.9997  # a memory of 333 to 3,000 steps, from 1,000


def test_recombine_joins_only_what_goes_together(track):
    now = view(track, several(track))
    by_id, seen = {k.recipe_id: k for k in now.known}, set()
    for seed in range(60):
        proposal = Recombine().propose(now, np.random.default_rng(seed))
        assert proposal is not None and 2 <= len(proposal.parents) <= 3
        parents = [by_id[i].parts for i in proposal.parents]
        assert all(len(proposal.parts) > len(parts) for parts in parents)
        assert all(any(p in parts for parts in parents) for p in proposal.parts)
        for i, a in enumerate(proposal.parts):
            for b in proposal.parts[:i]:
                assert not conflict(a, b) or any(a in parts and b in parts for parts in parents)
        seen.add(frozenset(p.name for p in proposal.parts))
    assert len(seen) > 10


def test_recombine_keeps_a_candidate_s_own_tuning(track):
    tune = tuned("optimizer.groups.hidden.lr.value", 0.03)
    now = view(track, [known(track, (*idea("muon"), tune)), known(track, idea("rotary"))])
    proposal = Recombine().propose(now, np.random.default_rng(0))
    assert proposal is not None and {p.name for p in proposal.parts} == {"muon", tune.name, "rotary"}


def test_simplify_takes_one_part_from_the_best_until_all_were_tried(track):
    parts = idea("rotary", "soap", "rmsnorm")
    now, gone = view(track, [known(track, parts)]), []
    while (proposal := Simplify().propose(now, np.random.default_rng(0))) is not None:
        missing = [p for p in parts if p not in proposal.parts]
        assert len(missing) == 1 and proposal.parts == tuple(p for p in parts if p != missing[0])
        gone.append(missing[0].name)
        fresh = recipe_id(build(track.base_recipe, proposal.parts))
        now = Knowledge(track, now.known, now.proposed | {fresh})
    assert gone == ["rmsnorm", "soap", "rotary"]  # least expected first


def test_simplify_leaves_what_another_part_needs(track):
    tune = tuned("optimizer.groups.hidden.lr.value", 0.03)
    proposal = Simplify().propose(view(track, [known(track, (*idea("muon"), tune))]), np.random.default_rng(0))
    assert proposal is not None and proposal.parts == idea("muon")  # without Muon there is nothing to tune
    both = [known(track, (*idea("muon"), tune), 0.1), known(track, idea("muon"), 0.05)]
    assert Simplify().propose(view(track, both), np.random.default_rng(0)) is None


def changed(a: Recipe, b: Recipe) -> set[str]:
    """Paths of the traced numbers in which two recipes of one structure differ."""
    return {x.path for x, y in zip(leaves(a), leaves(b), strict=True) if x.value != y.value}
