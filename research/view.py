"""The session as it runs: a live screen on a terminal, else a plain line for each run and stage of the proof."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live

from jaxnano.cli import lost
from research.ledger import Event
from research.plan import resuming
from research.screen import Frame
from research.state import Attempt, Trial
from research.summary import Facts, verdict
from research.text import clean, clock, effect, loss, spread

PERIOD_S = 0.25  # between two frames


class View:
    """Shows a session while it runs. A context manager. file: where to, usually sys.stdout.

    A display must not end a session: should drawing fail, plain lines go on without it.
    """

    def __init__(self, file: TextIO):
        self.file = file
        self._console = Console(file=file, highlight=False)
        self._live: Live | None = None
        self._facts: Facts | None = None
        self._seen = 0  # events shown so far
        self._next_s = 0.0
        self._refused: list[dict[str, Any]] = []

    def __enter__(self) -> View:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            live = self._live = Live(console=self._console, screen=True, auto_refresh=False)
            live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def update(self, scheduler: Any) -> None:
        """Show the scheduler as it stands, a few times a second at most. Never raises."""
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + PERIOD_S
        try:
            if scheduler.state.seq != self._seen:
                self._take_in(scheduler)
            if self._live is not None and self._facts is not None:
                self._live.update(Frame(scheduler, self._facts, self._refused), refresh=True)
        except Exception as error:
            self._stop()
            self._say(f"view: {type(error).__name__}: {error}")

    def _take_in(self, scheduler: Any) -> None:
        """Read the events since the last call; without a screen, print what they say."""
        since, self._seen = self._seen, scheduler.state.seq
        events = [e for e in scheduler.session.ledger.events(since=since) if e.seq <= self._seen]
        self._facts = facts = Facts(scheduler.snapshot)
        for event in events:
            if event.kind == "verdict" and not event.body["accepted"]:
                self._refused = [*self._refused[-3:], event.body]
            if self._live is None and (line := line_of(event, facts)):
                self._say(f"{clock(event.time - facts.state.stretches[0].start):>6}  {line}")

    def close_with(self, scheduler: Any, session_path: Path) -> None:
        """After the session: how it ended, and where to read on."""
        facts = Facts(scheduler.snapshot)
        self._say(verdict(facts)[1])
        if facts.state.champion:
            self._say(f"champion: {session_path / 'champion'}")
        self._say(f"report:   {session_path / 'report.html'}")
        if scheduler.stopping:
            self._say(f"go on:    {resuming(facts.snapshot, session_path)}")

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with self._surviving():
                live.stop()

    def _say(self, line: str) -> None:
        with self._surviving():
            print(clean(line), file=self.file, flush=True)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """A session outlives its terminal, and whoever read the lines: what is still said goes nowhere."""
        try:
            yield
        except OSError:
            lost(self.file)


def line_of(event: Event, facts: Facts) -> str | None:
    """One line for the end of a run, a stage of the proof, or a model that did not answer; None for other events."""
    body = event.body
    match event.kind:
        case "result":
            trial = facts.state.trials[event.subject]
            return _run(facts, trial, next(a for a in trial.attempts if a.number == body["attempt"]))
        case "nominated":
            return f"to be proven: {facts.name(event.subject)}, expected {spread(body['mean'], body['sd'])}"
        case "ablation":
            return f"ablation: {', '.join(body['removed']) or 'nothing'} to be removed"
        case "sealed":
            return f"sealed: attempt {body['attempt']} at alpha {body['alpha']:.2g}, {body['n']} fresh seeds"
        case "verification":
            test = body["comparisons"].get("incumbent")
            found = f", effect {effect(test['effect'])}, p = {test['p_value']:.2g}" if test else ""
            return f"verification: {'passed' if body['passed'] else 'failed'}{found}"
        case "crowned":
            return f"champion: {facts.name(event.subject)}"
        case "call" if body.get("outcome") != "ok":
            return f"llm: {body.get('outcome')}: {body.get('reason')}"[:160]
    return None


def _run(facts: Facts, trial: Trial, attempt: Attempt) -> str:
    result = attempt.result or {}
    value = (result.get("loss") or {}).get(facts.track.splits.search)
    gains = facts.run(trial) if value is not None else {}
    leads = effect(gains.get("gain_over_leader"))
    numbers = f"{loss(value):>7} {effect(gains.get('gain')):>8} {f'({leads})' if leads else '':>10}"
    what = f"{attempt.purpose} {trial.horizon:g}/{trial.seed}"
    return f"{what:<19} {result.get('outcome', ''):<11} {numbers}  {facts.name(trial.recipe_id)}"
