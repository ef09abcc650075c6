"""Looks at this machine before a night is spent on it: each row that will not do says what would mend it.

    python -m research.doctor                   # for track tiny
    python -m research.doctor --track one-gpu --port 8765
"""

import json
import socket
from pathlib import Path

from jaxnano.cli import Command, UserError, report_errors
from research.execute import executors

PARSER = Command("research.doctor", __doc__)
PARSER.add_argument("--track", default="tiny")
PARSER.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change the track's base")
PARSER.add_argument("--workers", type=int)
PARSER.add_argument("--folder", type=Path, default=Path("runs"), help="where sessions would lie (runs)")
PARSER.add_argument("--port", type=int, help="whether research.page could have it")
PARSER.add_argument("--json", action="store_true", help="machine-readable")
executors.add_options(PARSER)
PARSER.early(__name__)

from research.contract.track import load_track
from research.execute.ready import Row, rows
from research.text import clean


def main(argv: list[str] | None = None) -> int:
    """The command: exit code 1 if a loop could not begin."""
    options = PARSER.options(argv)
    executors.check(options)
    found = rows(load_track(options.track, options.set), options, options.folder)
    if options.port is not None:
        found.append(port(options.port))
    if options.json:
        print(json.dumps([row._asdict() for row in found]))
    else:
        for row in found:
            mark = "ok  " if not row.mend else "FAIL" if row.hard else "note"
            print(clean(f"{mark}  {row.name:<9} {row.found}"))
            if row.mend:
                print(clean(f"                {row.mend}"))
    return int(any(row.mend and row.hard for row in found))


def port(number: int) -> Row:
    """Whether a port of this machine is free."""
    if not 0 <= number < 65536:
        raise UserError(f"--port: {number}: 0 to 65535 would do")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", number))
        except OSError as error:
            return Row("port", f"{number}: {error.strerror}", "research.page without --port takes any free one")
    return Row("port", f"{number} is free")


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
