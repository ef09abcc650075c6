"""The scheduler: gives every idle worker its next run, of the search or of a proof, until nothing is left to do.

It owns the loop and nothing else: beliefs are a function of the ledger, and everything it does is an event first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.contract.gate import Gate
from research.contract.track import Track
from research.contract.trial import PROOF, Trial
from research.decide.belief import Arm, Snapshot
from research.decide.book import Book
from research.decide.choose import Chosen, decide, explored, matters, promised
from research.decide.dispatch import Dispatcher
from research.decide.intake import Intake
from research.decide.plan import Plan
from research.decide.proof import pending
from research.decide.prove import Prover
from research.decide.transfer import SHARE, Carrier
from research.execute import Executor
from research.lanes.protocol import Proposer
from research.ledger.kinds import Decided
from research.ledger.registry import Registry
from research.ledger.session import Session

SEARCH = ("search", "base")  # purposes of the runs that --max-trials counts
LONGEST_WAIT_S = 30.0  # for the last search runs before a nomination


class Scheduler:
    """One session's loop.

    Args: session: locked. lanes: proposers by name. budget_s: seconds from now until the report must be there.
    max_trials: search runs at most, or None. device_bytes: memory of one worker's device. on_change: called after
    every step, for a display. on_crowned: called with a champion's folder and arm once it is in its place. registry:
    of the user's seals; without one, as in tests, the session counts its own.
    """

    def __init__(self, session: Session, track: Track, executor: Executor, lanes: Mapping[str, Proposer], *,
                 budget_s: float, max_trials: int | None = None, device_bytes: int | None = None,
                 on_change: Any = None, on_crowned: Callable[[Path, Arm], None] = lambda folder, arm: None,
                 registry: Registry | None = None):
        self.session, self.track, self.executor, self.book = session, track, executor, Book(session, track)
        self.state, self.record = self.book.state, self.book.record
        place = self.state.session.place
        self.intake = Intake(self.book, Gate(track, device_bytes, place.devices if place else 1), lanes)
        self.plan, self.max_trials = Plan(track, executor.workers, budget_s), max_trials
        self.dispatcher = Dispatcher(self.book, executor)
        self.flights = self.dispatcher.flights
        self.prover = Prover(self.book, self.intake, self.plan, on_crowned, registry)
        self.carrier = Carrier(self.book, SHARE * budget_s)
        self.on_change = on_change or (lambda scheduler: None)
        self._nothing: dict[int, tuple[int, float]] = {}  # by worker: the state and time left that gave no search run
        self._granted_s = self.state.granted_s  # time that people added before this sitting
        self._expecting = False  # whether proposals to search on with may come, as of this step
        self._take_up()

    @property
    def snapshot(self) -> Snapshot:
        """The belief now."""
        return self.book.snapshot

    @property
    def stopping(self) -> bool:
        """Whether the loop is about to end, at somebody's word or because the machine fails."""
        return self.dispatcher.stopping

    @property
    def trouble(self) -> str:
        """What of the machine ended the loop, if it did."""
        return self.dispatcher.retries.trouble

    def _take_up(self) -> None:
        """After a crash: judge what was not judged, ingest results that were written, mark what was not finished."""
        if self.state.crowned:
            self.prover.install()
        self.intake.take_up()
        self.dispatcher.take_up()
        if (proof := self.prover.proof()) is not None:
            self.prover.prepare(proof)

    @property
    def left_s(self) -> float:
        """Seconds until the report must begin."""
        return self.plan.left_s

    @property
    def search_left_s(self) -> float:
        """Seconds of search left in this round."""
        return self.plan.search_left_s(self.book.prices, self.prover.round)

    @property
    def searching(self) -> bool:
        """Whether search runs may still start in this round."""
        return not (self.stopping or self.state.asked("stop")) and self.search_left_s > 0 and self._trials_left

    @property
    def _trials_left(self) -> bool:
        done = {e.subject for e in self.state.decisions if e.body.purpose in SEARCH}
        return self.max_trials is None or len(done - {trial.key for trial in self._orphans()}) < self.max_trials

    def _orphans(self) -> list[Trial]:
        """Search runs whose worker was lost, and runs that people want again, in the order they were decided; nobody
        has taken them up yet."""
        return [t.trial for t in self.state.trials.values() if t.outcome == "interrupted" and (
            t.attempts[-1].purpose not in PROOF if t.attempts[-1].excused else
            t.attempts[-1].lost and t.attempts[-1].purpose in SEARCH)]

    def _search(self, worker: int, left_s: float, idle: bool = False) -> Chosen | None:
        """A run that lost its worker, the first one of an outsider's proposal whose turn it is, or else the search run
        that gains most; of those that fit. idle: the worker would only wait, so that the gain need not matter."""
        if not self._trials_left:
            return None
        prices, priced = self.book.prices, self.dispatcher.priced(worker)
        for trial in self._orphans():
            if prices.wall_s(self.snapshot.by_id[trial.recipe_id], trial.horizon, priced) <= left_s:
                last = self.state.trials[trial.key].attempts[-1]
                why = "once more: " + ("somebody asked for it" if last.excused else "its worker was lost")
                return trial, Decided(purpose=last.purpose, worker=worker, why=why)
        seq, most_s = self._nothing.get(worker, (0, 0.0))
        if seq == self.state.seq and left_s <= most_s and not idle:
            return None  # as a moment ago: only the time has become less
        found = promised(prices, priced, left_s) or explored(prices, priced, left_s) or self._best(
            priced, left_s, idle)
        if found is None:
            self._nothing[worker] = self.state.seq, left_s
            return None
        trial, body = found
        return trial, body.model_copy(update={"worker": worker, "priced": priced})

    def _best(self, priced: int, left_s: float, idle: bool) -> Chosen | None:
        """The run that gains most. Where its gain cannot matter, the lanes are asked for more first, and then a
        candidate is proven, if there is one; a session that can do neither uses its time as well as it can."""
        while True:
            found = decide(self.book.prices, self.state.session.seed, priced, left_s)
            if found is None or idle:
                return found
            if matters(self.book.prices, found[1]):
                self.intake.enough()
                return found
            if not self.intake.more():
                return found if self._expecting or self.prover.nominee() is None else None

    def run(self) -> str:
        """Until the time is up, nothing is left to do, or `stopping`. Returns: why it ended."""
        while True:
            self.book.refresh()
            self._obey()
            self.intake.judge()
            self.prover.crown()
            if self.prover.opening is not None:
                self.dispatcher.measure(self.prover.opening)
            idle = self.dispatcher.idle
            if self.searching and not self.state.paused and (not idle or not self.flights):
                self.intake.stock()  # nobody who could work waits for the lanes
            self._expecting = self.searching and (self.intake.expecting or bool(self.state.unanswered()))
            for worker in idle if not (self.stopping or self.state.paused) else ():
                if self.prover.over and self.dispatcher.carry(worker, self.carrier, self.left_s):
                    continue
                if (job := self._assignment(worker)) is not None:
                    self._dispatch(worker, *job)
            over = not self.flights and (self.stopping or not self._waiting and self._assignment(0) is None)
            if over and (self.stopping or self.prover.opening is None):
                return self._reason()
            for worker in self.flights if self.stopping else ():
                self.executor.kill(worker)
            for message in self.executor.poll(0.25):
                self.dispatcher.handle(message)
            self.dispatcher.watch()
            self.on_change(self)

    def _obey(self) -> None:
        """What people have asked of the loop: time, fewer workers, an end after this round; `run` sees to a pause."""
        self.plan.grant(self.state, self._granted_s, time.time())
        if self.state.asked("stop"):
            self.plan.rounds = min(self.plan.rounds, self.prover.round)

    def _reason(self) -> str:
        """Why the loop ends now."""
        if self.trouble:
            return f"the machine failed: {self.trouble}"
        if self.stopping:
            return "stopped"
        if self.prover.proof():
            return "out of time before the seal"
        return "awaiting review" if pending(self.snapshot) else "finished"

    @property
    def _waiting(self) -> bool:
        """Whether there is time, and something to come: proposals, or a person's word on a champion to be."""
        return self.left_s > 0 and (self._expecting or bool(pending(self.snapshot) or self.state.paused))

    def stop(self) -> None:
        """Have `run` start nothing more and end what runs, as interrupted. Signal handlers may call this."""
        self.dispatcher.stopping = True

    def _assignment(self, worker: int) -> Chosen | None:
        """The next run for a worker and its decision; events that need no run are written on the way."""
        if self.searching and self.prover.proof() is None:
            decision = self._search(worker, self.search_left_s)
            if decision is not None or self.flights or self._expecting:
                return decision
        elif (proof := self.prover.proof()) is None and self.flights and self.search_left_s > -LONGEST_WAIT_S:
            return None  # the last search runs are still worth waiting for
        closed = self.stopping or self.prover.opening is not None  # what is to be beaten is about to change
        early = self.searching and self.search_left_s > self.plan.proof_s(self.book.prices)
        proof = self.prover.proof() or (None if closed else self.prover.nominate(early))
        while proof is not None:
            if proof.sealed is None and self.plan.too_late(self.book.prices):  # it keeps: --resume goes on with it
                return self._search(worker, self.left_s, idle=True)
            late = proof.final is None and self.left_s < self.prover.kept_s(proof)
            running = {flight.trial for flight in self.flights.values()}
            wanted = [] if late else [w for w in proof.wanted() if w[0] not in running]
            if wanted:
                trial, purpose = wanted[0]
                why = f"proof of {self.snapshot.names(proof.recipe_id)}"
                return trial, Decided(purpose=purpose, worker=worker, why=why)
            if not late and proof.wanted():
                return self._filler(worker)
            proof = self.prover.advance(proof)
        return self._beside(worker)

    def _beside(self, worker: int) -> Chosen | None:
        """A run beside the champion that decides nothing, where there is nothing else to do and it fits."""
        running = {flight.trial for flight in self.flights.values()}
        wanted = [w for w in self.prover.beside() if w[0] not in running]
        if self.stopping or not wanted or self.prover.opening is not None:
            return None
        trial, purpose = wanted[0]
        arm, prices = self.snapshot.by_id[trial.recipe_id], self.book.prices
        if prices.wall_s(arm, trial.horizon, self.dispatcher.priced(worker)) > self.left_s:
            return None
        return trial, Decided(purpose=purpose, worker=worker, why="the best single idea, beside the champion")

    def _dispatch(self, worker: int, trial: Trial, decision: Decided) -> None:
        proof = self.prover.proof() if decision.purpose == "verify" else None
        self.dispatcher.send(worker, trial, decision, left_s=self.left_s,
                             shipped=proof is not None and trial == proof.shipped)

    def _filler(self, worker: int) -> Chosen | None:
        """A short search run for a worker that would only wait for the proof's last runs."""
        if self.left_s < self.plan.verification_s(self.book.prices) or self.state.asked("stop"):
            return None  # there is no later round that could use it
        ends_s = max((f.started_s + f.predicted_s for f in self.flights.values()), default=0.0) - time.monotonic()
        return self._search(worker, ends_s, idle=True)
