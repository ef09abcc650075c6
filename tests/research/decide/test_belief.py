"""The belief is a function of the ledger alone: the same prefix gives the same arms, posterior and decision."""

from dataclasses import replace

import numpy as np
import pytest
from sessions import Story

from jaxnano.config.base import dump, validate
from jaxnano.config.recipe import Recipe, recipe_id
from research.contract.idea import ideas, part
from research.contract.part import Proposal
from research.contract.proposal import build
from research.contract.trial import FRESH, Trial
from research.decide.belief import SEEDS, Belief
from research.decide.choose import decide, matters, rewards
from research.decide.price import Prices
from research.decide.proof import best_single
from research.ledger.state import fold


@pytest.fixture
def story(tmp_path):
    with (found := Story(tmp_path / "s").search()).session:
        yield found


def test_a_belief_that_grew_decides_as_a_fresh_one(story):
    """Whatever was asked on the way: caches change the time an answer takes, never the answer."""
    events = story.session.ledger.events()
    grown = Belief(story.track)
    for n in range(2, len(events) + 1):
        if events[n - 1].kind != "result" and n < len(events):
            continue
        now = decide(Prices(grown.at(fold(events[:n]))), 3, n % 2, 1e6)
        assert now == decide(Prices(Belief(story.track).at(fold(events[:n]))), 3, n % 2, 1e6)
    assert now is not None and now[1].as_of == events[-1].seq


def test_arms_are_in_the_order_of_their_proposals_whichever_was_judged_first(story):
    """A proposal of another process may wait for its verdict while the loop's own go on."""
    late, soon = (build(story.track.base_recipe, [part(ideas()[n])]) for n in ("swiglu", "rmsnorm"))
    grown = Belief(story.track)
    for name, recipe in (("late", late), ("soon", soon)):
        proposal = Proposal(name=name, parts=(), hypothesis="", lane="catalogue")
        story.write("proposal", recipe_id(recipe), {"proposal": proposal, "recipe": dump(recipe)})
    for recipe in (soon, late):
        story.write("verdict", recipe_id(recipe), {"accepted": True})
        grown.at(fold(story.session.ledger.events()))
    state = fold(story.session.ledger.events())
    names = [arm.name for arm in grown.at(state).arms]
    assert names == [arm.name for arm in Belief(story.track).at(state).arms]
    assert names[0] == "base" and names[-2:] == ["late", "soon"]


def test_verification_seeds_and_failures_teach_nothing(story):
    before = story.snapshot()
    assert FRESH >= SEEDS
    story.worth[story.best] = -5.0
    story.run(Trial(story.best, 1.0, FRESH + 5), "verify")
    story.run(Trial(story.best, 0.25, 3), outcome="failed", reason="ValueError", loss={})
    story.run(Trial(story.best, 0.5, 3), outcome="interrupted", reason="the loop ended", loss={})
    after = story.snapshot()
    np.testing.assert_array_equal(before.effects[0], after.effects[0])
    assert Trial(story.best, 0.5, 3) not in after.over[story.best]  # an interrupted run is run again
    assert story.best in after.broken and story.best not in before.broken


def test_a_broken_recipe_does_not_compete(story):
    def competing():
        body = decide(story.prices(), 0, 0, 1e6)[1]
        return [c.trial.partition("-")[0] for c in (body.winner, *body.runners_up)]

    rotary = story.singles["rotary"]
    assert rotary in competing()
    story.run(Trial(rotary, 0.5, 3), outcome="timeout", reason="slow", loss={})
    assert rotary not in competing()


def test_both_figures_are_written_down_and_the_gain_decides(story):
    body = decide(story.prices(), 0, 0, 1e6)[1]
    scored = [body.winner, *body.runners_up]
    assert all(c.eig is not None and c.eig >= 0 and c.improvement >= 0 for c in scored)
    rates = [c.improvement / c.cost_s for c in scored]
    assert rates == sorted(rates, reverse=True) and body.score == pytest.approx(rates[0])


def test_a_gain_matters_if_gaining_on_at_its_rate_would_make_an_epsilon(story):
    prices = story.prices()
    body = decide(prices, 0, 0, 100.0)[1].model_copy(update={"improvement": 0.001, "cost_s": 10.0})
    enough_s = 10.0 * story.track.epsilon / 0.001 * prices.slowdown / 2  # two workers
    for left_s, expected in ((1.01 * enough_s, True), (0.99 * enough_s, False), (None, True)):
        assert matters(prices, body.model_copy(update={"left_s": left_s})) is expected
    assert matters(prices, body.model_copy(update={"improvement": None, "left_s": 0.1}))  # it was promised


