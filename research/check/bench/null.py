"""False records under attack, and the power that is left: the proof's own functions on made-up differences.

    python -m research.check.bench null --out docs/null.md        # a minute on an idle core

No run is trained: a campaign is a user who tries until something is crowned, in one session or in twenty, and nothing
that he seals is better than the incumbent. What decides is `research.learn.anytime`, by the functions that a session
calls; beside it stands the rule of version 0.2 (six seeds, one paired t-test, level halved with each attempt of a
session).
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, positive, seed_number

PARSER = Command("research.check.bench null", __doc__)
PARSER.add_argument("--campaigns", type=positive, default=30_000, help="an attack (default %(default)s)")
PARSER.add_argument("--seed", type=seed_number, default=0)
PARSER.add_argument("--out", type=Path, metavar="FILE", help="the page, as Markdown; else it is printed")
PARSER.add_argument("--json", action="store_true")

import numpy as np
from scipy import special

from research.contract.track import Significance
from research.learn import anytime
from research.learn.compare import alpha_of_0_2

RULE = Significance()
SESSIONS = (1, 20)
ATTEMPTS = (1, 2, 3, 5, 10, 20)  # of the power table
OLD_N = 6  # seeds of version 0.2
SHARED = 0.4  # correlation of two recipes' losses over seeds, as measured on track tiny

Draw = Callable[[np.random.Generator, int], np.ndarray]  # campaigns -> differences [campaigns, seeds], in paired SDs


@dataclass(frozen=True)
class Attack:
    """What is sealed again and again. attempts: a session's. draw: its differences, of mean 0 or less."""

    name: str
    what: str
    attempts: int
    draw: Draw


def equal(rng: np.random.Generator, campaigns: int) -> np.ndarray:
    """As good as the incumbent."""
    return rng.standard_normal((campaigns, RULE.n))


