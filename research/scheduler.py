"""The scheduler: gives every idle worker its next run, takes in results, and leads candidates through the proof.

It owns the loop and nothing else: beliefs are a function of the ledger, and everything it does is an event first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxnano.config.base import dump
from research import watch
from research.belief import PATIENCE_S, Snapshot
from research.book import Book
from research.champion import crown, install
from research.execute import Executor, Job, Message
from research.gate import Gate
from research.intake import Intake
from research.plan import Plan
from research.proof import Proof, best_single, pending
from research.propose import Proposer
from research.retry import Retries, unless_undecided
from research.session import Session, read_result
from research.state import State
from research.track import Track
from research.trial import TARGET, Trial

SEARCH = ("search", "base")  # purposes of the runs that --max-trials counts
NEW = -1  # a worker that has compiled nothing, to prices
LONGEST_WAIT_S = 30.0  # for the last search runs before a nomination


@dataclass
class Flight:
    """A run in flight. cancelled: why it was told to stop. audited: why it was not, though hopeless: to audit kills."""

    trial: Trial
    purpose: str
    attempt: int
    started_s: float
    predicted_s: float
    curve: list[tuple[float, float]] = field(default_factory=list)
    messages_s: list[float] = field(default_factory=list)
    tokens_per_s: float = 0.0
    first_message_s: float | None = None
    cancelled: watch.Verdict | None = None
    audited: watch.Verdict | None = None


class Scheduler:
    """One session's loop.

    Args: session: locked. lanes: proposers by name. budget_s: seconds from now until the report must be there.
    max_trials: search runs at most, or None. device_bytes: memory of one worker's device. on_change: called after
    every step, for a display.
    """

    def __init__(self, session: Session, track: Track, executor: Executor, lanes: Mapping[str, Proposer], *,
                 budget_s: float, max_trials: int | None = None, device_bytes: int | None = None,
                 on_change: Any = None):
        self.session, self.track, self.executor = session, track, executor
        self.book = Book(session, track)
        self.intake = Intake(self.book, Gate(track, device_bytes), lanes)
        self.plan, self.max_trials = Plan(track, executor.workers, budget_s), max_trials
        self.flights: dict[int, Flight] = {}
        self.on_change = on_change or (lambda scheduler: None)
        self.stopping = False
        self.retries = Retries()
        self._declined = 0  # rounds that ended with nothing worth a proof
        self._new: set[int] = set()  # workers whose process has had no run yet
        self._nothing: dict[int, tuple[int, float]] = {}  # by worker: the state and time left that gave no search run
        self._expecting = False  # whether proposals to search on with may come, as of this step
        self._take_up()
        self.first_round = len(self.state.nominated) - (self._proof() is not None)

    @property
    def state(self) -> State:
        """The folded ledger."""
        return self.book.state

    @property
    def snapshot(self) -> Snapshot:
        """The belief now."""
        return self.book.snapshot

    def record(self, kind: str, subject: str, body: Mapping[str, Any]) -> None:
        """Append an event and take it into the state."""
        self.book.record(kind, subject, body)

    def _take_up(self) -> None:
        """After a crash: judge what was not judged, ingest results that were written, mark what was not finished."""
        if self.state.crowned:
            install(self.session, self.state.crowned[-1].body)
        self.intake.take_up()
        for trial in list(self.state.trials.values()):
            for attempt in trial.attempts:
                if attempt.result is None:
                    found = read_result(self.session.trial_dir(trial.key), attempt.number, trial.key)
                    found = found or {"attempt": attempt.number, "outcome": "interrupted", "reason": "the loop ended"}
                    self.record("result", trial.key, unless_undecided(attempt.purpose, found))
        if (proof := self._proof()) is not None:
            self._prepare(proof)

    # ---- time

    @property
    def left_s(self) -> float:
        """Seconds until the report must begin."""
        return self.plan.left_s

    @property
    def search_left_s(self) -> float:
        """Seconds of search left in this round."""
        return self.plan.search_left_s(self.snapshot, self._round)

    @property
    def _round(self) -> int:
        """Number of the round under way: each ends with a proof, or without anything worth one."""
        return len(self.state.nominated) - self.first_round + self._declined + 1

    @property
    def searching(self) -> bool:
        """Whether search runs may still start in this round."""
        return not self.stopping and self.search_left_s > 0 and self._trials_left

    @property
    def _trials_left(self) -> bool:
        done = {e.subject for e in self.state.decisions if e.body["purpose"] in SEARCH}
        return self.max_trials is None or len(done - {trial.key for trial in self._orphans()}) < self.max_trials

    def _orphans(self) -> list[Trial]:
        """Search runs whose worker was lost, in the order they were decided; nobody has taken them up again yet."""
        return [Trial(t.recipe_id, t.horizon, t.seed) for t in self.state.trials.values()
                if t.outcome == "interrupted" and t.attempts[-1].lost and t.attempts[-1].purpose in SEARCH]

    def _search(self, worker: int, left_s: float) -> tuple[Trial, dict[str, Any]] | None:
        """A run that lost its worker, the first one of an outsider's proposal whose turn it is, or else the search run
        that tells most; of those that fit."""
        if not self._trials_left:
            return None
        snapshot, priced = self.snapshot, self._priced(worker)
        for trial in self._orphans():
            if snapshot.wall_s(snapshot.arms[snapshot.index[trial.recipe_id]], trial.horizon, priced) <= left_s:
                purpose = self.state.trials[trial.key].attempts[-1].purpose
                return trial, {"purpose": purpose, "worker": worker, "why": "once more: its worker was lost"}
        seq, most_s = self._nothing.get(worker, (0, 0.0))
        if seq == self.state.seq and left_s <= most_s:
            return None  # as a moment ago: only the time has become less
        found = snapshot.promised(priced, left_s) or snapshot.decide(self.state.session["seed"], priced, left_s)
        if found is None:
            self._nothing[worker] = self.state.seq, left_s
            return None
        trial, body = found
        return trial, body | {"worker": worker, "priced": priced}

    def _priced(self, worker: int) -> int:
        """The worker as prices see it: what a process had compiled that has been replaced since is gone."""
        return NEW if worker in self._new else worker

    # ---- running

    def run(self) -> str:
        """Until the time is up, nothing is left to do, or `stopping`. Returns: why it ended."""
        while True:
            self.book.refresh()
            self.intake.judge()
            self._crown()
            idle = [w for w in range(self.executor.workers) if w not in self.flights and self.executor.present(w)]
            if self.searching and (not idle or not self.flights):  # nobody who could work waits for the lanes
                self.intake.stock()
            self._expecting = self.searching and (self.intake.expecting or bool(self.state.unanswered()))
            for worker in idle if not self.stopping else ():
                if (job := self._assignment(worker)) is not None:
                    self._dispatch(worker, *job)
            if not self.flights and (self.stopping or not self._waiting and self._assignment(0) is None):
                return self._reason()
            for worker in self.flights if self.stopping else ():
                self.executor.kill(worker)
            for message in self.executor.poll(0.25):
                self._handle(message)
            self._watch()
            self.on_change(self)

    def _reason(self) -> str:
        """Why the loop ends now."""
        if self.retries.trouble:
            return f"the machine failed: {self.retries.trouble}"
        if self.stopping:
            return "stopped"
        if self._proof():
            return "out of time before the seal"
        return "awaiting review" if pending(self.snapshot) else "finished"

    def needed(self) -> set[str]:
        """Trials whose checkpoint a proof under way, or a review, still needs: a veto may be taken back."""
        proofs = (self._proof(), *pending(self.snapshot, vetoed=True))
        return {proof.shipped.key for proof in proofs if proof is not None and proof.shipped is not None}

    @property
    def _waiting(self) -> bool:
        """Whether there is time, and something to come: proposals, or a person's word on a champion to be."""
        return self.left_s > 0 and (self._expecting or bool(pending(self.snapshot)))

    def stop(self) -> None:
        """Have `run` start nothing more and end what runs, as interrupted. Signal handlers may call this."""
        self.stopping = True

    def _assignment(self, worker: int) -> tuple[Trial, dict[str, Any]] | None:
        """The next run for a worker and its decision; events that need no run are written on the way."""
        if self.searching and self._proof() is None:
            decision = self._search(worker, self.search_left_s)
            if decision is not None or self.flights or self._expecting:
                return decision
        elif (proof := self._proof()) is None and self.flights and self.search_left_s > -LONGEST_WAIT_S:
            return None  # the last search runs are still worth waiting for
        proof = self._proof() or self._nominate()
        while proof is not None:
            late = proof.sealed is None and self.left_s < self.plan.verification_s(self.snapshot)
            if late and self.plan.too_late(self.snapshot):  # an unsealed candidate keeps: --resume goes on with it
                return self._search(worker, self.left_s)
            wanted = [] if late else [w for w in proof.wanted() if w[0] not in self._in_flight()]
            if wanted:
                trial, purpose = wanted[0]
                return trial, {"purpose": purpose, "worker": worker, "why": f"proof of {proof.candidate.name}"}
            if not late and proof.wanted():
                return self._filler(worker)
            proof = self._advance(proof)
        return None

    def _in_flight(self) -> set[Trial]:
        return {flight.trial for flight in self.flights.values()}

    def _filler(self, worker: int) -> tuple[Trial, dict[str, Any]] | None:
        """A short search run for a worker that would only wait for the proof's last runs."""
        if self.left_s < self.plan.verification_s(self.snapshot):
            return None  # there is no later round that could use it
        ends_s = max((f.started_s + f.predicted_s for f in self.flights.values()), default=0.0) - time.monotonic()
        return self._search(worker, ends_s)

    def _dispatch(self, worker: int, trial: Trial, decision: dict[str, Any]) -> None:
        arm = self.snapshot.arms[self.snapshot.index[trial.recipe_id]]
        predicted_s = self.snapshot.wall_s(arm, trial.horizon, self._priced(worker))
        known = self.state.trials.get(trial.key)
        attempt = len(known.attempts) + 1 if known else 1
        verify = decision["purpose"] == "verify"
        splits = {self.track.splits.search: self.track.eval_tokens}
        if verify:
            splits = {self.track.splits.protected: self.track.proof_tokens} | splits
        folder = self.session.trial_dir(trial.key)
        shipped = verify and (proof := self._proof()) is not None and trial == proof.shipped
        self.record("decision", trial.key, decision)
        self.record("attempt", trial.key, {
            "attempt": attempt, "worker": worker, "pid": self.executor.pid(worker), **trial._asdict(),
            "purpose": decision["purpose"], "splits": splits, "steps": self.track.steps(arm.recipe, trial.horizon)})
        told = self.state.proposals[trial.recipe_id]["proposal"]
        about = {"recipe": trial.recipe_id, "name": told["name"], "hypothesis": told["hypothesis"]}
        args = {"recipe": dump(arm.recipe), "total_steps": self.track.steps(arm.recipe, trial.horizon),
                "seconds": self.snapshot.budget_s(arm, trial.horizon), "seed": trial.seed, "splits": splits,
                "data_hash": self.state.session["data_hash"],
                "checkpoint": str(folder / "checkpoint") if shipped else None}
        self.executor.submit(worker, Job(id=trial.key, attempt=attempt, dir=str(folder), target=TARGET, about=about,
                                         args=args))
        self._new.discard(worker)
        self.flights[worker] = Flight(trial, decision["purpose"], attempt, time.monotonic(), predicted_s)
        self.flights[worker].first_message_s = max(min(PATIENCE_S.values()), min(
            self.snapshot.first_message_s(arm), self.left_s))  # after the session's end nobody needs it

    def _handle(self, message: Message) -> None:
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
            self._result(flight, message.body if message.kind == "result" else self._death(flight, message))

    def _death(self, flight: Flight, message: Message) -> dict[str, Any]:
        if flight.cancelled is not None and not message.body.get("lost"):  # a lost machine stalls before it is missed
            return {"outcome": "timeout", "reason": flight.cancelled.reason}
        if self.stopping:
            return {"outcome": "interrupted", "reason": self.retries.trouble or "stopped by the user"}
        return {"outcome": "interrupted"} | message.body

    def _result(self, flight: Flight, result: Mapping[str, Any]) -> None:
        body = dict(result) | {"attempt": flight.attempt}
        if flight.cancelled is not None and body["outcome"] == "killed":
            verdict = flight.cancelled
            body["outcome"] = "diverged" if verdict.kind in ("nan", "diverged") else "killed"
            body |= {"reason": f"{verdict.kind}: {verdict.reason}", "curve": flight.curve,
                     "predicted": [verdict.final_mean, verdict.final_sd] if verdict.final_sd else None}
        if flight.audited is not None:
            body["audit"] = {"predicted": [flight.audited.final_mean, flight.audited.final_sd]}
        self.record("result", flight.trial.key, self.retries.judge(self.state, flight.trial.key, flight.purpose, body))
        self.stopping = self.stopping or bool(self.retries.trouble)

    def _watch(self) -> None:
        for worker, flight in self.flights.items():
            if flight.cancelled is not None:
                continue
            running = watch.Running(flight.curve, flight.started_s, flight.predicted_s, flight.messages_s,
                                    flight.first_message_s)
            judged = self.state.session.get("kills") and flight.purpose == "search"
            references = self._references(flight.trial) if judged else []
            verdict = watch.watch(running, references, time.monotonic())
            if verdict.kind == "hopeless" and watch.is_audited(flight.trial.key):
                flight.audited = flight.audited or verdict
            if verdict.kind == "ok" or (verdict.kind == "hopeless" and flight.audited is not None):
                continue
            flight.cancelled = verdict
            if verdict.kind in ("stalled", "timeout"):
                self.executor.kill(worker)
            else:
                self.executor.cancel(worker, verdict.reason)

    def _references(self, trial: Trial) -> list[watch.Reference]:
        return [watch.Reference(t.result["curve"], t.loss[self.track.splits.search])
                for t in self.state.trials.values()
                if t.loss and (t.horizon, t.seed) == (trial.horizon, trial.seed) and t.result]

    # ---- proving

    def _crown(self) -> None:
        """Crown what passed, once a person approved it where one has to, and nobody holds it."""
        for proof in pending(self.snapshot):
            assert proof.sealed is not None and proof.shipped is not None
            review, required = self.state.review(proof.sealed.subject), self.state.session.get("require_review")
            if review == "approve" or (review is None and not required):
                arm = self.snapshot.arms[self.snapshot.index[proof.sealed.subject]]
                body = crown(self.session, self.track, arm, proof.shipped.key)
                self.record("crowned", arm.recipe_id, body)
                install(self.session, body)
                return

    def _proof(self) -> Proof | None:
        """The proof under way."""
        if not self.state.nominated:
            return None
        event = self.state.nominated[-1]
        proof = Proof(self.snapshot, event.subject, event.body)
        return None if proof.done else proof

    def _nominate(self) -> Proof | None:
        """Name the recipe to prove, if one is worth it and there is time; None ends the session."""
        if self.stopping or self._round > self.plan.rounds or self.plan.too_late(self.snapshot):
            return None
        worth, index = self.snapshot.worth, self.snapshot.index
        proven = [self.snapshot.incumbent, *(p.sealed.subject for p in pending(self.snapshot) if p.sealed is not None)]
        bar = max(float(worth[index[recipe_id]]) for recipe_id in proven) + self.track.epsilon
        tried = {e.subject for e in (*self.state.nominated, *self.state.sealed)}
        tried |= {e.subject for e in self.state.reviews if self.state.review(e.subject) == "veto"}
        able = [k for k in self.snapshot.view().known if k.runs and k.worth > bar and k.recipe_id not in tried]
        if not able:
            self._declined += 1  # the next round searches on
            return None
        best = able[0]
        self.record("nominated", best.recipe_id, {"number": len(self.state.nominated) + 1, "mean": best.mean,
                                                  "sd": best.sd, "parts": [p.name for p in best.parts]})
        proof = self._proof()
        assert proof is not None
        return self._prepare(proof)

    def _prepare(self, proof: Proof) -> Proof:
        """Have the candidate's ablations judged, those that were not yet."""
        for proposal in proof.ablation.proposals():
            self.intake.consider(proposal)
        return self._proof() or proof

    def _advance(self, proof: Proof) -> Proof | None:
        """Write the event that the finished stage leads to."""
        if proof.final is None:
            self.record("ablation", proof.recipe_id, proof.ablation.settle())
            return self._prepare(now) if (now := self._proof()) is not None else None
        if proof.sealed is None:
            single = best_single(self.snapshot)
            rival = single if single not in (proof.final, self.snapshot.incumbent) else None
            self.record("sealed", proof.final, proof.seal(self.snapshot.incumbent, rival))
        else:
            self.record("verification", proof.sealed.subject, proof.verify())
            self._crown()
        return self._proof()
