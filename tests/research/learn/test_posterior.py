from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from research.learn.divergence import PRIOR, Divergence
from research.learn.kernel import Rows, Scales, additive_variance, compared, components, rows, summed
from research.learn.posterior import EFFECT, Candidate, Hypers, Observation, Posterior, PosteriorConfig

SCALES = Scales()


def _recipes(rng, n: int, n_edits: int = 10) -> list[dict]:
    """Recipes with choices on even paths and numbers on odd ones."""
    return [
        {f"p{j}": ("a" if rng.random() < 0.5 else "b") if j % 2 == 0 else float(rng.uniform(-2, 2)) for j in picks}
        for picks in (rng.choice(n_edits, rng.integers(1, 5), replace=False) for _ in range(n))
    ]


def _slow_paths(u: dict, w: dict, length: float) -> list[float]:
    def alike(v, x):
        if isinstance(v, str) or isinstance(x, str):
            return float(v == x)
        return np.exp(-((v - x) ** 2) / (2 * length**2))

    paths = u.keys() | w.keys()

    # "as in the base" is displacement 0, to a number, and unlike every choice
    def value(r, p, other):
        return r.get(p, 0.0 if not isinstance(other.get(p, 0.0), str) else "as in the base")

    found = []
    for p in paths:
        v, x = value(u, p, w), value(w, p, u)
        base_v = 0.0 if not isinstance(v, str) else "as in the base"
        base_x = 0.0 if not isinstance(x, str) else "as in the base"
        found.append(0.5 * (1 + alike(v, x) - alike(v, base_v) - alike(base_x, x)))
    return found


def _slow_additive(u: dict, w: dict, length: float) -> float:
    return sum(_slow_paths(u, w, length))


def additive(left, right, length):
    """Sum over paths of what two recipes share there."""
    return summed(left.leaves, right.leaves, compared(left.leaves, right.leaves, length))


def test_additive_kernel_agrees_with_its_definition_path_by_path():
    recipes = [{}, *_recipes(np.random.default_rng(0), 12)]
    points = rows(recipes, 1.0, 0, 0.0)
    fast = additive(points, points, 0.3)
    slow = [[_slow_additive(u, w, 0.3) for w in recipes] for u in recipes]
    np.testing.assert_allclose(fast, slow, atol=1e-12)
    np.testing.assert_allclose(additive_variance(points, 0.3), np.diag(fast), atol=1e-12)
    assert not fast[0].any()
    two_choices = rows([{"p": "a"}, {"p": "b"}, {"p": 0.2}], 1.0, 0, 0.0)
    assert additive(two_choices, two_choices, 0.3)[0, 1] == 0.5
    assert additive(two_choices, two_choices, 0.3)[0, 2] < 0.5


def test_kernels_are_positive_semidefinite_and_nil_at_the_base_and_the_full_horizon():
    rng = np.random.default_rng(1)
    recipes = [{}, *_recipes(rng, 30)]
    runs = rows(recipes, rng.choice([0.125, 0.5, 1.0], 31), rng.integers(0, 3, 31), 0.0)
    parts = np.stack([*components(runs, runs, SCALES)])
    assert all(np.linalg.eigvalsh(part).min() > -1e-9 for part in parts)
    assert not parts[:EFFECT, 0].any()
    full = np.flatnonzero(runs.horizon == 1.0)
    assert not parts[3][full].any() and not parts[4][full].any()


def _observe(rng, recipes, n: int, hypers: Hypers, offset=0.05) -> tuple[list[Observation], np.ndarray]:
    """Draw a campaign from the model itself: the base and n runs over two horizons and two seeds; and the truth."""
    points = rows([*recipes, *recipes], np.repeat([1.0, 0.25], len(recipes)), 0, 0.0)
    parts = np.stack([*components(points, points, SCALES)])
    covariance = np.tensordot(hypers.variances()[:EFFECT], parts[:EFFECT], 1)
    effects = np.linalg.cholesky(covariance + 1e-10 * np.eye(len(covariance))) @ rng.standard_normal(len(covariance))
    f, g = effects[: len(recipes)], effects[len(recipes) :]
    seeded = np.linalg.cholesky(parts[-1][: len(recipes), : len(recipes)] + 1e-10 * np.eye(len(recipes)))
    seed_effects = hypers.seed * seeded @ rng.standard_normal((len(recipes), 2))
    levels = {(h, s): 1.6 + offset * rng.standard_normal() for h in (1.0, 0.25) for s in (0, 1)}
    observations = []
    chosen = [(0, h, s) for h, s in levels] + [
        (int(rng.integers(1, len(recipes))), float(rng.choice([1.0, 0.25])), int(rng.integers(2))) for _ in range(n)
    ]
    for i, h, s in chosen:
        effect = (f if h == 1.0 else g)[i]
        loss = levels[h, s] - effect + seed_effects[i, s] + hypers.noise * rng.standard_normal()
        observations.append(Observation(recipes[i], h, s, float(loss)))
    return observations, f