def best_of(rng: np.random.Generator, campaigns: int, candidates: int = 1000, seeds: int = 3) -> np.ndarray:
    """The luckiest of many on search seeds, which mean nothing; its noise, which made it lucky, is its own."""
    found = np.empty((campaigns, RULE.n))
    for rows in np.array_split(np.arange(campaigns), max(1, campaigns // 1000)):
        noise = np.exp(0.5 * rng.standard_normal((len(rows), candidates), np.float32))
        searched = noise * rng.standard_normal((len(rows), candidates), np.float32) / seeds**0.5
        chosen = np.take_along_axis(noise, searched.argmax(1)[:, None], 1)
        found[rows] = chosen * rng.standard_normal((len(rows), RULE.n))
    return found


ATTACKS = (
    Attack("equal", "as good as the incumbent", 3, equal),
    Attack("worse", "half a paired SD worse", 3, lambda rng, c: equal(rng, c) - 0.5),
    Attack("heavy tails", "symmetric, Student's t with 3 degrees of freedom", 3,
           lambda rng, c: rng.standard_t(3, (c, RULE.n))),
    Attack("heaviest tails", "symmetric, Cauchy", 3, lambda rng, c: rng.standard_cauchy((c, RULE.n))),
    Attack("resubmission", "the same equal candidate, ten times a session", 10, equal),
    Attack("best of 1,000", "the luckiest of 1,000 equal candidates on three search seeds", 1, best_of),
    Attack("many sessions", "a session for each attempt, copied and deleted at will", 1, equal),
)


def fixed(differences_CxN: np.ndarray, level: float) -> np.ndarray:
    """Which campaigns pass one paired t-test on all of their seeds: the rule of 0.2."""
    n = differences_CxN.shape[1]
    error = differences_CxN.std(1, ddof=1) / n**0.5
    return differences_CxN.mean(1) >= -float(special.stdtrit(n - 1, level)) * error


def upper(found: int, of: int) -> float:
    """Upper 95 % bound of a share, one-sided. Source: Clopper and Pearson 1934."""
    return float(special.betaincinv(found + 1, of - found, 0.95)) if found < of else 1.0


def under_attack(attack: Attack, sessions: int, campaigns: int, rng: np.random.Generator) -> dict[str, Any]:
    """How many campaigns end with a false record, by our rule and by 0.2's."""
    now, before = np.zeros(campaigns, bool), np.zeros(campaigns, bool)
    for k in range(1, sessions * attack.attempts + 1):  # the registry counts on over sessions, 0.2 began anew
        differences = attack.draw(rng, campaigns)
        now |= anytime.sequential(differences, RULE.n, anytime.alpha_for_attempt(k, RULE.alpha)).passed_C
        before |= fixed(differences[:, :OLD_N], alpha_of_0_2(1 + (k - 1) % attack.attempts, RULE.alpha))
    count = int(now.sum())
    return {"attack": attack.name, "what": attack.what, "sessions": sessions, "attempts": sessions * attack.attempts,
            "campaigns": campaigns, "false": count, "rate": count / campaigns, "upper": upper(count, campaigns),
            "before": float(before.mean())}


def arms(rng: np.random.Generator, campaigns: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses of two equal recipes whose seeds are alike in part; their difference has SD 1."""
    shape = campaigns, RULE.n
    shared = SHARED**0.5 * rng.standard_normal(shape)
    sides = [shared + (1 - SHARED) ** 0.5 * rng.standard_normal(shape) for _ in range(2)]
    return sides[0] / (2 * (1 - SHARED)) ** 0.5, sides[1] / (2 * (1 - SHARED)) ** 0.5


def rare(share: float, gain: float) -> Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]:
    """A candidate that gains on most seeds and loses as much on a share of them: no better on the mean."""
    def losses(rng: np.random.Generator, campaigns: int) -> tuple[np.ndarray, np.ndarray]:
        ours, theirs = arms(rng, campaigns)
        bad = rng.random(theirs.shape) < share
        return ours, theirs + np.where(bad, gain * (1 - share) / share, -gain)
    return losses


def skewed(shape: float) -> Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]:
    """A candidate whose losses have a long right tail (log-normal), and the incumbent's mean."""
    def losses(rng: np.random.Generator, campaigns: int) -> tuple[np.ndarray, np.ndarray]:
        ours, theirs = arms(rng, campaigns)
        tail = rng.lognormal(0.0, shape, theirs.shape) - np.exp(shape**2 / 2)
        return ours, 0.3 * theirs + tail
    return losses


UNEVEN = {
    "log-normal losses, shape 0.5": skewed(0.5), "log-normal losses, shape 1": skewed(1.0),
    **{f"{share:.0%} bad seeds, {gain:g} SD gained on the others": rare(share, gain)
       for share in (0.02, 0.1) for gain in (0.5, 1.0, 2.0, 4.0)}}


def uneven(name: str, campaigns: int, rng: np.random.Generator) -> dict[str, Any]:
    """First attempts of a candidate that is no better on the mean, but on most seeds: what is claimed of it."""
    ours, theirs = UNEVEN[name](rng, campaigns)
    level, differences = anytime.alpha_for_attempt(1, RULE.alpha), ours - theirs
    found = anytime.sequential(differences, RULE.n, level)
    clean = np.zeros(campaigns, bool)
    for n in anytime.looks(RULE.n):
        here = found.used_C == n
        clean[here] = anytime.bad_seeds(ours[here, :n], theirs[here, :n]) == 0
    return {"candidate": name, "mean": float((found.passed_C & clean).mean()),
            "most": float((found.passed_C & ~clean).mean()),
            "before": float(fixed(differences[:, :OLD_N], alpha_of_0_2(1, RULE.alpha)).mean()),
            "longer": float(fixed(differences, level).mean())}


def power(k: int, campaigns: int, seed: int) -> dict[str, Any]:
    """What attempt k finds, and after how many seeds, by the true effect in paired SDs."""
    level = anytime.alpha_for_attempt(k, RULE.alpha)
    row: dict[str, Any] = {"attempt": k, "level": level}
    for effect in (1.0, 1.5, 2.0, 3.0, 10.0):
        found = anytime.predicted(np.full(campaigns, effect), RULE.n, level, seed)
        row[f"power {effect:g}"], row[f"seeds {effect:g}"] = float(found.passed_C.mean()), float(found.used_C.mean())
    draws = 1.5 + np.random.default_rng(seed).standard_normal((campaigns, RULE.n))
    row["fixed 1.5"] = float(fixed(draws, level).mean())
    row["before 1.5"] = float(fixed(draws[:, :OLD_N], alpha_of_0_2(k, RULE.alpha)).mean())
    return row


def measure(campaigns: int, seed: int) -> dict[str, Any]:
    """All tables."""
    rngs = iter(np.random.default_rng(seed).spawn(len(ATTACKS) * len(SESSIONS) + len(UNEVEN)))
    return {"campaigns": campaigns, "seed": seed, "n": RULE.n, "alpha": RULE.alpha,
            "attacks": [under_attack(attack, sessions, campaigns, next(rngs)) for attack in ATTACKS
                        for sessions in SESSIONS],
            "uneven": [uneven(name, campaigns, next(rngs)) for name in UNEVEN],
            "power": [power(k, campaigns, seed) for k in ATTEMPTS]}


def table(heads: list[str], rows: Iterator[list[str]] | list[list[str]]) -> list[str]:
    """Lines of a Markdown table; all but the first column to the right."""
    return [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1),
            *(f"| {' | '.join(row)} |" for row in rows), ""]


def page(found: dict[str, Any]) -> str:
    """docs/null.md."""
    alpha, n, best, worst = found["alpha"], found["n"], found["power"][0], found["power"][-1]
    lines = [
        "# What the proof lets through", "",
        f"`python -m research.check.bench null --campaigns {found['campaigns']} --seed {found['seed']} --out "
        "docs/null.md` made this page. No run was trained: differences were drawn, and the functions that a session "
        f"calls (research/learn/anytime.py) decided on them: blocks of {anytime.BLOCK} fresh paired seeds, at most "
        f"{n}, attempt k at level 6 x {alpha:g} / (pi k)^2, k counted over all sessions by the registry.", "",
        "## False records under attack", "",
        f"Nothing that is sealed here is better than the incumbent. A campaign fails when it crowns anything. "
        f"{found['campaigns']:,} campaigns each; the bound is the upper 95 % one (Clopper-Pearson). 0.2 is the rule of "
        f"version 0.2 on the same draws: one paired t-test on {OLD_N} seeds, the level halved with each attempt and "
        "whole again in the next session.", ""]
    lines += table(
        ["what is sealed", "sessions", "attempts", "false records", "per campaign", "upper bound", "0.2"],
        [[f"{row['attack']}: {row['what']}", str(row["sessions"]), str(row["attempts"]), str(row["false"]),
          f"{row['rate']:.3%}", f"{row['upper']:.3%}", f"{row['before']:.3%}"] for row in found["attacks"]])
    lines += [
        "## What is not covered: long tails on one side, rare bad seeds", "",
        "A candidate that gains on most seeds and loses as much on a few is no better on the mean, and seeds on which "
        "it never failed cannot tell. The claim therefore names that assumption, says which share of bad seeds its n "
        f"cannot exclude (1 - 0.05^(1/n): {anytime.unseen(0, 6):.0%} at 6, {anytime.unseen(0, n):.0%} at {n}), and is "
        "about most seeds as soon as one ended worse than the incumbent's median. First attempts that passed, by what "
        f"is claimed; beside them 0.2's rule ({OLD_N} seeds), and one t-test on all {n} at our level: a test that "
        "finds more finds these candidates more often, too.", ""]
    lines += table(
        ["candidate, equal on the mean", "passed, claimed of the mean", "passed, claimed of most seeds", "0.2, of the "
         "mean", f"t-test at n = {n}"],
        [[row["candidate"], *(f"{row[name]:.2%}" for name in ("mean", "most", "before", "longer"))]
         for row in found["uneven"]])
    lines += [
        "## Power", "",
        f"Share of candidates that pass, by their true effect in paired standard deviations, at most {n} seeds; mean "
        "seeds of an arm until the test ends. Fixed: one t-test on all seeds at the same level, which no test that may "
        f"stop early can beat. 0.2: its own rule, {OLD_N} seeds.", ""]
    lines += table(
        ["attempt", "level", "1 SD", "1.5 SD", "2 SD", "3 SD", "1.5 SD, fixed", "1.5 SD, 0.2", "seeds at 1.5 SD",
         "seeds at 3 SD", "seeds at 10 SD"],
        [[str(row["attempt"]), f"{row['level']:.2g}",
          *(f"{row[name]:.1%}" for name in ("power 1", "power 1.5", "power 2", "power 3", "fixed 1.5", "before 1.5")),
          *(f"{row[name]:.1f}" for name in ("seeds 1.5", "seeds 3", "seeds 10"))] for row in found["power"]])
    lines += [f"At the first attempt {best['power 1.5']:.0%} of effects of 1.5 SD are found, at the twentieth "
              f"{worst['power 1.5']:.0%}: an attempt is worth keeping for a candidate that will pass, which is why the "
              "loop asks search seeds first (research/decide/futility.py)."]
    return "\n".join(line if line[:1] in "|#" else textwrap.fill(line, 120) for line in lines) + "\n"


def main(argv: list[str]) -> int:
    """The command: exit code 1 if an attack's bound is above the level."""
    options = PARSER.parse_args(argv)
    found = measure(options.campaigns, options.seed)
    text = json.dumps(found) + "\n" if options.json else page(found)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return int(max(row["upper"] for row in found["attacks"]) > RULE.alpha)
