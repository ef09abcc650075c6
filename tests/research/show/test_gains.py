"""Gains are paired by seed, wherever they are shown: seeds are not equally kind, and a lucky one leads nothing."""

import re

import numpy as np
import pytest
from sessions import PROTECTED, Story, changes

from jaxnano.config.base import ConfigError
from research.contract.idea import ideas, part
from research.contract.trial import Trial
from research.outside.desk import Desk
from research.outside.inbox import Inbox
from research.show.candidates import candidate
from research.show.card import card, page
from research.show.explain import explain
from research.show.facts import Facts
from research.show.figures import figures
from research.show.report import write_report
from research.show.verdict import summary, verdict
from research.status import main as status

STEADY, LUCKY = "#1 = base + rotary", "#2 = #1 + relu-squared - rotary"  # what they are called
LUCK = 0.126  # by so much the base's second seed is kinder to whoever is compared with it


def clipped(value):
    return changes(f"clip {value}", {"optimizer.clip": value})


@pytest.fixture
def story(tmp_path):
    """Two recipes alike in worth, one run on seed 0 and one on both, where the base is unlucky on seed 0."""
    story = Story(tmp_path / "s")
    story.base = story.propose()
    expected, not_so = (part(ideas()[name]).model_copy(update={"effect": effect})
                        for name, effect in (("rotary", 0.35), ("relu-squared", 0.03)))
    story.steady = story.propose([expected], name="steady")
    story.lucky = story.propose([not_so], name="lucky", lane="tuner", parents=(story.steady,))
    losses = {story.base: {0: 3.0, 1: 3.0 - LUCK}, story.steady: {0: 2.245, 1: 2.245}, story.lucky: {0: 2.25}}
    for recipe, by_seed in losses.items():
        for seed, value in by_seed.items():
            story.run(Trial(recipe, 1.0, seed), loss={"search": value})
    yield story
    story.session.close()


def test_a_recipe_is_compared_on_the_seeds_that_both_ran(story):
    facts = Facts(story.snapshot())
    assert facts.leader == story.steady
    assert facts.gains(story.steady) == pytest.approx({0: 0.755, 1: 0.629})
    assert facts.gains(story.lucky, story.steady) == pytest.approx({0: -0.005})
    rows = {row["recipe_id"]: row for row in facts.frontier()}
    assert rows[story.lucky]["over_leader"] == {"mean": pytest.approx(-0.005), "seeds": [0]}
    assert rows[story.steady]["over_leader"] == {"mean": None, "seeds": []}
    assert "measured" not in rows[story.steady]  # 0.692 of one, beside 0.75 of the other, would put the worse first
    run = facts.run(facts.state.trials[Trial(story.lucky, 1.0, 0).key])
    assert (run.gain, run.gain_over_parent) == pytest.approx((0.75, -0.005)) and run.parent == story.steady
    assert facts.run(facts.state.trials[Trial(story.steady, 1.0, 1).key]).gain_over_leader is None


