"""The report's plots of a session, each from the ledger and linked to its trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research.contract.places import places, profile
from research.contract.trial import FRESH, Trial
from research.decide.belief import Belief
from research.decide.book import track_of
from research.ledger.events import Event
from research.ledger.state import State
from research.show import plots, spent
from research.show.facts import NORMAL_95, Facts
from research.show.plots import Series, Whisker
from research.text import count

POINTS = 16  # beliefs computed for the plot of progress
ROWS = 12  # candidates in the plot of effects
CURVES_FROM = 0.1  # progress from which learning curves are drawn: before, they only show the fall from chance


def trial_id(key: str) -> str:
    """The id of a trial's row in the report."""
    return f"trial-{key}"


@dataclass(frozen=True)
class Figure:
    """A plot. name: of its file beside the Markdown page, without ending."""

    name: str
    svg: str
    caption: str


def figures(facts: Facts, events: Sequence[Event]) -> dict[str, Figure | None]:
    """The plots by name; None where there is nothing to show."""
    return {"progress": progress(facts, events), "curves": curves(facts), "effects": effects(facts),
            "allocation": allocation(facts), "information": information(facts), "invention": invention(facts)}


def history(events: Sequence[Event], most: int = POINTS) -> list[dict[str, Any]]:
    """The best candidate's expected effect as results came in: device_s so far, mean, sd."""
    ends = [event.seq for event in events if event.kind == "result"]
    chosen = {ends[i] for i in np.unique(np.linspace(0, len(ends) - 1, most).round().astype(int))} if ends else set()
    state, rows, belief = State(), [], None
    for event in events:
        state.apply(event)
        if event.seq in chosen and state.proposals:
            belief = belief or Belief(track_of(state))
            best = belief.at(state).view().best
            rows.append({"device_s": state.device_s, "mean": best.mean if best else 0.0,
                         "sd": best.sd if best else 0.0})
    return rows


def progress(facts: Facts, events: Sequence[Event]) -> Figure | None:
    """Expected effect of the best candidate over device-seconds, and the gains measured on the way."""
    rows = history(events)
    if not any(row["mean"] for row in rows):
        return None
    x, mean, half = [r["device_s"] for r in rows], [r["mean"] for r in rows], [NORMAL_95 * r["sd"] for r in rows]
    best = Series("best candidate, 95 % interval", x, mean, "step",
                  [m - h for m, h in zip(mean, half, strict=True)], [m + h for m, h in zip(mean, half, strict=True)])
    spent, at = 0.0, {}
    for event in events:
        if event.kind == "result":
            spent += event.body.device_s or 0.0
            at[event.subject] = spent
    found = [(at[t.key], gain, t) for t in facts.state.trials.values()
             if t.horizon == 1.0 and (gain := facts.gain(t)) is not None]
    dots = [Series(f"seed {first}" if first < FRESH else "fresh seeds", [f[0] for f in mine], [f[1] for f in mine],
                   "dots",
                   titles=[f"{facts.name(t.recipe_id)} on seed {t.seed}: {gain:+.4f}" for _, gain, t in mine],
                   targets=[trial_id(t.key) for *_, t in mine])
            for first in sorted({min(t.seed, FRESH) for *_, t in found})
            if (mine := [f for f in found if min(f[2].seed, FRESH) == first])]
    svg = plots.xy([best, *dots], "device-seconds", f"effect, {facts.unit}", zero=True)
    return Figure("progress", svg, "The best candidate's expected effect at the full horizon as device time was spent, "
                  "and every full-horizon run's gain over the base on the same seed: dots of one colour compare.")


def curves(facts: Facts) -> Figure | None:
    """Training loss over progress: base, champion (or leader), best single idea; the mean of their full runs."""
    single, champion = facts.best_single(), facts.state.champion
    roles: dict[str, str] = {}
    for role, recipe_id in (("base", facts.base), ("champion" if champion else "leader", champion or facts.front),
                            ("best single idea", single["recipe_id"] if single else None)):
        if recipe_id:
            roles.setdefault(recipe_id, role)
    ran = [{*facts.state.losses(recipe_id, 1.0, facts.track.splits.search)} for recipe_id in roles]
    seeds = set.intersection(*ran) if ran else set()  # which all of them ran in full
    series = [Series(role if role == "base" else f"{role}: {facts.name(recipe_id)}", *found)
              for recipe_id, role in roles.items() if (found := _mean_curve(facts, recipe_id, seeds))]
    if not series:
        return None
    svg = plots.xy(series, "progress of the run", f"training loss, {facts.unit}")
    over = f"on {count(len(seeds), 'seed')} that all of them ran" if seeds else "on the seeds of each"
    return Figure("curves", svg, f"Training loss, the mean of full-horizon runs {over}, from {CURVES_FROM:.0%} of the "
                  "run on.")