def test_equals_the_dense_formula():
    rng = np.random.default_rng(2)
    recipes = [{}, *_recipes(rng, 8)]
    priors = [0.0, *rng.normal(0, 0.02, 8)]
    observations, _ = _observe(rng, recipes, 12, Hypers())
    keyed = {tuple(sorted(r.items())): p for r, p in zip(recipes, priors, strict=True)}
    observations = [
        Observation(o.features, o.horizon, o.seed, o.loss, 0.003, keyed[tuple(sorted(o.features.items()))])
        for o in observations
    ]
    fitted = Posterior().fit(observations)
    config, hypers = fitted.config, fitted.hypers
    horizon = 0.5

    def one(u, hu, su, pu, w, hw, sw, pw, is_outcome: bool) -> float:
        add, var_u, var_w = (_slow_additive(x, y, SCALES.path) for x, y in ((u, w), (u, u), (w, w)))
        distance = var_u + var_w - 2 * add
        bumps = [np.exp(-d / SCALES.interaction) for d in (distance, var_u, var_w)]
        value = hypers.effect**2 * add + hypers.interaction**2 * 0.5 * (1 + bumps[0] - bumps[1] - bumps[2])
        by_path, walk = _slow_paths(u, w, SCALES.path), min(-np.log2(hu), -np.log2(hw)) / 3
        value += hypers.pairs**2 * sum(a * b for i, a in enumerate(by_path) for b in by_path[:i])
        value += (hypers.horizon**2 * add + hypers.own**2 * bool(u and u == w)) * walk + config.trust_sd**2 * pu * pw
        if is_outcome and su == sw:
            gap = abs(np.log2(hu / hw)) / SCALES.seed_horizon
            value += hypers.seed**2 * np.exp(-distance / SCALES.seed - gap) + config.offset_sd**2 * (hu == hw)
        return value

    seen = [(o.features, o.horizon, o.seed, o.promise) for o in observations]
    wanted = [(r, horizon, -1, p) for r, p in zip(recipes, priors, strict=True)]
    k = np.array([[one(*a, *b, True) for b in seen] for a in seen]) + np.eye(len(seen)) * (hypers.noise**2 + 0.003**2)
    cross = np.array([[one(*a, *b, False) for b in seen] for a in wanted])
    prior = np.array([[one(*a, *b, False) for b in wanted] for a in wanted])
    y = -np.array([o.loss for o in observations])
    for h in {o.horizon for o in observations}:
        at = [o.horizon == h for o in observations]
        y[at] -= np.median(y[at])
    y -= config.trust * np.array([o.promise for o in observations])
    mean, covariance = fitted.predict([Candidate(r, p) for r, p in zip(recipes, priors, strict=True)], horizon)
    np.testing.assert_allclose(mean, config.trust * np.array(priors) + cross @ np.linalg.solve(k, y), atol=1e-7)
    np.testing.assert_allclose(covariance, prior - cross @ np.linalg.solve(k, cross.T), atol=1e-8)


