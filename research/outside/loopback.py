"""A socket of this machine alone, for what a browser or an agent here connects to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from jaxnano.cli import UserError

LOOPBACK = "127.0.0.1"


@contextmanager
def listening(port: int) -> Iterator[tuple[socket.socket, list[str]]]:
    """A listening socket, 0 for any free port, and the names it is reached by, HOST:PORT.

    It listens before the address is told: a client may come at once. Raises: UserError for a port that is taken.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:
            raise UserError(f"--port: {port}: {error.strerror}; another, or none for any, would do") from error
        listener.listen()
        yield listener, [f"{host}:{listener.getsockname()[1]}" for host in (LOOPBACK, "localhost")]
