"""The session as it runs: a live screen on a terminal, else a plain line for each run and stage of the proof."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxnano.cli import lost
from jaxnano.config.edit import show
from research.contract.trial import APART, Trial
from research.decide.plan import resuming
from research.ledger.events import Event
from research.ledger.kinds import Judgement
from research.ledger.state import Attempt, TrialRecord
from research.show.claim import spared
from research.show.facts import Facts
from research.show.verdict import stage, verdict
from research.text import clean, clock, count, cut, effect, loss, spread

PERIOD_S = 0.25  # between two frames
BAR = 10  # characters of a progress bar
LEADERS = 5
RUNNERS_UP = 2
REFUSED = 2
LINE = 72  # characters of a line beside its time: 80 in all


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
        self._refused: list[Judgement] = []

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
            if event.kind == "verdict" and not event.body.accepted:
                self._refused = [*self._refused[-3:], event.body]
            if self._live is None and (line := line_of(event, facts, LINE)):
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


def line_of(event: Event[Any], facts: Facts, most: int = 1000) -> str | None:
    """One line for the end of a run, a stage of the proof, or a model that did not answer; None for other events.

    most: characters of it.
    """
    body = event.body
    match event.kind:
        case "result":
            trial = facts.state.trials[event.subject]
            return cut(_run(facts, trial, next(a for a in trial.attempts if a.number == body.attempt)), most)
        case "nominated":
            return f"to be proven: {facts.name(event.subject)}, expected {spread(body.mean, body.sd)}"
        case "ablation":
            if body.trying:
                return f"ablation: to be tried without {', '.join(body.removing)}"
            doubt = "" if body.more or not body.untested else f"; {len(body.untested)} of {len(body.kept)} in doubt"
            return f"ablation: {', '.join(body.removed) or 'nothing'} removed{doubt}"
        case "sealed":
            limit = "at most " * bool(body.rule)
            return f"sealed: attempt {body.attempt} at alpha {body.alpha:.2g}, {limit}{body.n} fresh seeds"
        case "futile":
            return spared(body, facts.name(body.recipe_id))
        case "verification":
            test = body.comparisons.get("incumbent")
            found = f", effect {effect(test['effect'])}, p = {test['p_value']:.2g}" if test else ""
            return f"verification: {'passed' if body.passed else 'failed'}{found}"
        case "crowned":
            return f"champion: {facts.name(event.subject)}"
        case "transfer":
            value = loss(body.loss.get(facts.track.splits.search))
            return f"{event.kind:<19} {body.outcome:<11} {value:>7}{'':21}  {body.role}, {body.setting}"
        case "call" if body.outcome != "ok":
            return f"llm: {body.outcome}: {body.reason}"[:160]
    return None


def _run(facts: Facts, trial: TrialRecord, attempt: Attempt) -> str:
    result = attempt.result
    value = result.loss.get(facts.track.splits.search) if result else None
    run = facts.run(trial)
    leads = "" if run.gain_over_leader is None else f"({effect(run.gain_over_leader)})"
    found = f"{loss(value):>7} {effect(run.gain):>8} {leads:>10}"
    told = found if value is not None else result.outcome if result else ""
    return f"{f'{attempt.purpose} {trial.trial.cell}':<18} {told:<27}  {facts.name(trial.recipe_id)}"


class Frame:
    """Draws a scheduler. Whatever does not fit into the terminal's height is left out, the least telling first."""

    def __init__(self, scheduler: Any, facts: Facts, refused: Sequence[Judgement]):
        """refused: bodies of the last refusing verdicts, newest last."""
        self.scheduler, self.facts, self.refused = scheduler, facts, refused

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = (options.height or console.size.height) - 1
        sections = [self._head(), self._running(), self._leaders(), self._chosen(), self._incumbent(), self._refusals()]
        shown = []
        for title, rows in sections:
            lines = rows[: max(0, room - bool(title))]
            if lines:
                shown += [*([_plain(title, "bold cyan")] if title else []), _grid(lines)]
                room -= len(lines) + bool(title)
        yield Group(*shown)

    def _head(self):
        state, counts = self.facts.state, self.facts.state.counts()
        running = sum(flight.purpose not in APART for flight in self.scheduler.flights.values())
        line = Text.assemble((f"{self.facts.track.name}", "bold"), f"   {clock(self.scheduler.left_s)} left   ",
                             f"{sum(counts.values()) - running} runs done, {running} running   ",
                             f"idle {state.shares()['idle']:.0%}   {self.facts.device_time}")
        first = "" if state.trials else ": the lanes make their first proposals, the workers load JAX"
        said = Text(stage(self.facts.snapshot) + first, style="yellow" if state.nominated else "dim")
        return "", [[line], [said]]

    def _running(self):
        rows = []
        for worker, flight in sorted(self.scheduler.flights.items()):
            done, loss = flight.curve[-1] if flight.curve else (0.0, None)
            bar = ProgressBar(total=1.0, completed=done, width=BAR)
            rate = f"{flight.tokens_per_s / 1e3:.0f}k tok/s" if flight.tokens_per_s else \
                f"compiling {time.monotonic() - flight.started_s:.0f} s"
            rows.append([_right(f"{worker}"), bar, _right(f"{done:.0%}"), _right("" if loss is None else f"{loss:.3f}"),
                         _plain(f"{flight.purpose} {flight.trial.cell}"), _plain(rate, "dim"),
                         _plain(flight.errand.told if flight.errand else self.facts.name(flight.trial.recipe_id))])
        return "running", rows

    def _leaders(self):
        rows = []
        for row in self.facts.frontier(LEADERS):
            style = "green" if row["mean"] > 2 * row["sd"] else ""
            mean = _right(f"{row['mean']:+.3f} ± {row['sd']:.3f}", style)
            rows.append([mean, _plain(count(row["runs"], "run"), "dim"), _plain(row["name"])])
        return "frontier: expected effect at the full horizon", rows

    def _chosen(self):
        body = next((e.body for e in reversed(self.facts.state.decisions) if e.body.winner is not None), None)
        scored = [body.winner, *body.runners_up[:RUNNERS_UP]] if body else []
        rows = [[_plain("before" if i else "chosen", "dim"), _right(f"{s.eig:.2g} nats"),
                 _right(f"{s.improvement:.2g}"), _right(f"{s.cost_s:.1f} s"),
                 _plain(t.cell, "dim"), _plain(self.facts.name(t.recipe_id))]
                for i, s in enumerate(scored) for t in [Trial.of(s.trial)]]
        return "last choice: information gained, improvement expected, price", rows

    def _incumbent(self):
        recipe_id = self.facts.state.champion
        if (shown := recipe_id or self.facts.front) is None:
            return "", []
        rows = [[_plain(e["path"]), _plain(show(e["old"]), "red"), _plain(show(e["new"]), "green")]
                for e in self.facts.edits(shown)]
        return ("champion" if recipe_id else "leader") + f" against the base: {self.facts.name(shown)}", rows

    def _refusals(self):
        rows = [[_plain(f"{r.path or 'recipe'}: {r.rule}", "dim")] for body in self.refused[-REFUSED:]
                for r in body.refusals[:1]]
        return "last refusals", rows


def _grid(rows: Sequence[Sequence[Any]]) -> Table:
    """Rows of one line each; the last column takes what width is left."""
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for i in range(len(rows[0])):
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1 if i == len(rows[0]) - 1 else None)
    for row in rows:
        grid.add_row(*row)
    return grid


def _plain(text: str, style: str = "", justify: Literal["left", "right"] = "left") -> Text:
    return Text(clean(text), style=style, justify=justify, no_wrap=True, overflow="ellipsis")


_right = partial(_plain, justify="right")
