"""Train what the lanes draw, at every horizon of a track and on several seeds: a table of real runs.

    python -m research.check.bench record runs/table                      # 160 recipes of track tiny
    python -m research.check.bench record runs/table                      # again: goes on, whatever ended it
    python -m research.check.bench record runs/table --table tiny.jsonl --show     # what there is by now, as one file

The base, then the ladder's rungs, a few recipes whose rates are far off, then ROUND recipes at a time by each lane in
turn, from what the runs before say. A recipe runs at every horizon on every seed before a round is over, so that the
list follows from the seed and from the losses. Rungs and bad recipes are hidden from the lanes: a session would not
have them. The folder is a session (`research.status` and `research.report` read it): kill -9 loses the runs under way.

Cost of the whole: 4 horizons x 4 seeds are 7.5 full runs and 16 evaluations a recipe, on track tiny 75 s of one core;
160 recipes take an hour and three quarters of two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from jaxnano import data
from jaxnano.cli import Command, Failure, UserError, positive, seed_number
from jaxnano.config.base import ConfigError, dump_full, leaves
from jaxnano.config.recipe import recipe_id
from jaxnano.device import stay_at
from research import machine
from research.check.bench import table
from research.contract.gate import Gate, Verdict
from research.contract.part import BASE, IdeaEdit, Part, Proposal, title
from research.contract.proposal import build
from research.contract.rungs import ladder, stacks
from research.contract.track import Track, load_track, tracks
from research.contract.trial import Trial
from research.decide.book import Book
from research.decide.dispatch import Dispatcher
from research.decide.intake import Intake
from research.execute import Executor, Offer, executors
from research.execute.batch import HERE
from research.execute.trial import WARM
from research.lanes import NAMES, lanes_of
from research.lanes import lanes as known_lanes
from research.lanes.protocol import Knowledge
from research.learn.watch import WatchConfig
from research.ledger.events import Event, encode
from research.ledger.kinds import Begun, Decided, Ended, Resumed
from research.ledger.session import Session, SessionError
from research.ledger.state import FINAL, fold
from research.text import clean, loss

ROUND = 16  # recipes that are drawn at a time
RUNGS, BAD = 0.1, 0.05  # of the recipes: rungs of the ladder at most, and recipes whose rates are far off
LADDER, OFF = "ladder", "bad"  # what takes the place of a lane for these
FAR = 30.0  # times, or one over it, a rate
PATIENT = WatchConfig(stall_floor_s=inf, timeout_factor=inf)  # a busy machine says nothing of a recipe

PARSER = Command("research.check.bench record", __doc__)
PARSER.description, PARSER.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
PARSER.add_argument("folder", type=Path, help="of the session: new, or one that this has begun")
PARSER.add_argument("--track", default="tiny", help="a name below configs/tracks, or a YAML file")
PARSER.add_argument("--recipes", type=positive, default=160, help="the base and the rungs included")
PARSER.add_argument("--seeds", type=positive, default=4)
PARSER.add_argument("--seed", type=seed_number, default=0, help="of what is drawn")
PARSER.add_argument("--lanes", default=",".join(NAMES), help="comma-separated, those that draw, in turn")
PARSER.add_argument("--workers", type=positive, help="one a core, or one a device, by default")
PARSER.add_argument("--table", type=Path, metavar="FILE", help="the table's file; FOLDER/table.jsonl by default")
PARSER.add_argument("--show", action="store_true", help="write what there is by now and run nothing")


def full_runs(events: Iterable[Event[Any]]) -> Iterator[Event[Any]]:
    """The events without the runs at shorter horizons: of them the lanes need to know nothing."""
    return (event for event in events if event.kind not in ("decision", "attempt", "result")
            or event.subject.split("-")[1] == "1")


class Recorder:
    """Draws the recipes and runs them all. Everything follows from the session's ledger and its first event's plan."""

    def __init__(self, session: Session, track: Track, executor: Executor, plan: dict[str, Any]):
        self.track, self.executor, self.plan = track, executor, plan
        self.book, self.lanes = Book(session, track), lanes_of(plan["lanes"], known_lanes())
        place = self.book.state.session.place
        self.intake = Intake(self.book, Gate(track, devices=place.devices if place else 1), self.lanes)
        self.dispatcher = Dispatcher(self.book, executor, PATIENT)
        self.known = Book(session, track, full_runs)
        self._owners: dict[str, int] = {}  # recipe -> the worker that has compiled it
        self.intake.take_up()
        self.dispatcher.take_up()

    @property
    def drawn(self) -> list[str]:
        """Recipes that are to run, in the order in which they were drawn."""
        state = self.book.state
        return [rid for rid in state.proposals if rid in state.accepted]

    def open(self) -> list[Trial]:
        """Runs that are not over and not under way, recipe by recipe."""
        state, cells = self.book.state, [(h, s) for h in self.track.horizons for s in range(self.plan["seeds"])]
        trials = (Trial(rid, *cell) for rid in self.drawn for cell in cells)
        busy = {flight.trial for flight in self.dispatcher.flights.values()}
        return [t for t in trials if t not in busy
                and (t.key not in state.trials or state.trials[t.key].outcome not in FINAL)]

    def run(self) -> None:
        """Until all recipes are drawn and run. Raises: Failure where the machine fails, or the lanes are dry."""
        while True:
            self.book.refresh()
            left = self.open()
            waits = left or self.dispatcher.flights
            if len(self.drawn) < self.plan["recipes"] and (not waits or not self._round_is_whole):
                self.draw()
                continue
            if not waits:
                return
            for worker in self.dispatcher.idle:
                if left:
                    left.remove(trial := self.next(worker, left))
                    self.send(worker, trial)
            for message in self.executor.poll(1.0):
                self.dispatcher.handle(message)
            self.dispatcher.watch()
            if self.dispatcher.stopping:
                raise Failure(f"{self.dispatcher.retries.trouble}; the same command goes on once that is mended")

    def next(self, worker: int, left: list[Trial]) -> Trial:
        """The next run for a worker: of a recipe that it has compiled, or that nobody has, or of another's."""
        ranks = {worker: 0, None: 1}
        return min(left, key=lambda trial: ranks.get(self._owners.get(trial.recipe_id), 2))

    def send(self, worker: int, trial: Trial) -> None:
        """Have a worker run a trial, however long it takes."""
        self._owners[trial.recipe_id] = worker
        if trial.recipe_id not in {t.recipe_id for t in self.book.state.trials.values()}:
            print(f"{len(self.drawn)} of {self.plan['recipes']} recipes drawn; now "
                  f"{clean(self.book.state.proposals[trial.recipe_id].proposal.name)}", flush=True)
        purpose = BASE if trial.recipe_id == self.drawn[0] else "search"
        self.dispatcher.send(worker, trial, Decided(purpose=purpose, worker=worker, why="recorded"), shipped=False,
                             left_s=inf)
        self.dispatcher.flights[worker].first_message_s = inf

    @property
    def _first(self) -> int:
        """Recipes that the lanes do not draw."""
        return 1 + sum(int(share * self.plan["recipes"]) for share in (RUNGS, BAD))

    @property
    def _round_is_whole(self) -> bool:
        """Whether what is drawn may be run now: a draw that was interrupted goes on first."""
        over = len(self.drawn) - self._first
        return over >= 0 and over % self.plan["round"] == 0

    def draw(self) -> None:
        """One more proposal. Raises: Failure if nobody has one."""
        state, number = self.book.state, len(self.book.state.proposals)
        rng = np.random.default_rng([self.plan["seed"], number])
        if len(self.drawn) < self._first:
            lanes = [state.proposals[rid].proposal.lane for rid in self.drawn]
            if (rungs := lanes.count(LADDER)) < int(RUNGS * self.plan["recipes"]) and self._rung(rungs):
                return
            if self._bad(rng):
                return
        self.known.refresh()
        view = self._view()
        for turn in range(len(self.lanes)):
            lane = list(self.lanes.values())[(number + turn) % len(self.lanes)]
            if (proposal := lane.propose(view, rng)) is not None:
                self.intake.consider(proposal)
                if len(state.proposals) > number:
                    return
        raise Failure(f"the lanes {', '.join(self.lanes)} have nothing new after {len(self.drawn)} recipes; fewer "
                      "--recipes, or more lanes, would do")

    def _view(self) -> Knowledge:
        """What the lanes may know: the full runs of what they have drawn."""
        view, state = self.known.snapshot.view(), self.book.state
        hidden = {rid for rid, body in state.proposals.items() if body.proposal.lane in (LADDER, OFF)}
        return replace(view, known=[known for known in view.known if known.recipe_id not in hidden],
                       proposed=frozenset(state.proposals))

    def _rung(self, count: int) -> bool:
        """Propose the next rung above the base; whether there was one. The gate's word on it is a note."""
        rungs, base = ladder(), self.track.base_recipe
        for number in range(count + 1, len(rungs)):
            try:
                rung, parts = rungs[number], stacks(rungs[: number + 1], base)[-1]
                recipe = build(base, parts)
            except ConfigError:  # the track's base has no place for it, nor for those above
                return False
            if recipe_id(recipe) not in self.book.state.proposals:
                said = self.intake.gate.judge_parts(parts)
                proposal = Proposal(name=rung.name, parts=parts, hypothesis=f"record {rung.record} of track 1",
                                    lane=LADDER, origin="configs/records/ladder.yaml")
                self.intake.admit(proposal, recipe, Verdict(recipe, notes=[str(problem) for problem in said.problems]))
                return True
        return False

    def _bad(self, rng: np.random.Generator) -> bool:
        """Propose a known recipe with a rate far off; whether it got as far as a verdict."""
        state = self.book.state
        parent = self.book.snapshot.by_id[self.drawn[rng.integers(len(self.drawn))]]
        rates = [leaf for leaf in leaves(parent.recipe) if leaf.path.endswith((".lr", ".lr.value"))]
        if not rates:
            return False
        leaf = rates[rng.integers(len(rates))]
        value = float(f"{leaf.value * FAR ** rng.choice((-1.0, 1.0)):.3g}")
        value = min(max(value, leaf.range.low), leaf.range.high)
        part = Part(name=f"far {leaf.path}", edits=(IdeaEdit(path=leaf.path, new=value),))
        parts, number = (*parent.parts, part), len(state.proposals)
        self.intake.consider(Proposal(name=title(parts), parts=parts, lane=OFF, origin="a rate far off",
                                      hypothesis=f"{value:g} for {leaf.value:g} is too much or too little"))
        return len(state.proposals) > number


