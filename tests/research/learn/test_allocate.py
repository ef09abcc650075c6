import numpy as np
import pytest

from research.learn.allocate import (
    Action,
    Decision,
    Reward,
    choose,
    improvement,
    information,
    next_lane,
    open_runs,
    outlook,
    recommend,
    share,
)
from research.learn.kernel import rows
from research.learn.posterior import Candidate, Observation, Posterior, PosteriorConfig, rows_of

CANDIDATES = [Candidate({}), *(Candidate({f"p{i}": "a"}) for i in range(5)), Candidate({"p0": "a", "p1": "a"})]
HORIZONS = (0.25, 1.0)
COSTS = np.tile([0.28, 1.03], (len(CANDIDATES), 1))


def _observed(runs: dict[Action, float]) -> list[Observation]:
    return [Observation(CANDIDATES[r.candidate].features, r.horizon, r.seed, loss) for r, loss in runs.items()]


STARTED = {Action(0, 0.25, 0): 1.9, Action(1, 0.25, 0): 1.87, Action(2, 0.25, 0): 1.91, Action(3, 0.25, 0): 1.89}


def _eig(fitted, run: Action) -> float:
    return information(outlook(fitted, CANDIDATES, [run]), 0.002, np.random.default_rng(0))[0]


def _choose(runs: dict[Action, float], pending=(), seed=0, candidates=CANDIDATES, **options):
    settings = {"horizons": HORIZONS, "cost_s": COSTS, "max_seeds": 4, "epsilon": 0.002} | options
    fitted = Posterior().fit(_observed(runs))
    rng = np.random.default_rng(seed)
    return choose(fitted, candidates, history=runs.keys(), pending=pending, rng=rng, **settings)


def _decide(*arguments, **options) -> Decision:
    decision = _choose(*arguments, **options)
    assert decision is not None
    return decision


def test_information_gain_agrees_with_brute_force():
    """Mutual information of outcome and best value, from a two-way histogram of 300,000 joint samples."""
    fitted = Posterior().fit(_observed(STARTED | {Action(0, 1.0, 0): 1.6}))
    actions = [Action(c, h, 0) for c in range(1, 7) for h in HORIZONS if Action(c, h, 0) not in STARTED]
    epsilon, view = 0.002, outlook(fitted, CANDIDATES, actions)
    estimated = np.mean([information(view, epsilon, np.random.default_rng(i)) for i in range(8)], axis=0)

    chosen = [CANDIDATES[a.candidate] for a in actions]
    outcomes = rows([c.features for c in chosen], [a.horizon for a in actions], [a.seed for a in actions], 0.0)
    values = rows_of(CANDIDATES, 1.0)
    k = fitted.outcome_covariance(fitted.runs, fitted.runs)
    k += fitted.hypers.noise**2 * np.eye(len(k))
    cross = np.hstack([fitted.effect_covariance(fitted.runs, values), fitted.outcome_covariance(fitted.runs, outcomes)])
    shared = fitted.effect_covariance(values, outcomes)
    own = fitted.outcome_covariance(outcomes, outcomes) + fitted.hypers.noise**2 * np.eye(len(outcomes))
    prior = np.block([[fitted.effect_covariance(values, values), shared], [shared.T, own]])
    covariance = prior - cross.T @ np.linalg.solve(k, cross)
    mean, _ = fitted.predict(CANDIDATES)
    rng = np.random.default_rng(9)
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(covariance)))
    draws = rng.standard_normal((300_000, len(root))) @ root.T
    sampled = mean + draws[:, : len(CANDIDATES)]
    key = sampled.max(1) + epsilon * rng.standard_normal(len(sampled))
    brute = []
    for y in draws[:, len(CANDIDATES) :].T:
        bins = [np.searchsorted(np.quantile(x, np.linspace(0, 1, 31)[1:-1]), x) for x in (key, y)]
        joint = np.histogram2d(*bins, bins=30)[0] / len(y)
        expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        brute.append(np.sum(joint * np.log(np.maximum(joint, 1e-300) / expected)) - 29**2 / (2 * len(y)))
    np.testing.assert_allclose(estimated, brute, rtol=0.3, atol=0.006)
    assert np.corrcoef(estimated, brute)[0, 1] > 0.97


def test_expected_improvement_agrees_with_outcomes_drawn_and_learnt_from():
    """Monte Carlo: draw a run's outcome, refit with it at the same scales, and look at the best mean."""
    observations = _observed(STARTED)
    fitted = Posterior().fit(observations)
    fixed = Posterior(PosteriorConfig(median=fitted.hypers, spread=1e-6))
    run, candidate = Action(4, 0.25, 0), CANDIDATES[4]
    expected = improvement(outlook(fitted, CANDIDATES, [run]), 0.0)[0]
    outcome = rows([candidate.features], run.horizon, run.seed, 0.0)
    white = fitted.whiten(fitted.outcome_covariance(fitted.runs, outcome))
    sd = np.sqrt(fitted.outcome_variance(outcome)[0] - (white**2).sum())
    # the outcome that leaves the mean where it is, found by a secant, is the outcome expected
    at = [
        fixed.fit([*observations, Observation(candidate.features, 0.25, 0, x)]).predict(CANDIDATES)[0]
        for x in (1.8, 2.0)
    ]
    slope = (at[1] - at[0]) / 0.2
    now = fitted.predict(CANDIDATES)[0]
    expected_loss = 1.8 + (now[4] - at[0][4]) / slope[4]
    draws = expected_loss + sd * np.random.default_rng(0).standard_normal(100_000)
    best = (at[0][:, None] + slope[:, None] * (draws - 1.8)).max(0)
    assert expected == pytest.approx(best.mean() - now.max(), rel=0.05, abs=2e-5)


