"""The report of a session: report.html, and report.md with its plots; every number is computed from the ledger.

    python -m research.report SESSION
"""

from __future__ import annotations

from pathlib import Path

from jaxnano.cli import Command, report_errors

PARSER = Command("research.report", __doc__)
PARSER.add_argument("session", type=Path)
PARSER.early(__name__)

from research.ledger.session import Session
from research.ledger.state import fold
from research.show.report import write_report


def main(argv: list[str] | None = None) -> int:
    options = PARSER.options(argv)
    with Session.open(options.session) as session:
        state, path = fold(session.ledger.events()), session.path
    write_report(path, state)
    print(path / "report.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
