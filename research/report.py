"""The report of a session: report.html, and report.md with its plots; every number is computed from the ledger.

    python -m research.report SESSION
"""

from __future__ import annotations

from pathlib import Path

from jaxnano.cli import Command, report_errors

PARSER = Command("research.report", __doc__)
PARSER.add_argument("session", type=Path)
PARSER.early(__name__)

from research.show.report import write_report


def main(argv: list[str] | None = None) -> int:
    """The command: writes the report anew and prints where."""
    print(write_report(PARSER.options(argv).session))
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
