import numpy as np
import pytest

from research.learn.allocate import (
    Action,
    Decision,
    bounds,
    choose,
    improvement,
    information,
    open_runs,
    outlook,
    recommend,
    rivals,
    shifts,
)
from research.learn.kernel import rows
from research.learn.pay import Reward, asked_by, next_lane, share
from research.learn.posterior import Candidate, Observation, Posterior, PosteriorConfig, factor, rows_of

CANDIDATES = [Candidate({}), *(Candidate({f"p{i}": "a"}) for i in range(5)), Candidate({"p0": "a", "p1": "a"})]
HORIZONS = (0.25, 1.0)
COSTS = np.tile([0.28, 1.03], (len(CANDIDATES), 1))


def _observed(runs: dict[Action, float]) -> list[Observation]:
    return [Observation(CANDIDATES[r.candidate].features, r.horizon, r.seed, loss) for r, loss in runs.items()]


STARTED = {Action(0, 0.25, 0): 1.9, Action(1, 0.25, 0): 1.87, Action(2, 0.25, 0): 1.91, Action(3, 0.25, 0): 1.89}


def looked(fitted, actions, epsilon=0.002, candidates=CANDIDATES):
    """Rivals, and how the actions bear on them."""
    rival = rivals(fitted, candidates, epsilon, np.ones(len(candidates)))
    return rival, outlook(fitted, candidates, rival, actions)


def told(fitted, actions, seed=0, epsilon=0.002):
    """Their EIG."""
    rival, view = looked(fitted, actions)
    lower = factor(fitted.predict([CANDIDATES[i] for i in rival.numbers])[1])
    return information(lower, rival.mean_K, view, fitted.hypers.noise, epsilon, np.random.default_rng(seed))


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
    epsilon, estimated = 0.002, np.mean([told(fitted, actions, i) for i in range(8)], axis=0)

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
    rival, view = looked(fitted, [run], 0.0)
    expected = improvement(rival.gap_K, shifts(rival, view)[:, 0])
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


def random_lines(rng):
    """Gaps and slopes, the first nil; some slopes alike."""
    count = int(rng.integers(1, 12))
    gap, slope = rng.exponential(0.02, count), rng.choice([0.01, 0.03, 0.1]) * rng.normal(0, 1, count).round(1)
    gap[0] = slope[0] = 0.0
    return gap, slope


@pytest.mark.parametrize("seed", range(12))
def test_the_expected_rise_is_the_integral_and_lies_within_its_bounds(seed):
    gap, slope = random_lines(np.random.default_rng(seed))
    z = np.linspace(-9, 9, 20001)
    best = (z[:, None] * slope - gap).max(1) * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    exact = improvement(gap, slope)
    assert exact == pytest.approx(np.trapezoid(best, z), rel=1e-5, abs=1e-9)
    (low,), (high,) = bounds(gap, slope[:, None])
    assert low - 1e-12 <= exact <= high + 1e-12 and high - low < 0.25 * exact + 1e-6


def searched(rng):
    """A small random posterior, candidates, what has run, and prices."""
    edits = [f"p{i}" for i in range(5)]
    subsets = [sorted(rng.choice(edits, rng.integers(1, 4), replace=False)) for _ in range(int(rng.integers(3, 8)))]
    candidates = [Candidate({}), *(Candidate({e: "a" for e in names}) for names in {tuple(n) for n in subsets})]
    history = {Action(c, 0.25, 0) for c in range(len(candidates)) if c == 0 or rng.random() < 0.5}
    history |= {Action(0, 1.0, 0)} if rng.random() < 0.5 else set()
    seen = [Observation(candidates[r.candidate].features, r.horizon, r.seed, 1.6 + rng.normal(0, 0.03))
            for r in sorted(history)]
    posterior = Posterior()
    posterior._fit_scales = lambda observations: PosteriorConfig().median  # which takes most of the time
    return posterior.fit(seen), candidates, history, rng.uniform(0.5, 2.0, (len(candidates), 2))


def brute(fitted, candidates, actions, epsilon):
    """Every action's gain, from all candidates' joint distribution and a sum over its outcomes."""
    values, z = rows_of(candidates, 1.0), np.linspace(-8, 8, 1601)
    start = fitted.predict(candidates)[0] - epsilon
    start[np.argmax(start)] += epsilon
    outcomes = rows_of([candidates[a.candidate] for a in actions], *zip(*[a[1:] for a in actions], strict=True))
    white = fitted.whiten(fitted.outcome_covariance(fitted.runs, outcomes))
    cross = fitted.whiten(fitted.effect_covariance(fitted.runs, values))
    shared = fitted.effect_covariance(values, outcomes) - cross.T @ white
    shift = shared / np.sqrt(fitted.outcome_variance(outcomes) - (white**2).sum(0))
    weights = np.exp(-0.5 * z**2) / np.exp(-0.5 * z**2).sum()
    return weights @ (start[:, None] + z[:, None, None] * shift).max(1) - start.max()


