"""Planted barnacles: what is planted, what the two rules make of it, and what the table says."""

import json

import pytest

from research.check.bench import barnacles
from research.check.bench.barnacles import TRACK, Ledger, Planted, before, ours
from research.decide.plan import pruning_runs


def test_what_is_planted_is_worth_what_it_should_be():
    made = [Planted(seed, 1.0) for seed in range(40)]
    assert {len(one.kinds) for one in made} <= set(range(4, 15))
    assert {kind for one in made for kind in one.kinds.values()} == {"helpful", "neutral", "dead", "harmful", "pair"}
    for one in made:
        names = list(one.kinds)
        for name, kind in one.kinds.items():
            left = one.less(one.parts, [name])
            gain = one.worth(names) - one.worth([part.name for part in left])
            bound = [n for n in names if one.on.get(n) == name and n not in {p.name for p in left}]
            worth = {"helpful": 4.3, "harmful": -2.0}.get(kind, 0.0) * TRACK.epsilon
            assert gain == pytest.approx(worth) and all(one.kinds[n] == "neutral" for n in bound)
            if kind == "pair":
                assert one.worth(names) - one.worth([n for n in names if n not in (name, one.on[name])]) > 0.04
            if kind == "dead":
                assert one.loss(left, 5) == one.loss(one.parts, 5)
        assert one.loss(one.parts, 3) == one.loss(one.parts, 3) != one.loss(one.parts, 4)


def test_the_ablation_takes_planted_barnacles_off_in_fewer_runs_and_keeps_what_helps():
    rows = []
    for error in (1 / 3, 1.0):
        made = [Planted(seed, error) for seed in range(20)]
        planned = sum(pruning_runs(len(one.kinds)) for one in made) / len(made)
        rows += [(barnacles.counted([(one, rule(one)) for one in made])) for rule in (ours, before)]
    now, old, noisy, _ = rows
    assert now["neutral"] >= 0.9 and noisy["neutral"] >= 0.8 and now["dead"] == noisy["dead"] == 1.0
    assert now["helpful"] <= 0.05 and noisy["helpful"] <= 0.1 and now["pairs"][1] >= old["pairs"][1]
    assert now["runs"] < 0.7 * old["runs"] and now["named"] <= 1 / 3
    assert 0.8 * planned < noisy["runs"] < 1.2 * planned  # what a round keeps back for the proof


def test_what_goes_bit_by_bit_is_not_worth_more_than_epsilon_in_all():
    """Eight parts, each worth 0.6 epsilons: none is clearly worth more than epsilon, and seven are worth four."""
    lost = []
    for seed in range(20):
        planted = Planted(seed, 0.2)
        planted.kinds = {f"part-{i:02d}": "helpful" for i in range(8)}
        planted.on, planted.good, planted.drift = {}, 0.6 * TRACK.epsilon, dict.fromkeys(planted.kinds, 0.0)
        planted.parts = tuple(replaced(i) for i in range(8))
        lost.append(8 * 0.6 - 0.6 * len(ours(planted).parts))
    assert sum(lost) / len(lost) <= 1.8 and max(lost) <= 3.0


def replaced(i):
    return barnacles.Part(name=f"part-{i:02d}", edits=(barnacles.IdeaEdit(path=f"part-{i:02d}", new=1),))


def test_the_command_says_what_it_missed(monkeypatch, capsys):
    monkeypatch.setattr(barnacles, "ERRORS", (1 / 3,))
    assert barnacles.main(["--candidates", "2", "--json"]) in (0, 1)
    rows = json.loads(capsys.readouterr().out)
    assert [row["rule"] for row in rows] == ["sequential", "three seeds"]
    bad = [rows[0] | {"neutral": 0.5, "helpful": 0.2}]
    assert barnacles.missed(bad) == ["neutral parts taken off at 0.33 epsilon: 50.0%, not 95%",
                                     "helpful parts kept at 0.33 epsilon: 80.0%, not 95%"]
    assert barnacles.page(rows).count("\n| 0.33 epsilon | ") == 2


def test_the_ledger_it_makes_up_is_one_that_the_loop_could_have_written():
    ledger = Ledger(Planted(0, 1.0))
    assert [e.subject for e in ledger.state.nominated] == [ledger.candidate] and not ledger.now.begun
    assert all(trial.seed == 0 for trial in ledger.state.trials.values()) and 0 not in ledger.now.seeds
