"""The sealed test: against numerical integration, against its own null, and what it says beside."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

from research.learn import anytime
from research.learn.anytime import DELTAS, SPENT, WEIGHTS, evidence, looks, ratio, sequential


def integrated(d):
    """M_n by integration over sigma, of the Gaussian likelihoods themselves."""
    d = d / np.sqrt(np.mean(d**2))

    def likelihood(log_sigma, delta):
        sigma = np.exp(log_sigma)
        return np.exp(-len(d) * log_sigma - 0.5 * np.sum((d / sigma - delta) ** 2))

    def over_sigma(delta):
        return integrate.quad(likelihood, -8, 16, (delta,), epsabs=0, epsrel=1e-11, limit=400, points=[-2, -1, 0, 1])[0]

    return sum(w * over_sigma(delta) for w, delta in zip(WEIGHTS, DELTAS, strict=True)) / over_sigma(0.0)


@pytest.mark.parametrize(("n", "effect"), [(2, 1.0), (3, 0.3), (6, 2.0), (9, 5.0), (15, 0.1), (15, 1.5)])
def test_evidence_is_the_likelihood_ratio_averaged_over_scale_and_effect(n, effect):
    d = np.random.default_rng(n).normal(effect, 1.0, n)
    assert ratio(d) > 0 and evidence(ratio(d), n) == pytest.approx(integrated(d), rel=1e-7)
    assert evidence(ratio(1e9 * d), n) == pytest.approx(evidence(ratio(1e-9 * d), n))  # no unit matters


def test_evidence_rises_with_the_mean_is_nothing_against_it_and_finite_where_all_agree():
    r = np.linspace(-1, 1, 401)
    for n in (1, 2, 3, 6, 15, 40):
        found = evidence(r, n)
        assert np.all(np.isfinite(found)) and np.all(found[r <= 0] == 0) and np.all(np.diff(found[r > 0]) > 0)
    assert ratio(np.zeros(4)) == 0 and ratio(np.full(4, 1e-300)) == pytest.approx(1)


@pytest.mark.parametrize("n", [3, 6, 15])
def test_evidence_has_mean_one_without_an_effect(n):
    """Over t, whose distribution is known; what is left out below 0 is next to nothing."""
    def weighed(t):
        return float(evidence(np.array(t / np.sqrt(t * t + n - 1)), n)) * stats.t.pdf(t, n - 1)

    total = sum(integrate.quad(weighed, low, high, limit=500)[0]
                for low, high in itertools.pairwise([0, 1, 3, 10, 100, 1e4, 1e6]))
    assert 0.93 < total <= 1 + 1e-6


@pytest.mark.parametrize(("mean", "level"), [(0.0, 0.05), (-0.3, 0.05), (0.0, 0.005)])
def test_false_records_are_rarer_than_the_level_however_often_one_looks(mean, level):
    found = sequential(np.random.default_rng(1).normal(mean, 1.0, (20_000, 15)), 15, level)
    assert found.passed_C.mean() < level and (mean < 0 or found.passed_C.any())
    assert np.all(found.used_C[~found.passed_C] == 15)


@pytest.mark.parametrize("most", [4, 15])
def test_how_often_the_evidence_gets_so_high_without_an_effect_is_known(most):
    d = np.random.default_rng(6).standard_normal((200_000, most))
    highest = np.max([evidence(ratio(d[:, :n]), n) for n in looks(most)], 0)
    for level in (0.3, 0.05, 0.01):
        c = anytime.boundary(most, level)
        assert np.mean(highest >= c) == pytest.approx(SPENT * level, rel=0.1)
        assert anytime.p_value(float(c), most) == pytest.approx(level) and c < 1 / (SPENT * level)
    levels = anytime.alpha_for_attempt(1) * 0.1 ** np.arange(8)
    assert np.all(np.diff(anytime.boundary(most, levels)) > 0)
    assert anytime.p_value(0.0, most) == anytime.p_value(0.01, most) == 1.0 and anytime.p_value(1e30, most) < 1e-9


def test_a_campaign_is_the_same_alone_among_others_and_in_pieces():
    d = np.random.default_rng(2).normal(1.2, 1.0, (40, 15))
    together, level = sequential(d, 15, 0.01), 0.01
    assert 0 < together.passed_C.sum() < 40 and len(set(together.used_C)) > 2
    for row, e, used, passed in zip(d, *together, strict=True):
        alone = sequential(row[None], 15, level)
        assert (alone.used_C[0], alone.passed_C[0]) == (used, passed) and alone.e_C[0] == pytest.approx(e)
        came = [sequential(row[None, :n], 15, level) for n in range(1, 16)]
        first = next((n for n, one in enumerate(came, start=1) if one.passed_C[0]), 15)
        assert first == used and [one.used_C[0] for one in came[:5]] == [0, 0, 3, 3, 3]


def test_looks_are_every_block_and_the_last_seed():
    assert looks(15) == (3, 6, 9, 12, 15) and looks(4) == (3, 4) and looks(2) == (2,)


def test_all_attempts_together_spend_the_level():
    spent = np.cumsum([anytime.alpha_for_attempt(k, 0.001) for k in range(1, 10_000)])
    assert 0.0009999 < spent[-1] < 0.001 and anytime.alpha_for_attempt(1, 0.001) == pytest.approx(6.079e-4, rel=1e-4)
    with pytest.raises(ValueError, match="from 1"):
        anytime.alpha_for_attempt(0)


def test_the_rank_test_is_exact():
    d = np.random.default_rng(3).normal(0.4, 1.0, 11)
    assert anytime.rank_p(d) == pytest.approx(stats.wilcoxon(d, alternative="greater", method="exact").pvalue)
    assert anytime.rank_p(np.ones(6)) == 1 / 64  # its least at six seeds, above any level that is sealed
    tied = np.array([1.0, -1.0, 2.0, 2.0, 0.0, -3.0, 4.0])
    sizes = stats.rankdata(np.abs(tied[tied != 0]))
    signs = np.array(list(itertools.product((0, 1), repeat=6)))
    assert anytime.rank_p(tied) == pytest.approx(np.mean(signs @ sizes >= sizes[tied[tied != 0] > 0].sum()))


def test_the_interval_ends_where_a_mean_would_be_ruled_out():
    d = np.random.default_rng(4).normal(0.3, 0.1, 6)
    low, high = anytime.bounds(d, 15)
    c = anytime.boundary(15, 0.025 / SPENT)
    assert evidence(ratio(d - low), 6) == pytest.approx(c) and evidence(ratio(high - d), 6) == pytest.approx(c)
    assert low < d.mean() < high and c < 40 and anytime.bounds(d[:2], 15) is None
    shifted = np.random.default_rng(5).normal(0.0, 1.0, (400, 9))
    assert np.mean([low <= 0 <= high for low, high in (anytime.bounds(d, 15) for d in shifted)]) >= 0.95


def sides(gains, level=2.0):
    """Losses of incumbent and candidate by seed, and the seeds."""
    shared = level + 0.01 * np.sin(np.arange(len(gains)))
    a = dict(enumerate(shared.tolist()))
    return a, {seed: loss - gain for (seed, loss), gain in zip(a.items(), gains, strict=True)}, list(a)


def test_a_clear_effect_passes_and_the_claim_says_what_the_seeds_cannot_exclude():
    a, b, seeds = sides([0.3, 0.31, 0.29, 0.3, 0.32, 0.28])
    found = anytime.sealed_test(a, b, seeds, 15, 6.08e-4, 1e-3)
    assert found["passed"] and found["p_value"] == anytime.p_value(found["e_value"], 15) and found["n"] == 6
    assert found["p_adjusted"] <= 1e-3 and found["p_value"] <= 6.08e-4
    assert found["rank_p"] == 1 / 64 and found["bad_seeds"] == 0
    assert found["unseen"] == pytest.approx(1 - 0.05 ** (1 / 6))
    diverged = {seed: b[seed] for seed in seeds[:5]}
    assert not anytime.sealed_test(a, diverged, seeds, 15, 6.08e-4, 1e-3)["passed"]
    assert anytime.sealed_test(a, {0: 1.0}, seeds, 15, 0.1, 0.2) == {}


def test_a_seed_that_is_worse_than_the_incumbents_median_is_counted():
    a, b, seeds = sides([0.3, 0.31, 0.29, -0.05, 0.32, 0.28])
    found = anytime.sealed_test(a, b, seeds, 15, 6.08e-4, 1e-3)
    assert found["bad_seeds"] == 1 and found["unseen"] == pytest.approx(stats.beta.ppf(0.95, 2, 5))
    assert not found["passed"] and found["effect"] > 0.2
    assert anytime.unseen(3, 3) == 1.0


def test_a_last_digit_is_no_effect():
    found = anytime.sealed_test(*sides([2.0**-20] * 5), 15, 0.5, 1.0)
    assert found["e_value"] == 0 and found["p_value"] == 1 and not found["passed"]


def test_power_at_the_level_of_a_first_attempt():
    level = anytime.alpha_for_attempt(1, 0.001)
    assert anytime.predicted(np.full(4000, 1.5), 15, level).passed_C.mean() > 0.8
    assert anytime.predicted(np.full(4000, 10.0), 15, level).used_C.mean() < 6.5


def test_the_detectable_effect_has_the_stated_power():
    level = anytime.alpha_for_attempt(1, 0.05)
    effect = anytime.detectable(9, level, 0.7)
    draws = np.random.default_rng(9).normal(effect, 1.0, (20_000, 9))
    assert sequential(draws, 9, level).passed_C.mean() == pytest.approx(0.7, abs=0.03)


def test_the_usual_number_of_seeds_is_that_of_the_median_campaign():
    found = [anytime.usual(effect, 15, 6e-4) for effect in (0, 3, 5, 10)]
    assert found == [15, 9, 9, 6]
    draws = np.random.default_rng(1).normal(4.0, 1.0, (20_001, 15))
    assert anytime.usual(4, 15, 6e-4) == np.median(sequential(draws, 15, 6e-4).used_C)
