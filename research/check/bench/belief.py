"""How well the belief foretells runs: each completed search run of a session, from all that came before it.

    python -m research.check.bench belief runs/tiny-20260101-000000 SESSION ...
    python -m research.check.bench belief runs/table --every 5        # of a long session, every fifth run

A run is foretold as the loop would have at the moment before its result came. Runs that are the first in their cell
(horizon and seed) are left out: a cell's level is not foretold but measured. Leaders are the ten recipes with the
highest mean at the session's end. `nll` is the mean negative log density, in nats: lower is better.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxnano.cli import Command, positive
from research.decide.belief import SEEDS, Belief, Snapshot
from research.decide.book import track_of
from research.ledger.session import Session
from research.ledger.state import State, fold

LEADERS = 10
LEAST = 8  # completed runs, for a first prediction
Z_90 = 1.645  # standard deviations to either side of a Gaussian's 90 % interval

PARSER = Command("research.check.bench belief", __doc__)
PARSER.description, PARSER.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
PARSER.add_argument("sessions", type=Path, nargs="+", metavar="SESSION")
PARSER.add_argument("--every", type=positive, default=1, help="of so many runs, one is foretold")
PARSER.add_argument("--json", action="store_true")


class Foretold(NamedTuple):
    """A run: whose, how far off its foretold mean it ended, and the standard deviation foretold, nats."""

    recipe_id: str
    off: float
    sd: float

    @property
    def nll(self) -> float:
        """Negative log density of what came."""
        return float(np.log(self.sd) + 0.5 * (self.off / self.sd) ** 2 + 0.5 * np.log(2 * np.pi))


def foretold(session: Path, every: int = 1) -> tuple[list[Foretold], list[str]]:
    """The runs of a session as they were foretold, and its leaders."""
    with Session.open(session) as opened:
        events = opened.ledger.events()
    belief, state, found, completed = Belief(track_of(fold(events))), State(), [], 0
    now = belief.at(state)
    for event in events:
        if event.kind == "result" and event.body.outcome == "completed":
            trial, now = state.trials[event.subject], belief.at(state)
            if trial.seed < SEEDS and trial.recipe_id in now.by_id and trial.outcome != "completed":
                completed += 1
                if completed > LEAST and completed % every == 0 and (one := _foretold(now, trial, event.body)):
                    found.append(one)
        state.apply(event)
    now = belief.at(state)
    mean, ran = now.effects[0], [i for i, arm in enumerate(now.arms) if now.finished[arm.recipe_id]]
    return found, [now.arms[i].recipe_id for i in sorted(ran, key=lambda i: -mean[i])[:LEADERS]]


def _foretold(now: Snapshot, trial: Any, result: Any) -> Foretold | None:
    """None of a run whose cell has none yet."""
    runs = now.fitted.runs
    if not np.any((runs.horizon == trial.horizon) & (runs.seed == trial.seed)):
        return None
    mean, sd = now.fitted.outcomes([now.by_id[trial.recipe_id].candidate], [trial.horizon], [trial.seed])
    return Foretold(trial.recipe_id, -result.loss[now.track.splits.search] - float(mean[0]), float(sd[0]))


def counted(name: str, runs: Sequence[Foretold], leaders: Sequence[str]) -> dict[str, Any]:
    """What is told of a session."""
    def covered(some: Sequence[Foretold]) -> float | None:
        return float(np.mean([abs(run.off) <= Z_90 * run.sd for run in some])) if some else None

    of_leaders = [run for run in runs if run.recipe_id in leaders]
    return {"session": name, "runs": len(runs), "covered": covered(runs), "of_leaders": len(of_leaders),
            "leaders_covered": covered(of_leaders), "nll": float(np.mean([run.nll for run in runs])) if runs else None,
            "rmse": float(np.sqrt(np.mean([run.off**2 for run in runs]))) if runs else None,
            "sd": float(np.median([run.sd for run in runs])) if runs else None}


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options, rows, runs, leading = PARSER.options(argv), [], [], []
    for number, session in enumerate(options.sessions):
        found, leaders = foretold(session, options.every)
        rows.append(counted(session.name, found, leaders))
        runs += [run._replace(recipe_id=f"{number} {run.recipe_id}") for run in found]
        leading += [f"{number} {leader}" for leader in leaders]
    rows.append(counted("all", runs, leading))
    print(json.dumps(rows) if options.json else page(rows))
    return 0


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The counts as a Markdown table."""
    def told(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return "\n".join(["| session | runs | 90 % intervals cover | leaders' runs | cover | nll | rmse | median sd |",
                      "|---|---|---|---|---|---|---|---|", *(
        f"| {row['session']} | {row['runs']} | {told(row['covered'], '.1%')} | {row['of_leaders']} | "
        f"{told(row['leaders_covered'], '.1%')} | {told(row['nll'], '.3f')} | {told(row['rmse'], '.4f')} | "
        f"{told(row['sd'], '.4f')} |" for row in rows)])
