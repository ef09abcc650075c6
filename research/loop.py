"""The researcher: proposes, checks, runs, learns and proves, until the time is up.

    python -m research.loop                     # track tiny, ten minutes
    python -m research.loop --minutes 60 --session runs/night
    python -m research.loop --session runs/night --resume
    python -m research.loop --executor ray --ray-address 10.0.0.1:6379
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, Failure, UserError, above_zero, report_errors
from research.execute import Offer, executors
from research.lanes import NAMES
from research.outside.llm import options as llm_options
from research.text import clean, count

MINUTES = 10.0
TRACKERS = ("wandb", "trackio")

PARSER = Command("research.loop", __doc__)
PARSER.add_argument("--track", default="tiny", help="a name below configs/tracks, or a YAML file")
PARSER.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change the track's base")
PARSER.add_argument("--minutes", type=float, help=f"report included (default {MINUTES:g}; --resume: what was left)")
PARSER.add_argument("--max-trials", type=int, help="search runs at most")
PARSER.add_argument("--workers", type=int, help="one a core, or one a device, by default")
executors.add_options(PARSER)
PARSER.add_argument("--tensorboard", action="store_true", help="event files too: tensorboard --logdir S/trials")
PARSER.add_argument("--tracker", choices=TRACKERS, help="every run that ends, into this one too")
PARSER.add_argument("--seed", type=int, default=0, help="of the researcher's own choices")
PARSER.add_argument("--session", type=Path, help="folder; runs/TRACK-TIME by default")
PARSER.add_argument("--lanes", help=f"comma-separated, of {', '.join(NAMES)} (all by default) and llm")
PARSER.add_argument("--from", dest="origin", type=Path, metavar="SESSION", help="start from its champion")
PARSER.add_argument("--import", dest="imports", type=Path, action="append", default=[], metavar="SESSION",
                    help="what it has found informs the search; nothing of it is proven or paired here")
PARSER.add_argument("--registry", type=Path, metavar="FILE", help="of all seals; the user's own by default, see books")
PARSER.add_argument("--flat-priors", action="store_true", help="count nothing that is promised of an idea; --resume "
                    "keeps to it")
PARSER.add_argument("--require-review", action="store_true", help="crown only what a person approved")
PARSER.add_argument("--resume", action="store_true", help="go on with --session")
llm_options.add_options(PARSER)
PARSER.early(__name__)
if __name__ == "__main__":
    print("loading JAX, the lanes and the track (some seconds)", flush=True)

from jaxnano.config.base import dump, dump_full
from jaxnano.config.recipe import recipe_id
from jaxnano.curves import require_tensorboard
from jaxnano.device import stay_at
from research import machine
from research.contract.idea import ideas
from research.contract.part import FROM, LLM, Proposal
from research.contract.proposal import build, live
from research.contract.track import Track, load_track, tracks
from research.decide.belief import Belief, Snapshot
from research.decide.book import track_of
from research.decide.plan import least_minutes, minutes_left, unbegun
from research.decide.proof import pending
from research.decide.scheduler import Scheduler
from research.execute import ready
from research.lanes import lanes as known_lanes
from research.lanes import lanes_of
from research.lanes.catalogue import Catalogue, by_family, left_out
from research.lanes.protocol import Proposer
from research.ledger.kinds import Begun, Ended, Imported, Proposed, Resumed
from research.ledger.registry import Registry
from research.ledger.session import Session, SessionError, default_session_dir
from research.ledger.state import fold
from research.outside import tracker
from research.outside.llm.lane import Llm

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a kind kill, a closed terminal: end cleanly


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options. Raises: ValueError for some that cannot be used."""
    options = PARSER.options(argv)
    for name in ("minutes", "max_trials", "workers"):
        above_zero(options, name)
    if options.seed < 0:
        raise UserError(f"--seed: {options.seed}: 0 or more would do")
    if options.resume and options.session is None:
        raise UserError("--resume: absent: --session SESSION names the folder to go on with")
    executors.check(options)
    if options.tensorboard:
        require_tensorboard()
    tracker.require(options.tracker)
    return options


Opened = tuple[Session, Track, Begun, Offer]


def lanes_for(names: Sequence[str], options: argparse.Namespace, llm: dict[str, Any] | None = None
              ) -> dict[str, Proposer]:
    """The lanes by name. llm: what the session says of that lane, where it has begun."""
    known = known_lanes()
    if LLM in names:
        known[LLM] = Llm.of(options, llm)
    return lanes_of(names, known)


