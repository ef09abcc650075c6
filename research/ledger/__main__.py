"""Checks the rules that a session's ledger keeps, or frees the lease of a loop known to be gone."""

import argparse
import sys
from pathlib import Path

from jaxnano.cli import Failure
from research.ledger.events import FILE, Ledger, SessionError


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0 all well, 1 violations found, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m research.ledger", description="check or release a session")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", metavar="SESSION", type=Path, help="print a line for each violated rule")
    action.add_argument("--release", metavar="SESSION", type=Path, help="free the lease of a holder known to be gone")
    options = parser.parse_args(argv)
    session = (options.check or options.release).resolve()
    try:
        with Ledger(session / FILE) as ledger:
            if options.release:
                ledger.evict()
                return 0
            from research.decide.claims import violations

            lines = list(violations(ledger, session))
            print("\n".join(lines) or f"{session}: {len(ledger.raw())} events, no violation")
            return 1 if lines else 0
    except (SessionError, Failure) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, SessionError) else 1


if __name__ == "__main__":
    sys.exit(main())