@pytest.mark.parametrize("config", [PosteriorConfig(), PosteriorConfig(exact=16, active=12)])
def test_effects_are_those_of_the_covariances_whatever_was_asked_before(config, monkeypatch):
    monkeypatch.setattr("research.learn.posterior.CHUNK", 4)
    monkeypatch.setattr("research.learn.posterior.NEWEST", 4)
    rng = np.random.default_rng(9)
    recipes = [{}, *_recipes(rng, 9)]
    observations, _ = _observe(rng, recipes, 30, Hypers())
    known, kept = [Candidate(r) for r in recipes], Posterior(config)
    for n, asked in ((17, 6), (18, 6), (18, 9), (19, 10), (33, 10)):  # more runs, more recipes, other scales
        fitted = kept.fit(observations[:n])
        mean, covariance = Posterior(config).fit(observations[:n]).predict(known[:asked])
        for found in (fitted, fitted.condition(known[1:3], [1.0, 0.25], [0, 1])):
            np.testing.assert_allclose(found.effects(known[:asked])[0], mean, atol=1e-9)
        np.testing.assert_allclose(fitted.effects(known[:asked])[1] ** 2, np.diag(covariance), atol=1e-9)
        once, again = (np.concatenate([look.white_nxC for look in f.looks(known[:asked])], 1) for f in (found, found))
        np.testing.assert_array_equal(once, again)
        np.testing.assert_allclose(once, found.whiten(found.effect_covariance(
            found.runs, rows([c.features for c in known[:asked]], 1.0, -1, 0.0))), atol=1e-9)


def test_intervals_cover_the_truth_with_fitted_scales():
    rng = np.random.default_rng(3)
    inside, scores = [], []
    for _ in range(40):
        recipes = [{}, *_recipes(rng, 15)]
        observations, truth = _observe(rng, recipes, 24, Hypers())
        fitted = Posterior().fit(observations)
        mean, covariance = fitted.predict([Candidate(r) for r in recipes[1:]])
        z = (truth[1:] - mean) / np.sqrt(np.diag(covariance))
        inside.append(np.abs(z) < 1.645)
        scores.append(np.mean((truth[1:] - mean) ** 2) / np.mean(truth[1:] ** 2))
    assert 0.84 < np.mean(inside) < 0.95
    assert np.median(scores) < 0.5  # and it does learn something


def test_scales_are_recovered():
    rng = np.random.default_rng(4)
    true = Hypers(effect=0.1, interaction=0.01, horizon=0.01, seed=0.005, noise=0.002)
    recipes = [{}, *_recipes(rng, 40)]
    found = Posterior().fit(_observe(rng, recipes, 120, true)[0]).hypers
    assert found.effect == pytest.approx(true.effect, rel=0.5)
    assert found.noise < 0.005


@pytest.mark.parametrize("n", range(6))
def test_never_fails_on_few_or_degenerate_observations(n):
    same = [Observation({}, 1.0, 0, 1.6)] * n
    odd = [Observation({"p": "a"}, 0.125, i, 1.6 + 3.0 * (-1) ** i) for i in range(n)]
    for observations in (same, odd, same + odd, [*same, Observation({"p": 1e-9}, 1.0, 0, 1.6)]):
        fitted = Posterior().fit(observations)
        mean, covariance = fitted.predict([Candidate({}), Candidate({"p": "a"}, 0.1), Candidate({"p": "a", "q": 0.5})])
        assert np.isfinite(mean).all() and np.isfinite(covariance).all()
        assert mean[0] == 0.0 and covariance[0, 0] == 0.0


def test_refuses_a_loss_that_is_no_number():
    with pytest.raises(ValueError, match="finite loss"):
        Posterior().fit([Observation({}, 1.0, 0, float("nan"))])


def test_answer_does_not_depend_on_what_was_asked_before():
    rng = np.random.default_rng(5)
    recipes = [{}, *_recipes(rng, 10)]
    observations, _ = _observe(rng, recipes, 20, Hypers())
    warm = Posterior()
    for n in range(len(observations)):
        warm.fit(observations[:n])
    candidates = [Candidate(r) for r in recipes]
    np.testing.assert_array_equal(
        warm.fit(observations).predict(candidates)[0], Posterior().fit(observations).predict(candidates)[0]
    )


def test_prior_effects_guide_until_runs_speak_and_their_worth_is_learnt():
    ideas = [Candidate({f"p{i}": "a"}, 0.1) for i in range(6)]
    untouched = Posterior().fit([]).predict(ideas)[0]
    np.testing.assert_allclose(untouched, 0.05)
    worthless = [Observation({}, 1.0, 0, 1.6)] + [
        Observation(c.features, 1.0, 0, 1.6, promise=0.1) for c in ideas[:4]
    ]
    assert Posterior().fit(worthless).predict(ideas[5:])[0][0] < 0.02


