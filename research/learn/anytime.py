"""The test that a record has to pass: an anytime-valid t-test of paired differences, looked at block by block.

Differences d_1, d_2, ... are the incumbent's loss less the candidate's, seed by seed, and the null is that their mean
mu is at most 0. Seeds are added in blocks until the evidence is there or `most` seeds have run; whichever of the looks
one stops at, and for whatever reason, a false record comes with probability `level` at most. Losses are in nats.

Derivation. Let d_i be independent N(mu, sigma^2), delta = mu / sigma. No unit may matter, so the test sees d / |d_1|
alone; its likelihood ratio of delta against 0 is that of d under the right Haar prior d(sigma) / sigma (Lai 1976). With
r = sum d / sqrt(n sum d^2), so that t = r sqrt((n - 1) / (1 - r^2)), and u = sqrt(sum d^2) / sigma,

    R_n(delta) = exp(-n delta^2 / 2) I_n(b) / I_n(0),    I_n(b) = int_0^inf u^(n-1) exp(-u^2 / 2 + b u) du,
    b = sqrt(n) delta r.

R_n is a martingale of mean 1 if mu = 0, whatever sigma, and so is a mixture over delta, M_n, the e-value. By Ville's
inequality M_n ever reaches 1 / level with probability `level` at most. If mu < 0: the d_i - mu have mean 0 and a larger
t at every n, and M_n rises with t because every delta of the mixture is above 0; so M_n of the d_i stays below M_n of
these, path by path, and what bounds one bounds the whole null. It is 0 here where r <= 0, which is below M_n.
Ville's bound keeps room for looks that never come: of 1 / level, M_n makes use of a third at 15 seeds. The chance that
M_n reaches c at one of the looks is known, for it is a change of measure (Siegmund 1976): the mean, over paths drawn
from the mixture, of 1 / M_n at the look that reaches c. c is put where that is SPENT x level, and what is then bet on
is the martingale P_0(some look reaches c | d_1 ... d_n) / (SPENT x level). The rest of the level is a margin for tails
that are not Gaussian.
The integral follows from I_(n+2) = b I_(n+1) + n I_n (by parts), scaled by exp(-b^2 / 2) so that nothing overflows:
J_1 = sqrt(2 pi) Phi(b), J_2 = exp(-b^2 / 2) + b J_1, and R_n = exp(-n delta^2 (1 - r^2) / 2) J_n(b) / J_n(0).

What is assumed is that the d_i are about Gaussian. Heavy symmetric tails make the test miss more, not err more;
large losses on rare seeds, which n seeds may never show, are not covered: `unseen` says how rare they would have to be.
`research.check.bench null` measures all of this.
Source: Lai 1976, Annals of Statistics 4:265; Siegmund 1976, ibid. 4:673; Pérez-Ortiz et al. 2022, arXiv:2208.07610;
Wang and Ramdas 2023, arXiv:2310.03722 (the t mixture); one-sided by the coupling above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from research.learn.compare import ROUNDING, compare

NAME = "t mixture"  # as seals call this test
BLOCK = 3  # seeds between two looks
DELTAS = np.array([1.25, 8.0])  # the mixture: effects in paired standard deviations, one hard to see, one plain
WEIGHTS = np.array([0.95, 0.05])
SPENT = 0.45  # of the level, where differences are Gaussian
SURE = 0.95  # of the interval, and of `unseen`
PATHS = 1 << 15  # drawn from the mixture, for `crossing`
GRID = np.arange(-3.0, 40.0, 0.02)  # logarithms of c
CAMPAIGNS = 4000  # made-up ones, that predict power


class Sequential(NamedTuple):
    """Campaigns as far as they came. e: the highest evidence at a look so far. used: seeds at the last look."""

    e_C: np.ndarray
    used_C: np.ndarray
    passed_C: np.ndarray


def alpha_for_attempt(k: int, alpha: float = 0.001) -> float:
    """Level at which attempt k = 1, 2, ... is tested: 6 alpha / (pi k)^2; all attempts together spend alpha."""
    if k < 1:
        raise ValueError(f"attempts count from 1, got {k}")
    return 6.0 * alpha / (math.pi * k) ** 2


def looks(most: int) -> tuple[int, ...]:
    """Numbers of seeds after which the evidence is looked at: every BLOCK, and all of them."""
    return (*range(BLOCK, most, BLOCK), most)


def ratio(differences: np.ndarray) -> np.ndarray:
    """r of differences [..., n]: from -1 to 1, sqrt(n) * mean / root mean square; 0 where all are 0."""
    largest = np.abs(differences).max(-1, keepdims=True)
    scaled = differences / np.where(largest > 0, largest, 1.0)
    squares = np.square(scaled).sum(-1)
    return scaled.sum(-1) / np.sqrt(differences.shape[-1] * np.where(squares > 0, squares, 1.0))


def evidence(r: np.ndarray, n: int) -> np.ndarray:
    """M_n: the e-value of n differences with ratio r, any shape."""
    r = np.clip(np.asarray(r, float), 0.0, 1.0)[..., None]
    b = math.sqrt(n) * DELTAS * r
    found = np.exp(-0.5 * n * DELTAS**2 * (1.0 - r * r)) * _moment(b, n) / _moment(np.zeros(1), n) @ WEIGHTS
    return np.where(r[..., 0] > 0, found, 0.0)


def _moment(b: np.ndarray, n: int) -> np.ndarray:
    """J_n(b) for b >= 0, where the recursion adds up what is positive."""
    now = math.sqrt(2.0 * math.pi) * special.ndtr(b)
    after = np.exp(-0.5 * b * b) + b * now
    for k in range(1, n):
        now, after = after, b * after + k * now
    return now


def sequential(differences_CxN: np.ndarray, most: int, level: float | np.ndarray) -> Sequential:
    """Run the test on the differences of C campaigns, as far as they have come.

    Args: differences_CxN: in the order of the seeds, N of at most `most`; what comes after the last look is not looked
    at. level: of all, or [C].
    """
    campaigns, there = differences_CxN.shape
    needed = boundary(most, level)
    e_C, used_C = np.zeros(campaigns), np.zeros(campaigns, int)
    passed_C = np.zeros(campaigns, bool)
    for n in (look for look in looks(most) if look <= there):
        now_C = evidence(ratio(differences_CxN[:, :n]), n)
        e_C = np.where(passed_C, e_C, np.maximum(e_C, now_C))
        used_C = np.where(passed_C, used_C, n)
        passed_C |= e_C >= needed
    return Sequential(e_C, used_C, passed_C)


@lru_cache(maxsize=16)
def crossing(most: int) -> np.ndarray:
    """Logarithm of the probability, without an effect, that the evidence reaches exp(GRID) at one of the looks.

    The paths are a lattice's, so that every machine has the same ones.
    """
    lattice = np.modf(np.outer(np.arange(1, PATHS + 1), np.sqrt(_primes(most + 1))) + 0.5)[0]
    effects = DELTAS[np.minimum(np.searchsorted(np.cumsum(WEIGHTS), lattice[:, most]), len(DELTAS) - 1)]
    d = effects[:, None] + special.ndtri(lattice[:, :most])
    highest = np.maximum.accumulate(np.stack([evidence(ratio(d[:, :n]), n) for n in looks(most)], 1), 1)
    before = np.concatenate([np.zeros((PATHS, 1)), highest[:, :-1]], 1)
    rose = highest > before  # at this look it reaches all c between what it was before and what it is now
    weight = 1.0 / highest[rose]
    chance = (_above(highest[rose], weight) - _above(before[rose], weight)) / PATHS
    chance = np.minimum.accumulate(np.maximum(chance, 0.0))
    last = int(np.flatnonzero(chance)[-1])
    sure = np.log(chance[: last + 1])
    return np.concatenate([sure, sure[-1] - (GRID[last + 1:] - GRID[last])])  # beyond all paths: as 1 / c falls


def _above(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """By c = exp(GRID): the sum of the weights of the values that are c or more."""
    order = np.argsort(values)
    tail = np.append(np.cumsum(weight[order][::-1])[::-1], 0.0)
    return tail[np.searchsorted(values[order], np.exp(GRID))]


def _primes(count: int) -> np.ndarray:
    """The first primes."""
    numbers = np.arange(2, 20 * count + 20)
    return numbers[[not np.any(n % numbers[numbers * numbers <= n] == 0) for n in numbers]][:count]


def boundary(most: int, level: float | np.ndarray) -> np.ndarray:
    """The evidence at which attempts at this level pass."""
    return np.exp(np.interp(-np.log(SPENT * np.asarray(level)), -crossing(most), GRID))


def p_value(e: float, most: int) -> float:
    """Of evidence e, the highest at a look so far: at most the level where e reaches its boundary."""
    return min(1.0, math.exp(float(np.interp(math.log(e), GRID, crossing(most)))) / SPENT) if e > 0 else 1.0


def sealed_test(a: Mapping[int, float], b: Mapping[int, float], seeds: Sequence[int], most: int, level: float,
           alpha: float) -> dict[str, Any]:
    """The sealed test of b against a, as plain data for the ledger; empty where fewer than two seeds are common.

    Args: a, b: seed -> loss of incumbent and candidate. seeds: the seal's, in its order, as many as were asked for.
    level: of this attempt; alpha: of all.
    Returns: `compare`'s fields, of which the interval and p-value are anytime-valid; interval is None where so few
    seeds leave it unbounded. e_value; passed; rank_p: `rank_p`; bad_seeds: on which b lost to a's median; unseen:
    `unseen` of them.
    Raises: ValueError where `compare` does.
    """
    common = [seed for seed in seeds if seed in a and seed in b]
    if len(common) < 2:
        return {}
    plain = compare({seed: a[seed] for seed in common}, {seed: b[seed] for seed in common}, SURE)
    gaps = differences(a, b, common)
    found = sequential(gaps[None], most, level)
    p = p_value(float(found.e_C[0]), most)
    bad = int(bad_seeds(*(np.array([side[seed] for seed in common]) for side in (a, b))))
    return plain.as_dict() | {
        "interval": bounds(gaps, most), "p_value": p, "p_adjusted": min(1.0, p * alpha / level),
        "e_value": float(found.e_C[0]), "rank_p": rank_p(gaps), "bad_seeds": bad, "unseen": unseen(bad, len(common)),
        "passed": bool(found.passed_C[0]) and len(common) == len(seeds)}


def differences(a: Mapping[int, float], b: Mapping[int, float], seeds: Sequence[int]) -> np.ndarray:
    """a's losses less b's in the order of the seeds; what is no more than a last digit of a loss is 0."""
    losses_a, losses_b = (np.array([side[seed] for seed in seeds], float) for side in (a, b))
    gaps = losses_a - losses_b
    return np.where(np.abs(gaps) > ROUNDING * np.maximum(np.abs(losses_a), np.abs(losses_b)), gaps, 0.0)


def bad_seeds(losses_a: np.ndarray, losses_b: np.ndarray) -> np.ndarray:
    """On how many seeds, the last axis, b ended worse than a's median: with one, a claim is about most seeds only."""
    return np.sum(losses_b > np.median(losses_a, -1, keepdims=True), -1)


