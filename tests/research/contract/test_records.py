"""Records as lineages: each builds, the whole recipes are what the lineages build, and figures known elsewhere hold."""

from __future__ import annotations

import json

import pytest

from jaxnano.config.base import ConfigError, validate
from jaxnano.config.file import load
from jaxnano.config.schedule import evaluate
from jaxnano.cost import preflight
from research import ideas as command
from research.contract import records
from research.contract.records import FOLDER, Built, Lineage, build, lineages, name_of, row, text

LINEAGES = {lineage.track: lineage for lineage in lineages()}
FILES = [(lineage.track, number) for lineage in LINEAGES.values() for number in lineage.written]


@pytest.fixture(scope="module")
def built() -> dict[int, dict[int, Built]]:
    return {track: build(lineage) for track, lineage in LINEAGES.items()}


def test_every_record_builds(built):
    """One that is said to be exact is a mistake of this list if it does not."""
    failed = {(track, n): one.reason for track, found in built.items() for n, one in found.items() if not one.recipe}
    assert failed == {}
    for track, least in LEAST.items():
        assert len(built[track]) >= least[0]
        assert sum(one.state in ("exact", "near") for one in built[track].values()) >= least[1], track


LEAST = {1: (82, 76), 3: (37, 35)}


@pytest.mark.parametrize(("track", "number"), FILES, ids=[f"{track}-{number}" for track, number in FILES])
def test_a_whole_recipe_is_what_its_lineage_builds(track, number, built):
    lineage, one = LINEAGES[track], built[track][number]
    path = FOLDER / name_of(lineage, one.record)
    assert path.read_text() == text(lineage, one), "python -m research.ideas --records --write configs/records"
    recipe = load(path)
    assert recipe == one.recipe
    cost = preflight(recipe, accumulate=16)
    assert cost.parameters == one.cost.parameters > 100_000_000 and cost.total_bytes > 0


@pytest.fixture
def once(built, monkeypatch):
    """The command takes what is built already: it takes seconds."""
    monkeypatch.setattr(records, "build", lambda lineage: built[lineage.track])


def test_the_command_tells_and_writes_them(once, tmp_path, capsys):
    assert command.main(["--records", "--json", "--write", str(tmp_path / "new")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 119 and {row["state"] for row in found} <= {"exact", "near", "lacking"}
    assert all(bool(row["told"]) == (row["state"] != "exact") for row in found)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {path.name for path in FOLDER.glob("track*-*.yaml")}


def test_the_command_lists_them(once, capsys):
    assert command.main(["--records"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["track 1", "track 3"]
    assert "  #3 2026-04-26 3500 steps: exact" in lines


def test_no_file_is_left_over():
    known = {name_of(lineage, record) for lineage in LINEAGES.values() for record in lineage.records
             if record.number in lineage.written}
    assert {path.name for path in FOLDER.glob("track*-*.yaml")} == known


def test_known_parameter_counts(built):
    """GPT-2's, and those that the speedrun's README gives for its model of width 768: 123.5 M, 162 M untied."""
    counts = {number: one.cost.parameters for number, one in built[1].items()}
    assert counts[1] == 124_439_808
    blocks = 12 * (4 * 768 * 768 + 8 * 768 * 768)
    assert counts[5] == blocks + 50304 * 768 and counts[8] == blocks + 2 * 50304 * 768


def test_track_3_keeps_its_architecture(built):
    """162,354,816 numbers in PyTorch's model (124M without the head and its tied table's second copy)."""
    for one in built[3].values():
        assert one.cost.parameters == 162_354_816
        assert one.cost.tokens_per_step == 524_288


@pytest.mark.parametrize("step", [0, 299, 513, 1486, 1949, 2689])
def test_schedules_in_steps_are_the_records(step, built):
    """Record 46, from its constants: min(peak, c (2900 - t)^1.2), so that matrices leave the peak at step 514."""
    recipe = built[3][46].recipe
    lr = {group.name: float(evaluate(group.lr, step / 2690)) for group in recipe.optimizer.groups}
    matrices, table = (min(peak, c * (2900 - step) ** 1.2)
                       for peak, c in ((0.0375, 3.3169534699576625e-06), (0.3, 4.976805410800738e-05)))
    assert lr["matrices"] == lr["outputs"] == pytest.approx(matrices, rel=1e-4)
    assert lr["embedding"] == pytest.approx(table, rel=1e-4)
    assert (lr["matrices"] > 0.03749) == (step < 514) and (lr["embedding"] > 0.2999) == (step < 1487)
    mu = float(evaluate(recipe.optimizer.groups[0].chain[0].decay, step / 2690))
    assert mu == pytest.approx(0.85 + 0.1 * min(1.0, step / 300), abs=1e-5)
    beta = float(evaluate(recipe.optimizer.wrapper.beta, step / 2690))
    assert beta == pytest.approx(table if 300 <= step < 1950 else 0.0, abs=1e-4)


def test_a_record_inherits_what_its_parent_lacks_but_for_what_is_gone():
    lineage = _lineage([{"number": 1, "near": {"a": "b"}, "missing": {"x": "no x"}},
                        {"number": 2, "parent": 1, "edits": [{"path": "model.depth", "new": 2}]},
                        {"number": 3, "parent": 2, "gone": ["x"], "edits": [{"path": "model.depth", "new": 3}]},
                        {"number": 4, "parent": 3, "gone": ["a"], "edits": [{"path": "model.heads", "new": 3}]},
                        {"number": 5, "parent": 4, "gone": ["a"]}])
    found = build(lineage)
    assert [one.state for one in found.values()] == ["lacking", "lacking", "near", "fails", "fails"]
    assert "no such place" in found[4].reason and found[5].reason == "its parent, 4, does not build"
    assert found[2].missing == {"x": "no x"} and found[3].near == {"a": "b"} and found[3].recipe.model.depth == 3
    assert row(lineage, found[4])["told"]["reason"] == found[4].reason


@pytest.mark.parametrize(("records", "message"), [
    ([{"number": 1}, {"number": 3, "parent": 2}], "records.1.parent"),
    ([{"number": 1}, {"number": 2}], "records.1.parent"), ([{"number": 1}, {"number": 1, "parent": 1}], "stands once")])
def test_a_lineage_is_a_tree(records, message):
    with pytest.raises(ConfigError, match=message):
        _lineage(records)


def test_an_edit_that_changes_nothing_is_told():
    found = build(_lineage([{"number": 1, "edits": [{"path": "model.depth", "new": 12}]}]))
    assert "it stands there already" in found[1].reason


def _lineage(records):
    rest = {"date": "2024-01-01", "value": 1.0, "what": "something"}
    return validate(Lineage, {"track": 9, "what": "A track", "source": "records", "unit": "minutes", "written": [],
                              "base": "gpt2-124m.yaml", "records": [rest | record for record in records]})