def test_what_a_promise_is_worth_is_learnt_by_its_origin():
    """Twelve edits that do nothing, each said to gain 0.1: what that agent says next counts for little, what another
    one says as before."""
    base = [Observation({}, 1.0, 0, 1.6)]
    idle = [Observation({f"p{i}": 1e-3}, 1.0, 0, 1.6, promise={"inbox x": 0.1}) for i in range(12)]
    asked = [Candidate({"q": 1e-3}, {origin: 0.1}) for origin in ("inbox x", "inbox y")] + [Candidate({"q": 1e-3}, 0.1)]
    before, after = (Posterior().fit(runs).predict(asked)[0] for runs in (base, [*base, *idle]))
    np.testing.assert_allclose(before, 0.05)
    assert after[0] < 0.005 and after[1] == pytest.approx(0.05, abs=0.005) == after[2]
    both = Candidate({"q": 1e-3}, {"inbox x": 0.1, "": 0.1})
    assert Posterior().fit([*base, *idle]).predict([both])[0][0] == pytest.approx(after[0] + after[2], abs=1e-9)


def test_a_run_known_only_roughly_teaches_less():
    base, idea = [Observation({}, 1.0, 0, 1.6), Observation({"q": "a"}, 1.0, 0, 1.59)], [Candidate({"p": "a"})]
    rough, exact = (Posterior().fit([*base, Observation(idea[0].features, 1.0, 0, 1.62, sd)]).predict(idea)
                    for sd in (0.1, 0.0))
    assert exact[0][0] < rough[0][0] < 0 and exact[1][0, 0] < rough[1][0, 0]


def test_divergence_blames_the_edit_that_the_diverged_runs_share():
    survived = [{}, {"q": "a"}, {"r": "a"}, {"lr": 0.1}] * 3
    diverged = [{"p": "a", "q": "a"}, {"p": "a", "r": "a"}, {"lr": 1.0}]
    found = Divergence(survived, diverged, 0.3)

    def p(features):
        return found.probability([features])[0]

    assert p({"p": "a"}) > 0.5 > 0.3 > p({"q": "a"})
    assert p({"p": "a", "s": "a"}) > 0.5
    assert p({"lr": 0.9}) > 3 * p({"lr": 0.1})
    assert p({}) < 0.1
    assert Divergence(survived, [], 0.3).probability([{"p": "a"}]) == [0.0]


def test_divergence_agrees_with_its_definition_run_by_run():
    rng = np.random.default_rng(8)
    survived, diverged, asked = _recipes(rng, 20), _recipes(rng, 9), [{}, *_recipes(rng, 12)]

    def alike(path, value, features):
        other = features.get(path)
        if path == "base":
            return 1.0
        if other is None or isinstance(value, str) or isinstance(other, str):
            return float(value == other)
        return np.exp(-0.5 * ((value - other) / 0.3) ** 2)

    def rate(path, value, blames):
        bad = PRIOR[0] + sum(alike(path, value, f) * b.get(path, 0.0) for f, b in zip(diverged, blames, strict=True))
        return min(bad / (sum(PRIOR) + sum(alike(path, value, f) for f in [*survived, *diverged])), 1.0)

    def rates(features, blames):
        return {path: rate(path, value, blames) for path, value in (("base", ""), *features.items())}

    blames = [{path: 1.0 / (len(f) + 1) for path in ("base", *f)} for f in diverged]
    for _ in range(10):
        found = [rates(f, blames) for f in diverged]
        blames = [{p: r / (1.0 - np.prod([1.0 - x for x in row.values()])) for p, r in row.items()} for row in found]
    slow = [1.0 - np.prod([1.0 - r for r in rates(f, blames).values()]) for f in asked]
    np.testing.assert_allclose(Divergence(survived, diverged, 0.3).probability(asked), slow, rtol=1e-9)


