"""Proposals from outside the loop: people, coding agents and language models read and propose, the loop decides.

Whoever proposes opens the session beside the loop, has the same gate judge at once, and appends a `submission`. The
loop takes it in as it does a lane's; its verdict is the one that counts. Outsiders see the ledger without the protected
and the held-out split, of which only pass or fail is said.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from jaxnano.config.base import ConfigError, Node, Problem
from jaxnano.config.recipe import Recipe, recipe_id
from research.contract.gate import Gate, Verdict
from research.contract.part import INBOX, MAX_NAME, MAX_WHY, MOST, IdeaEdit, Part, Proposal, title
from research.contract.proposal import claimed, replaces
from research.contract.track import Track
from research.contract.trial import Trial
from research.decide.belief import Snapshot
from research.decide.book import Book, track_of
from research.ledger.events import Event
from research.ledger.kinds import Crowned, Review, Submission, Verified
from research.ledger.session import Session
from research.ledger.state import FINAL, State, fold
from research.outside.forms import Came
from research.show.facts import Facts
from research.text import beginning

POLL_S = 0.1

Edits = Annotated[tuple[IdeaEdit, ...], Field(min_length=1, max_length=MOST)]
Why = Annotated[str, Field(min_length=1, max_length=MAX_WHY)]
Title = Annotated[str, Field(max_length=MAX_NAME)]
Promise = Annotated[float, Field(ge=-10, le=10, description="expected, nats; it moves the prior by two epsilons at "
                                 "most")]
Source = Annotated[str, Field(max_length=300)]
On = Annotated[str, Field(description="`best` (the champion, or else the candidate that leads), `base`, or a recipe's "
                          "id")]


class Ask(Node):
    """Edits on top of a recipe that is known."""

    edits: Edits
    why: Why
    name: Title = ""
    effect: Promise = 0.0
    source: Source = ""
    on: On = "best"


def visible(events: Iterable[Event[Any]], track: Track) -> Iterator[Event[Any]]:
    """The events as outsiders see them: of the protected and the held-out split only whether a candidate passed."""
    for event in events:
        body = event.body
        match event.kind:
            case "result" | "transfer":
                split = track.splits.search
                body = body.model_copy(update={"loss": {n: loss for n, loss in body.loss.items() if n == split}})
            case "verification":
                body = Verified(passed=body.passed, attempt=body.attempt, alpha=body.alpha, nomination=body.nomination)
            case "crowned":
                body = Crowned(trial=body.trial, name=body.name)
            case "review":  # who reviews has seen the proof, and a note, or whatever else stands there, may quote it
                body = Review(decision=body.decision)
        yield replace(event, body=body)


@dataclass(frozen=True)
class Submitted:
    """number: the submission's event. verdict: of the gate, here and now. trial: key of the first run, if accepted."""

    number: int
    proposal: Proposal
    verdict: Verdict
    trial: str | None

    @property
    def recipe_id(self) -> str | None:
        """Id of the recipe, if it was accepted."""
        return recipe_id(self.verdict.recipe) if self.verdict.recipe is not None else None


