"""Runs a trial again from the ledger alone, and compares.

    python -m research.replay runs/tiny-20260101-000000 KEY
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, Failure, Output, UserError, report_errors

PARSER = Command("research.replay", __doc__)
PARSER.add_argument("session", type=Path)
PARSER.add_argument("id", help="a trial's key, or its beginning")
PARSER.add_argument("--json", action="store_true")
PARSER.early(__name__)

from jaxnano import data
from jaxnano.config.base import dump_full, validate
from jaxnano.config.recipe import Recipe
from research.contract.track import Track
from research.contract.trial import PROOF
from research.execute import executors
from research.execute.batch import HERE, job, run_batch
from research.ledger.placed import Placed
from research.ledger.session import Session
from research.ledger.state import fold
from research.machine import TOLERANCE
from research.text import beginning, the_one


def replay(session: Path, name: str) -> dict[str, Any]:
    """Run one trial again.

    Returns: the trial's key, each split's loss then and now, the largest difference, what it was run on then and now
    where that differs, what is promised (equal to the bit under an equal fingerprint), and whether that holds.
    """
    with Session.open(session) as opened:
        state = fold(opened.ledger.events())
    some = ", ".join([*state.trials][:5])
    key = the_one(name, beginning(name, state.trials), f"no such trial; {some} would do")
    trial = state.trials[key]
    if trial.outcome != "completed":
        raise UserError(f"{name}: is {trial.outcome}; a completed trial can be replayed")
    before, attempt = trial.result, trial.attempts[-1]
    assert before is not None and before.steps is not None
    recipe = validate(Recipe, state.proposals[trial.recipe_id].recipe)
    contract = validate(Track, state.session.contract)
    protected = contract.splits.all_protected if attempt.purpose in PROOF else ()
    splits = {split: contract.proof_tokens if split in protected else contract.eval_tokens for split in trial.loss}
    corpus = data.load(recipe.data)
    if corpus.data_hash != before.fingerprint["data"]:
        raise UserError(f"{session}: its data {before.fingerprint['data'][:12]} is not this machine's "
                        f"{corpus.data_hash[:12]}; the same versions of the wheels would do")
    like = _like(state.session.place)
    mesh = None if like is HERE else contract.mesh
    again = job(recipe, trial.horizon, trial.seed, before.steps, splits, corpus.data_hash, mesh=mesh)
    after = run_batch([again], 1, "replay", like)[trial.key]
    if after.outcome != "completed":
        raise Failure(f"{trial.key}: completed then, and {after.outcome} now: {after.reason}")
    then, now = ({**result.fingerprint, **(dump_full(result.topology) if result.topology else {})}
                 for result in (before, after))
    differs = {k: {"then": v, "now": now.get(k)} for k, v in then.items() if now.get(k) != v}
    gap = max(abs((after.loss.get(split) or math.inf) - loss) for split, loss in trial.loss.items())
    return {"trial": trial.key, "then": trial.loss, "now": after.loss, "difference": gap,
            "fingerprint_differs": differs, "holds": gap == 0.0 if not differs else gap <= TOLERANCE,
            "promise": f"within {TOLERANCE:g} nats, for other {', '.join(differs)}" if differs else "equal to the bit"}


def _like(place: Placed | None) -> argparse.Namespace:
    """Options of a place like that, where this machine has one; else of any."""
    if place is None:
        return HERE
    kind = place.kind if place.kind in ("cpu", "virtual") else None
    options = argparse.Namespace(executor="local", devices_per_trial=place.devices, platform=kind)
    try:
        executors.offer(options, 1)
    except UserError:
        return HERE
    return options


def main(argv: list[str] | None = None) -> int:
    """The command: exit code 1 if the promise does not hold."""
    options = PARSER.options(argv)
    found = replay(options.session, options.id)
    Output(options.json).table("replay", found)
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
