"""A session's folder: its ledger, one folder a trial, the champion; locked by the loop, bounded on disk.

    ledger.sqlite
    trials/KEY/{metrics.jsonl, log.txt, result.json}    plus what a trial leaves, until it is tidied away (but curves)
    champion/{recipe.yaml, diff.md, checkpoint/, crowned.json}          made as champion.new, until the ledger says so
    transfer/KEY/{metrics.jsonl, log.txt, result.json}                  runs of the champion's transfer card
    workers/worker-N.log                                what a worker says between trials
    calls/N.json.gz                                     what a language model was asked and answered, see exchanges.py

A trial's result reaches the ledger in two steps, so that a crash between them loses nothing: the worker writes
result.json (to a temporary name, flushed, renamed), then the loop appends it, once. The file carries a checksum and
the attempt it belongs to; a torn, edited or older one is no result.

A session may come from somebody else. A link in it leads to files that are not the session's, so whoever writes below
it refuses it first (`refuse_links`), and files that are replaced are written beside and renamed.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from jaxnano.curves import EVENTS, METRICS
from research.ledger.events import FILE, Ledger, SessionError, encode

KEPT = frozenset({METRICS, "log.txt", "result.json"})
RUNS = Path("runs")  # where sessions lie by default
LOG_BYTES = 256 * 1024  # a tidied log keeps its last so many bytes
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class Session(AbstractContextManager["Session"]):
    """An open session; a context manager that gives the lease back and closes the ledger."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        """Use `Session.create` or `Session.open` instead."""
        self.path = path
        self.ledger = ledger
        self.trials = path / "trials"
        self.champion = path / "champion"
        self.workers = path / "workers"
        self.transfer = path / "transfer"

    @classmethod
    def create(cls, path: Path) -> "Session":
        """Make a new session folder at `path` and take its lease.

        Raises: SessionError if the path already holds something.
        """
        path = Path(path).resolve()
        if (path / FILE).exists():
            raise SessionError(f"{path}: a session is already there; --resume goes on with it")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise SessionError(f"{path}: already exists and is no session; a new or empty folder would do")
        try:
            for folder in ("trials", "workers"):
                (path / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SessionError(f"{path}: cannot make the session's folder: {error.strerror}") from error
        session = cls(path, Ledger(path / FILE, create=True))
        session.ledger.acquire()
        return session

    @classmethod
    def open(cls, path: Path, *, lock: bool = False) -> "Session":
        """Open the session at `path`: to read it and to propose to it, or with `lock` to go on with it.

        Raises: SessionError if there is none, or if `lock` and a link lies in it; SessionBusy if `lock` and another
            process holds it.
        """
        path = Path(path).resolve()
        if not (path / FILE).is_file():
            raise SessionError(f"{path}: no session there ({FILE} is missing)")
        if lock:
            refuse_links(path)
        with ExitStack() as opening:
            session = opening.enter_context(cls(path, Ledger(path / FILE)))
            if lock:
                session.ledger.acquire()
            opening.pop_all()
        return session

    def close(self) -> None:
        """Give the lease back, if held, and close the ledger."""
        self.ledger.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def trial_dir(self, key: str, among: Path | None = None) -> Path:
        """The folder of one trial, made if absent. among: the folder of all, by default `trials`.

        Raises: ValueError if the key is not a plain file name; SessionError if the folder is a link.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"trial key {key!r} is not a plain file name")
        among = among or self.trials
        folder = among / key
        for place in (among, folder):
            refuse_link(place)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def tidy(self, keep: Collection[str] = ()) -> int:
        """Remove what ended trials left beside their metrics, log and result (checkpoints), and shorten long logs.

        Args: keep: keys of trials to leave alone: those running and the champion's.
        Returns: bytes freed.
        Raises: SessionError if a link lies in the session, before anything is removed.
        """
        refuse_links(self.path)
        freed = 0
        for folder in self.trials.iterdir():
            if folder.name in keep or not folder.is_dir():
                continue
            for item in folder.iterdir():
                if item.name not in KEPT and not item.name.startswith(EVENTS):
                    freed += folder_bytes(item)
                    shutil.rmtree(item) if item.is_dir() else item.unlink()
            freed += _shorten(folder / "log.txt")
        return freed


def default_session_dir(track: str, runs: Path = RUNS) -> Path:
    """A new name below `runs`: the track and the local time, with a number where that is taken."""
    name = f"{track}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = runs / name, 2
    while path.exists():
        path, number = runs / f"{name}-{number}", number + 1
    return path


def write_result(folder: Path, attempt: int, result: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
    """Write result.json so that a reader sees all of it or none, whenever this process dies.

    Args: folder: the trial's. result: the body of its `result` event; `encode` says what it may hold.
    key: the trial's, which a folder that several trials share does not say.
    Returns: the result as a reader will get it.
    """
    text = encode({**result, "attempt": attempt})
    content = f'{{"sha256":"{_checksum(text)}","trial":{json.dumps(key)},"result":{text}}}\n'
    replace_file(folder / "result.json", content.encode())
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the rename, too, has to outlive a power cut
    finally:
        os.close(descriptor)
    return json.loads(text)


def read_result(folder: Path, attempt: int | None = None, key: str | None = None) -> dict[str, Any] | None:
    """The result in a trial's folder, or None if there is none, it is damaged, or another attempt's or trial's.

    A file that names no trial, as version 0.2 wrote them, is taken to be the folder's.
    """
    try:
        content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        result = content["result"]
        if content["sha256"] != _checksum(encode(result)) or attempt not in (None, result["attempt"]):
            return None
        if key is not None and (content.get("trial") or key) != key:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, whole; a link at `path` is replaced, not followed.

    It is beside under another name first, and on the disk before it is renamed.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with open(temporary, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def refuse_links(path: Path) -> None:
    """Look through a session's folder before anything is written or removed below it.

    Raises: SessionError that names the first link: what it leads to is not the session's.
    """
    for place in sorted(path.rglob("*")):  # what links lead to is not looked at
        refuse_link(place)


def refuse_link(place: Path) -> None:
    """Raises: SessionError if this place is a link."""
    if place.is_symlink():
        raise SessionError(f"{place}: is a link, to {os.readlink(place)}: nothing outside the session is written or "
                           "removed; a copy of what it leads to, in its place, would do")


def folder_bytes(path: Path) -> int:
    """Size of a file, or of all files below a folder, in bytes; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(item.lstat().st_size for item in path.rglob("*") if not item.is_dir())


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _shorten(log: Path) -> int:
    """Cut a log to its last LOG_BYTES; returns the bytes freed."""
    size = log.stat().st_size if log.is_file() else 0
    if size <= LOG_BYTES:
        return 0
    with open(log, "rb") as file:
        file.seek(size - LOG_BYTES)
        tail = file.read()
    replace_file(log, tail)
    return size - len(tail)