def _mean_curve(facts: Facts, recipe_id: str, seeds: set[int]) -> tuple[list[float], list[float]] | None:
    seeds = seeds or {seed for by_seed in facts.losses(recipe_id).values() for seed in by_seed}
    full = [t for t in facts.state.trials.values() if (t.recipe_id, t.horizon) == (recipe_id, 1.0)]
    runs = [t.result.curve for t in full if t.seed in seeds and t.result and t.result.curve]
    if not runs:
        return None
    grid = np.linspace(CURVES_FROM, 1.0, 60)
    stacked = np.stack([np.interp(grid, *np.asarray(run, float).T) for run in runs])
    return grid.tolist(), stacked.mean(0).tolist()


def effects(facts: Facts) -> Figure | None:
    """Expected effects of the top candidates with intervals, beside what their full-horizon runs measured."""
    rows = []
    for row in facts.frontier(ROWS):
        gains, keys = row["gains"], [trial_id(Trial(row["recipe_id"], 1.0, seed).key) for seed in row["gains"]]
        rows.append(Whisker(row["name"], row["mean"], NORMAL_95 * row["sd"], list(gains.values()), keys, list(gains)))
    if not rows:
        return None
    return Figure("effects", plots.intervals(rows, f"effect at the full horizon, {facts.unit}"),
                  "Dots with bars: the posterior's mean and 95 % interval, which allow for each seed's luck. Rings: "
                  "gains of full-horizon runs over the base, a colour a seed: rings of one colour compare.")


def allocation(facts: Facts) -> Figure | None:
    """Device-seconds by horizon and purpose."""
    used, rows = spent.allocation(facts)
    if not used:
        return None
    named = [(f"horizon {h:g}", values) for h, values in rows]
    return Figure("allocation", plots.bars(named, used, "device-seconds", lambda v: f"{v:,.0f}"),
                  "Where the device time went: by the length of the run and what it was for.")


def information(facts: Facts) -> Figure | None:
    """Expected information gain of the chosen runs over time, by horizon."""
    start = facts.state.stretches[0].start if facts.state.stretches else 0.0
    by_horizon: dict[float, list[Event]] = {}
    for event in facts.state.decisions:
        trial = facts.state.trials[event.subject]
        if (event.body.eig or 0.0) > 0 and trial.attempts:
            by_horizon.setdefault(trial.horizon, []).append(event)
    series = [
        Series(f"horizon {horizon:g}", [e.time - start for e in found],
               [e.body.eig / e.body.cost_s for e in found], "dots",
               titles=[f"{e.body.why}: {e.body.eig:.3g} nats in {e.body.cost_s:.1f} s" for e in found],
               targets=[trial_id(e.subject) for e in found])
        for horizon, found in sorted(by_horizon.items())
    ]
    if not series:
        return None
    return Figure("information", plots.xy(series, "seconds since the start", "EIG, nats per device-second", log_y=True),
                  "Expected information about the best value that each chosen run promised for its price.")


def invention(facts: Facts) -> Figure | None:
    """The shape of the best invention that is a formula, beside what stood in its place."""
    for row in facts.inventions(len(facts.snapshot.arms)):
        arm = facts.snapshot.by_id[row["recipe_id"]]
        edit = arm.parts[-1].edits[0]
        new = next((place for place in places(arm.recipe) if place.path == edit.path and not place.after), None)
        if new is None:
            continue
        parent = facts.snapshot.by_id.get(next(iter(facts.proposal(arm.recipe_id).parents), facts.base or ""))
        old = [place for place in places(parent.recipe) if place.path == new.path] if parent else []
        before = (old[0].code, old[0].params) if old else (new.needed, {})
        series = [Series(label, *(values.tolist() for values in profile(new, *formula)))
                  for label, formula in (("invented", (new.code, new.params)), ("before", before))]
        told = f"{row['name']}: {row['formula']}; {row['novelty'] or 0:.2f} from what was known there."
        svg = plots.xy(series, new.needed, "value", zero=True)
        return Figure("invention", svg, f"{told} Other names are at a half.")
    return None
