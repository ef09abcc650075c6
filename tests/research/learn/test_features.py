"""A recipe as the posterior sees it: displacements in units that matter."""

import math

import pytest

from jaxnano.config.edit import Diff, Edit, apply
from research.contract.track import load_track
from research.learn.features import features

RATE = "optimizer.groups.matrices.lr"


def change(path, new):
    """Features of the base of track tiny with one edit."""
    base = load_track("tiny").base_recipe
    return features(base, apply(base, Diff(name="x", edits=(Edit.to(base, path, new),))))


def test_the_base_has_none():
    base = load_track("tiny").base_recipe
    assert features(base, base) == {}


def test_a_rate_counts_in_factors_of_e_inside_a_schedule_too():
    assert change(f"{RATE}.value", 0.008) == {f"{RATE}.value": pytest.approx(math.log(2))}
    assert change(RATE, {"kind": "linear", "value": 0.008})[RATE] == "linear"


def test_a_choice_is_text_and_a_share_counts_in_tenths():
    assert change("model.position", {"kind": "rotary"}) == {"model.position": "rotary"}
    assert change(f"{RATE}.floor", 0.3) == {f"{RATE}.floor": pytest.approx(2.0)}


def test_a_number_in_a_schedules_place_and_the_reverse_count_as_far_as_their_values_lie_apart():
    """Else a rate would be a word: two near rates were as unlike as any, and told nothing of each other."""
    assert change(RATE, 0.008) == {RATE: "constant", f"{RATE}.value": pytest.approx(math.log(2))}
    base = load_track("tiny").base_recipe
    flat = apply(base, Diff(name="x", edits=(Edit.to(base, RATE, 0.004),)))
    near = apply(flat, Diff(name="x", edits=(Edit.to(flat, RATE, 0.008),)))
    assert features(flat, near) == {RATE: pytest.approx(math.log(2))}
    assert features(flat, base)[RATE] == "cosine" and f"{RATE}.value" not in features(flat, base)
    assert features(base, base) == {} and features(flat, flat) == {}


def test_the_scale_of_a_number_is_what_its_field_says():
    """A start, a look-ahead and a warm-up end below 1 too, and are no decays: equal steps matter equally there."""
    base = load_track("tiny").base_recipe
    tail = apply(base, Diff(name="x", edits=(Edit.to(base, "optimizer.readout", {"kind": "tail_ema", "start": 0.8}),)))
    assert features(base, tail)["optimizer.readout.start"] == pytest.approx(10 * 0.1 / 0.99)
    warm = change(f"{RATE}.warmup", 0.14)
    assert warm == {f"{RATE}.warmup": pytest.approx(1.0)}
    momentum = change("optimizer.groups.matrices.chain.adam.b2", 0.99)
    assert momentum == {"optimizer.groups.matrices.chain.adam.b2": pytest.approx(math.log(0.05 / 0.01))}
