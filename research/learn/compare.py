"""The comparison of two recipes: a paired t-test over common seeds, once. What is sealed is tested by anytime.py.

Losses are in nats, lower is better; an effect is mean(a) - mean(b), so a positive effect means that b is better than a.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special

ALTERNATIVES = ("greater", "two-sided", "less")
ROUNDING = 2.0**-21  # of a loss, which is a float32: a part that all but does nothing may move each by a last digit


@dataclass(frozen=True)
class Comparison:
    """How much better b is than a.

    effect, interval: nats; the interval is two-sided at `level`, whatever the alternative. p_value: of no effect
    against the alternative. p_adjusted: for the attempt. paired_sd: of the per-seed
    differences; unpaired_sd: what it would be were the seeds not shared; correlation: of a and b over seeds (0 where
    b or a is constant).
    """

    effect: float
    interval: tuple[float, float]
    p_value: float
    p_adjusted: float
    n: int
    paired_sd: float
    unpaired_sd: float
    correlation: float
    level: float
    alternative: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the ledger."""
        return asdict(self) | {"interval": list(self.interval)}


def _paired(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Losses on the common seeds, in the order of the seeds."""
    seeds = sorted(a.keys() & b.keys())
    if len(seeds) < 2:
        raise ValueError(f"a comparison needs at least 2 common seeds, got {seeds} of {sorted(a)} and {sorted(b)}")
    for name, losses in (("a", a), ("b", b)):
        bad = {s: losses[s] for s in seeds if not np.isfinite(losses[s])}
        if bad:
            raise ValueError(f"losses of {name} are not finite: {bad}; a diverged run is an outcome, not a number")
    return np.array([a[s] for s in seeds], float), np.array([b[s] for s in seeds], float)


def _t_test(effect: float, error: float, n: int, level: float, alternative: str) -> tuple[tuple[float, float], float]:
    """Interval and p-value of a mean of n differences, given its standard error."""
    half, t = float(special.stdtrit(n - 1, 0.5 + level / 2)) * error, effect / error
    tails = {"greater": special.stdtr(n - 1, -t), "less": special.stdtr(n - 1, t)}
    p_value = float(2 * min(tails.values()) if alternative == "two-sided" else tails[alternative])
    return (effect - half, effect + half), p_value


def compare(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95, alternative: str = "greater",
            attempt: int = 0) -> Comparison:
    """Compare b with a, paired by seed; seeds that only one of them has are left out.

    Args:
        a, b: seed -> loss in nats; a is the base or incumbent. level: of the interval.
        alternative: "greater" (b is better), "two-sided" or "less".
        attempt: k of a sequence of tests, 0 where there is none; p_adjusted <= alpha is then the same as
            p_value <= alpha_of_0_2(k, alpha).
    Raises: ValueError for fewer than 2 common seeds, losses that are not finite, and losses that do not depend on the
        seed, which mean that it never reached the run. Losses that are equal, seed by seed, but for the last digit of a
        float32 are no effect: p = 1.
    """
    if alternative not in ALTERNATIVES:
        raise ValueError(f"alternative is {alternative!r}; one of {', '.join(ALTERNATIVES)} would do")
    if not 0 < level < 1 or attempt < 0:
        raise ValueError(f"need 0 < level < 1, attempt >= 0; got {level}, {attempt}")
    losses_a, losses_b = _paired(a, b)
    difference = losses_a - losses_b
    n, effect = len(difference), float(difference.mean())
    sd_a, sd_b, paired_sd = (float(x.std(ddof=1)) for x in (losses_a, losses_b, difference))
    largest = max(float(np.abs(losses_a).max()), float(np.abs(losses_b).max()))
    resolution, rounding = 1e-12 * largest, ROUNDING * largest
    if max(sd_a, sd_b) <= resolution or (paired_sd <= resolution and abs(effect) > rounding):
        raise ValueError(f"{n} seeds give differences without variance ({effect:g} nats): "
                         "the seed did not reach the runs")
    interval, p_value = (effect, effect), 1.0
    if paired_sd > resolution:
        interval, p_value = _t_test(effect, paired_sd / math.sqrt(n), n, level, alternative)
    together = float(np.corrcoef(losses_a, losses_b)[0, 1]) if min(sd_a, sd_b) > resolution else 0.0
    return Comparison(effect=effect, interval=interval, p_value=p_value, p_adjusted=min(1.0, p_value * 2.0**attempt),
                      n=n, paired_sd=paired_sd, unpaired_sd=float(np.hypot(sd_a, sd_b)), correlation=together,
                      level=level, alternative=alternative)


def compared(a: Mapping[int, float], b: Mapping[int, float], attempt: int = 0) -> dict[str, Any]:
    """`compare` as plain data; empty where fewer than two seeds are common."""
    return compare(a, b, attempt=attempt).as_dict() if len(a.keys() & b.keys()) > 1 else {}


def alpha_of_0_2(k: int, alpha: float = 0.001) -> float:
    """Level at which version 0.2 tested attempt k = 1, 2, ... of a session, once, by `compare`."""
    return alpha * 2.0**-k


def noise(losses: Sequence[Mapping[int, float]], guess: float) -> tuple[float, float]:
    """Standard deviation of a run's own noise, nats, and how many degrees of freedom say so.

    It is what is left of losses once each recipe and each seed has a level of its own. One degree of freedom is a
    guess, all there is where nothing ran twice.

    Args: losses: a recipe's, by seed. guess: nats.
    """
    cells = [(recipe, seed, loss) for recipe, by_seed in enumerate(losses) for seed, loss in by_seed.items()]
    if not cells:
        return guess, 1.0
    recipe_n, seed_n, loss_n = (np.array(column) for column in zip(*cells, strict=True))
    levels = np.concatenate([column[:, None] == np.unique(column) for column in (recipe_n, seed_n)], axis=1)
    fitted, _, rank, _ = np.linalg.lstsq(levels.astype(float), loss_n, rcond=None)
    left_n, df = loss_n - levels @ fitted, 1.0 + len(cells) - rank
    return math.sqrt((guess**2 + float(left_n @ left_n)) / df), df


def estimated(differences: Sequence[float], sd: float, prior: tuple[float, float] | None = None) -> tuple[float, float]:
    """Posterior mean and standard deviation of what differences are on the mean.

    Args: differences: paired by seed, at least one or a prior. sd: of one of them. prior: mean and standard deviation.
    """
    precision, total = len(differences) / sd**2, sum(differences) / sd**2
    if prior is not None:
        precision, total = precision + prior[1] ** -2, total + prior[0] * prior[1] ** -2
    return total / precision, precision**-0.5


def above(mean: float, error: float, bar: float, df: float) -> float:
    """Probability that what is so estimated is above a bar; df: behind the noise."""
    return float(special.stdtr(df, (mean - bar) / error))


def same(a: float, b: float) -> bool:
    """Whether two losses are equal, but for the last digit of a float32."""
    return abs(a - b) <= ROUNDING * max(abs(a), abs(b))
