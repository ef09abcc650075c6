"""The speedrun's records as a ladder: each rung is the one below and what its record brought, on a small track.

    python -m research.ladder --seeds 4                  track tiny, every rung of configs/records/ladder.yaml
    python -m research.ladder --rungs 8 --workers 2 --out runs/ladder

Every rung gets the FLOPs of the track's base and the same seeds; a step's gain is a paired comparison of two rungs.
Written to the folder: ladder.json, ladder.md and two plots. Exit code: 0, 1 if too little completed, 2 for bad input.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, Failure, UserError, positive, report_errors

PARSER = Command("research.ladder", __doc__)
PARSER.add_argument("--rungs", type=positive, metavar="N", help="the first so many; all without it")
PARSER.add_argument("--seeds", type=positive, default=4)
PARSER.add_argument("--workers", type=positive)
PARSER.add_argument("--track", default="tiny", help="whose base, budget and evaluation")
PARSER.add_argument("--out", type=Path, default=Path("runs/ladder"), metavar="FOLDER")
PARSER.add_argument("--json", action="store_true")
PARSER.early(__name__)

import numpy as np
from scipy import stats

from jaxnano import data
from jaxnano.config.recipe import recipe_id
from research.contract.proposal import build
from research.contract.records import lineages
from research.contract.rungs import Rung, ladder, stacks
from research.contract.track import Track, load_track
from research.execute.batch import full_runs, losses, run_batch
from research.learn.compare import compare
from research.show import plots
from research.text import clean


def climb(track: Track, rungs: tuple[Rung, ...], seeds: int, workers: int | None) -> dict[str, Any]:
    """Train every rung.

    Returns: per rung its published minutes, losses by seed in nats, and what it gains over the one below and over the
    lowest, with intervals; and how the order found agrees with the published one (Kendall's tau of minutes and losses).
    Raises: Failure where a rung completed on fewer than two seeds.
    """
    base, own = track.base_recipe, range(seeds)
    built, corpus = [build(base, parts) for parts in stacks(rungs, base)], data.load(base.data)
    jobs = full_runs(track, built, own, corpus.data_hash, workers)
    results = run_batch(jobs, workers, "ladder", track=track)
    minutes = {record.number: record.value for line in lineages() if line.track == 1 for record in line.records}
    by_seed = [losses(results, recipe, 1.0, own, track.splits.search) for recipe in built]
    rows: list[dict[str, Any]] = []
    for i, (rung, recipe, found) in enumerate(zip(rungs, built, by_seed, strict=True)):
        if len(found) < 2:
            raise Failure(f"{rung.name}: completed on {len(found)} of {seeds} seeds; with fewer than 2 there is no "
                          "interval")
        below, lowest = (compare(by_seed[j], found, alternative="two-sided").as_dict() if i else None
                         for j in (max(i - 1, 0), 0))
        rows.append({"name": rung.name, "record": rung.record, "minutes": minutes[rung.record], "id": recipe_id(recipe),
                     "steps": track.steps(recipe, 1.0), "losses": found, "mean": float(np.mean(list(found.values()))),
                     "gain": below, "over_lowest": lowest})
    means, times = [row["mean"] for row in rows], [row["minutes"] for row in rows]
    tau, p_value = map(float, stats.kendalltau(times, means)) if len(rows) > 2 else (None, None)
    return {"track": track.name, "track_hash": track.identity, "data_hash": corpus.data_hash, "seeds": seeds,
            "rungs": rows, "order": [row["name"] for row in sorted(rows, key=lambda row: row["mean"], reverse=True)],
            "kendall_tau": tau, "p_value": p_value}


def table(found: dict[str, Any]) -> str:
    """The ladder as a Markdown table."""
    lines = [f"Track {found['track']}, {found['seeds']} seeds, equal training FLOPs; nats, intervals of 95 %, paired "
             "by seed.", "",
             "| rung | record | published, minutes | steps | loss | gain of the step | over the lowest |",
             "|---|---|---|---|---|---|---|"]
    for row in found["rungs"]:
        gains = ["" if (one := row[name]) is None else f"{one['effect']:+.4f} ({one['interval'][0]:+.4f} to "
                 f"{one['interval'][1]:+.4f})" for name in ("gain", "over_lowest")]
        lines.append(f"| {clean(row['name'])} | #{row['record']} | {row['minutes']:g} | {row['steps']} | "
                     f"{row['mean']:.4f} | {' | '.join(gains)} |")
    agree = "too few rungs to tell" if found["kendall_tau"] is None else \
        f"Kendall's tau {found['kendall_tau']:.2f} (p = {found['p_value']:.2g})"
    return "\n".join([*lines, "", f"Agreement of losses with published times: {agree}.",
                      f"Order found, worst first: {', '.join(map(clean, found['order']))}.", ""])


def pictures(found: dict[str, Any]) -> dict[str, str]:
    """Two plots: the way up, found and published, as shares of the whole; and what each step gains."""
    rows = found["rungs"]
    whole = max((row["over_lowest"]["effect"] for row in rows[1:]), default=0.0)
    whole, spans = (whole if whole > 0 else 1.0), [row["over_lowest"] for row in rows[1:]]
    time = math.log(rows[0]["minutes"] / min(row["minutes"] for row in rows[1:])) or 1.0
    x = list(range(len(rows)))
    up = plots.xy([
        plots.Series("found: share of the most nats gained", x, [0.0, *(s["effect"] / whole for s in spans)],
                     low=[0.0, *(s["interval"][0] / whole for s in spans)],
                     high=[0.0, *(s["interval"][1] / whole for s in spans)]),
        plots.Series("published: share of the logarithm of time", x,
                     [math.log(rows[0]["minutes"] / row["minutes"]) / time for row in rows]),
    ], "rung", "share of the way up", zero=True)
    steps = plots.intervals([
        plots.Whisker(f"{row['name']} (#{row['record']})", row["gain"]["effect"],
                      row["gain"]["interval"][1] - row["gain"]["effect"],
                      [below["losses"][seed] - row["losses"][seed] for seed in common], [""] * len(common), common)
        for below, row in zip(rows, rows[1:], strict=False)
        if (common := sorted(below["losses"].keys() & row["losses"].keys()))
    ], "gain over the rung below, nats")
    return {"ladder.svg": up, "ladder-steps.svg": steps}


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = PARSER.options(argv)
    if options.seeds < 2:
        raise UserError(f"--seeds: {options.seeds}: 2 or more would do")
    rungs = ladder()
    if options.rungs and not 2 <= options.rungs <= len(rungs):
        raise UserError(f"--rungs: {options.rungs}: 2 to {len(rungs)} would do")
    found = climb(load_track(options.track), rungs[: options.rungs], options.seeds, options.workers)
    options.out.mkdir(parents=True, exist_ok=True)
    files = {"ladder.json": json.dumps(found, indent=1) + "\n", "ladder.md": table(found), **pictures(found)}
    for name, text in files.items():
        (options.out / name).write_text(text)
    print(json.dumps(found) if options.json else files["ladder.md"])
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
