"""A recipe as the posterior sees it: displacements in units that matter."""

import math

import pytest

from jaxnano.config.edit import Diff, Edit, apply
from research.features import features
from research.track import load_track

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
