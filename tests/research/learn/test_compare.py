import numpy as np
import pytest
from scipy import stats

from research.learn.compare import above, alpha_of_0_2, compare, estimated, noise, same


def _losses(values) -> dict[int, float]:
    return dict(enumerate(np.asarray(values, float).tolist()))


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_agrees_with_scipy(alternative):
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.6, 0.05, 6), rng.normal(1.55, 0.05, 6)
    ours = compare(_losses(a), _losses(b), level=0.9, alternative=alternative)
    reference = stats.ttest_rel(a, b, alternative=alternative)
    interval = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert ours.effect == pytest.approx(np.mean(a) - np.mean(b))
    assert ours.p_value == pytest.approx(reference.pvalue)
    assert ours.interval == pytest.approx((interval.low, interval.high))
    assert ours.correlation == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert ours.paired_sd == pytest.approx(np.std(a - b, ddof=1))
    assert ours.unpaired_sd == pytest.approx(np.sqrt(np.var(a, ddof=1) + np.var(b, ddof=1)))


def test_only_common_seeds_count():
    a, b = {0: 1.0, 1: 1.2, 2: 1.1, 9: 50.0}, {2: 1.0, 1: 1.15, 0: 0.95, 5: -50.0}
    assert compare(a, b).n == 3
    assert compare(a, b).effect == pytest.approx((0.05 + 0.05 + 0.1) / 3)


def test_interval_covers_and_p_value_is_uniform_under_no_effect():
    rng = np.random.default_rng(1)
    level = rng.normal(0, 0.05, (2000, 4))
    a, b = level + rng.normal(0, 0.01, level.shape), level + rng.normal(0, 0.01, level.shape)
    results = [compare(_losses(x), _losses(y)) for x, y in zip(a, b, strict=True)]
    covered = np.mean([r.interval[0] <= 0 <= r.interval[1] for r in results])
    assert 0.935 < covered < 0.965
    assert stats.kstest([r.p_value for r in results], "uniform").pvalue > 0.01


def test_pairing_pays_where_seed_effects_are_shared():
    rng = np.random.default_rng(2)
    level = rng.normal(0, 0.05, 8)
    result = compare(_losses(1.6 + level), _losses(1.59 + level + rng.normal(0, 0.002, 8)))
    assert result.correlation > 0.9 and result.paired_sd < 0.2 * result.unpaired_sd and result.p_value < 1e-4


def test_adjustment_for_the_attempt_agrees_with_the_level_of_the_attempt():
    a, b = {0: 1.0, 1: 1.2, 2: 1.1}, {0: 0.9, 1: 1.12, 2: 1.01}
    plain, adjusted = compare(a, b), compare(a, b, attempt=2)
    assert adjusted.p_adjusted == pytest.approx(plain.p_value * 4)
    assert (adjusted.p_adjusted <= 0.05) == (plain.p_value <= alpha_of_0_2(2, 0.05))
    assert sum(alpha_of_0_2(k) for k in range(1, 60)) <= 0.001


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({0: 1.0}, {0: 0.9}, "at least 2 common seeds"),
        ({0: 1.0, 1: 1.1}, {2: 1.0, 3: 1.1}, "at least 2 common seeds"),
        ({0: 1.0, 1: float("nan")}, {0: 1.0, 1: 1.1}, "not finite"),
        ({0: 1.0, 1: 1.1}, {0: 1.0, 1: float("inf")}, "losses of b are not finite"),
        ({0: 1.0, 1: 1.0}, {0: 0.9, 1: 0.9}, "did not reach"),
        ({0: 1.0, 1: 1.1}, {0: 0.9, 1: 1.0}, "did not reach"),
    ],
)
def test_refuses_what_cannot_be_compared(a, b, message):
    with pytest.raises(ValueError, match=message):
        compare(a, b)


def test_identical_runs_are_no_effect():
    same = {0: 1.0, 1: 1.3, 2: 1.1}
    result = compare(same, dict(same))
    assert (result.effect, result.interval, result.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_noise_is_what_neither_recipe_nor_seed_explains():
    rng, found = np.random.default_rng(1), []
    for _ in range(200):
        losses = rng.normal(2.0, 0.3, (6, 1)) + rng.normal(0, 0.2, (1, 4)) + rng.normal(0, 0.01, (6, 4))
        holes = [{seed: losses[i, seed] for seed in range(4) if (i, seed) not in ((0, 1), (3, 2))} for i in range(6)]
        sd, df = noise(holes, 0.01)
        found.append(sd**2)
    assert df == 1 + 22 - (6 + 4 - 1) and np.mean(found) == pytest.approx(0.01**2, rel=0.06)
    assert noise([], 0.02) == (0.02, 1.0)
    assert noise([{0: 2.0}, {0: 1.9}, {3: 1.0}], 0.02) == pytest.approx((0.02, 1.0))  # nothing ran twice


def test_an_estimate_of_paired_differences_is_the_conjugate_one():
    rows = [0.03, 0.05, 0.01]
    assert estimated(rows, 0.06) == pytest.approx((0.03, 0.06 / 3**0.5))
    grid = np.linspace(-0.5, 0.5, 200_001)
    density = np.exp(stats.norm.logpdf(grid, -0.02, 0.04) + sum(stats.norm.logpdf(row, grid, 0.06) for row in rows))
    mean = np.average(grid, weights=density)
    assert estimated(rows, 0.06, (-0.02, 0.04)) == pytest.approx(
        (mean, np.average((grid - mean) ** 2, weights=density) ** 0.5))
    assert estimated([], 0.06, (-0.02, 0.04)) == pytest.approx((-0.02, 0.04))
    assert above(0.03, 0.01, 0.01, 4.0) == pytest.approx(stats.t.sf(-2.0, 4.0))
    assert above(0.03, 0.01, 0.01, 1e9) == pytest.approx(stats.norm.cdf(2.0), abs=1e-6)


def test_losses_are_the_same_up_to_the_last_digit_of_a_float32():
    assert same(2.3, 2.3) and same(2.3, float(np.nextafter(np.float32(2.3), np.float32(3))))
    assert not same(2.3, 2.3 + 1e-5)


def test_a_last_digit_of_all_losses_is_no_effect_and_no_error():
    """Measured: a part that changed an epsilon moved the loss by 9.5e-7 on each of three seeds."""
    a = {0: 5.25, 1: 5.5, 2: 5.125}
    found = compare({seed: loss + 2.0**-20 for seed, loss in a.items()}, a)
    assert found.p_value == 1.0 and found.effect == pytest.approx(2.0**-20)
    with pytest.raises(ValueError, match="without variance"):
        compare({seed: loss + 2.0**-10 for seed, loss in a.items()}, a)
