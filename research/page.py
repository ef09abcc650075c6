"""A session, or a folder of them, as a page to look at and to act from: while the loop runs, and after it.

    python -m research.page                     # the sessions below runs/
    python -m research.page SESSION --port 8765

It listens on the loopback address alone, and the address that it prints holds a token. To look from elsewhere, forward
the port: ssh -L 8765:127.0.0.1:8765 HOST.
"""

import secrets
import socket
from pathlib import Path

from jaxnano.cli import Command, UserError, report_errors

PARSER = Command("research.page", __doc__)
PARSER.add_argument("path", type=Path, nargs="?", default=Path("runs"), help="a session, or a folder of them (runs)")
PARSER.add_argument("--port", type=int, default=0, help="any free one by default")
PARSER.early(__name__)

from research.outside.page.reader import Shelf

LOOPBACK = "127.0.0.1"
ABSENT = 'research.page: starlette, sse-starlette or uvicorn is not installed; pip install "jaxnano[page]" would do'


def main(argv: list[str] | None = None) -> int:
    """The command: serves the page until it is stopped."""
    options = PARSER.options(argv)
    if not 0 <= options.port < 65536:
        raise UserError(f"--port: {options.port}: 0 to 65535 would do")
    shelf = Shelf(options.path)
    try:
        import uvicorn

        from research.outside.page.app import application
    except ImportError as error:
        raise UserError(ABSENT) from error
    token = secrets.token_urlsafe(18)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, options.port))
        except OSError as error:
            raise UserError(f"--port: {options.port}: {error.strerror}; another, or none for any, would do") from error
        listener.listen()  # before the address is told: a browser may come at once
        port = listener.getsockname()[1]
        app = application(shelf, token, (f"{LOOPBACK}:{port}", f"localhost:{port}"))
        print(f"http://{LOOPBACK}:{port}/?token={token}", flush=True)
        try:
            uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run([listener])
        finally:
            shelf.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
