"""A session, or a folder of them, as a page to look at and to act from: while the loop runs, and after it.

    python -m research.page                     # the sessions below runs/
    python -m research.page SESSION --port 8765

It listens on the loopback address alone, and the address that it prints holds a token. To look from elsewhere, forward
the port: ssh -L 8765:127.0.0.1:8765 HOST.
"""

import secrets
from pathlib import Path

from jaxnano.cli import Command, UserError, report_errors

PARSER = Command("research.page", __doc__)
PARSER.add_argument("path", type=Path, nargs="?", default=Path("runs"), help="a session, or a folder of them (runs)")
PARSER.add_argument("--port", type=int, default=0, help="any free one by default")
PARSER.early(__name__)

from research.outside.loopback import listening
from research.outside.page.reader import Shelf

ABSENT = 'research.page: starlette, sse-starlette or uvicorn is not installed; pip install "jaxnano[page]" would do'


def main(argv: list[str] | None = None) -> int:
    """The command: serves the page until it is stopped."""
    options = PARSER.options(argv)
    if not 0 <= options.port < 65536:
        raise UserError(f"--port: {options.port}: 0 to 65535 would do")
    shelf = Shelf(options.path)
    try:
        import uvicorn

        from research.outside.page.app import CLOSING_S, application
    except ImportError as error:
        raise UserError(ABSENT) from error
    token = secrets.token_urlsafe(18)
    with listening(options.port) as (listener, names):
        app = application(shelf, token, tuple(names))
        print(f"http://{names[0]}/?token={token}", flush=True)
        try:
            uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2 * CLOSING_S)).run(
                [listener])
        finally:
            shelf.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
