"""The `llm` lane: a thread of its own asks a language model, judges what it answers, and submits it.

`propose` only says that proposals are wanted, so the loop never waits for a model. The thread reads the session as any
outsider does (research/outside/inbox.py). Every request is one `call` event with what it has cost, whatever came of
it; a request without a usable answer is followed by a pause, and the other lanes go on meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from jaxnano.cli import UserError
from jaxnano.config.base import ConfigError, Node, Problem, validate
from research.contract.part import LLM, Proposal
from research.lanes.protocol import Knowledge
from research.ledger.events import LedgerFailure, SessionError
from research.ledger.exchanges import Exchange, keep
from research.ledger.kinds import Call
from research.ledger.spend import EXHAUSTED, Spend
from research.outside.inbox import Inbox
from research.outside.llm import prompt as prompts
from research.outside.llm.answer import Draft, read, shown
from research.outside.llm.fault import Answer, Fault, Provider
from research.outside.llm.prompt import Page
from research.outside.llm.provider import Endpoint, endpoint

LEAST_OUT = 512  # tokens an answer may have, below which it is not worth asking
LEAST_ROOM = 0.1  # of what the settings allow, for a model that takes less
LONGEST_PAUSE = 64  # times `pause_s`, between two requests after faults in a row
PATIENCE = 6  # faults in a row after which the loop does not wait for this lane alone
GRACE_S = 1.0  # that the end of a session gives to a request under way


class Settings(Node):
    """What the lane may spend. model: see provider.endpoint. price: USD per million tokens, in and out.

    prompt: tokens of a question, about. answer: tokens it may have. timeout_s: of a request. pause_s: after the first
    fault; doubled after each in a row. runs: that have to end between two questions, so that there is something new to
    say.
    """

    model: str | None = Field(default=None, max_length=200)
    tokens: int = Field(default=1_000_000, ge=1)
    cost: float | None = Field(default=None, gt=0)
    price: tuple[float, float] | None = None
    prompt: int = Field(default=14_000, ge=prompts.LEAST)
    answer: int = Field(default=16_384, ge=LEAST_OUT)
    timeout_s: float = Field(default=120.0, gt=0)
    pause_s: float = Field(default=1.0, ge=0)
    runs: int = Field(default=4, ge=0)

    def usd(self, tokens_in: int, tokens_out: int) -> float | None:
        """What tokens cost; None without a price."""
        return None if self.price is None else (self.price[0] * tokens_in + self.price[1] * tokens_out) / 1e6


def settings_of(options: argparse.Namespace, before: Mapping[str, Any] | None = None) -> Settings:
    """The settings asked for, over those the session had.

    Raises: ValueError that names the option.
    """
    data = dict(before or {})
    for name in ("model", "tokens", "cost", "price", "prompt", "answer", "timeout_s"):
        if (value := getattr(options, f"llm_{name}")) is not None:
            data[name] = _price(value) if name == "price" else value
    try:
        settings = validate(Settings, data)
    except ConfigError as error:
        first = error.problems[0]
        raise ConfigError([Problem(f"--llm-{first.path.removesuffix('_s')}", first.value, first.rule)]) from None
    if settings.cost is not None and settings.price is None:
        raise UserError(f"--llm-cost: {settings.cost:g}: prices change, so --llm-price IN,OUT (USD per million "
                        "tokens) has to say what one costs")
    return settings


def _price(text: str) -> list[float]:
    try:
        prices = [float(part) for part in text.split(",")]
    except ValueError:
        prices = []
    if len(prices) != 2 or not all(0 <= price < 1e6 for price in prices):
        raise UserError(f"--llm-price: {text}: IN,OUT in USD per million tokens would do, such as 0.3,2.5")
    return prices


class Llm:
    """The lane. `open` gives it a session; `close` ends it."""

    name = LLM

    def __init__(self, settings: Settings, endpoint: Endpoint):
        self.settings, self.endpoint = settings, endpoint
        self._wanted, self._stop = threading.Event(), threading.Event()
        self._lock = threading.Lock()  # of what follows
        self._inbox: Inbox | None = None
        self._began: tuple[float, bool] | None = None  # the request under way: when, and whether it is a repair
        self._spend = Spend()
        self._faults = 0  # in a row
        self._turns = 0  # questions, without their repairs
        self._room = 1.0  # share of the settings' tokens that the model has shown to take
        self._busy = False  # with a turn
        self._last = 0  # the last event it has written
        self._due = 0  # ended runs at which the next question is worth asking
        self._spent = False  # whether the budget does not hold one more request
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, options: argparse.Namespace, before: Mapping[str, Any] | None = None) -> Llm:
        """The lane as the command line and the environment ask for it. Raises: ValueError that names what lacks."""
        settings = settings_of(options, before)
        return cls(settings, endpoint(settings.model, os.environ))

    def open(self, session: Path) -> None:
        """Start the thread on a session, which must have begun."""
        self._thread = threading.Thread(target=self._run, args=(session,), name=LLM, daemon=True)
        self._thread.start()

    def propose(self, view: Knowledge, rng: np.random.Generator) -> Proposal | None:
        """Say that proposals are wanted; those there are come through the ledger."""
        self._wanted.set()
        return None

    def pending(self, seq: int) -> bool:
        """See research.lanes.protocol.Beside."""
        alive = self._thread is not None and self._thread.is_alive() and not self._spent
        active = alive and self._faults < PATIENCE and (self._wanted.is_set() or self._busy)
        return active or self._last > seq  # in this order: what is over by now has written its last event before

    def close(self, grace_s: float = GRACE_S) -> None:
        """End the thread. A request that is not answered in time is written down as aborted, and left to itself."""
        self._stop.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(grace_s)
        with self._lock, contextlib.suppress(SessionError, LedgerFailure):
            if self._began is not None:
                self._write(Fault("aborted", "the session ended before the answer came"))

    def _run(self, session: Path) -> None:
        """The thread: until the session ends, the budget is spent, or the ledger cannot be written."""
        try:
            with Inbox(session) as inbox:
                self._inbox, self._spend = inbox, Spend.of(inbox.state.calls)
                self._serve(inbox)
        except (SessionError, LedgerFailure):
            return  # the session's folder is gone, or its ledger is locked for good: there is nobody left to tell

    def _serve(self, inbox: Inbox) -> None:
        """A turn whenever proposals are wanted."""
        provider: Provider | None = None
        try:
            while self._wanted.wait() and not self._stop.is_set() and not self._spent:
                self._busy = True  # before it is no more wanted: `pending` reads the two one after the other
                self._wanted.clear()
                try:
                    provider = provider or self.endpoint.connect()
                    self._turn(inbox, provider)
                except (SessionError, LedgerFailure):
                    raise
                except Exception as error:  # a fault of ours: the session goes on, and the ledger knows
                    self._event("error", self.endpoint.reason(f"{type(error).__name__}: {error}"))
                    self._pause()
                self._busy = False
        finally:
            if provider is not None:
                provider.close()

    def _turn(self, inbox: Inbox, provider: Provider) -> None:
        """Ask once, send back what was refused once, submit everything."""
        state = inbox.refresh()
        ended = sum(attempt.result is not None for attempt in state.attempts())
        if not state.accepted or state.unanswered() or ended < self._due:
            return
        limit = max(prompts.LEAST, int(self._room * self.settings.prompt))
        page = prompts.write(inbox, limit, self._left(inbox), self._longest(), self._turns)
        self._turns += 1
        drafts = self._ask(inbox, provider, page, repair=False)
        refused = [draft for draft in drafts if draft.problems]
        self._submit(inbox, [draft for draft in drafts if not draft.problems])
        mended: list[Draft] = []
        if refused:
            mended = self._ask(inbox, provider, page.repair(refused), repair=True)
            names = {draft.name for draft in mended}
            self._submit(inbox, mended + [draft for draft in refused if draft.name not in names])
        if any(not draft.problems for draft in drafts + mended):
            self._due = ended + self.settings.runs
        elif drafts:  # a model that gets nothing right is asked less and less often
            self._pause()

    def _left(self, inbox: Inbox) -> dict[str, Any]:
        """What is left of the session's time and the lane's money."""
        minutes = inbox.state.session.minutes
        settings, spend = self.settings, self._spend
        return {"seconds": max(0, round(60 * minutes - inbox.state.wall_s)) if minutes else None,
                "tokens": settings.tokens - spend.tokens,
                "usd": round(settings.cost - spend.cost, 4) if settings.cost is not None else None}

    def _ask(self, inbox: Inbox, provider: Provider, page: Page, repair: bool) -> list[Draft]:
        """One request: its answer's proposals, judged; one `call` event. Empty after a fault, which is waited out."""
        most = self._affordable(page)
        if most < LEAST_OUT:
            self._exhausted(inbox)
            return []
        with self._lock:
            if self._stop.is_set():
                return []
            self._began = time.monotonic(), repair
        answer, drafts, failed = None, [], None
        try:
            answer = provider.complete(page.system, page.user, page.schema, most, self.settings.timeout_s)
            drafts = read(answer.text, page.places, self.endpoint.hide)
            for draft in drafts:
                self._judge(inbox, draft)
        except Fault as fault:
            failed, answer = fault, answer or fault.answer
        except (SessionError, LedgerFailure):
            raise
        except Exception as error:  # a fault of ours: what the request has cost is written down all the same
            failed = Fault("error", f"{type(error).__name__}: {error}")
        with self._lock:
            if self._began is not None:
                self._write(failed, answer, drafts, page)
        if failed is not None:
            if failed.outcome == "too_long":
                self._room = max(LEAST_ROOM, self._room * prompts.SHRINK)
            self._pause(failed.pause_s)
            return []
        if any(not draft.problems for draft in drafts):
            self._faults = 0
        return drafts

    def _longest(self) -> int:
        """Tokens that an answer may have, whatever is left of the budget."""
        return max(LEAST_OUT, int(self._room * self.settings.answer))

    def _affordable(self, page: Page) -> int:
        """Tokens that the answer to a page may have within the budget."""
        settings, spend, asked = self.settings, self._spend, page.tokens
        most = min(self._longest(), settings.tokens - spend.tokens - asked)
        if settings.cost is not None and settings.price is not None:
            left = settings.cost - spend.cost - (settings.usd(asked, 0) or 0.0)
            most = min(most, int(1e6 * left / settings.price[1]) if settings.price[1] else most if left > 0 else 0)
        return most

    def _judge(self, inbox: Inbox, draft: Draft) -> None:
        """Fill in the problems the gate finds; what it accepts counts as known from now on."""
        if draft.ask is None:
            return
        try:
            verdict = inbox.gate.judge_parts(inbox.compose(draft.ask, LLM, self.endpoint.model).parts)
        except ConfigError as error:
            draft.ask, draft.problems = None, error.problems  # on a recipe that nobody knows
            return
        draft.problems = verdict.problems
        if verdict.recipe is not None:
            inbox.gate.remember(verdict.recipe)

    def _submit(self, inbox: Inbox, drafts: list[Draft]) -> None:
        """Submit what is a proposal at all, refused ones too."""
        for draft in drafts:
            if draft.ask is not None and not self._stop.is_set():
                self._last = inbox.submit(draft.ask, origin=self.endpoint.model, lane=LLM).number

    def _write(self, failed: Fault | None, answer: Answer | None = None, drafts: list[Draft] | None = None,
               page: Page | None = None) -> None:
        """The `call` event of the request under way, and what was said. The lock is held."""
        assert self._inbox is not None and self._began is not None
        (began_s, repair), self._began = self._began, None
        tokens_in, tokens_out = (answer.tokens_in, answer.tokens_out) if answer else (0, 0)
        drafts = drafts or []
        refused = [problem for draft in drafts for problem in draft.problems[:1]]
        reason = failed.reason if failed else str(refused[0]) if refused else ""
        kept = 0 if page is None else self._spend.requests + 1
        if page is not None:
            hide = self.endpoint.hide
            keep(self._inbox.session, kept, Exchange(hide(page.system), hide(page.user),
                                                     shown(answer.text, hide) if answer else ""))
        self._event(failed.outcome if failed else "ok", self.endpoint.reason(reason), tokens_in=tokens_in,
                    tokens_out=tokens_out, cost=self.settings.usd(tokens_in, tokens_out),
                    wall_s=time.monotonic() - began_s, proposals=len(drafts),
                    accepted=sum(not draft.problems for draft in drafts), repair=repair, kept=kept)

    def _event(self, outcome: str, reason: str, **counted: Any) -> None:
        assert self._inbox is not None
        call = Call(outcome=outcome, provider=self.endpoint.provider, model=self.endpoint.model, reason=reason,
                    **counted)
        self._last = self._inbox.session.ledger.append("call", "", call)
        self._spend.add(call)

    def _exhausted(self, inbox: Inbox) -> None:
        """Say that the budget is used up, once in the ledger for each budget, and ask no more."""
        about = f"{self._spend.tokens:,} of {self.settings.tokens:,} tokens"
        if self.settings.cost is not None:
            about += f", {self._spend.cost:.4g} of {self.settings.cost:g} USD"
        reason = f"{about}: no room for one more request"
        if not any((e.body.outcome, e.body.reason) == (EXHAUSTED, reason) for e in inbox.refresh().calls):
            self._event(EXHAUSTED, reason)
        self._spent = True

    def _pause(self, asked_s: float = 0.0) -> None:
        """Wait as long as the server asked, and longer after each fault in a row; then ask again."""
        self._faults += 1
        factor = min(2 ** (self._faults - 1), LONGEST_PAUSE)
        self._stop.wait(max(asked_s, factor * self.settings.pause_s))
        self._wanted.set()