def test_lanes_are_paid_for_the_best_mean_and_charged_for_what_broke(story):
    lucky = story.propose([part(ideas()["swiglu"])], 0.4, lane="tuner")
    story.worth[lucky] = 0.9
    story.run(Trial(lucky, 0.25, 0))
    story.worth[lucky] = 0.0
    for seed in range(3):
        story.run(Trial(lucky, 1.0, seed))
    broken = story.propose([part(ideas()["rmsnorm"])], 0.0, lane="tuner")
    story.run(Trial(broken, 0.25, 0), outcome="failed", reason="x", loss={}, device_s=None)
    now = story.snapshot()
    paid = rewards(now, ["catalogue", "recombine", "tuner"])
    gained = {lane: sum(r.gain for r in paid if r.lane == lane) for lane in ("catalogue", "recombine", "tuner")}
    best = max(now.effects[0][now.index[rid]] for rid in now.finished)
    assert sum(gained.values()) == pytest.approx(best) and gained["catalogue"] > 0.2
    assert gained["tuner"] < 0.05  # its first run alone was worth 0.9
    assert len([r for r in paid if r.lane == "tuner"]) == 5 and all(r.device_s > 0 for r in paid)


def test_flat_priors_take_every_promise_away_and_a_session_keeps_to_them(tmp_path):
    with (story := Story(tmp_path / "flat", flat_priors=True)).session:
        story.search()
        other = story.propose([part(ideas()["swiglu"])], lane="inbox", origin="me", name="x")
        now = story.snapshot()
        assert all(not arm.candidate.promise for arm in now.arms) and now.view().flat
        story.write("resume", "", {"pid": 2})
        assert not story.snapshot().by_id[other].candidate.promise and story.snapshot().state.flat


def test_the_price_of_a_run_grows_with_its_horizon_and_falls_once_compiled(story):
    found = story.prices()
    arm = found.snapshot.arms[found.snapshot.index[story.best]]
    assert found.seconds(arm, 1.0, 0) > found.seconds(arm, 0.25, 0)
    fresh = story.propose([part(ideas()["swiglu"])], 0.0)
    found = story.prices()
    new = found.snapshot.arms[found.snapshot.index[fresh]]
    assert found.seconds(new, 0.25, 0) > found.seconds(arm, 0.25, 0)
    assert found.seconds(arm, 0.25, 1) > found.seconds(arm, 0.25, 0)  # worker 1 has yet to load the program
    story.start(Trial(fresh, 0.25, 0))
    assert story.prices().seconds(new, 0.25, 0) < found.seconds(new, 0.25, 0)


def test_a_run_with_phases_is_priced_with_all_of_its_programs(story):
    phases = [{"name": f"p{i}", "start": start, "set": change} for i, (start, change) in enumerate((
        (0.2, {"model": {"attention": {"window": 8}}}), (0.4, {"optimizer": {"clip": 0.5}}),
        (0.6, {"model": {"attention": {"window": 0}}}), (0.8, {"model": {"ffn": {"ratio": 2.0}}})))]
    recipe = validate(Recipe, dump(story.track.base_recipe) | {"phases": phases})
    proposal = Proposal(name="phased", parts=(), hypothesis="", lane="catalogue")
    story.write("proposal", recipe_id(recipe), {"proposal": proposal, "recipe": dump(recipe)})
    story.write("verdict", recipe_id(recipe), {"accepted": True})
    prices = story.prices()
    arm = prices.snapshot.by_id[recipe_id(recipe)]
    assert arm.programs == 3  # as the second phase's is the first's, and the third's that of the start
    one = prices.seconds(replace(arm, programs=1), 1.0, 0)
    assert prices.seconds(arm, 1.0, 0) == pytest.approx(one + 2 * prices.compile_s)


def test_a_worker_whose_process_was_replaced_has_to_load_its_programs_again(story):
    arm = story.snapshot().arms[0]
    loaded = story.prices().seconds(arm, 1.0, 0)
    other = story.snapshot().arms[1]
    story.pid = 2
    story.start(Trial(other.recipe_id, 0.25, 7))
    replaced = story.prices()
    assert loaded < replaced.seconds(arm, 1.0, 0) == replaced.seconds(arm, 1.0, 1)
    assert replaced.seconds(other, 1.0, 0) < replaced.seconds(other, 1.0, 1)
    story.finish(Trial(other.recipe_id, 0.25, 7), outcome="failed", loss={}, exit=-9)
    assert story.prices().seconds(other, 1.0, 0) == story.prices().seconds(other, 1.0, 1)


