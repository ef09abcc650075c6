"""Where a session stands, or which sessions there are.

    python -m research.status                    the sessions below runs/, the latest first
    python -m research.status SESSION            a table
    python -m research.status SESSION --json     the same and more, for programs
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, Failure, UserError, report_errors
from research.text import ago, carried, clean, cost, count, effect, loss, over_leader, spread

PARSER = Command("research.status", __doc__)
PARSER.add_argument("session", type=Path, nargs="?", default=Path("runs"), help="or a folder of them (runs)")
PARSER.add_argument("--json", action="store_true", help="machine-readable")
PARSER.early(__name__)

from rich.console import Console
from rich.table import Table
from rich.text import Text

from research.ledger.events import FILE
from research.ledger.names import handle
from research.ledger.session import Session

PIPE_COLUMNS = 120  # where no terminal says how wide it is
SHARES = ("idle_fraction", "compile_share", "replicate_share", "kill_share", "verification_share")


def main(argv: list[str] | None = None) -> int:
    """The command: a session at a glance, or all of a folder."""
    options = PARSER.options(argv)
    if options.session.is_dir() and not (options.session / FILE).is_file():
        found = [_listed(path.parent) for path in sorted(options.session.glob(f"*/{FILE}"))]
        found.sort(key=lambda row: row["seconds_ago"] if row["seconds_ago"] is not None else math.inf)
        if not found:
            raise UserError(f"{options.session}: no session there; python -m research.loop makes one")
        print(json.dumps(found, indent=2)) if options.json else _list(found)
        return 0
    found, goes_on = one(options.session)
    print(json.dumps(found, indent=2)) if options.json else _print(found, goes_on)
    return 0


def one(path: Path) -> tuple[dict[str, Any], str]:
    """All facts of a session, and the command that goes on with it."""
    from research.decide.plan import resuming
    from research.ledger.state import fold
    from research.show.facts import Facts
    from research.show.verdict import summary

    with Session.open(path) as session:
        state, running = fold(session.ledger.events()), session.ledger.held()
        if not running:
            state.lose()
        facts = Facts.of(state)
        return summary(facts) | {"running": running}, resuming(facts.snapshot, path)


def _listed(path: Path) -> dict[str, Any]:
    """A session in a line: what its ledger says without being folded."""
    row: dict[str, Any] = {"session": str(path), "track": None, "seconds_ago": None, "runs": None, "state": None,
                           "verdict": ""}
    try:
        with Session.open(path) as session:
            ledger, last = session.ledger, session.ledger.last()
            begun, ends = (ledger.events(kind) for kind in ("session", "end"))
            crowned, tested = (ledger.events(kind) for kind in ("crowned", "verification"))
            resumed = [event.seq for event in ledger.events("resume")]
            over = [event.body.reason for event in ends if event.seq > max(resumed, default=0)]
            row |= {"track": begun[0].body.track if begun else None, "runs": ledger.kinds().get("result", 0),
                    "state": "running" if ledger.held() else f"ended: {over[-1]}" if over else "loop died"}
            row["seconds_ago"] = max(0.0, time.time() - ledger.events(since=last - 1)[0].time) if last else None
            passed = [event for event in tested if event.body.passed]
            test = passed[-1].body.comparisons.get("incumbent", {}) if passed else {}
            row["verdict"] = f"proven {effect(test.get('effect'))}, {handle(crowned[-1].subject)}" if crowned else \
                "verified, not crowned" if passed else "refuted" if tested else ""
    except (UserError, Failure) as error:
        row["state"] = str(error)
    return row


def _list(found: Sequence[dict[str, Any]]) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    rows = Table.grid(padding=(0, 2))
    for name in range(6):
        rows.add_column(no_wrap=name < 5, overflow="ellipsis")
    for row in found:
        runs = "" if row["runs"] is None else count(row["runs"], "run")
        rows.add_row(*map(_plain, (Path(row["session"]).name, row["track"] or "", ago(row["seconds_ago"]), runs,
                                   row["verdict"] or "nothing proven", row["state"] or "")))
    console.print(rows)


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
        from jaxnano.config.edit import changed

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
    if found["flat_priors"]:
        yield "priors", "flat: nothing that is promised of an idea counts"
    if found["never_tried"]:
        yield "never tried", count(found["never_tried"], "idea")
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
