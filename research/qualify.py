"""Measures a track before it is used: the base's grid, the noise, and the smallest effect a proof can find.

    python -m research.qualify tiny --out configs/tracks/tiny.qualified.json
    python -m research.qualify one-gpu --estimate H100           (nothing is run)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, Failure, Output, above_zero, report_errors
from research.execute import executors

PARSER = Command("research.qualify", __doc__)
PARSER.add_argument("track")
PARSER.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change the track's base")
PARSER.add_argument("--workers", type=int)
executors.add_options(PARSER)
PARSER.add_argument("--estimate", metavar="DEVICE", help="run nothing; say what it takes on such: H100, TPU v6, cpu")
PARSER.add_argument("--hours", type=float, default=8.0, help="with --estimate: how many runs fit into them (8)")
PARSER.add_argument("--price", type=float, metavar="USD", help="with --estimate: what such a device costs an hour")
PARSER.add_argument("--out", type=Path, help="write everything as JSON")
PARSER.add_argument("--json", action="store_true")
PARSER.early(__name__)

import numpy as np

from jaxnano import data
from jaxnano.config.base import dump_full
from jaxnano.config.edit import Diff, Edit, apply
from jaxnano.config.recipe import Recipe
from research.contract.track import Track, load_track
from research.execute.batch import HERE, all_losses, few_steps, full_runs, losses, run_batch
from research.execute.ready import estimate
from research.learn.anytime import alpha_for_attempt, detectable
from research.learn.compare import compare
from research.machine import versions

AA_SEEDS = 1000  # the A/A runs of the base use seeds from here on


def at_value(track: Track, value: float) -> Recipe:
    """The base with one value of its grid."""
    base = track.base_recipe
    return apply(base, Diff(name="grid", edits=tuple(Edit.to(base, path, value) for path in track.grid.paths)))


def qualify(track: Track, workers: int | None = None, options: argparse.Namespace = HERE) -> dict[str, Any]:
    """Run the grid and the A/A test, once every place has trained a few steps.

    options: where, see `executors.offer`.

    Returns: losses of each grid value by seed, the best value and whether the base has it, comparisons with its
    neighbours, the base's seed noise over all its runs, the A/A comparison, and the smallest effect that a first
    attempt detects if pairing does not help. All in nats.
    """
    corpus, split, rule = data.load(track.base_recipe.data), track.splits.search, track.significance
    seeds, aa_seeds = range(track.grid.seeds), range(AA_SEEDS, AA_SEEDS + 2 * track.grid.seeds)
    recipes = {value: at_value(track, value) for value in track.grid.values}

    jobs = [*full_runs(track, recipes.values(), seeds, corpus.data_hash, workers, options),
            *full_runs(track, [track.base_recipe], aa_seeds, corpus.data_hash, workers, options)]
    first = few_steps(track, corpus.data_hash)
    results = run_batch(jobs, workers, f"track {track.name}", options, track, first)
    grid = {value: losses(results, recipe, 1.0, seeds, split) for value, recipe in recipes.items()}
    complete = {value: by_seed for value, by_seed in grid.items() if len(by_seed) == len(seeds)}
    aa = all_losses(results, track.base_recipe, 1.0, aa_seeds, split, f"track {track.name}: the base")
    if not complete:
        raise Failure(f"track {track.name}: each value of the grid diverged on some seed; smaller ones would do")
    best = min(complete, key=lambda value: float(np.mean(list(complete[value].values()))))
    pairs = {value: compare(by_seed, complete[best], alternative="two-sided")
             for value, by_seed in complete.items() if value != best}
    halves = [dict(enumerate(half)) for half in np.split(np.array([aa[s] for s in aa_seeds]), 2)]
    all_seeds = [*aa.values(), *(grid[best].values() if recipes[best] == track.base_recipe else ())]
    seed_sd = float(np.std(all_seeds, ddof=1))
    same = compare(halves[0], halves[1], alternative="two-sided")
    times = [r.device_s or 0.0 for r in results.values()]
    return {
        "track": track.name, "track_hash": track.identity, "data_hash": corpus.data_hash, "versions": versions(),
        "path": track.grid.paths, "grid": grid, "best": best, "base_is_best": recipes[best] == track.base_recipe,
        "against_best": {value: c.as_dict() for value, c in pairs.items()},
        "seed_sd": seed_sd, "aa": same.as_dict(), "aa_losses": aa,
        "detectable": float(np.sqrt(2)) * seed_sd * detectable(rule.n, alpha_for_attempt(1, rule.alpha)),
        "topology": next((dump_full(r.topology) for r in results.values() if r.topology is not None), None),
        "core_seconds": {"median": float(np.median(times)), "max": float(np.max(times))},
    }


def main(argv: list[str] | None = None) -> int:
    """The command: exit code 1 if the base does not have the grid's best value."""
    options = PARSER.options(argv)
    for name in ("workers", "hours", "price"):
        above_zero(options, name)
    executors.check(options)
    if options.estimate:
        found = estimate(load_track(options.track, options.set), options.estimate, options.hours, options.price)
        title = f"track {options.track} on {options.estimate}, for {options.hours:g} hours, estimated"
        Output(options.json).table(title, found)
        return 0
    found = qualify(load_track(options.track, options.set), options.workers, options)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    means = {f"mean loss at {v:g}": float(np.mean(list(by_seed.values()))) for v, by_seed in found["grid"].items()
             if by_seed}
    plain = {name: found[name] for name in ("best", "base_is_best", "seed_sd", "detectable")}
    aa = {"A/A effect": found["aa"]["effect"], "A/A p": found["aa"]["p_value"]}
    rows = {**means, **plain, **aa, **{f"core-seconds, {k}": v for k, v in found["core_seconds"].items()}}
    Output(options.json).table(f"track {found['track']}, nats", found if options.json else rows)
    return 0 if found["base_is_best"] else 1


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
