"""A ledger that was edited is told from one that was not: what it claims is computed again from its results."""

import shutil

import pytest
from sessions import Story, forge, old_session

from jaxnano.cli import report_errors
from research import share
from research.contract.trial import FRESH
from research.decide.claims import broken_claims, violations
from research.ledger import __main__
from research.ledger.events import FILE, Ledger


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return old_session(tmp_path_factory.mktemp("claims"))


def better(body, _):
    body["comparisons"]["incumbent"] |= {"effect": 2.0, "p_value": 1e-30}


def fresh_seeds(body, _):
    body["seeds"][0] = FRESH + 1


def worth(body, _):
    body["rows"][0]["effect"] += 0.1


def sure(body, _):
    body["rows"][0]["p_value"] /= 1e6


FORGED = {
    "a larger effect": ("verification", better, "comparisons.incumbent.effect is 2.0, from the results it is 0.99"),
    "seeds of one's own": ("verification", fresh_seeds, "seeds.0 is 1000001, from the results it is "),
    "losses of one's own": ("verification", lambda b, _: b["losses"]["candidate"].clear(), "losses.candidate."),
    "a lenient level": ("sealed", lambda b, _: b.update(alpha=0.5), "alpha is 0.5, from the results it is 0.1"),
    "fewer seeds": ("sealed", lambda b, _: b.update(n=2), "n is 2, from the results it is 4"),
    "an attempt forgotten": ("sealed", lambda b, _: b.update(attempt=3), "attempt is 3, from the results it is 1"),
    "another rival": ("sealed", lambda b, _: b.update(incumbent="0" * 16), "incumbent is "),
    "a lenient contract": ("session", lambda b, _: b["contract"]["significance"].update(alpha=0.9), "track_hash says"),
    "a part that is worth more": ("ablation", worth, "effect is "),
    "a part that is surer": ("ablation", sure, "p_value is "),
    "another recipe's ablation": ("ablation", lambda b, _: b.update(recipe_id="1" * 16), "the ablation ended in 1111"),
    "another run's checkpoint": ("crowned", lambda b, _: b.update(trial="x-1-0"), "trial is 'x-1-0'"),
    "what is not there": ("verification", lambda b, _: b.pop("comparisons"), "comparisons.incumbent.effect is None"),
    "what is no claim": ("ablation", lambda b, _: b.update(rows=[7]), "an ablation with rows.0: 7"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_claim_that_the_results_do_not_bear_out_is_named(old, tmp_path, name):
    kind, change, words = FORGED[name]
    path = shutil.copytree(old, tmp_path / "s")
    forge(path, kind, change)
    with Ledger(path / FILE) as opened:
        lines = list(violations(opened, path))
    assert any(words in line for line in lines), lines


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """A session of this version; its runs have no files, which is another rule's finding."""
    return Story(tmp_path_factory.mktemp("claims") / "new").search().nominate().seal().end()[0]


FORGED_NOW = {
    "nothing": ("sealed", lambda b, _: None, None),
    "a lenient level": ("sealed", lambda b, _: b.update(alpha=0.5), "alpha is 0.5, from the results it is 0.0006"),
    "another's number": ("sealed", lambda b, _: b.update(attempt=2, alpha=b["alpha"] / 4), "attempt 2 comes after"),
    "a split that picked it": ("sealed", lambda b, _: b.update(split="search"), "'search' is not a protected one"),
    "the rule of 0.2": ("sealed", lambda b, _: b.pop("rule"), "alpha is 0.0006"),
    "a larger effect": ("verification", better, "comparisons.incumbent.effect is 2.0, from the results it is 0.4"),
    "stopped at will": ("verification", lambda b, _: b.update(seeds=b["seeds"][:3]), "seeds is ["),
    "no bad seeds": ("verification", lambda b, _: b["comparisons"]["incumbent"].update(unseen=0.0), "unseen is 0.0"),
}


@pytest.mark.parametrize("name", FORGED_NOW)
def test_what_an_anytime_valid_test_claims_is_computed_again(new, tmp_path, name):
    kind, change, words = FORGED_NOW[name]
    path = shutil.copytree(new, tmp_path / "s")
    forge(path, kind, change)
    with Ledger(path / FILE) as opened:
        lines = list(broken_claims(opened.events()))
    assert any(words in line for line in lines) if words else lines == [], lines


def test_a_forged_session_is_not_shared(old, tmp_path, capsys):
    path = shutil.copytree(old, tmp_path / "s")
    forge(path, "verification", better)
    assert report_errors(lambda: share.main([str(path), str(tmp_path / "out")])) == 2
    assert "effect is 2.0" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert __main__.main(["--check", str(path)]) == 1