def beginning(options: argparse.Namespace, track: Track, offered: Offer, plan: dict[str, Any]) -> Begun:
    """The session's first event; what is recorded stands in it too."""
    source = options.track if options.track in tracks() else str(Path(options.track).resolve())
    return Begun.model_validate({
        "track": track.name, "source": source, "contract": dump_full(track), "track_hash": track.identity,
        "data_hash": data.load(track.base_recipe.data).data_hash, "seed": options.seed, "workers": offered.workers,
        "lanes": tuple(plan["lanes"]), "place": offered.place, "versions": machine.versions(), "pid": os.getpid(),
        "accelerator": offered.device_bytes is None, "argv": tuple(sys.argv[1:]), "recorded": plan})


def _of_runs(contract: Any) -> str:
    """A track's contract but for how it proves: no run that is recorded depends on that."""
    return encode({name: value for name, value in (contract or {}).items() if name not in ("significance", "splits")})


def opened(options: argparse.Namespace, track: Track, begun: Begun) -> Session:
    """The folder's session, locked: a new one, or the one that was begun there with the same plan.

    Raises: SessionError for any other folder.
    """
    if not (options.folder / "ledger.sqlite").exists():
        session = Session.create(options.folder)
        session.ledger.append("session", "", begun)
        return session
    session = Session.open(options.folder, lock=True)
    with ExitStack() as opening:
        opening.enter_context(session)
        there = fold(session.ledger.events()).session
        if _of_runs(there.contract) != _of_runs(begun.contract):
            raise SessionError(f"{options.folder}: the track's contract is another here; a new folder would do")
        for name in ("recorded", "data_hash"):
            was, now = ((found.model_dump() | (found.model_extra or {})).get(name) for found in (there, begun))
            if was != now:
                raise SessionError(f"{options.folder}: {name} is {now} here, {was} there; that, or a new folder, "
                                   "would do")
        session.ledger.append("resume", "", Resumed(pid=os.getpid(), workers=begun.workers))
        opening.pop_all()
    return session


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = PARSER.options(argv)
    path = options.table or options.folder / "table.jsonl"
    if options.show:
        with Session.open(options.folder) as session:
            told(table.table_of(session), path)
        return 0
    plan = {"recipes": options.recipes, "seeds": options.seeds, "seed": options.seed, "round": ROUND,
            "lanes": options.lanes.split(",")}
    lanes_of(plan["lanes"], known_lanes())
    stay_at({"JAX_PLATFORMS": "cpu"})  # the devices are the workers'
    track = load_track(options.track)
    if track.objective.waits_for_base or track.seconds(1.0, 1.0) is not None:
        raise UserError(f"--track: {options.track}: its budget is time, which other runs would change; one in FLOPs or "
                        "steps would do")
    offered = executors.offer(HERE, options.workers, track.devices)
    begun = beginning(options, track, offered, plan)
    with (opened(options, track, begun) as session,
          closing(offered.start(session.workers, WARM)) as executor):
        recorder = Recorder(session, track, executor, plan)
        recorder.run()
        recorder.book.record("end", "", Ended(reason="recorded"))
        told(table.table_of(session), path)
    return 0


def told(found: table.Table, path: Path) -> None:
    """Write a table's file and say what it holds."""
    table.write(found, path)
    whole, cells = found.whole, len(found.header.horizons) * found.header.seeds
    best = min(map(found.value, whole), default=inf)
    print(f"{path}: {len(found.runs)} of {cells * len(found.recipes)} runs of {len(found.recipes)} recipes, "
          f"{len(whole)} of them whole, {found.header.device_s / 3600:.1f} device-hours, "
          f"{path.stat().st_size / 1e6:.2f} MB" + (f"; the best loses {loss(best)}" if best < inf else ""))
