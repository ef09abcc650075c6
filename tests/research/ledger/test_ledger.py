import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from research import machine
from research.ledger.__main__ import main
from research.ledger.events import FILE, Ledger, LedgerFailure, SessionBusy, SessionError, StaleFence, encode, node_of
from research.ledger.kinds import Competitor, Decided
from research.ledger.session import LOG_BYTES, Session, default_session_dir, folder_bytes, read_result, write_result

HOLDER = """
import sys, pathlib
from research.ledger.session import Session
session = Session.open(pathlib.Path(sys.argv[1]), lock=True)
print("held", flush=True)
sys.stdin.read()
"""
SESSION = {"track": "tiny", "data_hash": "d", "seed": 0, "workers": 1}
WRITER = """
import sys, pathlib
from research.ledger.session import Session
with Session.open(pathlib.Path(sys.argv[1])) as session:
    for number in range(50):
        session.ledger.append("submission", sys.argv[2], {"number": number})
"""


def run_python(code, *args, **options):
    env = {**os.environ, "PYTHONPATH": str(machine.ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], env=env, text=True, **options)


@pytest.fixture
def holder(tmp_path):
    """A session whose lease another, living process holds; yields (path, process)."""
    Session.create(tmp_path / "held").close()
    pipe = subprocess.PIPE
    with run_python(HOLDER, tmp_path / "held", stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == "held\n"
        yield tmp_path / "held", process
        process.kill()


def test_events_come_back_in_order_and_as_json(session):
    ledger = session.ledger
    assert ledger.append("session", "", SESSION | {"seed": np.int64(3), "split": ("a", "b")}) == 1
    assert ledger.append("end", "", {"effect": np.float32(0.5), "loss": float("nan"), "gain": np.inf}) == 2
    assert ledger.append("decision", "r1-1-0", {"purpose": "search", "scores": np.arange(3)}) == 3
    first, second, third = ledger.events()
    assert (first.seq, first.kind, first.subject, first.fence) == (1, "session", "", 1)
    assert first.body.written() == SESSION | {"seed": 3, "split": ["a", "b"]}
    assert second.body.written() == {"effect": 0.5, "loss": None, "gain": None}
    assert third.body.written() == {"purpose": "search", "scores": [0, 1, 2]}
    assert first.time <= second.time <= third.time
    assert ledger.events(since=1) == [second, third]
    assert ledger.events(kind="decision") == [third]
    with pytest.raises(ValueError, match="unknown event kind 'note'"):
        ledger.append("note", "", {})
    with pytest.raises(TypeError, match="not JSON data"):
        ledger.append("proposal", "", {"what": object()})
    assert len(ledger.events()) == 3


def test_events_cannot_be_changed_or_removed(session):
    session.ledger.append("proposal", "r", {})
    database = sqlite3.connect(session.path / FILE)
    for change in ("DELETE FROM events", "UPDATE events SET kind = 'end'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(change)
    database.close()


def test_concurrent_appends_lose_nothing(session):
    session.ledger.append("session", "", SESSION)
    writers = [run_python(WRITER, session.path, name) for name in "abcd"]
    for number in range(50):
        session.ledger.append("decision", "loop", {"purpose": "search", "number": number})
    assert [writer.wait(20) for writer in writers] == [0, 0, 0, 0]
    events = session.ledger.events(since=1)
    assert [event.seq for event in events] == list(range(2, 252))
    for subject in ("a", "b", "c", "d", "loop"):
        assert [event.body.number for event in events if event.subject == subject] == list(range(50))
    assert {event.fence for event in events if event.subject in "abcd"} == {None}


def test_nobody_writes_between_the_check_of_the_fence_and_the_append(session, monkeypatch):
    other = sqlite3.connect(session.path / FILE, timeout=0, isolation_level=None)

    def interfere(*_):
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("UPDATE lease SET fence = 7")

    monkeypatch.setattr(session.ledger, "_check_fence", interfere)
    assert session.ledger.append("decision", "t", {}) == 1
    other.close()


def test_only_the_holder_of_the_lease_appends_as_the_loop(session):
    with Session.open(session.path) as guest:
        for kind in ("submission", "review", "call"):
            guest.ledger.append(kind, "r", {})
        with pytest.raises(StaleFence, match="needs the session's lease"):
            guest.ledger.append("decision", "t", {})


def test_living_holder_is_refused_in_one_line(holder):
    path, process = holder
    with pytest.raises(SessionBusy) as refusal:
        Session.open(path, lock=True)
    assert str(refusal.value) == f"{path}: in use by process {process.pid} on this machine; stop it or wait for its end"
    assert main(["--release", str(path)]) == 2


def test_dead_holder_is_succeeded_at_once_even_before_it_is_waited_for(holder):
    path, process = holder
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and left as a zombie
    with Session.open(path, lock=True) as session:
        assert session.ledger.fence == 3  # 1 made the session, 2 was the holder


def test_process_number_reused_by_another_is_not_taken_for_the_holder(session, tmp_path):
    with sqlite3.connect(session.path / FILE) as database:  # a holder with this pid, but from an earlier start
        database.execute("UPDATE lease SET identity = 'another-boot/1'")
    database.close()
    with Session.open(session.path, lock=True) as successor:
        assert successor.ledger.fence == 2


def test_lost_lease_refuses_appends_and_is_not_given_back(session):
    with sqlite3.connect(session.path / FILE) as database:
        database.execute("UPDATE lease SET identity = 'dead'")
    database.close()
    with Session.open(session.path, lock=True) as successor:
        for kind in ("result", "proposal"):
            with pytest.raises(StaleFence, match=r"lost \(fence 1, now 2\)"):
                session.ledger.append(kind, "t", {})
        session.ledger.release()
        successor.ledger.append("result", "t", {"attempt": 1, "outcome": "failed"})
    assert [event.fence for event in session.ledger.events()] == [2]


def test_holder_on_another_machine_must_be_released_by_hand(session, capsys):
    with sqlite3.connect(session.path / FILE) as database:
        database.execute("UPDATE lease SET host = 'elsewhere', identity = 'unseen'")
    database.close()
    with pytest.raises(SessionBusy, match=r"on elsewhere, .* python -m research.ledger --release"):
        Session.open(session.path, lock=True)
    assert main(["--release", str(session.path)]) == 0
    with pytest.raises(StaleFence):
        session.ledger.append("result", "t", {})
    with Session.open(session.path, lock=True) as successor:
        assert successor.ledger.fence == 3


def test_sessions_open_and_create_only_where_they_should(session, tmp_path):
    with pytest.raises(SessionError, match="a session is already there; --resume"):
        Session.create(session.path)
    with pytest.raises(SessionError, match="already exists and is no session"):
        Session.create(Path(__file__).parent)
    with pytest.raises(SessionError, match="no session there"):
        Session.open(tmp_path / "nowhere")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / FILE).write_text("not a database, but long enough to look at" * 9)
    with pytest.raises(SessionError, match="not a database"):
        Session.open(tmp_path / "text")
    with sqlite3.connect(session.path / FILE) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(SessionError, match="ledger schema 99, but this program reads 1"):
        Session.open(session.path)
    assert default_session_dir("tiny", tmp_path).name.startswith("tiny-20")


def test_damaged_or_foreign_results_are_no_results(session):
    folder = session.trial_dir("r-1-0")
    assert read_result(folder) is None
    written = write_result(folder, 2, {"outcome": "completed", "loss": {"search": np.float32(1.5)}})
    assert written == read_result(folder) == read_result(folder, 2)
    assert written == {"outcome": "completed", "loss": {"search": 1.5}, "attempt": 2}
    assert read_result(folder, 1) is None
    assert [item.name for item in folder.iterdir()] == ["result.json"]
    whole = (folder / "result.json").read_text()
    for damaged in (whole[:-20], "", "[]", "{}", whole.replace("1.5", "1.4"), '{"result": 3, "sha256": "x"}'):
        (folder / "result.json").write_text(damaged)
        assert read_result(folder) is None, damaged
    with pytest.raises(ValueError, match="not a plain file name"):
        session.trial_dir("../outside")


def test_result_is_whole_or_absent_when_the_writer_dies_between_its_steps(session, monkeypatch):
    folder = session.trial_dir("r-1-0")
    write_result(folder, 1, {"outcome": "failed"})

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_result(folder, 2, {"outcome": "completed"})
    assert read_result(folder) == {"outcome": "failed", "attempt": 1}


def test_tidy_keeps_metrics_results_and_the_champion(session):
    for key in ("loser", "champion"):
        folder = session.trial_dir(key)
        (folder / "checkpoint" / "step").mkdir(parents=True)
        (folder / "checkpoint" / "step" / "array").write_bytes(b"x" * 1000)
        (folder / "metrics.jsonl").write_text("{}\n")
        (folder / "events.out.tfevents.1.host.2").write_bytes(b"curves")
        (folder / "log.txt").write_bytes(b"old" + b"n" * LOG_BYTES)
        write_result(folder, 1, {"outcome": "completed"})
    before = folder_bytes(session.path)
    assert session.tidy(keep={"champion"}) == 1003 == before - folder_bytes(session.path)
    assert sorted(item.name for item in session.trial_dir("loser").iterdir()) == sorted(
        ["metrics.jsonl", "events.out.tfevents.1.host.2", "log.txt", "result.json"]
    )
    assert (session.trials / "loser" / "log.txt").read_bytes() == b"n" * LOG_BYTES
    assert (session.trials / "champion" / "checkpoint" / "step" / "array").exists()
    assert read_result(session.trials / "loser") is not None


def test_encoding_does_not_depend_on_the_order_of_keys():
    assert encode({"b": 1, "a": {"d": 0.1, "c": "é"}}) == '{"a":{"c":"é","d":0.1},"b":1}'


def test_a_node_is_written_by_the_fields_that_were_set_and_null_for_what_is_not_finite():
    rival = Competitor(trial="a-1-0", name="a", eig=float("nan"))
    body = Decided(purpose="search", left_s=float("inf"), winner=rival)
    assert encode(body) == ('{"left_s":null,"purpose":"search","winner":{"cost_s":null,"eig":null,"improvement":null,'
                            '"name":"a","trial":"a-1-0"}}')
    assert node_of("decision", body).winner == Competitor(trial="a-1-0", name="a")


def test_ledger_is_usable_from_several_threads(session):
    def write(name):
        for number in range(25):
            session.ledger.append("decision", name, {"purpose": "search", "number": number})

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = session.ledger.events()
    assert len(events) == 50
    with Ledger(session.path / FILE) as other:
        assert other.events() == events


def open_again(path):
    """A second connection that waits for nobody."""
    return sqlite3.connect(path / FILE, timeout=0, isolation_level=None)


def test_a_ledger_that_cannot_grow_is_told_in_a_line_and_goes_on_when_it_can(session):
    """SQLite's own bound on the pages of a file stands in for a full disk: it gives the same error."""
    database = session.ledger._db
    session.ledger.append("session", "", SESSION)
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerFailure, match="cannot be written: database or disk is full"):
        session.ledger.append("result", "t", {"log": "x" * 100_000})
    database.execute("PRAGMA max_page_count = 1000000")
    assert session.ledger.append("decision", "t", {"purpose": "search"}) == 2 and len(session.ledger.events()) == 2


