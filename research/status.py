"""Where a session stands.

    python -m research.status SESSION            a table
    python -m research.status SESSION --json     the same and more, for programs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, report_errors
from research.text import carried, clean, cost, count, loss, over_leader, spread

PARSER = Command("research.status", __doc__)
PARSER.add_argument("session", type=Path)
PARSER.add_argument("--json", action="store_true", help="machine-readable")
PARSER.early(__name__)

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxnano.config.edit import changed
from research.decide.plan import resuming
from research.ledger.session import Session
from research.ledger.state import fold
from research.show.facts import Facts
from research.show.verdict import summary

PIPE_COLUMNS = 120  # where no terminal says how wide it is
SHARES = ("idle_fraction", "compile_share", "replicate_share", "kill_share", "verification_share")


def main(argv: list[str] | None = None) -> int:
    """The command: a session at a glance."""
    options = PARSER.options(argv)
    with Session.open(options.session) as session:
        state, running = fold(session.ledger.events()), session.ledger.held()
        if not running:
            state.lose()
        facts = Facts.of(state)
        found = summary(facts) | {"running": running}
        goes_on = resuming(facts.snapshot, options.session)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found, goes_on)
    return 0


def _print(found: dict[str, Any], goes_on: str) -> None:
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    console.print(_plain(found["verdict"]["text"]), style="bold")
    if not found["ended"] and not found["running"]:
        console.print(_plain(f"Its loop died before its end; {goes_on} goes on with it."))
    rows = Table.grid(padding=(0, 2))
    for name, value in _rows(found):
        rows.add_row(name, value)
    console.print(rows)
    if champion := found["champion"]:
        console.print("\nchampion against the base", style="bold")
        for edit in champion["diff"]:
            console.print(_plain(f"  {changed(**edit)}"))
    if found["transfer"]:
        console.print("\ntransfer card: the champion's gain elsewhere, one seed each", style="bold")
        for line in found["transfer"]:
            console.print(_plain(f"  {carried(line)}"))
    if found["frontier"]:
        console.print("\nfrontier: expected effect at the full horizon", style="bold")
        frontier = Table.grid(padding=(0, 2))
        for row in found["frontier"]:
            rival = over_leader(row)
            frontier.add_row("  " + spread(row["mean"], row["sd"]), count(row["runs"], "run"),
                             f"over the leader {rival}" if rival else "", _plain(row["name"]))
        console.print(frontier)


def _rows(found: dict[str, Any]):
    """Names and values of the table."""
    counts = found["trials"]
    yield "track", found["track"]
    yield "state", f"ended: {found['ended']}" if found["ended"] else "running" if found["running"] else "loop died"
    yield "trials", ", ".join(f"{n} {name}" for name, n in counts.items()) or "none"
    yield "proposals", "{accepted} accepted, {refused} refused".format(**found["proposals"])
    yield "decisions", str(found["decisions"])
    several = f" of {found['devices']} devices" if found["devices"] > 1 else ""
    yield "device time", f"{found['device_seconds']:,.0f} s{several} in {found['wall_seconds']:,.0f} s"
    yield "shares", ", ".join(f"{name.partition('_')[0]} {found[name]:.1%}" for name in SHARES)
    if spent := found["llm"]:
        yield "llm", _plain(f"{count(spent['requests'], 'request')} to {', '.join(spent['models'])}: "
                            + ", ".join(f"{n} {name}" for name, n in spent["outcomes"].items()))
        yield "", f"{cost(spent)}; for each of {count(spent['accepted'], 'accepted proposal')}: {cost(spent, True)}"
    for role in ("base", "champion", "best_single"):
        if side := found[role]:
            losses = ", ".join(f"{split} {loss(by['mean'])}" for split, by in side["loss"].items())
            yield role.replace("_", " "), _plain(f"{side['recipe_id']} {side['name']}")
            yield "", f"{losses or 'no full run yet'} (n = {side['n_seeds']})"
            if side["measure"]:
                yield "", side["measure"]


def _plain(text: str) -> Text:
    """Text from outside: no markup, no control characters."""
    return Text(clean(text))


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
