"""Random and corrupted recipes: what the gate accepts must train, what is broken must be refused with its place.

    python -m research.check.fuzz --random 1000 --train 60 --corrupt 1000 --formulas 1000 --causality 300

Half of the random ones are drawn from the nodes, half are what the lanes propose. Formulas drawn at random, in all
places of a model, must not let a feature depend on a later token. About 7 minutes on one idle core.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from jaxnano.cli import Command, report_errors, seed_number

PARSER = Command("research.check.fuzz", __doc__)
PARSER.add_argument("--track", default="tiny", help="base and limits: a name below configs/tracks, or a YAML file")
PARSER.add_argument("--random", type=int, default=1000, help="random recipes to judge")
PARSER.add_argument("--train", type=int, default=60, help="accepted ones to train for 3 steps")
PARSER.add_argument("--corrupt", type=int, default=1000, help="broken recipes to judge")
PARSER.add_argument("--formulas", type=int, default=1000, help="recipes with a hostile formula to judge")
PARSER.add_argument("--causality", type=int, default=300, help="formulas drawn at random, of which none may look ahead")
PARSER.add_argument("--seed", type=seed_number, default=0)
PARSER.early(__name__)

import jax
import jax.numpy as jnp
import numpy as np

from jaxnano.config.base import dump
from jaxnano.config.recipe import Recipe, hypers, recipe_id, stages
from jaxnano.phases import Leg
from jaxnano.step import init_state, migrate, optimizer_at, train_steps
from research.check import causality
from research.check.corrupt import corrupt, hostile
from research.contract.draw import random_recipe
from research.contract.gate import Gate, Verdict
from research.contract.part import Part, title
from research.contract.proposal import build, try_build
from research.contract.track import Track, load_track
from research.lanes import lanes
from research.lanes.catalogue import ranked
from research.lanes.protocol import Knowledge, Known

STACKS, PROPOSALS = 8, 5  # of ideas that have run, and of each lane before others have
MOST_DIVERGED = 0.02  # of what trains


def trains(recipe: Recipe, steps: int = 3) -> bool:
    """Whether all losses and parameters of a few steps on random tokens are finite; small batch, compiled cheaply.

    Each phase gets as many.
    """
    run_of = [Leg(0, part._replace(recipe=part.recipe.model_copy(update={"data": recipe.data.model_copy(
        update={"length": 16, "batch": 2})}))) for part in stages(recipe)]
    values = [hypers(leg.recipe, steps) for leg in run_of]
    batches = np.random.default_rng(0).integers(0, recipe.model.vocab, (steps, 2, 17), dtype=np.uint16)

    def run(seed: jax.Array, batches: jax.Array, values: Any) -> Any:
        first, found = run_of[0].recipe, []
        state = init_state(first, seed, values[0])
        for before, leg, numbers in zip((first, *(leg.recipe for leg in run_of)), run_of, values, strict=False):
            state = state if leg is run_of[0] else migrate(state, before, leg, 0, steps)
            state, losses = train_steps(leg.recipe, state, batches, jnp.int32(steps), numbers)
            found.append(losses)
        return found, optimizer_at(run_of[-1].recipe, steps, values[-1])[1].eval_params(state.optimizer)

    program = jax.jit(run).lower(np.uint32(1), batches, values)
    outcome = program.compile(compiler_options={"xla_backend_optimization_level": "0"})(np.uint32(1), batches, values)
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(jax.device_get(outcome)))


def proposed(rng: np.random.Generator, track: Track) -> Iterator[Recipe]:
    """What lanes propose when a few stacks of ideas have run, each with a gain drawn at random; without an end."""
    parts = ranked(track)  # type: ignore[arg-type]  # frozen, so it hashes
    while True:
        known = [_known(track, (), 0.0)]
        for _ in range(STACKS):
            stack: tuple[Part, ...] = ()
            for index in rng.integers(len(parts), size=rng.integers(1, 5)):
                if try_build(track.base_recipe, more := (*stack, parts[index])) is not None:
                    stack = more
            known.append(_known(track, stack, rng.normal(0.0, 0.1)))
        view = Knowledge(track, sorted(known, key=lambda k: -k.mean), frozenset(k.recipe_id for k in known))
        for lane in lanes().values():
            for _ in range(PROPOSALS):
                if (proposal := lane.propose(view, rng)) is not None:
                    recipe = build(track.base_recipe, proposal.parts)
                    view = replace(view, proposed=view.proposed | {recipe_id(recipe)})
                    yield recipe


def _known(track: Track, parts: tuple[Part, ...], mean: float) -> Known:
    recipe = build(track.base_recipe, parts)
    return Known(recipe_id(recipe), title(parts), recipe, parts, mean, 0.01, 1, mean)


def names_the_place(verdict: Verdict, path: str) -> bool:
    """Whether a refusal tells the place, a value and a rule, each on one line."""
    return not verdict.accepted and all("\n" not in str(p) and p.rule for p in verdict.problems) and any(
        not path or p.path == path or p.path.startswith(f"{path}.") for p in verdict.problems)


def main(argv: list[str] | None = None) -> int:
    """Prints counts and times of verdicts; 1 if anything trained badly, slipped through or crashed."""
    args = PARSER.options(argv)
    track, rng = load_track(args.track), np.random.default_rng(args.seed)
    gate, failures = Gate(track), []
    drawn = itertools.chain((random_recipe(rng, track.base_recipe) for _ in range(args.random // 2)),
                            itertools.islice(proposed(rng, track), args.random - args.random // 2))
    verdicts = [_judged(gate, recipe) for recipe in drawn]
    accepted = [v.recipe for v in verdicts if v.recipe is not None]
    print(f"random: {len(verdicts)}, accepted {len(accepted)}, {times(v.ms for v in verdicts if v.accepted)}")
    reasons = Counter(p.path for v in verdicts for p in v.problems)
    refused = times(v.ms for v in verdicts if not v.accepted)
    print(f"  refused {len(verdicts) - len(accepted)} ({dict(reasons.most_common(4))}), {refused}")
    chosen = [accepted[i] for i in rng.permutation(len(accepted))[: args.train]]
    diverged = [recipe for recipe in chosen if not trains(recipe)]  # a crash would end this command
    print(f"trained: {len(chosen)}, not finite {len(diverged)}")
    if len(diverged) > MOST_DIVERGED * len(chosen):
        failures += [f"does not stay finite: {json.dumps(dump(recipe))}" for recipe in diverged]
    for name, count, ways in (("corrupted", args.corrupt, None), ("hostile formulas", args.formulas, (hostile,))):
        spent, reasons = [], Counter()
        for _ in range(count):
            broken = corrupt(rng, accepted[int(rng.integers(len(accepted)))], track.frozen, ways)
            verdict = gate.judge(broken.data)
            spent.append(verdict.ms)
            reasons[broken.reason.split()[0]] += 1
            if not names_the_place(verdict, broken.path):
                told = "; ".join(str(p) for p in verdict.problems)[:200] or "accepted"
                failures.append(f"{broken.reason} at {broken.path or '(top)'}: {told}")
        print(f"{name}: {count}, {times(spent)}\n  {dict(reasons)}")
    judged = causality.judge(rng, args.causality)
    print(f"causality: {judged.formulas} formulas in {judged.models} models; {judged.blank} more were not finite")
    failures += [f"a feature depends on a later token: {json.dumps(dump(recipe))}" for recipe in judged.ahead]
    print("\n".join(failures) if failures else "all refused with path, value and rule; none crashed")
    return 1 if failures else 0


def _judged(gate: Gate, recipe: Recipe) -> Verdict:
    """The gate's verdict; where it crashes, the error names the recipe."""
    try:
        return gate.judge(dump(recipe))
    except Exception as error:
        error.add_note(json.dumps(dump(recipe)))
        raise


def times(ms: Iterable[float]) -> str:
    """Median and 95th percentile of a verdict."""
    spent = list(ms) or [math.nan]
    return f"median {np.median(spent):.2f} ms, 95 % {np.percentile(spent, 95):.2f} ms"


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
