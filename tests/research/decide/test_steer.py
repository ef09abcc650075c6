"""What people ask of a loop that runs: it starts nothing more, goes on, ends after its round, has more time, fewer
workers."""

import time

import pytest
from sitting import created, loop, made_up, run_out
from stand_in import StandIn

from jaxnano.cli import report_errors
from research import extend, pause
from research.decide.claims import violations
from research.decide.plan import minutes_left
from research.ledger.events import Event
from research.ledger.kinds import Asked, Begun
from research.ledger.session import Session
from research.ledger.state import fold
from research.outside.steer import retry

pytestmark = pytest.mark.usefixtures("crowns")
STEPS = 30  # of a loop that is paused, with nothing to wait for


def steered(folder, asks, **more):
    """A session whose loop is asked `asks`, {number of results: (want, value)}; it goes on after STEPS of a pause."""
    waiting, steps = dict(asks), [0]
    with created(folder) as session:
        scheduler = loop(session, **more)

        def on_change(now):
            results = len(session.ledger.events("result"))
            for at in [at for at in waiting if results >= at]:
                want, value = waiting.pop(at)
                session.ledger.append("ask", "", Asked(want=want, value=value, by="ada"))
            steps[0] += bool(now.state.paused)
            if steps[0] == STEPS:
                session.ledger.append("ask", "", Asked(want="go on", by="ada"))

        scheduler.on_change = on_change
        reason = scheduler.run()
        assert list(violations(session.ledger, session.path)) == []
        return scheduler, reason, session.ledger.events()


def test_a_pause_starts_nothing_and_costs_no_time(tmp_path):
    scheduler, _, events = steered(tmp_path / "s", {3: ("pause", 0.0)})
    paused, gone_on = (next(e for e in events if e.kind == "ask" and e.body.want == w) for w in ("pause", "go on"))
    begun = [e.seq for e in events if e.kind == "attempt"]
    assert not [seq for seq in begun if paused.seq + 1 < seq < gone_on.seq]  # one that was being given out may begin
    assert max(begun) > gone_on.seq and scheduler.state.champion
    assert scheduler.state.granted_s == pytest.approx(gone_on.time - paused.time)


def test_stop_ends_after_the_round_and_its_proof(tmp_path):
    scheduler, _, events = steered(tmp_path / "s", {4: ("stop", 0.0)}, max_trials=None)
    asked = next(e.seq for e in events if e.kind == "ask")
    late = [e for e in events if e.kind == "decision" and e.seq > asked + 3 and e.body.purpose in ("search", "base")]
    assert not late and len(scheduler.state.verifications) <= 1
    assert scheduler.state.sealed or scheduler.state.futile or not scheduler.state.nominated


def test_fewer_workers(tmp_path):
    _, _, events = steered(tmp_path / "s", {2: ("workers", 1.0), 6: ("workers", 2.0)})
    less, all_ = [e.seq for e in events if e.kind == "ask"]
    used = {w: {e.body.worker for e in events if e.kind == "attempt" and lo < e.seq < hi}
            for w, lo, hi in ((1, less + 3, all_), (2, all_ + 1, 10**9))}
    assert used == {1: {0}, 2: {0, 1}}


def test_more_minutes(tmp_path):
    with created(tmp_path / "s") as session:
        scheduler = loop(session, budget_s=100.0)
        before = scheduler.left_s
        session.ledger.append("ask", "", Asked(want="minutes", value=5.0))
        scheduler.book.refresh()
        scheduler._obey()
        scheduler._obey()  # once
        assert scheduler.left_s == pytest.approx(before + 300, abs=5)
        assert minutes_left(scheduler.state) == pytest.approx(15, abs=0.2)


def test_the_time_people_add_is_a_fold_of_the_events():
    asks = [("minutes", 10.0, 5.0), ("pause", 20.0, 0.0), ("pause", 25.0, 0.0), ("go on", 50.0, 0.0),
            ("go on", 60.0, 0.0), ("pause", 70.0, 0.0), ("nonsense", 80.0, 9.0)]
    begun = Begun(track="t", data_hash="d", seed=0, workers=3, minutes=10.0)
    state = fold([Event(1, 0.0, "session", "", begun),
                  *(Event(i, t, "ask", "", Asked(want=w, value=v)) for i, (w, t, v) in enumerate(asks, start=2))])
    assert state.granted_s == 5 * 60 + 30 and state.paused.time == 70.0
    state = fold([Event(20, 90.0, "resume", "", Begun(track="t", data_hash="d", seed=0, workers=3))], state)
    assert state.paused is None and state.granted_s == 330  # what was asked of a loop that is gone


FULL = {"outcome": "failed", "reason": "RESOURCE_EXHAUSTED: out of memory"}


