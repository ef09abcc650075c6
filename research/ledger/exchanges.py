"""What a language model was asked and answered: a packed file for each `call` event that says where it is kept.

They are for people to read. Nothing is decided by them, and they hold no secrets: whoever writes one takes those out.
"""

from __future__ import annotations

import gzip
import json
from typing import NamedTuple

from research.ledger.session import Session, refuse_link, replace_file

FOLDER = "calls"
MOST = 1 << 20  # bytes that are read of one: a session may come from somebody else
LONGEST = 64 * 1024  # characters of an answer that are kept


class Exchange(NamedTuple):
    """system, asked: the question's two messages. answered: text, untrusted; empty where no answer came."""

    system: str
    asked: str
    answered: str


def keep(session: Session, number: int, exchange: Exchange) -> None:
    """Write an exchange, before the event that says its number. Raises: SessionError if a link lies there."""
    folder = session.path / FOLDER
    refuse_link(folder)
    folder.mkdir(exist_ok=True)
    kept = exchange._replace(answered=exchange.answered[:LONGEST])
    replace_file(folder / f"{number}.json.gz", gzip.compress(json.dumps(kept._asdict()).encode(), mtime=0))


def find(session: Session, number: int) -> Exchange | None:
    """The exchange of a number; None if there is none that can be read."""
    path = session.path / FOLDER / f"{number}.json.gz"
    try:
        if path.is_symlink():
            return None
        with gzip.open(path) as file:
            found = json.loads(file.read(MOST))
        return Exchange(*(str(found[name]) for name in Exchange._fields))
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError):
        return None
