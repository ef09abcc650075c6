"""The registry of seals: numbers that no copied, deleted or killed session, and no second process, gives twice."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from jaxnano.cli import Failure, UserError, report_errors
from research import books
from research.ledger.registry import VARIABLE, Contest, Registry, default_path
from research.machine import ROOT

OURS = Contest("tiny", "t" * 16, "d" * 64)
SPLITS = ("protected", "second", "third")


def seal(registry, contest=OURS, openings=20, **more):
    return registry.seal(contest, "a" * 16, "runs/one", SPLITS, openings, **more)


def test_seals_of_a_track_and_its_data_are_numbered_whatever_session_they_are_of(tmp_path):
    with Registry(tmp_path / "new" / "r.sqlite") as registry:
        assert [seal(registry).number for _ in range(3)] == [1, 2, 3]
        assert seal(registry, OURS._replace(track_hash="u" * 16)).number == 1
        assert seal(registry, OURS._replace(data_hash="e" * 64)).number == 1
        name = registry.name
    with Registry(tmp_path / "new" / "r.sqlite") as again:
        assert again.next(OURS) == 4 and seal(again)[:1] == (4,) and again.name == name
        assert seal(again, least=9).number == 9  # a session that was sealed elsewhere
        assert seal(again).number == 10


def test_a_protected_split_that_was_opened_often_makes_way_for_the_next_and_the_last_stays(tmp_path):
    with Registry(tmp_path / "r.sqlite") as registry:
        registry.published(OURS, "protected", "a", tmp_path)
        found = [seal(registry, openings=2) for _ in range(6)]
    assert [(entry.split, entry.opened) for entry in found] == [
        ("protected", 1), ("second", 0), ("second", 1), ("third", 0), ("third", 1), ("third", 2)]
    assert [entry.number for entry in found] == [1, 2, 3, 4, 5, 6]


def test_several_sessions_at_once_get_numbers_of_their_own(tmp_path):
    Registry(tmp_path / "r.sqlite").close()
    numbers = []

    def session():
        with Registry(tmp_path / "r.sqlite") as registry:
            numbers.extend(seal(registry).number for _ in range(10))

    threads = [threading.Thread(target=session) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 41))


KILLED = """
import os, signal, sys
from research.ledger.registry import Contest, Registry
registry = Registry(sys.argv[1])
print(registry.seal(Contest("tiny", "t" * 16, "d" * 64), "a" * 16, "runs/one", ("protected",), 20).number, flush=True)
registry._db.execute("BEGIN IMMEDIATE")
registry._db.execute("INSERT INTO openings SELECT id || 'x', time, track, track_hash, data_hash, what, number, split, "
                     "recipe, session, host FROM openings")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_seal_outlives_the_process_that_is_killed_after_it_and_half_of_one_is_none(tmp_path):
    command = [sys.executable, "-c", KILLED, tmp_path / "r.sqlite"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "1\n")
    with Registry(tmp_path / "r.sqlite") as registry:
        assert len(registry.rows()) == 1 and seal(registry).number == 2


def test_rows_cannot_be_changed_and_another_file_is_refused(tmp_path):
    with Registry(tmp_path / "r.sqlite") as registry:
        seal(registry)
        for statement in ("DELETE FROM openings", "UPDATE openings SET number = 0"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                registry._db.execute(statement)
    (tmp_path / "text").write_text("no database, but a text that is long enough to look like something else" * 9)
    with pytest.raises(UserError, match="--registry FILE names another"):
        Registry(tmp_path / "text")
    with pytest.raises(Failure, match="cannot be opened"):
        Registry(tmp_path / "text" / "below")
    with pytest.raises(UserError, match="no such registry"):
        Registry(tmp_path / "absent", create=False)


def test_where_it_lies(monkeypatch, tmp_path):
    assert str(default_path()) == os.environ[VARIABLE]
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert default_path() == tmp_path / "jaxnano" / "seals.sqlite"


def test_registries_of_two_machines_are_joined_once(tmp_path, capsys):
    ours, theirs = tmp_path / "ours.sqlite", tmp_path / "theirs.sqlite"
    with Registry(ours) as one, Registry(theirs) as other:
        assert seal(one).number == 1 and [seal(other).number for _ in range(2)] == [1, 2]
    for taken in (2, 0):
        assert report_errors(lambda: books.main(["--registry", str(ours), "--join", str(theirs)])) == 0
        said = capsys.readouterr().out
        assert f"{taken} rows taken in" in said and "track tiny" in said and "3 seals" in said
        assert "136.8% of the level spent" in said  # 2 x 6 / pi^2 + 6 / (2 pi)^2: both machines' first attempts count
    with Registry(ours) as one:
        assert one.next(OURS) == 4
    assert report_errors(lambda: books.main(["--registry", str(ours), "--join", str(tmp_path / "no")])) == 2
    assert "no such registry" in capsys.readouterr().err
