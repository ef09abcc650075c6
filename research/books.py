"""The registry of seals: how often each track's protected split was opened, and what level is left.

    python -m research.books                                  # yours
    python -m research.books --join laptop/seals.sqlite       # takes in another machine's, so that both count
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxnano.cli import Command, report_errors
from research.text import clean, count

PARSER = Command("research.books", __doc__)
PARSER.add_argument("--registry", type=Path, metavar="FILE", help="instead of JAXNANO_REGISTRY or the user's own")
PARSER.add_argument("--join", type=Path, metavar="FILE", action="append", default=[], help="of another machine")
PARSER.add_argument("--json", action="store_true")
PARSER.early(__name__)

import json

from research.learn.anytime import alpha_for_attempt
from research.ledger.registry import Registry


def contests(registry: Registry) -> list[dict[str, Any]]:
    """A row a track and data: seals, openings by split, and the shares of the level that are spent and come next."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in registry.rows():
        one = found.setdefault((row["track_hash"], row["data_hash"]), {
            "track": row["track"], "track_hash": row["track_hash"], "data_hash": row["data_hash"], "seals": 0,
            "sessions": set(), "openings": {}, "spent": 0.0})
        one["openings"][row["split"]] = one["openings"].get(row["split"], 0) + 1
        one["sessions"].add((row["host"], row["session"]))
        if row["what"] == "seal":
            one["seals"] += 1
            one["spent"] += alpha_for_attempt(row["number"], 1.0)
    return [one | {"sessions": len(one["sessions"]), "next": alpha_for_attempt(one["seals"] + 1, 1.0)}
            for one in found.values()]


def main(argv: list[str] | None = None) -> int:
    """The command: shows the registry, after it has joined another."""
    options = PARSER.options(argv)
    with Registry(options.registry) as registry:
        joined = 0
        for path in options.join:
            with Registry(path, create=False) as other:
                joined += registry.join(other)
        rows = contests(registry)
        if options.json:
            print(json.dumps({"registry": str(registry.path), "id": registry.name, "joined": joined, "contests": rows}))
            return 0
        print(f"registry {registry.name}, {clean(str(registry.path))}"
              + (f": {count(joined, 'row')} taken in" if options.join else ""))
        for one in rows:
            opened = ", ".join(f"{split} {times}" for split, times in one["openings"].items())
            print(clean(f"  track {one['track']} ({one['track_hash']}), data {one['data_hash'][:12]}: "
                        f"{count(one['seals'], 'seal')} in {count(one['sessions'], 'session')}; opened: {opened}; "
                        f"{one['spent']:.1%} of the level spent, {one['next']:.2%} of it for the next"))
        if not rows:
            print("  nothing was sealed yet")
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
