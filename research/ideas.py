"""What the ideas cover: the known techniques that can be written, and how the ideas stand to a base.

    python -m research.ideas                                        which techniques, which ideas fit track tiny's base
    python -m research.ideas --base configs/track3-124m.yaml        the same for any recipe, without a track's rules
    python -m research.ideas --check muon                           train an idea, or all, for 20 steps
    python -m research.ideas --records                              the speedruns' records, built from what they grew of

A base too large for a short look is trained shrunk: fewer rows, shorter, narrower, fewer blocks, on embedded text.
Exit code: 0, 1 if an idea that should train does not or a record does not build, 2 for bad input.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from jaxnano.cli import Command, UserError, positive, report_errors
from research.text import clean

PARSER = Command("research.ideas", __doc__)
PARSER.add_argument("--check", metavar="ID", help="train this idea, the ideas of this technique, or all")
PARSER.add_argument("--base", type=Path, metavar="FILE", help="a recipe; without one, track tiny's, with its rules")
PARSER.add_argument("--steps", type=positive, default=20, metavar="N", help="of a training")
PARSER.add_argument("--records", action="store_true", help="build every record of configs/records")
PARSER.add_argument("--write", type=Path, metavar="FOLDER", help="with --records: the chosen ones as whole recipes")
PARSER.add_argument("--json", action="store_true", help="machine-readable")
PARSER.early(__name__)

import jax
import numpy as np

from jaxnano import data, step
from jaxnano.config.base import dump_full, validate
from jaxnano.config.file import load
from jaxnano.config.recipe import Recipe, structure_id
from jaxnano.cost import preflight
from jaxnano.device import use_compile_cache
from research.contract import records
from research.contract.gate import Gate
from research.contract.idea import ideas
from research.contract.techniques import Standing, standings, techniques
from research.contract.track import load_track
from research.machine.place import ONE_THREAD, SINGLE_THREAD

# So few steps run as fast without LLVM's optimizations, which would be most of the compile time.
QUICK = f"--xla_backend_optimization_level=0 {ONE_THREAD}"
MOST_FLOPS = 2e9  # of a training step: what a core does in a fraction of a second
LEAST = (("data", "batch", 8), ("data", "length", 64), ("model", "width", 64), ("model", "depth", 3))
RECORD_STATES = {"exact": "as they were", "near": "within a few percent or a step", "lacking": "lack something",
                 "fails": "do not build"}
STATES = {"applies": "apply", "held": "the base holds already", "frozen": "are frozen there", "refused": "do not fit"}


class Trained(NamedTuple):
    """loss: of the last step. reason: why it did not end as it should, if it did not."""

    loss: float
    seconds: float
    reason: str = ""


def small(base: Recipe) -> Recipe:
    """The base, or if a step of it is too large, one of its kind that is not, on text that is always there."""
    full, recipe = dump_full(base), base
    if base.data.kind != "embedded":
        full["data"] = {"kind": "embedded", "length": base.data.length, "batch": base.data.batch}
        full["model"]["vocab"] = 256
        recipe = validate(Recipe, full)
    for node, name, least in LEAST:
        while preflight(recipe).flops_per_step > MOST_FLOPS and full[node][name] // 2 >= least:
            full[node][name] //= 2
            if name == "width" and (dim := full["model"]["attention"]["head_dim"]):
                full["model"]["attention"]["head_dim"] = dim // 2
            recipe = validate(Recipe, full)
    return recipe


def train(recipe: Recipe, steps: int) -> Trained:
    """Train on seed 0; it ends well if every loss and everything the optimizer holds is finite."""
    start, loss, losses, state = time.monotonic(), float("nan"), [], None
    try:
        batches = step.batches_of(recipe, steps, 0, data.load(recipe.data))
        for progress in step.run(recipe, steps, 0, batches):
            losses, state = [*losses, *map(float, progress.losses)], progress.state
        loss = losses[-1]
        fine = np.isfinite(losses).all() and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        reason = "" if fine else "not finite"
    except Exception as error:  # of whatever kind: the ideas after it are still to be seen
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return Trained(loss, time.monotonic() - start, reason)


def chosen(name: str | None) -> list[str]:
    """The ideas to be trained.

    Raises: UserError for a name that neither an idea nor a technique has, or a technique that no idea says.
    """
    if name in (None, "all"):
        return list(ideas()) if name else []
    if name in ideas():
        return [name]
    technique = next((t for t in techniques() if t.name == name), None)
    if technique is None:
        raise UserError(f"--check: {name}: no such idea or technique; all would do")
    if technique.missing:
        raise UserError(f"--check: {name}: no idea says it: {technique.missing}")
    return list(technique.ideas)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = PARSER.options(argv)
    if options.records:
        return _records(options.write, options.json)
    os.environ |= SINGLE_THREAD | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"}  # read by the first array
    wanted = chosen(options.check)
    track = None if options.base else load_track("tiny")
    base = load(options.base) if track is None else track.base_recipe
    gate = track and Gate(track)
    stand = standings(ideas().values(), base, gate)
    out: dict[str, Any] = {
        "base": str(options.base or track.base),  # type: ignore[union-attr]
        "techniques": [{"name": t.name, "ideas": list(t.ideas), "missing": t.missing} for t in techniques()],
        "ideas": {name: {"state": s.state, "reason": s.reason} for name, s in stand.items()},
    }
    if not options.json:
        print("\n".join(map(clean, _coverage(out))), flush=True)
    failed = _check(wanted, base, stand, options.steps, out, quiet=options.json) if wanted else []
    if options.json:
        print(json.dumps(out))
    return 1 if failed else 0


def _records(folder: Path | None, quiet: bool) -> int:
    """Build every record and tell of each; exit code 1 if one does not build."""
    out: list[dict[str, Any]] = []
    for lineage in records.lineages():
        built = records.build(lineage)
        if folder:
            records.write(lineage, built, folder)
        rows = [records.row(lineage, one) for one in built.values()]
        out += rows
        states = Counter(row["state"] for row in rows)
        if not quiet:
            print(f"track {lineage.track}: {len(rows)} records, " + ", ".join(
                f"{states[state]} {words}" for state, words in RECORD_STATES.items() if states[state]))
            print("\n".join(clean(f"  #{row['number']} {row['date']} {row['value']:g} {row['unit']}: {row['state']}"
                                  + "".join(f"; {name}: {why}" for name, why in row["told"].items()))
                            for row in rows), flush=True)
    if quiet:
        print(json.dumps(out))
    return 1 if any(row["state"] == "fails" for row in out) else 0


def _coverage(out: dict[str, Any]) -> list[str]:
    missing = [t for t in out["techniques"] if t["missing"]]
    states, known = Counter(idea["state"] for idea in out["ideas"].values()), len(out["techniques"])
    open_to = len(out["ideas"]) - states["frozen"]
    return [
        f"techniques: {known - len(missing)} of {known} can be said exactly", *(f"  {t['name']}: {t['missing']}"
                                                                                for t in missing),
        f"ideas on {out['base']}: " + ", ".join(f"{states[state]} {words}" for state, words in STATES.items())
        + f"; {(states['applies'] + states['held']) / max(1, open_to):.1%} of those not frozen apply or are held",
        *(f"  {name}: {idea['state']}: {idea['reason']}" for name, idea in out["ideas"].items() if idea["reason"]),
    ]


def _check(wanted: list[str], base: Recipe, stand: dict[str, Standing], steps: int, out: dict[str, Any],
           quiet: bool) -> list[str]:
    """Train the ideas, tell of each and note it; returns those that failed."""
    use_compile_cache()
    run_on = small(base)
    at = run_on if run_on == base else None
    out["trained_at"] = {"data.length": run_on.data.length, "data.batch": run_on.data.batch,
                         "model.width": run_on.model.width, "model.depth": run_on.model.depth, "shrunk": at is None}
    if not quiet:
        print(("a step of the base is large, so it is shrunk: " if at is None else "trained as it is: ")
              + ", ".join(f"{name} {value}" for name, value in out["trained_at"].items() if name != "shrunk"))
    due = [name for name in wanted if stand[name].recipe or len(wanted) < len(stand)]  # of all, those that fit
    if at is None:
        stand |= standings((ideas()[name] for name in wanted if stand[name].recipe), run_on, None)
    able = {name: recipe for name in wanted if (recipe := stand[name].recipe) is not None}
    found = {}
    for name in sorted(able, key=lambda name: structure_id(able[name])):  # what compiles alike comes together
        found[name] = one = train(able[name], steps)
        out["ideas"][name] |= {"loss": one.loss if np.isfinite(one.loss) else None, "seconds": round(one.seconds, 2),
                               "failure": one.reason}
        if not quiet:
            end = f"FAILED: {one.reason}" if one.reason else f"loss {one.loss:.3f}"
            print(clean(f"  {name}: {end} after {steps} steps, {one.seconds:.1f} s"), flush=True)
    failed = [name for name in due if name not in found or found[name].reason]
    said = [t for t in techniques() if t.ideas and all(name in found and not found[name].reason for name in t.ideas)]
    out["checked"] = {"steps": steps, "trained": len(found), "failed": failed, "techniques": len(said),
                      "seconds": round(sum(one.seconds for one in found.values()), 1)}
    if not quiet:
        print(f"{len(found)} trained for {steps} steps in {out['checked']['seconds']:.0f} s, {len(failed)} failed"
              + (f": {', '.join(failed)}" if failed else "") + f"; {len(said)} techniques are said by ideas that train")
    return failed


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
