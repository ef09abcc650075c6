"""What comes in: the lanes are asked by their shares, and the gate judges theirs and others' proposals."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxnano.config.base import ConfigError, Problem, dump, validate
from jaxnano.config.recipe import Recipe, recipe_id
from research.contract.gate import Gate, Verdict
from research.contract.part import BASE, OUTSIDE, Proposal
from research.contract.proposal import build, submitted
from research.contract.track import Track
from research.decide.belief import sketched
from research.decide.book import Book
from research.decide.choose import contenders, rewards
from research.lanes.protocol import Beside, Proposer
from research.learn.pay import asked_by, next_lane, share
from research.ledger.kinds import Proposed

ROOM, JUDGE_S = 256, 1.0  # submitted proposals that may wait for a run; seconds for judging at a time
STOCK, REFILL = 24, 3  # arms without a run that may be the next best; proposals asked for at a time


def base_proposal(track: Track) -> Proposal:
    """The base as the first proposal of a session."""
    return Proposal(name="base", parts=(), hypothesis=track.summary, lane=BASE, origin=track.base)


class Intake:
    """Turns proposals into verdicts. Both are events; an accepted recipe is an arm from then on."""

    def __init__(self, book: Book, gate: Gate, lanes: Mapping[str, Proposer]):
        self.book, self.gate, self.lanes = book, gate, lanes
        self._stocked = 0  # the state the lanes were last asked about
        self._since, self._asked = 0, 0  # search runs there were when one was worth its time; asked by `more` since

    def take_up(self) -> None:
        """At the start: know what was accepted before, and propose the base."""
        for arm in self.book.snapshot.arms:
            self.gate.remember(arm.recipe)
        base = self.book.track.base_recipe
        if recipe_id(base) not in self.book.state.accepted:
            self.admit(base_proposal(self.book.track), base, Verdict(base))
        session = self.book.state.session
        if session.inherited is not None and session.incumbent not in self.book.state.accepted:
            recipe = validate(Recipe, session.inherited.recipe)
            self.admit(session.inherited.proposal, recipe, Verdict(recipe))
        self.judge()

    def stock(self) -> None:
        """Ask the lanes while fewer arms than STOCK may be the next best; a few at a time.

        The same state gets the same answers, so it is asked once.
        """
        state = self.book.state
        if state.seq != self._stocked:
            self._ask(min(STOCK - contenders(self.book.snapshot), REFILL if state.decisions else STOCK))
            self._stocked = state.seq

    def more(self) -> bool:
        """Ask for a few, whatever there is, as no run is worth its time: STOCK of them since one was, and REFILL for
        each run since then. Returns: whether any came."""
        state = self.book.state
        if self._asked >= STOCK + REFILL * (self._searched - self._since):
            return False
        self._asked += REFILL
        before = state.seq
        self._ask(REFILL)
        return state.seq > before

    def enough(self) -> None:
        """Some run is worth its time."""
        self._since, self._asked = self._searched, 0

    @property
    def _searched(self) -> int:
        """Search runs that were decided."""
        return sum(event.body.purpose == "search" for event in self.book.state.decisions)

    def _ask(self, count: int) -> None:
        """Ask the lanes for so many proposals, by their shares."""
        state, snapshot = self.book.state, self.book.snapshot
        asked = asked_by([body.proposal.lane for body in state.proposals.values()])
        view, earned, open_ = snapshot.view(), rewards(snapshot, self.lanes), list(self.lanes)
        for _ in range(count):
            proposal = None
            while open_ and proposal is None:
                lane = next_lane(share(open_, earned), asked)
                asked[lane] = asked.get(lane, 0.0) + 1.0
                proposal = self.lanes[lane].propose(view, np.random.default_rng([state.session.seed, state.seq]))
                if proposal is None:
                    open_.remove(lane)
            if proposal is not None:
                self.consider(proposal)
                view = replace(view, proposed=frozenset(state.proposals))

    @property
    def expecting(self) -> bool:
        """Whether a lane that works beside the loop may still bring proposals that the state does not hold."""
        seq = self.book.state.seq
        return any(lane.pending(seq) for lane in self.lanes.values() if isinstance(lane, Beside))

    def consider(self, proposal: Proposal, **about: Any) -> Verdict:
        """Judge a proposal and write down both. about: what the verdict's event holds beside."""
        verdict = self.gate.judge_parts(proposal.parts)
        try:
            recipe = build(self.book.track.base_recipe, proposal.parts)
        except ConfigError:
            self.book.record("verdict", "", verdict.as_dict() | {"proposal": proposal} | about)
            return verdict
        self.admit(proposal, recipe, verdict, **about)
        return verdict

    def judge(self) -> None:
        """Judge what a loop that died had proposed, and what others have submitted, for about JUDGE_S."""
        state, until_s = self.book.state, time.monotonic() + JUDGE_S
        for subject in [s for s in state.proposals if s not in state.judged]:
            self._judged(subject, self.gate.judge(state.proposals[subject].recipe))
        waiting = state.unanswered()
        known = {part for body in (state.proposals.values() if waiting else ())
                 for part in body.proposal.parts}
        for number, body in waiting.items():
            if time.monotonic() > until_s:
                return  # the workers wait: the others come next time
            try:
                self._room()
                proposal = submitted(body.proposal, self.book.track, known)
                if self.consider(proposal, submission=number).accepted:
                    known.update(proposal.parts)
            except ConfigError as error:
                self.book.record("verdict", "", Verdict(None, error.problems).as_dict() | {"submission": number})

    def _room(self) -> None:
        """Raises: ConfigError while so many proposals from outside wait for a run that the belief would slow down."""
        ran = {trial.recipe_id for trial in self.book.state.trials.values()}
        waiting = sum(arm.lane in OUTSIDE and arm.recipe_id not in ran for arm in self.book.snapshot.arms)
        if waiting >= ROOM:
            raise ConfigError([Problem("", waiting, f"fewer than {ROOM} proposals may wait for a run; later would do")])

    def admit(self, proposal: Proposal, recipe: Recipe, verdict: Verdict, **about: Any) -> None:
        """Write a proposal and its verdict down, whatever the gate would say of it."""
        self.book.record("proposal", recipe_id(recipe), Proposed(proposal=proposal, recipe=dump(recipe)))
        self._judged(recipe_id(recipe), verdict, **about)

    def _judged(self, subject: str, verdict: Verdict, **about: Any) -> None:
        if verdict.accepted and verdict.recipe is not None:
            about["sketch"] = sketched(self.book.track.base_recipe, verdict.recipe)
        self.book.record("verdict", subject, verdict.as_dict() | about)
        if verdict.recipe is not None:
            self.gate.remember(verdict.recipe)
