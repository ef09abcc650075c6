"""Why a trial was run, what it was, what came out and what it taught; or the same of a recipe.

    python -m research.explain SESSION ID     a trial's key or a recipe's id; any unambiguous beginning will do
"""

from __future__ import annotations

from pathlib import Path

from jaxnano.cli import Command, report_errors
from research.text import clean

PARSER = Command("research.explain", __doc__)
PARSER.add_argument("session", type=Path)
PARSER.add_argument("id", help="a trial's key or a recipe's id, or the beginning of one")
PARSER.early(__name__)

from research.ledger.session import Session
from research.show.explain import explain


def main(argv: list[str] | None = None) -> int:
    """The command: tells a trial or a recipe from the ledger."""
    options = PARSER.options(argv)
    with Session.open(options.session) as session:
        events = session.ledger.events()
    print("\n".join(map(clean, explain(events, options.id))))
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