def test_leaving_out_what_cannot_matter_never_changes_the_choice(monkeypatch):
    """200 random posteriors; then with three rivals at most, where what is left out is bounded."""
    rng, epsilon, fewer = np.random.default_rng(1), 0.004, 0
    for number in range(200):
        fitted, candidates, history, cost = searched(rng)
        settings = {"history": history, "pending": [], "horizons": HORIZONS, "cost_s": cost, "max_seeds": 2,
                    "epsilon": epsilon, "rng": rng}
        found = choose(fitted, candidates, **settings)
        assert found is not None
        offered = [*open_runs(range(1, len(candidates)), history, HORIZONS, 2)]
        bare = sorted({a[1:] for a in offered if Action(0, *a[1:]) not in history})
        foreseen = fitted.condition([candidates[0]] * len(bare), *(list(x) for x in zip(*bare, strict=True))) if bare \
            else fitted
        price = np.array([cost[a.candidate, HORIZONS.index(a.horizon)]
                          + (a[1:] in bare) * cost[0, HORIZONS.index(a.horizon)] for a in offered])
        rate = brute(foreseen, candidates, offered, epsilon) / price
        assert found.winner.score == pytest.approx(rate.max(), rel=1e-3, abs=1e-7)
        best = np.sort(rate)[-2:]
        if len(rate) == 1 or best[1] > best[0] * 1.002 + 1e-7:
            assert found.winner.run == offered[int(np.argmax(rate))]
        if number < 40:
            monkeypatch.setattr("research.learn.allocate.RIVALS", 3)
            rival, view = looked(foreseen, offered, epsilon, candidates)
            monkeypatch.undo()
            fewer += len(rival.numbers) == 3 < len(candidates)
            gains = np.array([improvement(rival.gap_K, column) for column in shifts(rival, view).T])
            short = rate * price - gains
            assert short.min() > -1e-5 and short.max() <= rival.left_out + 1e-5
    assert fewer > 10


@pytest.mark.parametrize(("taken", "who", "expected"), [
    ([], 1, 0),  # nobody has run: the least seed, for all
    ([], 2, 0),
    ([Action(0, 1.0, s) for s in range(3)], 1, 1),  # where the base has: each starts with another
    ([Action(0, 1.0, s) for s in range(3)], 2, 2),
    ([Action(0, 1.0, 0), Action(2, 1.0, 0)], 2, 1),  # a cell of its own only where the base's cells are taken
    ([Action(0, 1.0, 0), Action(0, 1.0, 1), Action(5, 1.0, 0)], 1, 0),  # its parent's cell
    ([Action(c, 1.0, 0) for c in range(14) if c != 1], 1, 1),  # crowded: the next one is opened
    ([Action(c, 1.0, s) for c in range(14) for s in range(4) if c != 1], 1, 1)])
def test_a_candidate_s_next_seed(taken, who, expected):
    assert [*open_runs([who], taken, (1.0,), 4, parents={1: [5]})] == [Action(who, 1.0, expected)]


def test_no_seed_decides_for_all_and_nothing_is_offered_twice():
    taken, used = set(), []
    for turn in range(60):
        run, = open_runs([1 + turn % 40], taken, (1.0,), 8)
        taken |= {run, Action(0, 1.0, run.seed)}
        used.append(run.seed)
    counts = np.bincount(used, minlength=8)
    assert counts.max() <= 13 and len(taken) == 60 + sum(counts > 0)
    everything = [Action(c, h, 0) for c in range(len(CANDIDATES)) for h in HORIZONS]
    assert _choose(dict.fromkeys(everything, 1.6), max_seeds=1) is None


def test_who_is_barred_does_not_run_and_who_has_fallen_is_not_recommended():
    runs = STARTED | {Action(0, 1.0, 0): 1.6, Action(1, 1.0, 0): 1.3}
    assert _decide(runs, barred=[4], runners_up=99).winner.run.candidate != 4
    assert all(s.run.candidate != 4 for s in _decide(runs, barred=[4], runners_up=99).runners_up)
    fitted, even = Posterior().fit(_observed(runs)), np.ones(len(CANDIDATES))
    ahead, without = (rivals(fitted, CANDIDATES, 0.002, even, out).numbers.tolist() for out in ([], [1, 6]))
    assert {*ahead[:2]} == {1, 6} and not {1, 6} & {*without} and len(without) > 1
    assert _decide(runs, fallen=[1, 6]).winner.improvement != _decide(runs).winner.improvement


def test_pending_runs_leave_only_what_is_left_to_learn():
    fitted = Posterior().fit(_observed(STARTED))
    again = fitted.condition([CANDIDATES[4]], [0.25], [0])
    alone, = told(fitted, [Action(4, 0.25, 0)])
    repeated, elsewhere = told(again, [Action(4, 0.25, 0), Action(5, 0.25, 0)])
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
    assert tied.winner.improvement < 1e-4
    assert open_question.winner.run.candidate == 11
    assert open_question.winner.improvement > 20 * tied.winner.improvement
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


def test_what_a_lane_earned_long_ago_counts_less_and_what_it_fails_at_is_charged():
    lanes, old = ["a", "b"], [Reward("a", 0.1, 10.0)]
    later = [Reward(lane, 0.0005, 10.0) for _ in range(150) for lane in lanes]
    soon, late = share(lanes, [*old, *later[:4]]), share(lanes, [*old, *later])
    assert soon["a"] > 0.55 and late["a"] == pytest.approx(0.5, abs=0.02)  # all in all it has earned twice as much
    cheap, failing = (share(lanes, [Reward("a", 0.01, 10.0), Reward("b", 0.01, 10.0), Reward("a", 0.0, spent)])["a"]
                      for spent in (1.0, 100.0))
    assert failing < cheap


def test_no_lane_starves_after_its_luck_has_turned():
    """A lane that had nine of ten of a hundred proposals has a tenth's share now: it is asked again before long."""
    asked = ["a"] * 9 + ["b"]
    asked, shares = asked * 10, {"a": 0.15, "b": 0.85}
    for _ in range(60):
        asked.append(next_lane(shares, asked_by(asked)))
    assert "a" in asked[100:] and asked[100:].count("b") > 40


def test_lanes_are_asked_by_their_shares():
    shares, asked = {"a": 0.6, "b": 0.3, "c": 0.1}, {}
    for _ in range(100):
        lane = next_lane(shares, asked)
        asked[lane] = asked.get(lane, 0) + 1
    assert asked == pytest.approx({"a": 60, "b": 30, "c": 10}, abs=1)
