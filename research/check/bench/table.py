"""A table of real runs: what it holds, how a recorded session becomes one, and its file, one JSON object a line."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ValidationError

from jaxnano.cli import UserError
from jaxnano.config.base import ConfigError, Node, validate
from jaxnano.config.recipe import Recipe
from jaxnano.cost import preflight
from research.contract.track import Track
from research.decide.book import track_of
from research.ledger.events import encode
from research.ledger.kinds import Begun, Proposed
from research.ledger.session import Session, replace_file
from research.ledger.state import FINAL, State, fold

POINTS = 32  # of a curve, at most


class Header(Node):
    """Where a table's runs come from. session: how it was begun: track, contract, data, seed, versions, command. split:
    that losses are of. devices, code: that runs were made on and by, as hashes of the sources. first, last: days in
    UTC. device_s: of all runs, those that were interrupted included."""

    session: Begun
    split: str
    horizons: tuple[float, ...]
    seeds: int
    devices: tuple[str, ...]
    code: tuple[str, ...]
    first: str
    last: str
    device_s: float


class Row(Node):
    """A recipe. notes: what the gate said of one that a session would not have run."""

    id: str
    proposed: Proposed
    flops_per_step: float
    parameters: int
    notes: tuple[str, ...] = ()


class Run(Node):
    """A run of recipe number `recipe`. loss: nats, None unless it completed. compile_s is in device_s. curve: (share of
    the horizon's FLOPs, training loss), thinned."""

    recipe: int
    horizon: float
    seed: int
    outcome: str
    loss: float | None = None
    steps: int = 0
    device_s: float = 0.0
    compile_s: float = 0.0
    tokens_per_s: float = 0.0
    curve: tuple[tuple[float, float | None], ...] = ()

    @property
    def steady_s(self) -> float:
        """Seconds of the run, compiling left out."""
        return max(self.device_s - self.compile_s, 0.01)


class Table(Node):
    """Recipes, the base first, and their runs."""

    header: Header
    recipes: tuple[Row, ...]
    runs: tuple[Run, ...]

    @cached_property
    def at(self) -> dict[tuple[int, float, int], Run]:
        """The runs by recipe, horizon and seed."""
        return {(run.recipe, run.horizon, run.seed): run for run in self.runs}

    @cached_property
    def whole(self) -> tuple[int, ...]:
        """Recipes of which every run is there."""
        cells = [(horizon, seed) for horizon in self.header.horizons for seed in range(self.header.seeds)]
        return tuple(i for i in range(len(self.recipes)) if all((i, *cell) in self.at for cell in cells))

    @cached_property
    def track(self) -> Track:
        """The track that it was recorded on, with the base that it had."""
        track = validate(Track, self.header.session.contract)
        vars(track)["base_recipe"] = validate(Recipe, self.recipes[0].proposed.recipe)  # fills the cached property
        return track

    @cached_property
    def compile_s(self) -> tuple[float, ...]:
        """By recipe, seconds that its program took to compile: in one of its runs, for the others had it in memory."""
        found = [0.0] * len(self.recipes)
        for run in self.runs:
            found[run.recipe] = max(found[run.recipe], run.compile_s)
        return tuple(found)

    @cached_property
    def steady_s(self) -> dict[float, float]:
        """Median seconds of a run, compiling left out, by horizon; at 0, of compiling."""
        found = {horizon: [run.steady_s for run in self.runs if run.horizon == horizon and run.loss is not None]
                 for horizon in self.header.horizons}
        return {0.0: median(self.compile_s), **{horizon: median(seconds) for horizon, seconds in found.items()}}

    def value(self, recipe: int) -> float:
        """The mean of a recipe's losses at the full horizon, nats; infinite where one did not complete."""
        found = [self.at[recipe, 1.0, seed].loss for seed in range(self.header.seeds)]
        return math.inf if None in found else sum(found) / len(found)  # type: ignore[arg-type]


def thinned(curve: Sequence[tuple[float, float | None]]) -> tuple[tuple[float, float | None], ...]:
    """At most POINTS of a curve's points, evenly, the last among them."""
    step = max(1, math.ceil(len(curve) / POINTS))
    return tuple((round(share, 4), None if loss is None or not math.isfinite(loss) else round(loss, 4))
                 for share, loss in reversed(curve[::-1][::step]))


def table_of(session: Session) -> Table:
    """What a recorded session has by now.

    Raises: UserError for another session.
    """
    events = session.ledger.events()
    state = fold(events)
    plan = (state.session.model_extra or {}).get("recorded")
    if plan is None:
        raise UserError(f"{session.path}: was not recorded by this command; a folder that was would do")
    track = track_of(state)
    notes = {event.subject: event.body.notes for event in events if event.kind == "verdict"}
    ids = [rid for rid in state.proposals if rid in state.accepted]
    rows = [_row(rid, state.proposals[rid], notes.get(rid, ())) for rid in ids]
    results = [attempt.result for attempt in state.attempts() if attempt.result is not None]
    prints = [result.fingerprint for result in results if result.fingerprint]
    header = Header(
        session=state.session, split=track.splits.search, horizons=track.horizons, seeds=plan["seeds"],
        devices=_told(prints, "device"), code=_told(prints, "code"), first=_day(events[0].time),
        last=_day(events[-1].time), device_s=round(sum(result.device_s or 0.0 for result in results), 1))
    return Table(header=header, recipes=tuple(rows), runs=tuple(_runs(state, ids, track.splits.search)))


def _told(prints: Iterable[dict[str, Any]], name: str) -> tuple[str, ...]:
    return tuple(sorted({str(told[name]) for told in prints if name in told}))


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _row(rid: str, body: Proposed, notes: Sequence[str]) -> Row:
    cost = preflight(validate(Recipe, body.recipe))
    return Row(id=rid, proposed=body, flops_per_step=cost.flops_per_step, parameters=cost.parameters,
               notes=tuple(notes))


def _runs(state: State, ids: Sequence[str], split: str) -> Iterator[Run]:
    number = {rid: i for i, rid in enumerate(ids)}
    records = [record for record in state.trials.values() if record.outcome in FINAL and record.recipe_id in number]
    for record in sorted(records, key=lambda record: (number[record.recipe_id], record.horizon, record.seed)):
        result = record.result
        assert result is not None
        loss = record.loss.get(split)
        yield Run(recipe=number[record.recipe_id], horizon=record.horizon, seed=record.seed, outcome=result.outcome,
                  loss=None if loss is None else round(loss, 6), steps=result.steps or 0,
                  device_s=round(result.device_s or 0.0, 2), compile_s=round(result.compile_s or 0.0, 2),
                  tokens_per_s=round(result.tokens_per_s or 0.0), curve=thinned(result.curve))


def write(table: Table, path: Path) -> None:
    """Write a table's file, whole or not at all."""
    lines = [encode({"header": table.header}), *(encode({"recipe": row}) for row in table.recipes),
             *(encode({"run": _short(run)}) for run in table.runs)]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, ("\n".join(lines) + "\n").encode())


def _short(run: Run) -> dict[str, Any]:
    return run.model_dump(exclude_defaults=True)


def load(path: Path) -> Table:
    """Read a table's file.

    Raises: UserError that names the line that is none of a table.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"--table: {path}: {reason}; a file that `record` has written would do") from None
    header, rows, runs = None, [], []
    for number, line in enumerate(lines, start=1):
        try:
            found = _Line.model_validate_json(line)
        except (ValidationError, ConfigError) as error:
            told = str(error).splitlines()
            raise UserError(f"--table: {path}, line {number}: {' '.join(told[1:3]) or told[0]}") from None
        header = found.header or header
        rows += [found.recipe] if found.recipe else []
        runs += [found.run] if found.run else []
    if header is None or not rows:
        raise UserError(f"--table: {path}: no table: it has no header or no recipe; a file that `record` has written "
                        "would do")
    return Table(header=header, recipes=tuple(rows), runs=tuple(runs))


class _Line(Node):
    header: Header | None = None
    recipe: Row | None = None
    run: Run | None = None
