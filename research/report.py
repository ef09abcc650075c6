"""The report of a session: report.html and report.md, computed from the ledger.

    python -m research.report SESSION
"""

from __future__ import annotations

import argparse
import html
import json
from pathlib import Path

from jaxnano.cli import report_errors
from research.session import Session
from research.state import State, fold


def write_report(session_path: Path, state: State) -> None:
    """Write report.html and report.md into the session's folder."""
    text = json.dumps({"trials": state.counts(), "champion": state.champion}, indent=2)
    (session_path / "report.md").write_text(f"```\n{text}\n```\n")
    (session_path / "report.html").write_text(f"<!doctype html><pre>{html.escape(text)}</pre>\n")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser("research.report", description=__doc__.partition("\n")[0])
    parser.add_argument("session", type=Path)
    options = parser.parse_args()
    with Session.open(options.session) as session:
        write_report(session.path, fold(session.ledger.events()))
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