def start(options: argparse.Namespace) -> Opened:
    """A new session, locked, with its first event written, and the champion it inherits proposed."""
    lanes = (options.lanes or ",".join(known_lanes())).split(",")
    llm = lanes_for(lanes, options).get(LLM)
    track = load_track(options.track, options.set)
    source = options.track if options.track in tracks() else str(Path(options.track).resolve())
    offered, minutes = executors.offer(options, options.workers, track.devices), options.minutes or MINUTES
    track.admit(offered.place.devices)
    begun = Begun(
        track=track.name, source=source, contract=dump_full(track), track_hash=track.identity, data_hash="",
        seed=options.seed, minutes=minutes, max_trials=options.max_trials, workers=offered.workers, lanes=tuple(lanes),
        pid=os.getpid(), require_review=options.require_review, flat_priors=options.flat_priors,
        ideas=by_family(track) if Catalogue.name in lanes else {}, executor=options.executor,
        accelerator=offered.device_bytes is None, place=offered.place,
        llm=dump_full(llm.settings) if isinstance(llm, Llm) else None, versions=machine.versions(),
        argv=tuple(sys.argv[1:]))
    folder = options.session or default_session_dir(track.name)
    refuse_too_short("--minutes", unbegun(track, begun), offered.workers, minutes)
    corpus = ready.begin(track, folder)
    begun = begun.model_copy(update={"data_hash": corpus.data_hash,
                                     "bytes_per_token": corpus.bytes_per_token(track.splits.search)})
    if options.origin:
        begun = inherit(options.origin, begun)
    brought = [bring(path, begun) for path in options.imports]
    session = Session.create(folder)
    session.ledger.append("session", "", begun)
    for body in brought:
        session.ledger.append("imported", "", body)
    if Catalogue.name in lanes:
        for line in left_out(track, ideas().values()):
            print(clean(line), flush=True)
    return session, track, begun, offered


def resume(options: argparse.Namespace) -> Opened:
    """An old session, locked, if its contract and its data are still the same."""
    from jaxnano import data

    session = Session.open(options.session, lock=True)
    with ExitStack() as opened:
        opened.enter_context(session)
        state = fold(session.ledger.events())
        if (begun := state.begun) is None:
            raise SessionError(f"{options.session}: its loop ended before it began; another folder would do")
        track = begun_track(begun)
        found = {"track_hash": track.identity, "data_hash": data.load(track.base_recipe.data).data_hash}
        for name, value in found.items():
            if value != (there := getattr(begun, name)):
                raise SessionError(f"{options.session}: {name} is {value[:12]} here, {there[:12]} there: "
                                   "another track or data; start a new session")
        lanes_for(begun.lanes, options, begun.llm)
        ready.refuse([ready.disk(options.session), ready.clock(options.session)])
        offered = executors.again(options, begun, track.devices)
        snapshot = Belief(track).at(state)
        if state.end is not None and not pending(snapshot) and len(state.verifications) == len(state.sealed):
            option = "--minutes" if options.minutes else "--resume: minutes left"
            refuse_too_short(option, snapshot, offered.workers, options.minutes or minutes_left(state))
        started = Resumed(pid=os.getpid(), workers=offered.workers, executor=options.executor)
        known = {event.body.origin for event in state.imports}
        brought = [body for body in (bring(path, begun) for path in options.imports) if body.origin not in known]
        session.ledger.append("resume", "", started)
        for body in brought:
            session.ledger.append("imported", "", body)
        opened.pop_all()
    return session, track, begun, offered


def begun_track(begun: Begun) -> Track:
    """The track that a session began on, as its file says today, with what was changed of the base."""
    return load_track(begun.source, (begun.contract or {}).get("set", ()))


def refuse_too_short(option: str, snapshot: Snapshot, workers: int, minutes: float) -> None:
    """Raises: UserError, naming the least that would do, if no run would fit into so little time."""
    if (least := least_minutes(snapshot, workers, minutes)) > minutes:
        raise UserError(f"{option}: {minutes:.3g}: too short for a run on track {snapshot.belief.track.name}, "
                        f"the base's before it and the report; --minutes {least:g} would do")


