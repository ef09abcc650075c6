"""What comes in: the lanes are asked by their shares, and the gate judges theirs and others' proposals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxnano.config.base import ConfigError, dump
from jaxnano.config.recipe import Recipe, recipe_id
from research import allocate
from research.book import Book
from research.gate import Gate, Verdict
from research.inbox import proposal_of
from research.propose import Beside, Proposal, Proposer, build

STOCK, REFILL = 24, 3  # arms without a run that may be the next best; proposals asked for at a time


class Intake:
    """Turns proposals into verdicts. Both are events; an accepted recipe is an arm from then on."""

    def __init__(self, book: Book, gate: Gate, lanes: Mapping[str, Proposer]):
        self.book, self.gate, self.lanes = book, gate, lanes
        self._stocked = 0  # the state the lanes were last asked about

    def take_up(self) -> None:
        """At the start: know what was accepted before, and propose the base."""
        for arm in self.book.snapshot.arms:
            self.gate.remember(arm.recipe)
        base = self.book.track.base_recipe
        if recipe_id(base) not in self.book.state.accepted:
            self._submit(Proposal("base", (), self.book.track.summary, "base", self.book.track.base), base,
                         Verdict(base))
        self.judge()

    def stock(self) -> None:
        """Ask the lanes, by their shares, while fewer arms than STOCK may be the next best; a few at a time.

        The same state gets the same answers, so it is asked once.
        """
        state, snapshot = self.book.state, self.book.snapshot
        if state.seq == self._stocked:
            return
        asked: dict[str, int] = {}
        for body in state.proposals.values():
            asked[body["proposal"]["lane"]] = asked.get(body["proposal"]["lane"], 0) + 1
        view, rewards, open_ = snapshot.view(), snapshot.rewards(self.lanes), list(self.lanes)
        for _ in range(min(STOCK - snapshot.contenders(), STOCK if not state.decisions else REFILL)):
            proposal = None
            while open_ and proposal is None:
                lane = allocate.next_lane(allocate.share(open_, rewards), asked)
                asked[lane] = asked.get(lane, 0) + 1
                proposal = self.lanes[lane].propose(view, np.random.default_rng([state.session["seed"], state.seq]))
                if proposal is None:
                    open_.remove(lane)
            if proposal is not None:
                self.consider(proposal)
                view = replace(view, proposed=frozenset(state.proposals))
        self._stocked = state.seq

    @property
    def expecting(self) -> bool:
        """Whether a lane that works beside the loop may still bring proposals that the state does not hold."""
        seq = self.book.state.seq
        return any(lane.pending(seq) for lane in self.lanes.values() if isinstance(lane, Beside))

    def consider(self, proposal: Proposal, **about: Any) -> Verdict:
        """Judge a proposal and write down both. about: what the verdict's event holds beside."""
        try:
            recipe = build(self.book.track.base_recipe, proposal.parts)
        except ConfigError as error:
            verdict = Verdict(None, error.problems)
            self.book.record("verdict", "", verdict.as_dict() | {"proposal": proposal.as_dict()} | about)
            return verdict
        verdict = self.gate.judge(recipe)
        self._submit(proposal, recipe, verdict, **about)
        return verdict

    def judge(self) -> None:
        """Judge what others have submitted, and what a loop that died had proposed."""
        state = self.book.state
        for subject in [s for s in state.proposals if s not in state.judged]:
            self._judged(subject, self.gate.judge(state.proposals[subject]["recipe"]))
        for number, body in state.unanswered().items():
            try:
                self.consider(proposal_of(body), submission=number)
            except ConfigError as error:
                self.book.record("verdict", "", Verdict(None, error.problems).as_dict() | {"submission": number})

    def _submit(self, proposal: Proposal, recipe: Recipe, verdict: Verdict, **about: Any) -> None:
        body = {"proposal": proposal.as_dict(), "recipe": dump(recipe)}
        self.book.record("proposal", recipe_id(recipe), body)
        self._judged(recipe_id(recipe), verdict, **about)

    def _judged(self, subject: str, verdict: Verdict, **about: Any) -> None:
        self.book.record("verdict", subject, verdict.as_dict() | about)
        if verdict.recipe is not None:
            self.gate.remember(verdict.recipe)
