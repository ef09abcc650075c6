"""Claims that anyone can rerun, each by a subcommand.

    python -m research.check.bench record runs/table      hours: a table of real runs, for the others to draw from
    python -m research.check.bench allocate runs/bench --table runs/table/table.jsonl
    python -m research.check.bench null --out docs/null.md             the proof's false records and power
    python -m research.check.bench barnacles              what the ablation takes off, and the runs that it takes
    python -m research.check.bench belief SESSION ...     how well its runs were foretold
    python -m research.check.bench record --help          what each takes, and what it costs
"""

from __future__ import annotations

import argparse
import importlib

from jaxnano.cli import Command, report_errors

COMMANDS = {"null": "false records under attack and the power that is left, of the proof alone, without a run",
            "record": "train what the lanes draw, at every horizon and on several seeds: a table of real runs",
            "allocate": "who finds the best candidate with the least compute: the loop's allocation, and others",
            "barnacles": "what the ablation takes off made-up candidates, what it keeps, and what it costs",
            "belief": "how well each run of a session is foretold from those before it",
            "scale": "what a session of thousands of runs costs to think about",
            "kills": "what ending runs early would cost and save, where their end is known"}

PARSER = Command("research.check.bench", __doc__)
PARSER.add_argument("command", choices=tuple(COMMANDS), help="; ".join(f"{n}: {what}" for n, what in COMMANDS.items()))
PARSER.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="its own options")
PARSER.early(__name__)


def main(argv: list[str] | None = None) -> int:
    """The command: exit code of the subcommand, which is a module of this package."""
    options = PARSER.options(argv)
    return importlib.import_module(f"research.check.bench.{options.command}").main(options.rest)


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
