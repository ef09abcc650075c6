"""A session as tools for coding agents, over the Model Context Protocol: they read and propose, the loop decides.

    python -m research.mcp SESSION                      # stdio: the agent starts it
    python -m research.mcp SESSION --http --port 8000   # for agents that connect to http://127.0.0.1:8000/mcp

How to tell an agent of it: AGENTS.md. Over stdio, stdout belongs to the protocol. Over HTTP it listens on the loopback
address alone and refuses requests whose Host or Origin is another, so that no page in a browser reaches it.
"""

from pathlib import Path
from typing import Any

from jaxnano.cli import Command, UserError, report_errors

PARSER = Command("research.mcp", __doc__)
PARSER.add_argument("session", type=Path)
PARSER.add_argument("--http", action="store_true", help="listen on the loopback address instead of stdio")
PARSER.add_argument("--port", type=int, help="for --http; any free one by default")
PARSER.early(__name__)

from research.outside.desk import Desk
from research.outside.inbox import Inbox
from research.outside.loopback import LOOPBACK, listening

ABSENT = 'research.mcp: the MCP SDK (2 or later) is not installed; pip install "jaxnano[mcp]" would do'


def main(argv: list[str] | None = None) -> int:
    """The command: serves the tools until its client leaves."""
    options = PARSER.options(argv)
    if options.port is not None and not (options.http and 0 <= options.port < 65536):
        raise UserError(f"--port: {options.port}: 0 to 65535, with --http, would do")
    with Inbox(options.session) as inbox:
        try:
            from research.outside.tools import Server
        except ImportError as error:
            raise UserError(ABSENT) from error
        desk = Desk(inbox)
        server = Server(desk)
        with desk.keeping_up():
            if options.http:
                _serve_http(server, options.port or 0)
            else:
                server.run()
    return 0


def _serve_http(server: Any, port: int) -> None:
    import uvicorn
    from mcp.server.transport_security import TransportSecuritySettings

    with listening(port) as (listener, names):
        security = TransportSecuritySettings(allowed_hosts=names, allowed_origins=[f"http://{name}" for name in names])
        app = server.streamable_http_app(transport_security=security, host=LOOPBACK)
        print(f"http://{names[0]}/mcp", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    if not __package__:
        raise SystemExit("research/mcp.py: as a script it takes itself for the SDK; python -m research.mcp would do")
    raise SystemExit(report_errors(main))
