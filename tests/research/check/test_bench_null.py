"""The proof under attack: what the bench draws, how it counts, and what the page that is committed says."""

import re

import numpy as np
import pytest

from research.check.bench import null
from research.contract.track import Significance
from research.learn.compare import compare
from research.machine import ROOT


def test_the_bound_is_cloppers_and_pearsons():
    assert null.upper(0, 30_000) == pytest.approx(1 - 0.05 ** (1 / 30_000)) and null.upper(5, 5) == 1.0
    assert null.upper(20, 30_000) < 0.001 < null.upper(21, 30_000)


@pytest.mark.parametrize("attack", null.ATTACKS, ids=lambda attack: attack.name)
def test_nothing_that_is_sealed_is_better_than_the_incumbent(attack):
    draws = attack.draw(np.random.default_rng(0), 4000)
    assert draws.shape == (4000, null.RULE.n)
    assert np.mean(draws > 0) < 0.5 + 4 * 0.5 / draws.size**0.5  # symmetric about 0, or below it


@pytest.mark.parametrize("name", null.UNEVEN)
def test_what_gains_on_most_seeds_gains_nothing_on_the_mean(name):
    ours, theirs = null.UNEVEN[name](np.random.default_rng(1), 20_000)
    gain = ours - theirs
    assert gain.mean() == pytest.approx(0.0, abs=5 * gain.std() / gain.size**0.5)
    assert np.median(gain) > 0.02


def test_the_rule_of_0_2_is_its_comparison():
    draws = np.random.default_rng(2).normal(1.5, 1.0, (60, 6))
    losses = dict(enumerate(np.linspace(2.0, 2.1, 6)))
    p = [compare(losses, {seed: losses[seed] - d for seed, d in enumerate(row)}).p_value for row in draws]
    assert null.fixed(draws, 0.005).tolist() == [value <= 0.005 for value in p]


def test_the_page_has_every_attack_and_the_exit_code_says_whether_one_came_through(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(null, "SESSIONS", (1, 2))
    assert null.main(["--campaigns", "100", "--out", str(tmp_path / "page.md")]) == 1  # so few bound nothing
    text = (tmp_path / "page.md").read_text()
    assert all(text.count(f"\n| {attack.name}: ") == 2 for attack in null.ATTACKS)
    assert all(f"\n| {name} |" in text for name in null.UNEVEN)
    with pytest.raises(SystemExit) as stopped:
        null.main(["--campaigns", "none"])
    assert stopped.value.code == 2 and "not a whole number" in capsys.readouterr().err


def test_what_is_committed_is_under_the_level_and_has_its_power():
    text = (ROOT / "docs" / "null.md").read_text()
    rows = re.findall(r"^\| [^|]*: [^|]*\| (\d+) \| (\d+) \| \d+ \| [\d.]+% \| ([\d.]+)% \|", text, re.M)
    assert len(rows) == 2 * len(null.ATTACKS) and max(float(bound) for *_, bound in rows) <= 100 * Significance().alpha
    first = next(line.split(" | ") for line in text.splitlines() if line.startswith("| 1 | 0.00061"))
    assert float(first[3].rstrip("%")) >= 80 and float(first[-1].rstrip(" |")) <= 6.5
