"""Sessions as the page reads them: each folded as its events come, its facts made once for each state."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxnano.cli import Failure, UserError
from research.decide.book import Book, track_of
from research.ledger.events import FILE, SessionError
from research.ledger.session import Session
from research.ledger.state import fold
from research.show.facts import Facts


class Reader:
    """One session. Its methods may be called from any thread, one at a time: `reading` sees to that.

    Raises: SessionError if there is no session that has begun.
    """

    def __init__(self, path: Path):
        self.session = Session.open(path)
        try:
            self.book = Book(self.session, track_of(fold(self.session.ledger.events())))
        except ValueError:
            self.session.close()
            raise
        self._lock, self._facts = threading.Lock(), Facts(self.book.snapshot)

    @property
    def running(self) -> bool:
        """Whether a loop works on it."""
        return self.book.state.end is None and self.session.ledger.held()

    @contextmanager
    def reading(self) -> Iterator[Facts]:
        """The facts as of now, which stay as they are meanwhile."""
        with self._lock:
            self.book.refresh()
            if self._facts.snapshot is not self.book.snapshot:
                self._facts = Facts(self.book.snapshot)
            yield self._facts

    def seq(self) -> int:
        """The last event's number, without taking it in."""
        return self.session.ledger.last()

    def close(self) -> None:
        """Close the ledger."""
        with self._lock:
            self.session.close()


class Shelf:
    """The sessions of a folder, or one: by name, opened when they are asked for."""

    def __init__(self, path: Path):
        """Raises: UserError if there is no session at `path` nor below it."""
        path = path.resolve()
        self.one, self.path = (path / FILE).is_file(), path
        self._readers: dict[str, Reader] = {}
        self._lock = threading.Lock()
        if not self.names():
            raise UserError(f"{path}: no session there, nor in a folder there; python -m research.loop makes one")

    def names(self) -> list[str]:
        """The latest changed first."""
        if self.one:
            return [self.path.name]
        found = [folder for folder in self.path.iterdir() if (folder / FILE).is_file()] if self.path.is_dir() else []
        return [folder.name for folder in sorted(found, key=lambda folder: -(folder / FILE).stat().st_mtime)]

    def __getitem__(self, name: str) -> Reader:
        """A session's reader. Raises: KeyError if there is none of the name; SessionError if it cannot be read."""
        with self._lock:
            if name not in self._readers:
                if name not in self.names():
                    raise KeyError(name)
                self._readers[name] = Reader(self.path if self.one else self.path / name)
            return self._readers[name]

    def fault(self, name: str) -> str:
        """Why a session cannot be read; empty if it can."""
        try:
            self[name]
        except (SessionError, Failure) as error:
            return str(error)
        return ""

    def close(self) -> None:
        """Close what is open."""
        for reader in self._readers.values():
            reader.close()
