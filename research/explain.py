"""Why a trial was run, what it was, what came out and what it taught; or the same of a recipe.

    python -m research.explain SESSION ID     a trial's key or a recipe's id; any unambiguous beginning will do
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxnano.cli import report_errors
from research.text import clean


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("research.explain", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("session", type=Path)
    parser.add_argument("id", help="a trial's key or a recipe's id, or the beginning of one")
    return parser


if __name__ == "__main__":
    _parser().parse_args()  # --help and mistakes are answered before the imports below, which take a second

from research.ledger.session import Session
from research.show.explain import explain


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(argv)
    with Session.open(options.session) as session:
        events = session.ledger.events()
    print("\n".join(map(clean, explain(events, options.id))))
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