def bounds(differences: np.ndarray, most: int) -> list[float] | None:
    """Interval that covers the mean with probability SURE, at whichever look; None if so few bound nothing."""
    n, wanted = len(differences), float(boundary(most, (1.0 - SURE) / 2 / SPENT))
    if evidence(np.ones(1), n)[0] < wanted:
        return None

    def excess(log_rest: float) -> float:
        return float(np.log(evidence(np.sqrt([-math.expm1(log_rest)]), n)[0] / wanted))

    found = optimize.root_scalar(excess, bracket=(-60.0, -1e-12), method="brentq")
    rest = math.exp(found.root)  # 1 - r^2, at which a mean would be ruled out
    half = math.sqrt((n - 1) * (1 - rest) / rest) * float(differences.std(ddof=1)) / math.sqrt(n)
    mean = float(differences.mean())
    return [mean - half, mean + half]


def rank_p(differences: np.ndarray) -> float:
    """Exact one-sided p-value of Wilcoxon's signed ranks: it needs symmetry alone, but n differences give 2^-n at best.

    Differences of 0 are left out; equal ones share their ranks.
    """
    sizes = np.abs(differences[differences != 0])
    doubled = (sizes[:, None] > sizes).sum(1) + (sizes[:, None] >= sizes).sum(1) + 1
    ways = np.zeros(int(doubled.sum()) + 1)
    ways[0] = 1.0
    for rank in doubled:
        ways[rank:] = ways[rank:] + ways[:-rank]
    observed = int(doubled[differences[differences != 0] > 0].sum())
    return float(ways[observed:].sum() / ways.sum())