def test_a_decision_can_be_replayed():
    assert _choose(STARTED, seed=3) == _choose(dict(STARTED), seed=3)


def test_the_base_runs_first_in_every_cell_and_its_run_is_in_the_price():
    first = _decide({})
    assert first.action == Action(0, first.winner.run.horizon, 0) and first.purpose == "base"
    assert first.winner.cost_s == pytest.approx(2 * COSTS[0, HORIZONS.index(first.winner.run.horizon)])
    later = _decide(STARTED)
    for scored in (later.winner, *later.runners_up):
        base_there = Action(0, scored.run.horizon, scored.run.seed) in STARTED
        own = COSTS[scored.run.candidate, HORIZONS.index(scored.run.horizon)]
        assert scored.cost_s == pytest.approx(own if base_there else 2 * own)
    on_its_way = _decide(STARTED, pending=[Action(0, 1.0, 0)], horizons=(1.0,), cost_s=COSTS[:, 1:])
    assert on_its_way.purpose == "search" and on_its_way.winner.cost_s == pytest.approx(1.03)


def test_seeds_are_taken_in_order_and_nothing_is_offered_twice():
    taken = [Action(0, 1.0, 0), Action(1, 1.0, 0), Action(1, 1.0, 1), Action(2, 0.25, 0)]
    offered = open_runs(3, 0, taken, HORIZONS, 2)
    assert offered == [Action(1, 0.25, 0), Action(2, 0.25, 1), Action(2, 1.0, 0)]
    everything = [Action(c, h, 0) for c in range(len(CANDIDATES)) for h in HORIZONS]
    assert _choose(dict.fromkeys(everything, 1.6), max_seeds=1) is None


def test_pending_runs_leave_only_what_is_left_to_learn():
    fitted = Posterior().fit(_observed(STARTED))
    again = fitted.condition([CANDIDATES[4]], [0.25], [0])
    alone, repeated = _eig(fitted, Action(4, 0.25, 0)), _eig(again, Action(4, 0.25, 0))
    elsewhere = _eig(again, Action(5, 0.25, 0))
    assert repeated < 0.35 * alone
    assert elsewhere > 0.6 * alone
    chosen = _decide(STARTED).winner.run
    assert _decide(STARTED, pending=[chosen]).winner.run != chosen


def test_what_may_diverge_is_worth_less():
    diverged = [CANDIDATES[4].features] * 3
    fitted = Posterior().fit(_observed(STARTED), diverged)
    settings = {
        "history": STARTED.keys(),
        "pending": [],
        "horizons": HORIZONS,
        "cost_s": COSTS,
        "max_seeds": 4,
        "epsilon": 0.002,
    }
    decision = choose(fitted, CANDIDATES, **settings, rng=np.random.default_rng(0), runners_up=50)
    assert decision is not None
    eig = {s.run: s.eig for s in (decision.winner, *decision.runners_up)}
    assert eig[Action(4, 0.25, 0)] < 0.5 * eig[Action(5, 0.25, 0)]


def test_ties_soak_up_no_compute():
    """Ten candidates known to be equal to within epsilon: next to nothing to learn; one unknown one takes the run."""
    equals = [Candidate({}), *(Candidate({f"p{i}": "a"}) for i in range(10))]
    rng = np.random.default_rng(0)
    observations = [
        Observation(c.features, 1.0, s, 1.6 + 0.05 * s + 0.001 * rng.standard_normal())
        for s in range(4)
        for c in equals
    ]
    history = [Action(i, 1.0, s) for s in range(4) for i in range(len(equals))]
    fitted = Posterior().fit(observations)
    settings = {"pending": [], "horizons": (1.0,), "max_seeds": 8, "epsilon": 0.005}
    tied = choose(fitted, equals, history=history, cost_s=np.ones((11, 1)), rng=rng, **settings)
    unknown = [*equals, Candidate({"new": "a"}, 0.02)]
    open_question = choose(fitted, unknown, history=history, cost_s=np.ones((12, 1)), rng=rng, **settings)
    assert tied is not None and open_question is not None
    assert tied.winner.eig < 0.03
    assert open_question.winner.run == Action(11, 1.0, 0)
    assert open_question.winner.eig > 5 * tied.winner.eig


def test_refuses_costs_that_are_no_price():
    with pytest.raises(ValueError, match="positive"):
        _choose(STARTED, cost_s=0 * COSTS)


def test_recommends_the_best_mean():
    runs = STARTED | {Action(0, 1.0, 0): 1.6, Action(1, 1.0, 0): 1.5, Action(2, 1.0, 0): 1.63}
    assert recommend(Posterior().fit(_observed(runs)), CANDIDATES[:3]) == 1


def test_every_lane_keeps_its_floor_and_a_winning_lane_gets_more():
    lanes = ["catalogue", "tuner", "inbox"]
    even = share(lanes, [])
    assert even == pytest.approx(dict.fromkeys(lanes, 1 / 3))
    rewards = [Reward("catalogue", 0.05, 10.0), *(Reward("tuner", 0.0, 10.0) for _ in range(30))]
    found = share(lanes, rewards, exploration=0.3)
    assert sum(found.values()) == pytest.approx(1.0)
    assert min(found.values()) >= 0.1
    assert found["catalogue"] > found["inbox"] > found["tuner"]
    with pytest.raises(ValueError, match="at least one lane"):
        share([], [])


def test_lanes_are_asked_by_their_shares():
    shares, asked = {"a": 0.6, "b": 0.3, "c": 0.1}, {}
    for _ in range(100):
        lane = next_lane(shares, asked)
        asked[lane] = asked.get(lane, 0) + 1
    assert asked == pytest.approx({"a": 60, "b": 30, "c": 10}, abs=1)
