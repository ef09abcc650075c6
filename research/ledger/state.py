"""What the ledger says: a fold over its events, and nothing else. The same events give the same state, always.

Times are the events' Unix seconds. A loop that died left time behind in which nobody could assign anything: such gaps,
from the last event before a `resume` to the `resume` itself, belong to no stretch and count neither as work nor as
idleness.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from research.contract.trial import PROOF, Trial
from research.ledger import kinds
from research.ledger.events import Event, SessionError

HELD = {"call": "calls", "decision": "decisions", "nominated": "nominated", "futile": "futile", "sealed": "sealed",
        "verification": "verifications", "crowned": "crowned", "transfer": "transfers", "imported": "imports",
        "opening": "openings"}  # where all events of a kind are
FINAL = frozenset({"completed", "killed", "diverged", "failed", "timeout"})  # an `interrupted` run is run again
BROKEN = frozenset({"failed", "timeout"})  # of these, what may be the machine's doing: run again if a person asks


@dataclass
class Attempt:
    """One assignment of a trial to a worker; result is the event's body, None while it runs. excused: whether a person
    has asked since for another, as if the machine had ended it."""

    number: int
    worker: int
    purpose: str
    started: float
    seq: int
    ended: float | None = None
    result: kinds.Result | None = None
    pid: int = 0
    excused: bool = False

    @property
    def lost(self) -> bool:
        """Whether the machine ended it."""
        return self.result is not None and self.result.says_nothing


@dataclass
class TrialRecord:
    """A trial and all that was done about it. recipe_id: nobody's until its first attempt says whose."""

    key: str
    recipe_id: str = ""
    horizon: float = 0.0
    seed: int = 0
    decisions: list[Event[kinds.Decided]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def trial(self) -> Trial:
        """What was run."""
        return Trial(self.recipe_id, self.horizon, self.seed)

    @property
    def result(self) -> kinds.Result | None:
        """The completed result if there is one, else the last one that came in, else None."""
        if len(self.attempts) == 1:
            return self.attempts[0].result
        results = [attempt.result for attempt in self.attempts if attempt.result is not None]
        completed = [result for result in results if result.outcome == "completed"]
        return (completed or results or [None])[-1]

    @property
    def outcome(self) -> str:
        """`decided` (not started), `running`, or a result's outcome."""
        result = self.result
        if result is not None and result.outcome == "completed":
            return "completed"
        if any(attempt.result is None for attempt in self.attempts):
            return "running"
        if result is None:
            return "decided"
        return "interrupted" if self.attempts[-1].excused else result.outcome

    @property
    def loss(self) -> dict[str, float]:
        """Loss by split, in nats per byte (per token for BPE), of a completed trial; empty otherwise."""
        result = self.result
        if result is None or result.outcome != "completed":
            return {}
        return {split: loss for split, loss in result.loss.items() if loss is not None}


@dataclass
class Stretch:
    """An unbroken run of the loop, from its session or resume event to its last event."""

    start: float
    end: float
    workers: int


@dataclass
class State:
    """The session as of event `seq`. Mappings are by recipe id or trial key, in the order of their first event."""

    seq: int = 0
    begun: kinds.Begun | None = None
    stretches: list[Stretch] = field(default_factory=list)
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    proposals: dict[str, kinds.Proposed] = field(default_factory=dict)
    verdicts: Counter[str] = field(default_factory=Counter)  # accepted, refused
    refusals: Counter[str] = field(default_factory=Counter)  # by rule
    judged: set[str] = field(default_factory=set)  # recipe ids
    submissions: dict[int, kinds.Submission] = field(default_factory=dict)  # by their events' seq
    answers: dict[int, tuple[str, kinds.Judgement]] = field(default_factory=dict)  # to these; "" for no recipe
    calls: list[Event[kinds.Call]] = field(default_factory=list)  # of language models
    accepted: set[str] = field(default_factory=set)  # of these, those that may run
    sketches: dict[str, kinds.Sketch] = field(default_factory=dict)  # of these, as far as their verdicts hold them
    decisions: list[Event[kinds.Decided]] = field(default_factory=list)
    nominated: list[Event[kinds.Nominated]] = field(default_factory=list)
    ablations: dict[str, kinds.Ablated] = field(default_factory=dict)
    futile: list[Event[kinds.Futile]] = field(default_factory=list)
    sealed: list[Event[kinds.Sealed]] = field(default_factory=list)
    verifications: list[Event[kinds.Verified]] = field(default_factory=list)
    crowned: list[Event[kinds.Crowned]] = field(default_factory=list)
    imports: list[Event[kinds.Imported]] = field(default_factory=list)
    transfers: list[Event[kinds.Transferred]] = field(default_factory=list)  # by champion, after its crown
    reviews: list[Event[kinds.Review]] = field(default_factory=list)
    asks: list[Event[kinds.Asked]] = field(default_factory=list)  # of this sitting of the loop
    granted_s: float = 0.0  # time that people have added, in all sittings: minutes, and pauses that are over
    _losses: dict[tuple[str, float, str], dict[int, float]] = field(default_factory=dict)  # by recipe, horizon, split
    openings: list[Event[kinds.Opening]] = field(default_factory=list)  # of the protected split, beside proofs
    end: kinds.Ended | None = None  # None while the session runs, and again after a resume

    @property
    def session(self) -> kinds.Begun:
        """The session's first event. Raises: SessionError if there is none yet."""
        if self.begun is None:
            raise SessionError("the ledger holds no session event yet: nothing has happened")
        return self.begun

    @property
    def flat(self) -> bool:
        """Whether no promise counts."""
        return self.begun is not None and self.begun.flat_priors

    @property
    def wall_s(self) -> float:
        """Seconds during which the loop ran."""
        return sum(stretch.end - stretch.start for stretch in self.stretches)

    @property
    def device_s(self) -> float:
        """Device-seconds reported by the trials' results."""
        return sum(attempt.result.device_s or 0.0 for attempt in self.attempts() if attempt.result)

    @property
    def champion(self) -> str | None:
        """The recipe id crowned last, if any."""
        return self.crowned[-1].subject if self.crowned else None

    def unanswered(self) -> dict[int, kinds.Submission]:
        """Submissions that the loop has not judged yet."""
        return {seq: body for seq, body in self.submissions.items() if seq not in self.answers}

    def review(self, recipe_id: str) -> str | None:
        """What a person decided last about a recipe: approve, veto, hold; None if nobody did."""
        return next((event.body.decision for event in reversed(self.reviews) if event.subject == recipe_id), None)

    def attempts(self) -> list[Attempt]:
        """All attempts of all trials, in the order of the trials."""
        return [attempt for trial in self.trials.values() for attempt in trial.attempts]

    def asked(self, *wants: str) -> Event[kinds.Asked] | None:
        """The last time that a person asked one of these of the loop that runs."""
        return next((event for event in reversed(self.asks) if event.body.want in wants), None)

    @property
    def paused(self) -> Event[kinds.Asked] | None:
        """Since when nothing new starts, at somebody's word."""
        last = self.asked("pause", "go on")
        return last if last and last.body.want == "pause" else None

    def broken(self, named: str = "") -> list[TrialRecord]:
        """Trials that failed or ran out of time: all, those of a recipe, or the one of that key."""
        return [trial for trial in self.trials.values()
                if named in ("", trial.recipe_id, trial.key) and trial.outcome in BROKEN]

    def lose(self) -> None:
        """Take what runs for interrupted, as the next loop will: the one that ran it is dead."""
        for attempt in self.attempts():
            if attempt.result is None:
                attempt.result = ended_with_the_loop(attempt.number)

    def counts(self) -> dict[str, int]:
        """Number of trials by outcome."""
        return dict(Counter(trial.outcome for trial in self.trials.values()))

    def losses(self, recipe_id: str, horizon: float, split: str = "search") -> dict[int, float]:
        """Loss by seed of a recipe's completed trials at one horizon."""
        return dict(self._losses.get((recipe_id, horizon, split), {}))

    def gains(self, recipe_id: str, over: str, horizon: float = 1.0, split: str = "search") -> dict[int, float]:
        """By seed, a rival's loss less the recipe's, in the cells where both completed a run."""
        own, rival = (self.losses(one, horizon, split) for one in (recipe_id, over))
        return {seed: rival[seed] - own[seed] for seed in sorted(own.keys() & rival.keys())}

    def shares(self) -> dict[str, float]:
        """Shares of the core-seconds between the first dispatch and the last result.

        Returns: `idle`: no trial was assigned. `replicate`, `verification`: trials of these purposes. `kill`: trials
        that ended killed. `compile`: compilation inside trials, whatever their purpose (so it overlaps the others).
        All 0 before the first result.
        """
        attempts, used = self.attempts(), dict.fromkeys(("idle", "compile", "replicate", "kill", "verification"), 0.0)
        first = min((attempt.started for attempt in attempts), default=0.0)
        last = max((attempt.ended for attempt in attempts if attempt.ended is not None), default=0.0)
        total, busy = sum(s.workers * _overlap(s, first, last) for s in self.stretches), 0.0
        for attempt in attempts:
            end = last if attempt.ended is None else attempt.ended
            assigned = sum(_overlap(stretch, attempt.started, end) for stretch in self.stretches)
            busy += assigned
            used["replicate"] += assigned * (attempt.purpose == "replicate")
            used["verification"] += assigned * (attempt.purpose in PROOF)
            if attempt.result is not None:
                used["compile"] += attempt.result.compile_s or 0.0
                used["kill"] += assigned * (attempt.result.outcome == "killed")
        used["idle"] = max(0.0, total - busy)
        return {name: share / total if total else 0.0 for name, share in used.items()}

    def apply(self, event: Event[Any]) -> None:
        """Take in the next event; events at or before `seq` were taken in already and change nothing."""
        if event.seq <= self.seq:
            return
        body, subject = event.body, event.subject
        if event.kind in HELD:
            getattr(self, HELD[event.kind]).append(event)
        if event.kind in ("session", "resume"):
            before = self.stretches[-1].workers if self.stretches else 1
            self.stretches.append(Stretch(event.time, event.time, body.workers or before))
        elif self.stretches and event.kind in kinds.LOOP_KINDS and self.end is None:  # others do not show that it ran
            self.stretches[-1].end = max(self.stretches[-1].end, event.time)
        match event.kind:
            case "session":
                self.begun = body
            case "resume":
                self.end, self.asks = None, []
            case "submission":
                self.submissions[event.seq] = body
            case "proposal":
                self.proposals.setdefault(subject, body)
            case "verdict":
                self._apply_verdict(subject, body)
            case "decision":
                self._trial(subject).decisions.append(event)
            case "attempt":
                self._apply_attempt(event)
            case "result":
                self._apply_result(event)
            case "ablation":
                self.ablations[subject] = body
            case "review" if body.decision:
                self.reviews.append(event)
            case "ask" if body.want:
                self._apply_ask(event)
            case "end":
                self.end = body
        self.seq = event.seq

    def _trial(self, key: str) -> TrialRecord:
        return self.trials.setdefault(key, TrialRecord(key))

    def _apply_verdict(self, recipe_id: str, body: kinds.Judgement) -> None:
        self.judged.add(recipe_id)
        if body.submission is not None:
            self.answers[body.submission] = recipe_id, body
        if body.accepted:
            self.verdicts["accepted"] += 1
            self.accepted.add(recipe_id)
            if body.sketch is not None:
                self.sketches.setdefault(recipe_id, body.sketch)
        else:
            self.verdicts["refused"] += 1
            self.refusals.update(refusal.rule for refusal in body.refusals)

    def _apply_ask(self, event: Event[kinds.Asked]) -> None:
        since = self.paused
        if event.body.want == "retry":
            for attempt in (attempt for trial in self.broken(event.subject) for attempt in trial.attempts):
                attempt.excused = True
        elif event.body.want == "minutes":
            self.granted_s += 60 * event.body.value
        elif event.body.want == "go on" and since:
            self.granted_s += max(0.0, event.time - since.time)
        if event.body.want != "pause" or not since:  # a second pause is none
            self.asks.append(event)

    def _apply_attempt(self, event: Event[kinds.Started]) -> None:
        record, body = self._trial(event.subject), event.body
        record.recipe_id, record.horizon, record.seed = body.trial
        record.attempts.append(Attempt(body.attempt, body.worker, body.purpose, event.time, event.seq, pid=body.pid))

    def _apply_result(self, event: Event[kinds.Result]) -> None:
        trial = self._trial(event.subject)
        for attempt in trial.attempts:
            if attempt.number == event.body.attempt and attempt.result is None:
                attempt.result, attempt.ended = event.body, event.time
        for split, loss in trial.loss.items():
            self._losses.setdefault((trial.recipe_id, trial.horizon, split), {})[trial.seed] = loss


def ended_with_the_loop(attempt: int) -> kinds.Result:
    """How an attempt ended whose loop died."""
    return kinds.Result(attempt=attempt, outcome="interrupted", reason="the loop ended")


def fold(events: Iterable[Event[Any]], state: State | None = None) -> State:
    """The state after `events`, which follow those already in `state` (a new one by default, else changed in place)."""
    state = State() if state is None else state
    for event in events:
        state.apply(event)
    return state


def _overlap(stretch: Stretch, start: float, end: float) -> float:
    """Seconds of start..end that lie within the stretch."""
    return max(0.0, min(stretch.end, end) - max(stretch.start, start))