def test_conditioning_on_runs_to_come_equals_having_them_at_their_expected_outcome():
    rng = np.random.default_rng(6)
    recipes = [{}, *_recipes(rng, 8)]
    observations, _ = _observe(rng, recipes, 14, Hypers())
    fitted = Posterior().fit(observations)
    candidates = [Candidate(r) for r in recipes]
    foreseen = fitted.condition(candidates[1:3], [1.0, 0.25], [0, 3])
    mean, covariance = fitted.predict(candidates)
    mean_then, covariance_then = foreseen.predict(candidates)
    np.testing.assert_allclose(mean_then, mean, atol=1e-12)
    assert np.linalg.eigvalsh(covariance - covariance_then).min() > -1e-9
    assert isinstance(foreseen.runs, Rows) and len(foreseen.runs) == len(observations) + 2
    extended = [
        *observations,
        *(Observation(c.features, h, s, 1.6) for c, h, s in ((candidates[1], 1.0, 0), (candidates[2], 0.25, 3))),
    ]
    dense = Posterior(PosteriorConfig(median=fitted.hypers, spread=1e-3)).fit(extended).predict(candidates)[1]
    np.testing.assert_allclose(covariance_then, dense, atol=2e-4 * np.max(covariance))


def _many(rng, n):
    recipes = [{}, *_recipes(rng, n // 3, 30)]
    found = _observe(rng, recipes, 3 * n, Hypers())[0]
    runs = {(tuple(sorted(o.features.items())), o.horizon, o.seed): o for o in found}  # no trial is run twice
    return [Candidate(r) for r in recipes[1:]], list(runs.values())[:n]


def test_an_active_set_says_nearly_what_all_runs_say():
    candidates, observations = _many(np.random.default_rng(7), 300)
    assert len(observations) == 300
    known = PosteriorConfig(spread=1e-6)
    exact, few = (Posterior(replace(known, exact=most, active=250)).fit(observations) for most in (999, 100))
    assert len(few.runs) <= 250 + 300 % 64 and len(exact.runs) == 300
    (mean, sd), (mean_few, sd_few) = exact.effects(candidates), few.effects(candidates)
    assert np.median(np.abs(sd_few / sd - 1)) < 0.07 and np.median(np.abs(mean_few - mean) / sd) < 0.35
    leading = np.argsort(-mean)[:20]
    assert np.all(np.abs(sd_few / sd - 1)[leading] < 0.15)


def test_effects_of_thousands_are_those_of_a_few():
    candidates, observations = _many(np.random.default_rng(8), 40)
    fitted = Posterior().fit(observations)
    mean, covariance = fitted.predict(candidates)
    with mock.patch("research.learn.posterior.CHUNK", 3):
        np.testing.assert_allclose(fitted.effects(candidates), (mean, np.sqrt(np.diag(covariance))), atol=1e-9)


def test_what_many_runs_say_does_not_depend_on_what_was_asked_before():
    candidates, observations = _many(np.random.default_rng(9), 150)
    config = PosteriorConfig(exact=40, active=40, scaled=40)
    warm = Posterior(config)
    for n in (30, 66, 100, 149):
        warm.fit(observations[:n])
    np.testing.assert_array_equal(warm.fit(observations).effects(candidates),
                                  Posterior(config).fit(observations).effects(candidates))


def test_a_run_to_come_is_foretold_with_its_cells_level_and_its_noise():
    """From the joint distribution of all runs, written plainly."""
    rng = np.random.default_rng(10)
    recipes = [{}, *_recipes(rng, 8)]
    observations, _ = _observe(rng, recipes, 20, Hypers())
    *known, last = observations
    fitted = Posterior().fit(known)
    mean, sd = fitted.outcomes([Candidate(last.features)], [last.horizon], [last.seed])
    runs = rows([o.features for o in observations], [o.horizon for o in observations], [o.seed for o in observations],
                0.0)
    k = fitted.outcome_covariance(runs, runs) + fitted.hypers.noise**2 * np.eye(len(runs))
    level = [np.median([o.loss for o in known if o.horizon == h]) for h in runs.horizon]
    y = np.array(level) - [o.loss for o in observations]
    weights = np.linalg.solve(k[:-1, :-1], k[:-1, -1])
    assert mean[0] == pytest.approx(weights @ y[:-1] - level[-1], abs=1e-7)
    assert sd[0] == pytest.approx(np.sqrt(k[-1, -1] - weights @ k[:-1, -1]), abs=1e-7)