def test_no_best_measured_gain_of_the_luckiest_run(story, capsys):
    facts = Facts(story.snapshot())
    mean, sd = facts.snapshot.effects
    at = facts.snapshot.index[story.lucky]
    assert facts.lanes()["tuner"]["best_effect"] == [float(mean[at]), float(sd[at])]
    assert "best_gain" not in facts.lanes()["tuner"]
    path = story.session.path
    write_report(path)
    report = (path / "report.md").read_text()
    assert "best measured gain" not in report and "+0.7550 on seed 0, +0.6290 on seed 1" in report
    assert status([str(path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if LUCKY in line or STEADY in line]
    assert any("over the leader -0.0050 (n = 1)" in line for line in lines)
    assert not re.search(r"measured \+0\.[67]", "\n".join(lines))


def test_figures_tell_seeds_apart(story):
    facts = Facts(story.snapshot())
    drawn = figures(facts, story.session.ledger.events())
    assert "seed 0: +0.7550" in drawn["effects"].svg and "seed 1: +0.6290" in drawn["effects"].svg
    rings = re.findall(r'<title>seed (\d)[^<]*</title>\s*<(?:use|path)[^>]*stroke: (#\w+)', drawn["effects"].svg)
    assert len({seed for seed, _ in rings}) == len({colour for _, colour in rings}) == len({*rings}) == 2
    assert ">seed 0<" in drawn["progress"].svg and ">seed 1<" in drawn["progress"].svg


def test_curves_are_means_over_the_seeds_that_all_of_them_ran(story):
    before = figures(Facts(story.snapshot()), story.session.ledger.events())["curves"]
    assert "on 2 seeds that all of them ran" in before.caption
    story.run(Trial(story.base, 1.0, 3), loss={"search": 3.1}, curve=[[0.1, 90.0], [1.0, 90.0]])  # which moves no mean
    after = figures(Facts(story.snapshot()), story.session.ledger.events())["curves"]
    assert after == before


def test_the_desk_sorts_within_cells_and_refuses_filters_that_nothing_passes(story):
    story.run(Trial(story.steady, 0.25, 0), outcome="killed", reason="hopeless: 1 %", loss={}, predicted=[3.1, 0.02])
    with Inbox(story.session.path) as inbox:
        desk = Desk(inbox)
        runs = desk.trials(sort="gain").runs
        assert [(r.horizon, r.seed, r.name) for r in runs] == [
            (1.0, 0, STEADY), (1.0, 0, LUCKY), (1.0, 0, "base"), (1.0, 1, STEADY), (1.0, 1, "base"),
            (0.25, 0, STEADY)]
        assert [r.name for r in desk.trials(sort="effect", seed=0, horizon=1.0).runs][:1] == [STEADY]
        (ended,) = desk.trials(outcome="killed").runs
        assert ended.predicted == [3.1, 0.02] and ended.loss is None
        row = next(row for row in desk.state().frontier if row.recipe_id == story.lucky)
        assert row.gains == {"0": pytest.approx(0.75)} and row.over_leader["seeds"] == [0]
        for filters, words in (({"lane": "nobody"}, "lane: \"nobody\": base, catalogue, tuner would do"),
                               ({"horizon": 0.3}, "horizon: 0.3: 0.125, 0.25, 0.5, 1.0 would do"),
                               ({"seed": 77}, "seed: 77: 0, 1 would do"), ({"recipe": "zz"}, "no recipe begins with")):
            with pytest.raises(ConfigError, match=re.escape(words)):
                desk.trials(**filters)
    text = "\n".join(explain(story.session.ledger.events(), Trial(story.lucky, 1.0, 0).key))
    assert "gain, on seed 0: +0.7500 over the base, -0.0050 over its parent" in text


def test_transfer_is_judged_on_common_seeds(story):
    """On its own seeds the gain grows with the horizon; that is the seeds' doing."""
    for seed, value in ((1, 2.874), (2, 3.0), (3, 3.0)):
        for horizon in (0.25, 1.0):
            story.run(Trial(story.base, horizon, seed), loss={"search": value}) if (horizon, seed) != (1.0, 1) else None
    for horizon, seed, value in ((0.25, 1, 2.245), (0.25, 2, 2.3), (1.0, 2, 2.3), (0.25, 3, 2.3), (1.0, 3, 2.3)):
        story.run(Trial(story.steady, horizon, seed), loss={"search": value})
    row = candidate(Facts(story.snapshot()), story.steady)
    assert row.trend == "steady" and row.gains[0.25].keys() == {1, 2, 3} and row.gains[1.0].keys() == {0, 1, 2, 3}


def test_means_in_a_card_are_over_the_seeds_of_both(tmp_path):
    story = Story(tmp_path / "s").search().nominate().seal()
    extra = Trial(story.base, 1.0, 2_000_000_001)
    story.run(extra, "verify", loss={"search": 90.0, PROTECTED: 90.0})  # of another attempt
    facts = Facts(story.snapshot())
    about = card(facts)
    losses = about["losses"]["against"][PROTECTED]
    assert about["base"] == facts.base and extra.seed not in map(int, losses["by_seed"]) and losses["mean"] < 5
    own = about["losses"]["champion"][PROTECTED]
    assert np.mean(list(own["by_seed"].values())) == pytest.approx(own["mean"])
    assert "90.0" not in page(about) and summary(facts)["base"]["loss"][PROTECTED]["mean"] < 5
    story.session.close()


def test_what_promises_is_not_ranked_before_what_has_run(story):
    bold = story.propose([clipped(0.9)], name="bold")
    story.run(Trial(bold, 0.25, 0), outcome="diverged", reason="nan", loss={})
    rows = Facts(story.snapshot()).frontier(9)
    assert {row["name"] for row in rows} == {STEADY, LUCKY}


def test_a_verdict_says_on_how_many_completed_runs_it_rests(tmp_path):
    story = Story(tmp_path / "s")
    base = story.propose()
    for seed in (0, 1):
        story.run(Trial(base, 0.25, seed), outcome="interrupted", reason="no room left on the disk", loss={})
    assert verdict(Facts(story.snapshot()))[1] == "Not ended yet: searching, after 0 completed runs."
    story.write("end", "", {"reason": "finished"})
    assert verdict(Facts(story.snapshot()))[1] == (
        "Nothing found out: none of 2 runs was completed (2 interrupted; finished).")
    story.write("resume", "", {})
    story.run(Trial(base, 0.5, 0))
    path, state = story.end()
    text = verdict(Facts.of(state))[1]
    assert "No improvement found: after 1 completed run (2 interrupted, 1 completed; finished) no candidate" in text


def test_waiting_tells_the_gain_over_the_parent(story):
    with Inbox(story.session.path) as inbox:
        number = story.session.ledger.append("submission", "", {"proposal": {}})
        story.write("verdict", story.lucky, {"accepted": True, "refusals": [], "ms": 1.0, "submission": number})
        found = Desk(inbox).wait(number).outcome
    (run,) = found.runs.values()
    assert (run.gain, run.gain_over_parent) == pytest.approx((0.75, -0.005)) and run.seed == 0