def inherit(origin: Path, begun: Begun) -> Begun:
    """The session's event with an earlier session's champion as the incumbent: what has to be beaten.

    Raises: ValueError if it has none, or if track or data differ.
    """
    with Session.open(origin) as session:
        state = fold(session.ledger.events())
    for name in ("track_hash", "data_hash"):
        if getattr(state.session, name) != getattr(begun, name):
            raise UserError(f"--from: {origin}: its {name} is another; a session of this track and data would do")
    if state.champion is None:
        raise UserError(f"--from: {origin}: it crowned no champion; a session that did would do")
    known, base = state.proposals[state.champion].proposal, begun_track(begun).base_recipe
    parts = live(base, known.parts)  # version 0.2 let edits pass that change nothing
    recipe = build(base, parts)
    proposal = Proposal(name=known.name, parts=parts, hypothesis=f"champion of {origin.name}", lane=FROM,
                        origin=origin.name)
    inherited = Proposed(recipe=dump(recipe), proposal=proposal)
    return begun.model_copy(update={"incumbent": recipe_id(recipe), "inherited": inherited})


def bring(origin: Path, begun: Begun) -> Imported:
    """What another session has found, as far as the search may know.

    Raises: UserError if its track or data differ, or it has found nothing.
    """
    with Session.open(origin) as session:
        state = fold(session.ledger.events())
    for name in ("track_hash", "data_hash"):
        if getattr(state.session, name) != getattr(begun, name):
            raise UserError(f"--import: {origin}: its {name} is another; a session of this track and data would do")
    track = track_of(state)
    now = Belief(track).at(state)
    runs = tuple((t.recipe_id, t.horizon, t.seed, t.loss[track.splits.search]) for t in state.trials.values()
                 if track.splits.search in t.loss and t.recipe_id in now.by_id)
    if not runs:
        raise UserError(f"--import: {origin}: it completed no run; a session that did would do")
    return Imported(origin=origin.resolve().name, runs=runs, features={
        recipe_id: dict(now.by_id[recipe_id].candidate.features) for recipe_id in dict.fromkeys(r[0] for r in runs)})


def run(options: argparse.Namespace) -> int:
    """One session from start to report."""
    ready.refuse([ready.registry(options.registry)])
    with Registry(options.registry) as registry:  # before anything is begun that could not be sealed
        return _run(options, registry)


def _run(options: argparse.Namespace, registry: Registry) -> int:
    from research.execute.trial import WARM
    from research.show.card import write_change
    from research.show.report import write_report
    from research.show.view import View

    stay_at({"JAX_PLATFORMS": "cpu"})  # the devices are the workers'
    session, track, begun, offered = (resume if options.resume else start)(options)
    state = fold(session.ledger.events())
    minutes = options.minutes or begun.minutes
    spent_s = 0.0 if options.minutes or not options.resume else state.wall_s
    lanes = lanes_for(begun.lanes, options, begun.llm)
    llm = lanes.get(LLM)
    print(clean(f"{session.path}: starting {count(offered.workers, 'worker')}, each {offered.place}; the base's first "
                "run sets the time that others get"), flush=True)
    executor = offered.start(session.workers, WARM, options.tensorboard)
    follows = tracker.Tracker.of(options.tracker, session.path, track, state.seq) if options.tracker else nullcontext()
    with session, closing(executor), View(sys.stdout) as view, follows:
        scheduler = Scheduler(session, track, executor, lanes, budget_s=60 * minutes - spent_s,
                              max_trials=options.max_trials or begun.max_trials,
                              device_bytes=offered.device_bytes, on_change=view.update,
                              on_crowned=partial(write_change, track), registry=registry)
        view.update(scheduler)
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # then a session outlives its terminal
        previous = {s: signal.signal(s, lambda *_: scheduler.stop()) for s in ENDING
                    if s != signal.SIGHUP or not nohup}
        if isinstance(llm, Llm):
            llm.open(session.path)
        try:
            reason = scheduler.run()
        finally:
            if isinstance(llm, Llm):
                llm.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        shares = scheduler.state.shares()
        scheduler.record("end", "", Ended(reason=reason, shares=shares))
        session.tidy(scheduler.prover.needed())
        write_report(session.path)
    view.close_with(scheduler, session.path)
    if scheduler.trouble:
        raise Failure(f"{session.path}: {scheduler.trouble}; once that is mended, --resume goes on")
    return 0


def main() -> int:
    """The command; its exit code is that of `run`."""
    return run(parse())


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
