"""The page's charts as plain data for uPlot: series of points, thinned so that lowest and highest stay.

A chart: {x, y: labels; log: whether y is; zero: whether it shows 0; sync: charts of one move their cursors together;
series: [{label, kind, x, y, titles, links}]}. kind: line, faint, step (holds until the next point), dots, hollow,
diamond, cross. links: recipe ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from research.learn import anytime
from research.show.facts import Facts
from research.show.spent import climb, rise, spending
from research.text import effect, spread

MOST = 800  # points of a series
CURVES = 24  # runs whose curves are drawn

Chart = dict[str, Any]


def thinned(x: Sequence[float], y: Sequence[float | None], most: int = MOST) -> list[int]:
    """Which points stand for all: of each of so many stretches of x the first, the lowest, the highest and the last."""
    n = len(x)
    if n <= most:
        return list(range(n))
    values = np.array([np.nan if v is None else v for v in y], float)
    kept: set[int] = set()
    for part in np.array_split(np.arange(n), max(1, most // 4)):
        kept |= {int(part[0]), int(part[-1])}
        if (finite := part[np.isfinite(values[part])]).size:
            kept |= {int(finite[np.argmin(values[finite])]), int(finite[np.argmax(values[finite])])}
    return sorted(kept)


def series(label: str, kind: str, x: Sequence[float], y: Sequence[float | None], **more: Sequence[Any]) -> Chart:
    """One of a chart's; what comes beside x and y is thinned with them."""
    kept = thinned(x, y)
    columns = {"x": x, "y": y} | {name: values for name, values in more.items() if len(values)}
    return {"label": label, "kind": kind} | {name: [values[i] for i in kept] for name, values in columns.items()}


def staircase(facts: Facts) -> Chart:
    """Each recipe where its first run ended, at the effect that is believed of it now: filled where it went beyond all
    before it, else hollow; and what was tested on fresh seeds, when it was."""
    rows, hits, misses, best = climb(facts), [], [], 0.0
    for at, row in rows:
        point = (at, row["mean"], f"{row['name']}: {spread(row['mean'], row['sd'])}", row["recipe_id"])
        (hits if row["mean"] > best else misses).append(point)
        best = max(best, row["mean"])
    ends = [(0.0, 0.0), *((when, spent) for when, spent, _ in spending(facts))]
    shown = [series("best so far", "step", *map(list, zip(*rise(facts, rows), strict=True))),
             _dots("went beyond", "dots", hits), _dots("did not", "hollow", misses)]
    for passed, label, kind in ((True, "proven on fresh seeds", "diamond"), (False, "refuted on fresh seeds", "cross")):
        shown.append(_dots(label, kind, [
            (max(s for end, s in ends if end <= event.time), float(test["effect"]),
             f"{facts.name(event.subject)}: {effect(test['effect'])}", event.subject)
            for event in facts.state.verifications if event.body.passed is passed
            and (test := event.body.comparisons.get("incumbent"))]))
    return {"x": "device-seconds", "y": f"effect, {facts.unit}", "zero": True,
            "series": [one for one in shown if rows and one["x"]]}


def best_so_far(name: str, facts: Facts) -> Chart:
    """How far a session has come: the best recipe so far, as is believed of it now."""
    return series(name, "step", *map(list, zip(*rise(facts, climb(facts)), strict=True)))


def _dots(label: str, kind: str, found: Sequence[tuple[float, float, str, str]]) -> Chart:
    x, y, titles, links = map(list, zip(*found, strict=True)) if found else ([], [], [], [])
    return series(label, kind, x, y, titles=titles, links=links)


def curves(facts: Facts, recipe_id: str) -> Chart:
    """A recipe's training loss over a run, a line a run, beside the base's on the same cells."""
    runs = [t for t in facts.state.trials.values() if t.recipe_id == recipe_id and t.result and t.result.points]
    shown = []
    for trial in sorted(runs, key=lambda t: (-t.horizon, t.seed))[:CURVES]:
        base = facts.state.trials.get(trial.trial._replace(recipe_id=facts.base or "").key)
        for label, one in ((trial.trial.cell, trial), (f"base {trial.trial.cell}", base)):
            if one is not None and one.result and one.result.points and (one is trial or recipe_id != facts.base):
                x, y = map(list, zip(*one.result.points, strict=True))
                shown.append(series(label, "line" if one is trial else "faint", x, y))
    return {"x": "progress of the run", "y": f"training loss, {facts.unit}", "sync": "progress", "series": shown}


def evidence(facts: Facts, attempt: int) -> Chart:
    """The evidence of a sealed test after each look, beside what it needs."""
    row = next((row for row in facts.verifications() if row["attempt"] == attempt and row["rule"]), None)
    if row is None:
        return {"x": "fresh seeds", "y": "evidence", "series": []}
    old, new = ({int(s): v for s, v in row["losses"].get(role, {}).items()} for role in ("incumbent", "candidate"))
    seeds = [seed for seed in row["seeds"] if seed in old and seed in new]
    gaps = anytime.differences(old, new, seeds)
    at = [n for n in anytime.looks(row["n"]) if n <= len(seeds)]
    e = [max(float(anytime.evidence(anytime.ratio(gaps[None, :n]), n)[0]), 1e-3) for n in at]
    needed = float(anytime.boundary(row["n"], row["alpha"]))
    return {"x": "fresh seeds", "y": "evidence (e-value)", "log": True,
            "series": [series("evidence", "line", at, e), series("needed", "faint", [0, row["n"]], [needed, needed])]}


CHARTS: dict[str, Callable[..., Chart]] = {"staircase": staircase, "curves": curves, "evidence": evidence}
