"""The runs in flight: workers are given theirs, what they say is taken in, and runs that broke are ended."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxnano.config.base import dump
from jaxnano.config.recipe import Recipe
from research.contract.trial import APART, PROOF, Trial
from research.decide.book import Book
from research.decide.champion import held_out_job
from research.decide.price import NEW, PATIENCE_S
from research.decide.retry import Retries, unless_undecided
from research.decide.transfer import Carrier, Errand
from research.execute import Executor, Job, Message
from research.execute.trial import TARGET
from research.learn import watch
from research.ledger.events import node_of
from research.ledger.kinds import Decided, Started
from research.ledger.session import read_result
from research.ledger.state import ended_with_the_loop

HELD_OUT, TRANSFER = APART
CONFIG = watch.WatchConfig()
CUT = watch.Finding("timeout", "its time is up")  # of a run that nothing waits for: that is no end of its own


@dataclass
class Flight:
    """A run in flight. cancelled: why it was told to stop. errand: what it is of a transfer card."""

    trial: Trial
    purpose: str
    attempt: int
    started_s: float
    predicted_s: float
    curve: list[tuple[float, float]] = field(default_factory=list)
    messages_s: list[float] = field(default_factory=list)
    tokens_per_s: float = 0.0
    first_message_s: float | None = None
    begins: tuple[float, ...] = ()
    cancelled: watch.Finding | None = None
    errand: Errand | None = None


class Dispatcher:
    """Who runs what. stopping: whether nothing new may start, and what runs is to end. config: when a run is ended."""

    def __init__(self, book: Book, executor: Executor, config: watch.WatchConfig = CONFIG):
        self.book, self.executor, self.config = book, executor, config
        self.flights: dict[int, Flight] = {}
        self.retries, self.stopping = Retries(), False
        self._new: set[int] = set()  # workers whose process has had no run yet
        self._measured = 0  # attempts at held-out losses

    def take_up(self) -> None:
        """After a crash: take in results that were written, and mark what was not finished."""
        session = self.book.session
        for trial in list(self.book.state.trials.values()):
            for attempt in trial.attempts:
                if attempt.result is None:
                    found = read_result(session.trial_dir(trial.key), attempt.number, trial.key)
                    result = node_of("result", found) if found else ended_with_the_loop(attempt.number)
                    self.book.record("result", trial.key, unless_undecided(attempt.purpose, result))

    @property
    def idle(self) -> list[int]:
        """Workers that are there and have nothing to do."""
        asked = self.book.state.asked("workers")
        most = min(self.executor.workers, max(1, int(asked.body.value))) if asked else self.executor.workers
        return [w for w in range(most) if w not in self.flights and self.executor.present(w)]

    def priced(self, worker: int) -> int:
        """The worker as prices see it: what a process had compiled that has been replaced since is gone."""
        return NEW if worker in self._new else worker

    def send(self, worker: int, trial: Trial, decision: Decided, *, shipped: bool, left_s: float) -> None:
        """Have a worker run a trial; its decision is an event first.

        Args: shipped: whether its checkpoint is wanted. left_s: of the session; after it nobody needs the run.
        """
        state, track, prices = self.book.state, self.book.track, self.book.prices
        arm = prices.snapshot.by_id[trial.recipe_id]
        steps = track.steps(arm.recipe, trial.horizon)
        predicted_s = prices.wall_s(arm, trial.horizon, self.priced(worker))
        attempt = len(state.trials[trial.key].attempts) + 1 if trial.key in state.trials else 1
        splits = {track.splits.search: track.eval_tokens}
        if decision.purpose in PROOF:
            splits = {state.sealed[-1].body.split or track.splits.protected: track.proof_tokens} | splits
        folder = self.book.session.trial_dir(trial.key)
        self.book.record("decision", trial.key, decision)
        self.book.record("attempt", trial.key, Started(
            attempt=attempt, worker=worker, pid=self.executor.pid(worker), **trial._asdict(),
            purpose=decision.purpose, splits=splits, steps=steps))
        told = state.proposals[trial.recipe_id].proposal
        about = {"recipe": trial.recipe_id, "name": told.name, "hypothesis": told.hypothesis}
        args = {"total_steps": steps, "seconds": prices.budget_s(arm, trial.horizon), "splits": splits,
                "data_hash": state.session.data_hash}
        self._submit(worker, Flight(trial, decision.purpose, attempt, time.monotonic(), predicted_s), arm.recipe,
                     folder, about, args | {"checkpoint": str(folder / "checkpoint") if shipped else None})
        self.flights[worker].first_message_s = max(min(PATIENCE_S.values()), min(prices.first_message_s(arm), left_s))

    def _submit(self, worker: int, flight: Flight, recipe: Recipe, folder: Path, about: dict[str, str],
                args: Mapping[str, Any]) -> None:
        """Have a worker train a recipe."""
        trial = flight.trial
        args = {"recipe": dump(recipe), "seed": trial.seed, "place": self._place, "mesh": self.book.track.mesh, **args}
        self.executor.submit(worker, Job(id=trial.key, attempt=flight.attempt, dir=str(folder), target=TARGET,
                                         about=about, args=args))
        self._new.discard(worker)
        flight.begins = tuple(phase.start for phase in recipe.phases)
        self.flights[worker] = flight

    def carry(self, worker: int, carrier: Carrier, left_s: float = math.inf) -> bool:
        """Have a worker make the next run of the transfer card that fits, if there is one: no trial, and an event only
        once it has ended. left_s: of the session."""
        if (errand := carrier.next(self.executor.workers, left_s)) is None:
            return False
        trip, state, prices = errand.trip, self.book.state, self.book.prices
        tries = sum(event.body.trial == trip.trial.key for event in state.transfers)
        flight = Flight(trip.trial, TRANSFER, tries + 1, time.monotonic(), errand.predicted_s, errand=errand)
        about = {"recipe": trip.trial.recipe_id, "name": errand.told}
        args = {"total_steps": trip.steps, "seconds": errand.budget_s, "splits": dict(trip.splits), "checkpoint": None,
                "data_hash": None if trip.setting.data else state.session.data_hash}
        session = self.book.session
        self._submit(worker, flight, trip.recipe, session.trial_dir(trip.trial.key, session.transfer), about, args)
        flight.first_message_s = trip.setting.width * prices.first_message_s(prices.snapshot.by_id[errand.champion])
        return True

    @property
    def _place(self) -> dict[str, Any] | None:
        """Where the session's first result was made: others are paired with it, and have to be from such a place."""
        attempts = (attempt for trial in self.book.state.trials.values() for attempt in trial.attempts)
        found = (a.result.topology for a in attempts if a.result is not None and a.result.topology is not None)
        return next((topology.place for topology in found), None)

    def measure(self, trial: Trial) -> None:
        """Have an idle worker, if there is one, find the held-out loss of what is to be crowned; one does at a time.

        It is no run and no event: whoever crowns finds the result in the folder.
        """
        idle = self.idle
        if not idle or self.stopping or any(flight.purpose == HELD_OUT for flight in self.flights.values()):
            return
        track, state, prices, worker = self.book.track, self.book.state, self.book.prices, idle[0]
        self._measured += 1
        self.executor.submit(worker, held_out_job(self.book.session, track, state.session.data_hash, trial.key,
                                                  self._measured))
        made = state.trials[trial.key].result
        rate = made.tokens_per_s if made and made.tokens_per_s else math.inf  # of training, which takes longer
        flight = Flight(trial, HELD_OUT, self._measured, time.monotonic(), prices.slowdown * track.proof_tokens / rate)
        flight.first_message_s = max(prices.first_message_s(prices.snapshot.by_id[trial.recipe_id]),
                                     watch.WatchConfig.timeout_factor * flight.predicted_s)
        self.flights[worker] = flight

    def handle(self, message: Message) -> None:
        """Take in what a worker says."""
        if message.kind == "ready":
            self._new.add(message.worker)
        flight = self.flights.get(message.worker)
        if flight is None or (message.id, message.attempt) != (flight.trial.key, flight.attempt):
            return
        if message.kind == "progress":
            now, loss = time.monotonic(), message.body["loss"]
            flight.curve.append((message.body["progress"], float("nan") if loss is None else loss))
            flight.messages_s.append(now)
            flight.tokens_per_s = message.body["tokens_per_s"] or 0.0
            return
        if message.kind in ("result", "died"):
            del self.flights[message.worker]
            body = message.body if message.kind == "result" else self._death(flight, message)
            if flight.errand is not None:
                self._carried(flight, flight.errand, body)
            elif flight.purpose != HELD_OUT:
                self._result(flight, body)
            elif body["outcome"] != "completed" and not self.stopping:
                self.retries.unmeasured(flight.trial.key, body.get("reason") or body["outcome"])
            self.stopping = self.stopping or bool(self.retries.trouble)

    def _death(self, flight: Flight, message: Message) -> dict[str, Any]:
        if flight.cancelled is not None and not message.body.get("lost"):  # a lost machine stalls before it is missed
            return {"outcome": "timeout", "reason": flight.cancelled.reason}
        if self.stopping:
            return {"outcome": "interrupted", "reason": self.retries.trouble or "stopped by the user"}
        return {"outcome": "interrupted"} | message.body

    def _result(self, flight: Flight, result: Mapping[str, Any]) -> None:
        key, purpose, body = flight.trial.key, flight.purpose, self._ended(flight, result)
        self.book.record("result", key, self.retries.judge(self.book.state, key, purpose, node_of("result", body)))

    def _ended(self, flight: Flight, result: Mapping[str, Any]) -> dict[str, Any]:
        """A result's body: what was told to stop because it diverged has diverged."""
        body = dict(result) | {"attempt": flight.attempt}
        if (verdict := flight.cancelled) is not None and body["outcome"] == "killed":
            body |= {"outcome": "diverged", "reason": f"{verdict.kind}: {verdict.reason}", "curve": flight.curve}
        return body

    def _carried(self, flight: Flight, errand: Errand, result: Mapping[str, Any]) -> None:
        """The event of a run of the card, unless somebody or the end of its time stopped it."""
        if (flight.cancelled is CUT or self.stopping) and result["outcome"] != "completed":
            return
        trip = errand.trip
        self.book.record("transfer", errand.champion, node_of("transfer", self._ended(flight, result) | {
            "setting": trip.setting.name, "role": trip.role, "trial": trip.trial.key, "recipe": dump(trip.recipe),
            "horizon": trip.setting.horizon, "seed": trip.seed, "budget_s": errand.budget_s}))

    def watch(self) -> None:
        """End runs that broke or are too late."""
        for worker, flight in self.flights.items():
            if flight.cancelled is not None:
                continue
            if flight.errand is not None and time.monotonic() > flight.errand.ends_s:
                flight.cancelled = CUT
                self.executor.kill(worker)
                continue
            running = watch.Running(flight.curve, flight.started_s, flight.predicted_s, flight.messages_s,
                                    flight.first_message_s, flight.begins)
            verdict = watch.watch(running, time.monotonic(), self.config)
            if verdict.kind == "ok":
                continue
            flight.cancelled = verdict
            if verdict.kind in ("stalled", "timeout"):
                self.executor.kill(worker)
            else:
                self.executor.cancel(worker, verdict.reason)