class Inbox:
    """A session as an outsider sees it. A context manager; of one thread, and each thread may have its own.

    Raises: SessionError if there is no session, or it has not begun.
    """

    def __init__(self, path: Path):
        self.session = Session.open(path)
        try:
            self.track = track_of(fold(self.session.ledger.events()))
        except ValueError:
            self.session.close()
            raise
        self.book, self.gate = Book(self.session, self.track, partial(visible, track=self.track)), Gate(self.track)
        self._remembered: set[str] = set()
        self.refresh()

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def refresh(self) -> State:
        """Take in what has happened; what outsiders may not see is left out."""
        self.book.refresh()
        for arm in self.book.belief.arms(self.state):
            if arm.recipe_id not in self._remembered:
                self._remember(arm.recipe)
        return self.state

    def _remember(self, recipe: Recipe) -> None:
        self.gate.remember(recipe)
        self._remembered.add(recipe_id(recipe))

    @property
    def running(self) -> bool:
        """Whether a loop is there to take a submission in; if not, the next one that resumes the session does."""
        return self.state.end is None and self.session.ledger.held()

    @property
    def state(self) -> State:
        """What outsiders may see, as of the last refresh."""
        return self.book.state

    @property
    def snapshot(self) -> Snapshot:
        """The belief as of the last refresh."""
        return self.book.snapshot

    def parts_on(self, on: str) -> tuple[str | None, tuple[Part, ...]]:
        """Id and parts of the recipe that `best`, `base` or an id stands for.

        Raises: ConfigError if no accepted recipe is called so.
        """
        snapshot = self.snapshot
        if on == "best":
            on = snapshot.leader or "base"
        if on == "base" or not snapshot.arms:
            return next((arm.recipe_id for arm in snapshot.arms), None), ()
        found = beginning(on, snapshot.by_id)
        if len(found) != 1:
            raise ConfigError([Problem("on", on, "best, base or the id of an accepted recipe would do")])
        return found[0], snapshot.by_id[found[0]].parts

    def compose(self, ask: Ask, lane: str, origin: str) -> Proposal:
        """What is asked, on top of what it names; parts that nothing would be left of go.

        Raises: ConfigError if it names no accepted recipe.
        """
        parent, parts = self.parts_on(ask.on)
        name = ask.name or ", ".join(".".join(edit.path.split(".")[-2:]) for edit in ask.edits)[:MAX_NAME]
        new = Part(name=name, edits=ask.edits, effect=min(max(ask.effect, -1.0), 1.0), source=ask.source, why=ask.why)
        kept = [old for old in parts if not replaces(new, old)]
        taken = {old.name for old in kept}
        names = itertools.chain([name], (f"{name} {i}" for i in itertools.count(2)))
        name = next(n for n in names if n not in taken)
        parts = claimed([*kept, new.model_copy(update={"name": name})], kept, self.track)
        if len(parts) > MOST:
            raise ConfigError([Problem("on", ask.on, f"a recipe has at most {MOST} parts; one with fewer would do")])
        return Proposal(name=title(parts), parts=parts, hypothesis=ask.why, lane=lane, origin=origin,
                        parents=(parent,) if parent else ())

    def submit(self, ask: Ask, *, origin: str, lane: str = INBOX) -> Submitted:
        """Judge and submit. A refused one is submitted too: the ledger knows what was tried.

        Raises: ConfigError if it names no accepted recipe.
        """
        self.refresh()
        proposal = self.compose(ask, lane, origin)
        verdict = self.gate.judge_parts(proposal.parts)
        number = self.session.ledger.append("submission", "", Submission(proposal=proposal))
        if verdict.recipe is None:
            return Submitted(number, proposal, verdict, None)
        self._remember(verdict.recipe)  # before the loop has said so: asked again at once, it is a duplicate
        first = Trial(recipe_id(verdict.recipe), min(self.track.horizons), 0)
        return Submitted(number, proposal, verdict, first.key)

    def outcome(self, number: int) -> Came | None:
        """The loop's answer to a submission; None while it has not judged it, or its first run is not over.

        Raises: ConfigError if there is no submission of this number.
        """
        answer = self.refresh().answers.get(number)
        if number not in self.state.submissions:
            raise ConfigError([Problem("number", number, "no such submission; the number that came with it would do")])
        if answer is None:
            return None
        found, body = answer
        if not body.accepted:
            return Came(accepted=False, recipe_id=found or None, refusals=body.refusals)
        facts = Facts(self.snapshot)
        runs = {trial.key: facts.run(trial) for trial in self.state.trials.values()
                if trial.recipe_id == found and trial.outcome in FINAL}
        return Came(accepted=True, recipe_id=found, runs=runs, effect=list(facts.effect(found))) if runs else None

    def wait(self, number: int, timeout_s: float) -> Came | None:
        """`outcome`, or None if there is none after timeout_s seconds, or no loop is left that could bring it."""
        deadline = time.monotonic() + timeout_s
        while (found := self.outcome(number)) is None and self.running and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found
