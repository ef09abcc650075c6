"""The command research.ladder end to end: real workers on track micro; and that its rungs fit track tiny."""

from __future__ import annotations

import json
import math

import pytest
from stand_in import MICRO

from jaxnano.cli import report_errors
from jaxnano.cost import preflight
from research import ladder
from research.contract.proposal import build
from research.contract.records import lineages
from research.contract.rungs import ladder as rungs
from research.contract.rungs import stacks
from research.contract.track import load_track

RUNGS = rungs()


def test_two_rungs_on_two_seeds(tmp_path, capsys):
    command = ["--rungs", "2", "--seeds", "2", "--track", MICRO, "--out", str(tmp_path / "up"), "--json"]
    assert report_errors(lambda: ladder.main(command)) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "up/ladder.json").read_text()) == found
    low, high = found["rungs"]
    assert low["gain"] is None and high["gain"] == high["over_lowest"] and high["gain"]["n"] == 2
    assert high["gain"]["effect"] == pytest.approx(low["mean"] - high["mean"], abs=1e-6)
    assert low["losses"].keys() == high["losses"].keys() == {"0", "1"} and low["id"] != high["id"]
    assert found["kendall_tau"] is None and found["order"][0] == max(found["rungs"], key=lambda r: r["mean"])["name"]
    assert (low["minutes"], high["minutes"]) == (45.0, 31.4)
    table = (tmp_path / "up/ladder.md").read_text()
    assert f"| #2 | 31.4 | {high['steps']} | {high['mean']:.4f} |" in table
    for name in ("ladder.svg", "ladder-steps.svg"):
        svg = (tmp_path / "up" / name).read_text()
        assert svg.startswith("<svg") and svg.count("seed 1: ") == (name == "ladder-steps.svg")


def test_every_rung_fits_the_track_that_it_is_for():
    """In the order of its record, each another recipe, and all with the training FLOPs of the base."""
    track = load_track("tiny")
    built = [build(track.base_recipe, parts) for parts in stacks(RUNGS, track.base_recipe)]
    assert len({r.model_dump_json() for r in built}) == len(RUNGS) >= 8
    budget = track.base_cost.flops_per_step * track.full_steps
    for recipe in built:
        step = preflight(recipe).flops_per_step
        assert budget - step < track.steps(recipe, 1.0) * step <= budget
    records = {r.number: r.value for lineage in lineages() if lineage.track == 1 for r in lineage.records}
    times = [records[rung.record] for rung in RUNGS]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(("options", "words"), [(("--seeds", "1"), "2 or more"), (("--rungs", "99"), "2 to ")])
def test_a_mistake_is_one_line(options, words, capsys):
    assert report_errors(lambda: ladder.main(list(options))) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_pictures_of_a_ladder_that_leads_nowhere():
    """Where nothing is gained, shares of nothing are not drawn."""
    def one(effect):
        return {"effect": effect, "interval": [effect - 0.1, effect + 0.1]}

    rows = [{"name": n, "record": n, "minutes": 9.0 - n, "losses": {0: 1.0, 1: 1.1}, "gain": gain, "over_lowest": gain}
            for n, gain in enumerate((None, one(-0.1), one(0.0)))]
    for svg in ladder.pictures({"rungs": rows}).values():
        assert "nan" not in svg.lower().replace("nano", "") and math.isfinite(len(svg))
