"""The ledger: one append-only table of events, from which all state is folded (see state.py).

    events(seq, time, kind, subject, body, fence)     one row an event; body is a JSON object
    lease(id, fence, pid, host, identity)             one row: who may append as the loop

Durability. The journal is WAL (readers never wait for the writer) with synchronous=FULL: an appended event has reached
the disk when `append` returns. NORMAL would survive a killed process too, but after a power cut it could forget the
last events, among them a `sealed` one, and with it an attempt that the significance level has to pay for. FULL costs
one fsync an event, and there are a few events a second at most.

Fencing. The loop's events carry the token of its lease, checked in the transaction that appends. A loop that lost its
lease (stopped for long, taken for dead) cannot append any more, whatever it believes. Submissions, reviews and calls of
language models may come from other processes and threads and need no token.

    python -m research.ledger --check SESSION      every rule of invariants.py; one line a violation
    python -m research.ledger --release SESSION    forget a holder on another machine that no longer exists
"""

import gc
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_json

from jaxnano.cli import Failure, UserError
from jaxnano.config.base import ConfigError
from research import machine
from research.ledger.kinds import KINDS, LOOP_KINDS, OLDER, OPEN_KINDS, Body

SCHEMA_VERSION = 1
FILE = "ledger.sqlite"
BUSY_TIMEOUT_S = 30.0

_SCHEMA = f"""
CREATE TABLE events (seq INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,
                     body TEXT NOT NULL, fence INTEGER);
CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_keep BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TABLE lease (id INTEGER PRIMARY KEY CHECK (id = 1), fence INTEGER NOT NULL, pid INTEGER, host TEXT,
                    identity TEXT);
INSERT INTO lease VALUES (1, 0, NULL, NULL, NULL);
PRAGMA user_version = {SCHEMA_VERSION};
"""


class SessionError(UserError):
    """A session that cannot be used as asked; the message is one line for the user."""


class SessionBusy(SessionError):
    """Another living process holds the session's lease."""


class LedgerFailure(Failure):
    """The machine does not let a ledger be read or written: a full disk, a read-only folder, a lock held too long."""


class StaleFence(SessionError):
    """This process lost its lease (or never had one) and may not append as the loop."""


B = TypeVar("B")


@dataclass(frozen=True)
class Event(Generic[B]):
    """One row. seq: 1, 2, 3 ... time: Unix seconds. body: the node of its kind. fence: the loop's token, None for other
    processes."""

    seq: int
    time: float
    kind: str
    subject: str
    body: B
    fence: int | None = None


