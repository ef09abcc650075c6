"""A champion as a record's folder, and what fresh seeds say of a record."""

import json
import re

import pytest
from sessions import Story

from jaxnano.cli import report_errors
from jaxnano.config.file import load
from jaxnano.config.recipe import recipe_id
from research import record, replicate
from research.show.facts import Facts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A session's record, and the facts it was made of."""
    path = tmp_path_factory.mktemp("record")
    with (story := Story(path / "session")).session:
        story.search().nominate().seal()
        facts = Facts(story.snapshot())
    assert record.main([str(path / "session"), str(path / "out")]) == 0
    return path / "out", facts


def test_a_record_holds_what_the_ledger_does(folder, capsys):
    path, facts = folder
    side, text = facts.champion(), (path / "README.md").read_text()
    assert recipe_id(load(path / "recipe.yaml")) == side["recipe_id"]
    assert recipe_id(load(path / "base.yaml")) == facts.base
    assert f"{side['effect']:.4f} nats per byte lower" in text and "What each lever is worth" in text
    proof = facts.verifications()[0]["losses"]
    for seed, loss in proof["candidate"].items():
        assert re.search(rf"\| {seed} \| 90 \| [\d.]+ \| {loss:.4f} \| {proof['incumbent'][seed]:.4f} \|", text)
    local = [target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("http")]
    assert {"recipe.yaml", "record.json", "curves.svg"} <= set(local)
    assert all((path / target).exists() for target in local)
    for edit in facts.edits(side["recipe_id"]):
        assert edit["path"].split(".")[-1].replace("_", "\\_") in text or edit["path"] in text
    assert "<script>alert" not in text
    assert (path / "curves.svg").read_text().startswith("<svg")


def test_a_record_is_written_once_and_of_a_champion(folder, tmp_path, capsys):
    path, _ = folder
    assert report_errors(lambda: record.main([str(path.parent / "session"), str(path)])) == 2
    with (story := Story(tmp_path / "s")).session:
        story.propose()
    assert report_errors(lambda: record.main([str(tmp_path / "s")])) == 2
    err = capsys.readouterr().err
    assert "already holds something" in err and "no champion was crowned" in err


def test_a_claim_is_read_back(folder):
    path, facts = folder
    found = replicate.claim_of(str(path), "tiny")
    assert recipe_id(found.recipe) == facts.state.champion and recipe_id(found.rival) == facts.base
    assert found.effect == facts.champion()["effect"] and found.track.full_steps == facts.track.full_steps
    assert found.data_hash == facts.state.session.data_hash


def test_a_rung_is_a_claim(capsys):
    muon, rotary = (replicate.claim_of(name, "tiny") for name in ("muon", "rotary"))
    assert muon.name == "Muon" and recipe_id(muon.rival) == recipe_id(rotary.recipe) != recipe_id(muon.recipe)
    assert report_errors(lambda: replicate.main(["no such rung"])) == 2
    assert "and no rung; one of 'rotary and plain norms', 'Muon'" in capsys.readouterr().err


@pytest.mark.parametrize(("interval", "said"), [
    ((0.01, 0.03), "replicated"), ((-0.02, 0.004), "refuted"), ((-0.02, 0.03), "not separated")])
def test_verdicts(interval, said):
    assert replicate.verdict({"interval": interval}, 0.005) == said


def test_two_seeds_of_a_record_on_track_micro(folder, tmp_path, capsys):
    path, _ = folder
    told = json.loads((path / "record.json").read_text())
    base = {"model": {"width": 16, "depth": 1, "attention": {"heads": 2}},
            "data": told["base"]["data"] | {"batch": 4, "length": 16}}
    (tmp_path / "record.json").write_text(json.dumps(told | {
        "contract": told["contract"] | {"full_steps": 8, "eval_tokens": 256}, "base": base, "against": base,
        "recipe": base | {"optimizer": {"clip": 0.5}}}))
    assert report_errors(lambda: replicate.main([str(tmp_path), "--seeds", "2", "--platform", "cpu",
                                                 "--first-seed", "7", "--json"])) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 2 and found["seeds"] == [7, 8] and found["verdict"] in ("replicated", "refuted",
                                                                                 "not separated")


def test_bad_input(tmp_path, capsys):
    assert report_errors(lambda: replicate.main([str(tmp_path / "none")])) == 2
    (tmp_path / "record.json").write_text("{}")
    assert report_errors(lambda: replicate.main([str(tmp_path)])) == 2
    assert report_errors(lambda: replicate.main(["muon", "--seeds", "1"])) == 2
    err = capsys.readouterr().err
    assert "and no rung; one of" in err and "no record" in err and "2 or more would do" in err