def test_a_commit_that_fails_leaves_no_transaction_open(session):
    """Deferred foreign keys are looked at by COMMIT alone, which then fails and leaves the transaction to us."""
    database = session.ledger._db
    database.executescript("PRAGMA foreign_keys = ON; CREATE TABLE p (i INTEGER PRIMARY KEY);"
                           "CREATE TABLE c (i REFERENCES p DEFERRABLE INITIALLY DEFERRED);")
    for _ in range(2):
        with pytest.raises(Exception, match="FOREIGN KEY"), session.ledger._transaction() as inside:
            inside.execute("INSERT INTO c VALUES (7)")
    assert session.ledger.append("session", "", {}) == 1
    assert database.execute("SELECT count(*) FROM c").fetchone() == (0,)


def test_a_locked_or_read_only_ledger_is_a_failure_of_the_machine(session):
    session.ledger.append("session", "", SESSION)
    session.ledger._db.execute("PRAGMA busy_timeout = 0")
    other = open_again(session.path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerFailure, match="cannot be written: database is locked"):
        session.ledger.append("decision", "t", {})
    other.execute("ROLLBACK")
    other.close()
    session.ledger._db.execute("PRAGMA query_only = ON")
    with pytest.raises(LedgerFailure, match="cannot be written: attempt to write a readonly database"):
        session.ledger.append("decision", "t", {})
    session.ledger.close()  # gives no lease back, and says nothing
    with Session.open(session.path) as again:
        assert len(again.ledger.events()) == 1
