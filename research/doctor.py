"""Looks at this machine before a night is spent on it: each row that will not do says what would mend it.

    python -m research.doctor                   # for track tiny
    python -m research.doctor --track one-gpu --port 8765
    python -m research.doctor --lanes llm,catalogue --llm-model NAME
"""

import argparse
import json
import shutil
import socket
import textwrap
from pathlib import Path
from urllib.parse import urlsplit

from jaxnano.cli import Command, UserError, report_errors
from research.execute import executors
from research.outside.llm import options as llm_options

WIDEST = 120  # columns, of a terminal that has more
PARSER = Command("research.doctor", __doc__)
PARSER.add_argument("--track", default="tiny")
PARSER.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change the track's base")
PARSER.add_argument("--workers", type=int)
PARSER.add_argument("--folder", type=Path, default=Path("runs"), help="where sessions would lie (runs)")
PARSER.add_argument("--registry", type=Path, metavar="FILE", help="of all seals; the user's own by default")
PARSER.add_argument("--lanes", default="", help="as research.loop has it: whether llm would have a model to ask")
PARSER.add_argument("--port", type=int, help="whether research.page could have it")
PARSER.add_argument("--json", action="store_true", help="machine-readable")
executors.add_options(PARSER)
llm_options.add_options(PARSER)
PARSER.early(__name__)

from research.contract.part import LLM
from research.contract.track import load_track
from research.execute.ready import Row, rows
from research.outside.llm.lane import Llm
from research.text import clean


def main(argv: list[str] | None = None) -> int:
    """The command: exit code 1 if a loop could not begin."""
    options = PARSER.options(argv)
    executors.check(options)
    found = rows(load_track(options.track, options.set), options, options.folder)
    if LLM in options.lanes.split(","):
        found.append(model(options))
    if options.port is not None:
        found.append(port(options.port))
    if options.json:
        print(json.dumps([row._asdict() for row in found]))
    else:
        print("\n".join(told(found, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))))
    return int(any(row.mend and row.hard for row in found))


def told(found: list[Row], columns: int) -> list[str]:
    """The rows in so many columns: what was found, and what would mend it."""
    lines = []
    for row in found:
        mark = "ok" if not row.mend else "FAIL" if row.hard else "note"
        lines += _wrapped(f"{mark:<6}{row.name:<10}", row.found, columns)
        lines += _wrapped(f"{'':<14}> ", row.mend, columns) if row.mend else []
    return lines


def _wrapped(head: str, text: str, columns: int) -> list[str]:
    return textwrap.wrap(clean(text), columns, initial_indent=head, subsequent_indent=" " * len(head),
                         break_on_hyphens=False, break_long_words=False)


def model(options: argparse.Namespace) -> Row:
    """The language model that the lane llm would ask."""
    try:
        asked = Llm.of(options).endpoint
    except UserError as error:
        said, _, mend = str(error).partition("; ") if "; " in str(error) else str(error).rpartition(": ")
        return Row("model", said, mend)
    at = urlsplit(asked.url or "")
    if at.hostname:
        try:
            socket.create_connection((at.hostname, at.port or (443 if at.scheme == "https" else 80)), 3).close()
        except OSError as error:
            return Row("model", f"{asked.model}: {at.hostname}:{at.port}: {error.strerror or error}",
                       "start that server, or set OPENAI_BASE_URL to another's")
    return Row("model", f"{asked.provider}:{asked.model}" + (f" at {at.hostname}" if at.hostname else ""))


def port(number: int) -> Row:
    """Whether a port of this machine is free."""
    if not 0 <= number < 65536:
        raise UserError(f"--port: {number}: 0 to 65535 would do")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", number))
        except OSError as error:
            return Row("port", f"{number}: {error.strerror}",
                       "python -m research.page takes any free one without --port")
    return Row("port", f"{number} is free")


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