def poor(mended):
    """Outcomes of a machine whose memory is too small for what is not the base, until something is in `mended`."""
    bases = []

    def outcomes(job):
        bases.extend([job["args"]["recipe"]] if not bases else [])
        return made_up(job) if mended or job["args"]["recipe"] == bases[0] else FULL

    return outcomes


def test_what_failed_is_tried_again_by_the_loop_that_runs(tmp_path):
    """Before other search runs, and no trial more for it."""
    mended, asked = [], []
    with created(tmp_path / "s") as session:
        scheduler = loop(session, StandIn(outcomes=poor(mended)), max_trials=4)

        def on_change(now):
            if not asked and len(failed := [t.key for t in now.state.broken()]) >= 2:
                asked.extend(failed)
                assert retry(session.path) == f"{len(failed)} runs will be tried again: {', '.join(failed)}"
                mended.append(True)
            if asked and all(now.state.trials[key].outcome == "completed" for key in asked):
                now.stop()

        scheduler.on_change = on_change
        assert scheduler.run() == "stopped"
        assert list(violations(session.ledger, session.path)) == []
        state, events = scheduler.state, session.ledger.events()
    for key in asked:
        assert [a.result.outcome for a in state.trials[key].attempts] == ["failed", "completed"]
        assert state.trials[key].recipe_id not in scheduler.snapshot.broken
    seq = next(e.seq for e in events if e.kind == "ask")
    assert {e.subject for e in events if e.kind == "decision" and e.seq > seq} == set(asked)


def test_what_failed_is_tried_again_by_the_next_loop(tmp_path, track, capsys):
    """Once; what fails again stays so until it is asked for again."""
    path, outcomes = tmp_path / "s", poor([])
    with created(path) as session:
        first, _ = run_out(session, track, StandIn(outcomes=outcomes), max_trials=3)
    keys = [t.key for t in first.state.broken()]
    assert len(keys) > 1 and report_errors(lambda: extend.main([str(path), "--retry", keys[0]])) == 0
    out = capsys.readouterr().out
    assert f"1 run will be tried again: {keys[0]}; no loop runs there: python -m research.loop --resume" in out
    with Session.open(path, lock=True) as session:
        assert [t.key for t in fold(session.ledger.events()).broken()] == keys[1:]
        session.ledger.append("resume", "", {"pid": 1})
        second, _ = run_out(session, track, StandIn(outcomes=outcomes), max_trials=3)
        assert [len(second.state.trials[key].attempts) for key in keys] == [2] + [1] * (len(keys) - 1)
        assert {t.key for t in second.state.broken()} == set(keys)
        assert list(violations(session.ledger, session.path)) == []
        session.ledger.append("resume", "", {"pid": 1})
        trial = second.state.trials[keys[1]]
        session.ledger.append("attempt", keys[1], {"attempt": 2, "worker": 0, "purpose": "search",
                                                   **trial.trial._asdict()})
        assert [line for line in violations(session.ledger, path) if f"{keys[1]}, which failed; nobody asked" in line]
    assert report_errors(lambda: extend.main([str(path), "--retry", first.snapshot.arms[0].recipe_id])) == 2
    assert report_errors(lambda: extend.main([str(path), "--retry", "zzz"])) == 2
    err = capsys.readouterr().err
    assert "no run of it has failed" in err and "no trial or recipe of this session begins with it" in err


def test_the_commands(tmp_path, capsys):
    path = tmp_path / "s"
    with created(path):  # which holds the lease, as a loop does
        assert report_errors(lambda: extend.main([str(path), "--minutes", "5", "--workers", "1"])) == 0
        assert report_errors(lambda: pause.main([str(path)])) == 0
        assert report_errors(lambda: pause.main([str(path), "--go-on"])) == 0
        assert report_errors(lambda: pause.main([str(path), "--stop"])) == 0
        out = capsys.readouterr().out
        assert "minutes: 5 more; about 15 minutes are left" in out and "workers: 1" in out and "it goes on" in out
        assert report_errors(lambda: extend.main([str(path), "--workers", "3"])) == 2
        assert report_errors(lambda: extend.main([str(path), "--minutes", "0"])) == 2
        assert report_errors(lambda: extend.main([str(path)])) == 2
    assert report_errors(lambda: pause.main([str(path)])) == 2
    err = capsys.readouterr().err
    assert "1 to 2 would do" in err and "no loop runs there; python -m research.loop --resume" in err
    with Session.open(path) as session:
        state = fold(session.ledger.events())
    assert [e.body.want for e in state.asks] == ["minutes", "workers", "pause", "go on", "stop"]
    assert state.asks[0].time <= time.time()
