"""The registry of seals: every attempt that a user made on a track and its data, whatever became of the sessions.

    about(id)                                                       one row: what this registry is called
    openings(id, time, track, track_hash, data_hash, what, number, split, recipe, session, host)

One SQLite file a user: --registry FILE, or JAXNANO_REGISTRY, or seals.sqlite in the platform's folder for data. The
level of an attempt follows from its number, so numbers are given here and not by a session: a session that is copied,
deleted or begun anew goes on counting. A row is written, and on the disk, before the session's `sealed` event; whoever
dies in between has spent an attempt, and a number is never given twice. `what` is `seal`, or `publish` where the
protected split was opened beside a proof.

A protected split that was opened often says less of unseen text, so after `openings` of them the next preset one takes
its place, and the last stays. Nobody can notice that a registry was deleted, or that a machine has one of its own:
`research.books --join` brings two together.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxnano.cli import Failure, UserError
from research import machine

VARIABLE = "JAXNANO_REGISTRY"
FILE = "seals.sqlite"
BUSY_TIMEOUT_S = 30.0
COLUMNS = ("id", "time", "track", "track_hash", "data_hash", "what", "number", "split", "recipe", "session", "host")

_SCHEMA = (
    "CREATE TABLE about (id TEXT NOT NULL)",
    """CREATE TABLE openings (id TEXT PRIMARY KEY, time REAL NOT NULL, track TEXT NOT NULL, track_hash TEXT NOT NULL,
                              data_hash TEXT NOT NULL, what TEXT NOT NULL, number INTEGER, split TEXT NOT NULL,
                              recipe TEXT NOT NULL, session TEXT NOT NULL, host TEXT NOT NULL)""",
    "CREATE TRIGGER openings_stay BEFORE DELETE ON openings BEGIN SELECT RAISE(ABORT, 'openings are append-only'); END",
    "CREATE TRIGGER openings_keep BEFORE UPDATE ON openings BEGIN SELECT RAISE(ABORT, 'openings are append-only'); END",
)


class Contest(NamedTuple):
    """What attempts are counted for: a track and its data."""

    track: str
    track_hash: str
    data_hash: str


class Entry(NamedTuple):
    """A seal's number, 1, 2, ..., the protected split it is for, and how often that had been opened before."""

    number: int
    split: str
    opened: int = 0
    registry: str = ""


def default_path() -> Path:
    """Where the registry lies if nobody says otherwise."""
    if told := os.environ.get(VARIABLE):
        return Path(told)
    import platformdirs

    return platformdirs.user_data_path("jaxnano", appauthor=False) / FILE


class Registry(AbstractContextManager["Registry"]):
    """An open registry, made where there is none; several processes may have it open at once.

    Raises: UserError if the file is something else; Failure if the machine does not let it be opened.
    """

    def __init__(self, path: Path | None = None, *, create: bool = True) -> None:
        self.path = Path(path or default_path()).absolute()
        if not create and not self.path.is_file():
            raise UserError(f"{self.path}: no such registry")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise Failure(f"{self.path}: the registry of seals cannot be opened: {error}; --registry FILE names "
                          "another") from error
        try:
            self.name = self._begin()
        except BaseException:
            self._db.close()
            raise

    def _begin(self) -> str:
        """Make the tables where there are none. Returns: what this registry is called."""
        with self._transaction() as db:
            tables = {name for name, in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                for statement in _SCHEMA:
                    db.execute(statement)
                db.execute("INSERT INTO about VALUES (?)", (uuid.uuid4().hex[:12],))
            elif not {"about", "openings"} <= tables:
                raise UserError(f"{self.path}: a database of something else; --registry FILE names another")
            return db.execute("SELECT id FROM about").fetchone()[0]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def seal(self, contest: Contest, recipe_id: str, session: Path, splits: Sequence[str], openings: int,
             least: int = 1) -> Entry:
        """Give the next attempt its number, durably.

        Args: splits: the track's protected ones, in the order in which they are used up. openings: of each, before the
        next one takes its place. least: what the session's own seals leave, on a machine that does not know them.
        """
        with self._transaction() as db:
            number = max(least, self._next(db, contest))
            used = [self._opened(db, contest, split) for split in splits]
            here = next((i for i, times in enumerate(used) if times < openings), len(splits) - 1)
            self._add(db, contest, "seal", number, splits[here], recipe_id, session)
        return Entry(number, splits[here], used[here], self.name)

    def next(self, contest: Contest) -> int:
        """The number that the next attempt would be given."""
        with self._transaction() as db:
            return self._next(db, contest)

    def published(self, contest: Contest, split: str, recipe_id: str, session: Path) -> None:
        """Write down that a split is opened beside a proof."""
        with self._transaction() as db:
            self._add(db, contest, "publish", None, split, recipe_id, session)

    def join(self, other: Registry) -> int:
        """Take in the rows of another registry that are not here. Returns: how many.

        They keep their numbers; the next attempt's is one more than all that are here now.
        """
        rows = [tuple(row.values()) for row in other.rows()]
        with self._transaction() as db:
            before = db.total_changes
            db.executemany(f"INSERT OR IGNORE INTO openings VALUES ({', '.join('?' * len(COLUMNS))})", rows)
            return db.total_changes - before

    def rows(self) -> list[dict[str, Any]]:
        """All openings in the order of their times."""
        with self._transaction() as db:
            found = db.execute(f"SELECT {', '.join(COLUMNS)} FROM openings ORDER BY time, rowid").fetchall()
        return [dict(zip(COLUMNS, row, strict=True)) for row in found]

    @staticmethod
    def _next(db: sqlite3.Connection, contest: Contest) -> int:
        count, highest = db.execute("SELECT COUNT(*), MAX(number) FROM openings WHERE what = 'seal' AND track_hash = ? "
                                    "AND data_hash = ?", contest[1:]).fetchone()
        return 1 + max(count, highest or 0)

    @staticmethod
    def _opened(db: sqlite3.Connection, contest: Contest, split: str) -> int:
        """How often a split of these data was opened, on whatever track: the text is the same."""
        return db.execute("SELECT COUNT(*) FROM openings WHERE data_hash = ? AND split = ?",
                          (contest.data_hash, split)).fetchone()[0]

    @staticmethod
    def _add(db: sqlite3.Connection, contest: Contest, what: str, number: int | None, split: str, recipe_id: str,
             session: Path) -> None:
        row = (uuid.uuid4().hex, time.time(), *contest, what, number, split, recipe_id, str(Path(session).absolute()),
               machine.host())
        db.execute(f"INSERT INTO openings VALUES ({', '.join('?' * len(COLUMNS))})", row)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """BEGIN IMMEDIATE ... COMMIT: numbers are read and given in one step, all of it or nothing."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise Failure(f"{self.path}: the registry of seals cannot be used: {error}; --registry FILE names "
                          "another") from error
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path}: {error}; --registry FILE names another") from error