class Ledger(AbstractContextManager["Ledger"]):
    """An open ledger; usable from several threads and, each with its own, from several processes."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Open the file at `path`, which must exist unless `create`, and must not if so.

        Raises: SessionError if it is absent, not a ledger, or of another schema version; LedgerFailure if the machine
        does not let it be opened.
        """
        self.path = Path(path)
        if self.path.exists() == create:
            raise SessionError(f"{self.path}: " + ("a ledger is already there" if create else "no such ledger"))
        self.fence: int | None = None
        self._lock = threading.RLock()
        with ExitStack() as opening:
            try:
                self._db = opening.enter_context(closing(sqlite3.connect(
                    self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)))
                if create:
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
                self._db.execute("PRAGMA synchronous = FULL")
                found = self._db.execute("PRAGMA user_version").fetchone()[0]
            except sqlite3.OperationalError as error:
                raise LedgerFailure(f"{self.path}: cannot be opened: {error}") from error
            except sqlite3.Error as error:
                raise SessionError(f"{self.path}: {error}") from error
            if found != SCHEMA_VERSION:
                raise SessionError(f"{self.path}: ledger schema {found}, but this program reads {SCHEMA_VERSION}")
            opening.pop_all()

    def close(self) -> None:
        """Give the lease back, if held, and close the file.

        Where the disk does not take that, the lease stays with this process, and is anybody's once it has ended.
        """
        with self._lock, closing(self._db), suppress(LedgerFailure):
            self.release()

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, kind: str, subject: str, body: Body | Mapping[str, Any]) -> int:
        """Append one event durably.

        Args: subject: what the event is about (a recipe id, a trial key or ""). body: its node, or JSON data; NumPy
        numbers are taken, and a number that is not finite is stored as null.
        Returns: its seq.
        Raises: StaleFence if the kind is the loop's and this process does not hold the lease. ValueError for an
        unknown kind. LedgerFailure if it cannot be written; then nothing of it is.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown event kind {kind!r}; known: {', '.join(sorted(KINDS))}")
        text = encode(body)
        with self._transaction() as db:
            if self.fence is not None or kind in LOOP_KINDS:
                self._check_fence(db, kind)
            row = (time.time(), kind, subject, text, self.fence)
            cursor = db.execute("INSERT INTO events (time, kind, subject, body, fence) VALUES (?, ?, ?, ?, ?)", row)
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def events(self, kind: str | None = None, since: int = 0) -> list[Event[Any]]:
        """Events after seq `since`, of one kind or all, in order.

        Raises: SessionError if a body is not what its kind holds; LedgerFailure if they cannot be read.
        """
        where, values = ("seq > ?", (since,)) if kind is None else ("seq > ? AND kind = ?", (since, kind))
        rows, collects = self._read(f"SELECT * FROM events WHERE {where} ORDER BY seq", values), gc.isenabled()
        gc.disable()  # nothing here is garbage: of 40,000 events, looking for it took two thirds of the time
        try:
            return [self._event(row) for row in rows]
        finally:
            if collects:
                gc.enable()

    def last(self) -> int:
        """The seq of the last event; 0 without any."""
        return self._read("SELECT coalesce(max(seq), 0) FROM events")[0][0]

    def latest(self, kind: str | None, limit: int, offset: int = 0) -> list[Event[Any]]:
        """So many events of one kind or all, the latest first, after the `offset` latest. Raises: as `events`."""
        where, values = ("", ()) if kind is None else ("WHERE kind = ?", (kind,))
        rows = self._read(f"SELECT * FROM events {where} ORDER BY seq DESC LIMIT ? OFFSET ?", (*values, limit, offset))
        return [self._event(row) for row in rows]

    def kinds(self) -> dict[str, int]:
        """How many events of each kind there are."""
        return dict(self._read("SELECT kind, count(*) FROM events GROUP BY kind ORDER BY kind"))

    def _event(self, row: tuple[Any, ...]) -> Event[Any]:
        seq, at, kind, subject, text, fence = row
        return Event(seq, at, kind, subject, read(kind, text, f"{self.path}: event {seq}"), fence)

    def raw(self) -> list[tuple[int, float, str, str, str, int | None]]:
        """All rows with their bodies as text, for the check."""
        return self._read("SELECT * FROM events ORDER BY seq")

    def integrity(self) -> list[str]:
        """What SQLite's own check says against the file; empty if nothing."""
        return [row[0] for row in self._read("PRAGMA integrity_check") if row[0] != "ok"]

    def acquire(self) -> int:
        """Take the lease: from nobody, or from a holder that is dead.

        Returns: the fencing token, larger than any before.
        Raises: SessionBusy, naming the holder, if it is alive or cannot be seen from here.
        """
        with self._transaction() as db:
            fence, pid, host, identity = db.execute("SELECT fence, pid, host, identity FROM lease").fetchone()
            if pid is not None and host != machine.host():
                raise SessionBusy(f"{self.path.parent}: held by process {pid} on {host}, which cannot be checked from "
                                  f"{machine.host()}; if it is gone: python -m research.ledger --release "
                                  f"{self.path.parent}")
            self._refuse_living(pid, identity)
            me, token = os.getpid(), int(fence) + 1
            values = (token, me, machine.host(), machine.process_identity(me))
            db.execute("UPDATE lease SET fence = ?, pid = ?, host = ?, identity = ?", values)
        self.fence = token
        return token

    def release(self) -> None:
        """Give the lease back; does nothing if it is no longer ours."""
        if self.fence is None:
            return
        with self._transaction() as db:
            db.execute("UPDATE lease SET pid = NULL, host = NULL, identity = NULL WHERE fence = ?", (self.fence,))
        self.fence = None

    def evict(self) -> None:
        """Free the lease of a holder that the caller knows to be gone; should it come back, its fence is stale.

        Raises: SessionBusy if the holder is alive on this machine.
        """
        with self._transaction() as db:
            pid, identity = db.execute("SELECT pid, identity FROM lease").fetchone()
            self._refuse_living(pid, identity)
            db.execute("UPDATE lease SET fence = fence + 1, pid = NULL, host = NULL, identity = NULL")

    def held(self) -> bool:
        """Whether somebody who is alive holds the lease; a holder on another machine is taken to be."""
        (pid, host, identity), = self._read("SELECT pid, host, identity FROM lease")
        return pid is not None and (host != machine.host() or machine.process_identity(pid) == identity)

    def _refuse_living(self, pid: int | None, identity: str | None) -> None:
        if pid is not None and machine.process_identity(pid) == identity:
            raise SessionBusy(f"{self.path.parent}: in use by process {pid} on this machine; "
                              "stop it or wait for its end")

    def _check_fence(self, db: sqlite3.Connection, kind: str) -> None:
        fence, pid = db.execute("SELECT fence, pid FROM lease").fetchone()
        if self.fence is None:
            raise StaleFence(f"{self.path.parent}: a {kind!r} event needs the session's lease; acquire it first")
        if fence != self.fence or pid is None:
            raise StaleFence(f"{self.path.parent}: the lease was lost (fence {self.fence}, now {fence}); "
                             f"{kind!r} event refused")

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._telling("read"):
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """BEGIN IMMEDIATE ... COMMIT: what is read inside still holds when it is written, all of it or nothing."""
        with self._lock, self._telling("written"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite rolls some failures back by itself
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """What SQLite raises, in a line of ours."""
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerFailure(f"{self.path}: cannot be {what}: {error}; what it held before is kept") from error


def encode(body: Body | Mapping[str, Any]) -> str:
    """Canonical JSON of one object: sorted keys, no spaces, null for a number that is not finite (JSON has none)."""
    try:  # NumPy and JAX scalars and arrays have `tolist`
        text = to_json(body, inf_nan_mode="null", fallback=lambda value: value.tolist())
    except PydanticSerializationError as error:
        raise TypeError(f"an event's body is not JSON data: {error}") from error
    return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def decode(text: str, where: str) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises: SessionError, beginning with `where`, if it holds anything else.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SessionError(f"{where}: not JSON ({error})") from error
    if not isinstance(body, dict):
        raise SessionError(f"{where}: a JSON object was expected, not {type(body).__name__}")
    return body


def read(kind: str, text: str, where: str = "it") -> Body:
    """The node of a kind in JSON text.

    Raises: SessionError, beginning with `where`, if the text holds no such thing; what anybody may append is then as if
    it held nothing.
    """
    node = KINDS.get(kind, Body)
    try:
        return node.model_validate_json(encode(OLDER[kind](decode(text, where))) if kind in OLDER else text)
    except ValidationError as error:
        body = decode(text, where)
        if kind in OPEN_KINDS:
            return node()
        problems = ConfigError.of(error, body, node).problems
        missing = ", ".join(problem.path for problem in problems if problem.value == "absent")
        fault = f"without {missing}" if missing else f"with {problems[0]}"
        raise SessionError(f"{where}: {'an' if kind[0] in 'ae' else 'a'} {kind} {fault}") from None


def node_of(kind: str, body: Body | Mapping[str, Any]) -> Any:
    """The node of a kind from plain data, as a reader will get it once it is written."""
    return read(kind, encode(body), kind)