def unseen(bad: int, n: int) -> float:
    """Share of bad seeds that `bad` among n cannot exclude (95 %): 1 - 0.05^(1/n) where there is none."""
    return float(special.betaincinv(bad + 1, n - bad, SURE)) if bad < n else 1.0


def predicted(effect_C: np.ndarray, most: int, level: float, seed: int = 0) -> Sequential:
    """Made-up campaigns whose true effects, in paired standard deviations, are these; normal differences."""
    draws = np.random.default_rng(seed).standard_normal((len(effect_C), most))
    return sequential(effect_C[:, None] + draws, most, level)


@lru_cache(maxsize=64)
def usual(effect: int, most: int, level: float) -> int:
    """Seeds that half of all campaigns take, of a true effect in paired standard deviations."""
    return int(np.median(predicted(np.full(CAMPAIGNS, float(effect)), most, level).used_C))


def detectable(most: int, level: float, power: float = 0.8) -> float:
    """Smallest effect, in paired standard deviations, that the test finds with this power."""
    def excess(effect: float) -> float:
        return float(predicted(np.full(CAMPAIGNS, effect), most, level).passed_C.mean()) - power

    highest = 1.0
    while excess(highest) < 0:
        if (highest := 2 * highest) > 1e6:
            raise ValueError(f"{most} seeds never reach level {level:g}")
    return float(optimize.root_scalar(excess, bracket=(0.0, highest), method="brentq", xtol=1e-3).root)
