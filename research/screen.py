"""One frame of the terminal view: what runs, what leads, what was chosen and why, and how far the proof is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxnano.config.edit import show
from research.summary import Facts, stage
from research.text import clean, clock, count

BAR = 10  # characters of a progress bar
LEADERS = 5
RUNNERS_UP = 2
REFUSED = 2


class Frame:
    """Draws a scheduler. Whatever does not fit into the terminal's height is left out, the least telling first."""

    def __init__(self, scheduler: Any, facts: Facts, refused: Sequence[Mapping[str, Any]]):
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
        running = len(self.scheduler.flights)
        line = Text.assemble((f"{self.facts.track.name}", "bold"), f"   {clock(self.scheduler.left_s)} left   ",
                             f"{sum(counts.values()) - running} runs done, {running} running   ",
                             f"idle {state.idle_fraction:.0%}   {state.device_s:,.0f} device-seconds")
        return "", [[line], [Text(stage(self.facts.snapshot), style="yellow" if state.nominated else "dim")]]

    def _running(self):
        rows = []
        for worker, flight in sorted(self.scheduler.flights.items()):
            done, loss = flight.curve[-1] if flight.curve else (0.0, None)
            bar = ProgressBar(total=1.0, completed=done, width=BAR)
            rate = f"{flight.tokens_per_s / 1e3:.0f}k tok/s" if flight.tokens_per_s else \
                f"compiling {time.monotonic() - flight.started_s:.0f} s"
            rows.append([_right(f"{worker}"), bar, _right(f"{done:.0%}"), _right("" if loss is None else f"{loss:.3f}"),
                         _plain(f"{flight.purpose} {flight.trial.horizon:g}/{flight.trial.seed % 10_000}"),
                         _plain(rate, "dim"), _plain(self.facts.name(flight.trial.recipe_id))])
        return "running", rows

    def _leaders(self):
        rows = []
        for row in self.facts.frontier(LEADERS):
            style = "green" if row["mean"] > 2 * row["sd"] else ""
            mean = _right(f"{row['mean']:+.3f} ± {row['sd']:.3f}", style)
            rows.append([mean, _plain(count(row["runs"], "run"), "dim"), _plain(row["name"])])
        return "frontier: expected effect at the full horizon", rows

    def _chosen(self):
        chosen = [e for e in self.facts.state.decisions if e.body.get("eig") is not None]
        if not chosen:
            return "", []
        body = chosen[-1].body
        scored = [body["winner"], *body["runners_up"][:RUNNERS_UP]]
        rows = [[_plain("before" if i else "chosen", "dim"), _right(f"{s['eig']:.2g} nats"),
                 _right(f"{s['improvement']:.2g}"), _right(f"{s['cost_s']:.1f} s"),
                 _plain("/".join(s["trial"].split("-")[1:]), "dim"), _plain(s["name"])] for i, s in enumerate(scored)]
        return "last choice: information gained, improvement expected, price", rows

    def _incumbent(self):
        recipe_id = self.facts.state.champion
        best = self.facts.frontier(1)
        if recipe_id is None and not best:
            return "", []
        shown = recipe_id or best[0]["recipe_id"]
        rows = [[_plain(e["path"]), _plain(show(e["old"]), "red"), _plain(show(e["new"]), "green")]
                for e in self.facts.edits(shown)]
        return ("champion" if recipe_id else "leader") + f" against the base: {self.facts.name(shown)}", rows

    def _refusals(self):
        rows = [[_plain(f"{r['path'] or 'recipe'}: {r['rule']}", "dim")] for body in self.refused[-REFUSED:]
                for r in body["refusals"][:1]]
        return "last refusals", rows


def _grid(rows: Sequence[Sequence[Any]]) -> Table:
    """Rows of one line each; the last column takes what width is left."""
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for i in range(len(rows[0])):
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1 if i == len(rows[0]) - 1 else None)
    for row in rows:
        grid.add_row(*row)
    return grid


def _plain(text: str, style: str = "") -> Text:
    return Text(clean(text), style=style, no_wrap=True, overflow="ellipsis")


def _right(text: str, style: str = "") -> Text:
    return Text(text, style=style, justify="right", no_wrap=True)