def test_a_first_message_is_waited_for_as_long_as_compiling_takes_here(tmp_path):
    with (story := Story(tmp_path / "new")).session:
        story.propose()
        assert story.prices().first_message_s(story.snapshot().arms[0]) > 600  # nobody knows yet
        base = story.snapshot().arms[0]
        story.run(Trial(base.recipe_id, 0.25, 0), "base", compile_s=0.5)
        assert story.prices().first_message_s(base) == 120
        story.run(Trial(base.recipe_id, 0.5, 0), "base", compile_s=200.0)
        assert story.prices().first_message_s(base) == 800
        story.run(Trial(base.recipe_id, 1.0, 0), "base", fingerprint={"backend": "tpu"})
        assert story.prices().first_message_s(base) == 1800


def test_nothing_is_decided_that_does_not_fit_into_the_time(story):
    """Neither at the base's price, where another structure has yet to be compiled, nor in device-seconds, where the
    machine is slow."""
    fresh = story.propose([part(ideas()["swiglu"])], 0.0)
    for trial in list(story.snapshot().state.trials.values()):
        story.run(Trial(trial.recipe_id, trial.horizon, 7), wall_s=6.0)  # three times as long as the device worked
    found = story.prices()
    assert found.slowdown == pytest.approx(3.0) and decide(found, 0, 0, 0.1) is None
    new = found.snapshot.arms[found.snapshot.index[fresh]]
    chosen = set()
    for left_s in np.linspace(0.5, found.wall_s(new, 1.0, 0), 40):
        if (decision := decide(found, 0, 0, left_s)) is not None:
            trial, body = decision
            arm = found.snapshot.arms[found.snapshot.index[trial.recipe_id]]
            assert found.wall_s(arm, trial.horizon, 0) <= left_s and body.cost_s * found.slowdown <= left_s
            chosen.add(trial.horizon)
    assert chosen


def failing(story, **result):
    """A recipe that promises more than any, and whose runs end as said."""
    recipe = story.propose([part(ideas()["swiglu"]).model_copy(update={"effect": 1.0})], 0.0)
    for horizon in (0.25, 0.5):
        story.run(Trial(recipe, horizon, 0), loss={}, **result)
    return recipe


@pytest.mark.parametrize("outcome", ["diverged", "failed", "timeout"])
def test_a_recipe_whose_runs_all_broke_off_is_nobodys_parent_until_one_has_finished(story, outcome):
    recipe = failing(story, outcome=outcome, reason="x")
    found = story.snapshot()
    assert found.effects[0][found.index[recipe]] == max(found.effects[0])  # by its promise alone
    assert recipe not in [k.recipe_id for k in found.view().known] and found.view().best.recipe_id == story.best
    assert best_single(found) != recipe
    story.run(Trial(recipe, 0.25, 1))
    after = story.snapshot()
    assert recipe in [k.recipe_id for k in after.view().known]


def test_how_likely_a_run_diverges_counts_wherever_recipes_are_ranked(story):
    recipe = failing(story, outcome="diverged", reason="nan")
    story.worth[recipe] = 0.1
    story.run(Trial(recipe, 0.25, 1))
    found = story.snapshot()
    index = found.index[recipe]
    assert found.p_diverge[index] > 0.4 and found.effects[0][index] > 0.01
    assert found.worth[index] == pytest.approx(found.effects[0][index] * (1 - found.p_diverge[index]))
    known = {k.recipe_id: k for k in found.view().known}
    assert list(known) == sorted(known, key=lambda rid: -found.worth[found.index[rid]])
    assert known[recipe].runs == 1


def test_what_outsiders_promise_is_kept_apart_by_who_promises(story):
    mine, other = (part(ideas()[idea]).model_copy(update={"name": idea, "effect": 0.01})
                   for idea in ("swiglu", "rmsnorm"))
    story.propose([mine], lane="inbox", origin="one", name="x")
    story.propose([mine, other], lane="llm", origin="two", name="y")
    story.propose([part(ideas()["rotary"]), other], lane="recombine", name="z")
    promises = [arm.candidate.promise for arm in story.snapshot().arms[-3:]]
    rotary = part(ideas()["rotary"]).effect
    assert promises == [{"inbox one": 0.01}, {"inbox one": 0.01, "llm two": 0.01}, {"": rotary, "llm two": 0.01}]


def test_a_run_in_flight_is_not_given_twice(story):
    trial, body = decide(story.prices(), 0, 0, 1e6)
    story.start(trial, body.purpose)
    again = decide(story.prices(), 0, 1, 1e6)
    assert again is not None and again[0] != trial and story.snapshot().running == [trial]


def test_effects_are_learnt_from_the_runs(story):
    mean, sd = story.snapshot().effects
    found = story.snapshot()
    assert mean[0] == pytest.approx(0.0, abs=1e-9)
    assert mean[found.index[story.best]] == pytest.approx(0.4, abs=0.05)
    assert mean[found.index[story.singles["qk-norm"]]] < 0.02 and sd[found.index[story.best]] < 0.1
    assert found.view().best.recipe_id == story.best
