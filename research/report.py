"""The report of a session: report.html, and report.md with its plots; every number is computed from the ledger.

    python -m research.report SESSION
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxnano.cli import report_errors


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("research.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("session", type=Path)
    return parser


if __name__ == "__main__":
    _parser().parse_args()  # --help and mistakes are answered before the imports below, which take a second

from research.ledger.session import Session
from research.ledger.state import fold
from research.show.report import write_report


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(argv)
    with Session.open(options.session) as session:
        state, path = fold(session.ledger.events()), session.path
    write_report(path, state)
    print(path / "report.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
