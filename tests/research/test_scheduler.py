"""The scheduler with an executor that only makes results up: when workers die, and when it is itself killed."""

import shutil

import pytest
from sitting import created
from stand_in import StandIn, base_id, completed

from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe, recipe_id
from research.invariants import violations
from research.ledger import FILE, Ledger
from research.proof import FRESH
from research.propose import lanes, lanes_of
from research.retry import TRIES
from research.scheduler import Scheduler
from research.session import Session
from research.state import fold
from research.summary import Facts, verdict

pytestmark = pytest.mark.usefixtures("crowns")
SEARCH = ("search", "base")


def drive(session, track, executor=None, max_trials=5):
    """A scheduler that has run to its end, and why it ended."""
    found = Scheduler(session, track, executor or StandIn(), lanes_of(["tuner", "recombine"], lanes()), budget_s=600.0,
                      max_trials=max_trials)
    reason = found.run()
    found.record("end", "", {"reason": reason})
    return found, reason


@pytest.fixture(scope="module")
def whole(track, crowns, tmp_path_factory):
    """A whole session, closed, and its events."""
    with created(tmp_path_factory.mktemp("whole") / "s") as session:
        drive(session, track)
        return session.path, session.ledger.events()


def test_a_session_goes_from_search_to_crown(whole):
    path, events = whole
    state = fold(events)
    assert [e.kind for e in events if e.kind in ("nominated", "ablation", "sealed", "verification", "crowned")] == [
        "nominated", "ablation", "sealed", "verification", "crowned"]
    assert sum(t.decisions[0].body["purpose"] in SEARCH for t in state.trials.values()) == 5
    assert state.champion == state.sealed[0].subject == state.nominated[0].subject
    with Ledger(path / FILE) as ledger:
        assert list(violations(ledger, path)) == []


def cuts(events):
    """Places to cut the ledger at: after the first event of each kind, and in the middle of what takes two events."""
    kinds = [e.kind for e in events]
    found = {kind: kinds.index(kind) + 1 for kind in dict.fromkeys(kinds)}
    purposes = [e.body.get("purpose") for e in events]
    found["verify"] = len(purposes) - purposes[::-1].index("verify")
    found["the last proposal"] = len(kinds) - kinds[::-1].index("proposal")  # an ablation's, if any was new
    return found


KINDS = ("session", "proposal", "decision", "attempt", "nominated", "ablation", "sealed", "verify", "verification",
         "crowned")


@pytest.mark.parametrize("place", [*KINDS, "the last proposal"])
def test_a_ledger_cut_anywhere_is_taken_up(whole, track, tmp_path, place):
    path, events = whole
    kept = events[: cuts(events)[place]]
    shutil.copytree(path / "trials", tmp_path / "s" / "trials")  # results of the future too: they are taken in once
    with Ledger(path / FILE) as old, Ledger(tmp_path / "s" / FILE, create=True) as new:
        for row in old.raw()[: len(kept)]:
            new._db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", row)
    with Session.open(tmp_path / "s", lock=True) as session:
        session.ledger.append("resume", "", {"pid": 1})
        found, reason = drive(session, track)
        assert list(violations(session.ledger, session.path)) == []
        before = {e.subject: e.body for e in kept if e.kind == "result"}
        now = [e for e in session.ledger.events("result") if e.body["outcome"] == "completed"]
        assert len({e.subject for e in now}) == len(now) and before.items() <= {e.subject: e.body for e in now}.items()
    assert reason == "finished" and (found.state.champion is not None or not fold(kept).nominated)
    assert fold(kept).sealed == found.state.sealed[: len(fold(kept).sealed)]
    assert len(found.state.crowned) == sum(e.body["passed"] for e in found.state.verifications)


def spoilt(how):
    """Outcomes of a machine that lets the first verification run of a candidate end in another way; and whose that is.

    how: job -> its result, None if it takes its worker along.
    """
    victims, mended = [], []

    def outcomes(job):
        fresh = job["args"]["seed"] >= FRESH and recipe_id(validate(Recipe, job["args"]["recipe"])) != base_id()
        if fresh and not victims:
            victims.append(job["id"])
        return how(job) if job["id"] in victims and not mended else completed(job)

    return outcomes, victims, mended


ENDS = {
    "its worker dies": lambda job: None,
    "the disk is full": lambda job: {"outcome": "interrupted", "machine": True, "reason": "OSError: no space left"},
    "its data is gone": lambda job: {"outcome": "failed", "reason": "ValueError: data aa is not the session's bb"},
    "it stalls": lambda job: {"outcome": "timeout", "reason": "stalled"},
}


@pytest.mark.parametrize("end", ENDS)
def test_what_the_machine_does_to_a_verification_run_decides_nothing(track, tmp_path, end):
    """It is tried again, then the loop stops with the attempt open; once the machine is mended, the proof goes on."""
    outcomes, victims, mended = spoilt(ENDS[end])
    with created(tmp_path / "s") as session:
        found, reason = drive(session, track, StandIn(outcomes=outcomes))
        assert list(violations(session.ledger, session.path)) == []
    assert "the machine failed: " in reason and found.retries.trouble in reason
    trial = found.state.trials[victims[0]]
    assert [a.result["outcome"] for a in trial.attempts] == ["interrupted"] * TRIES
    assert not found.state.verifications and not found.snapshot.broken(trial.recipe_id)
    kind, text = verdict(Facts(found.snapshot))
    assert kind == "none" and "ended before the proof did" in text and found.retries.trouble in text
    mended.append(True)
    with Session.open(tmp_path / "s", lock=True) as session:
        session.ledger.append("resume", "", {"pid": 1})
        found, reason = drive(session, track, StandIn(outcomes=outcomes))
        assert list(violations(session.ledger, session.path)) == []
    assert reason == "finished" and len(found.state.sealed) == 1
    assert [e.body["passed"] for e in found.state.verifications] == [True] and found.state.champion is not None
    assert found.state.verifications[0].body["comparisons"]["incumbent"]["n"] == track.significance.n


def test_a_search_run_that_takes_its_worker_along_every_time_has_failed(track, tmp_path):
    def outcomes(job):
        return completed(job) if recipe_id(validate(Recipe, job["args"]["recipe"])) == base_id() else None

    with created(tmp_path / "s") as session:
        found, _ = drive(session, track, StandIn(outcomes=outcomes), max_trials=3)
        assert list(violations(session.ledger, session.path)) == []
    failed = [t for t in found.state.trials.values() if t.outcome == "failed"]
    assert failed and {len(t.attempts) for t in failed} == {TRIES}


def test_a_machine_that_lets_nothing_finish_stops_the_loop_and_is_no_verdict(track, tmp_path):
    full = {"outcome": "interrupted", "machine": True, "reason": "OSError: [Errno 28] No space left on device"}
    with created(tmp_path / "s") as session:
        found, reason = drive(session, track, StandIn(outcomes=lambda job: full))
        assert list(violations(session.ledger, session.path)) == []
    assert "No space left on device" in reason and {t.outcome for t in found.state.trials.values()} == {"interrupted"}
    kind, text = verdict(Facts(found.snapshot))
    assert kind == "none" and text.startswith("Nothing found out: ") and "No space left on device" in text


def test_nothing_better_means_no_nomination(track, tmp_path):
    def flat(job):
        return completed(job) | {"loss": dict.fromkeys(job["args"]["splits"], 5.0 + 0.001 * len(job["id"]))}

    with created(tmp_path / "s") as session:
        found, reason = drive(session, track, StandIn(outcomes=flat))
    assert reason == "finished" and not found.state.nominated and found.state.champion is None


def test_divergence_is_an_outcome_and_no_number(track, tmp_path):
    base = {}

    def outcomes(job):
        base.setdefault("recipe", job["args"]["recipe"])
        if job["args"]["recipe"] == base["recipe"]:
            return completed(job)
        return completed(job) | {"outcome": "diverged", "reason": "loss is nan", "loss": {}}

    with created(tmp_path / "s") as session:
        found, reason = drive(session, track, StandIn(outcomes=outcomes))
        assert list(violations(session.ledger, session.path)) == []
    assert reason == "finished" and found.state.counts()["diverged"] >= 3 and not found.state.nominated
    arm = next(a for a in found.snapshot.arms if a.recipe_id in found.snapshot.over and a.parts)
    assert found.snapshot.fitted.p_diverge(arm.candidate.features) > 0.3


def test_stop_ends_runs_as_interrupted(track, tmp_path):
    class Stopped(StandIn):
        def poll(self, timeout_s):
            if len(self.jobs) == 4:
                found.stop()
                self.outcomes = lambda job: None
            return super().poll(timeout_s) if len(self.jobs) != 4 or self.killed else []

        killed = False

        def kill(self, worker):
            self.killed = True

    with created(tmp_path / "s") as session:
        found = Scheduler(session, track, Stopped(), lanes_of(["tuner"], lanes()), budget_s=600.0)
        assert found.run() == "stopped"
        found.record("end", "", {"reason": "stopped"})
        assert list(violations(session.ledger, session.path)) == []
        assert found.state.counts()["interrupted"] >= 1


def test_unknown_lanes_are_named():
    with pytest.raises(ValueError, match="--lanes: 'dream': no such lane; catalogue, tuner"):
        lanes_of(["tuner", "dream"], lanes())


def test_where_time_is_the_budget_the_base_runs_first_and_sets_it(tmp_path, track):
    """StandIn's runs make 1e5 tokens a second."""
    raced = track.model_validate(
        track.model_dump(mode="json") | {"objective": {"kind": "time_to_target", "target": 5.0}}, strict=False)
    with created(tmp_path / "s") as session:
        executor = StandIn()
        found, _ = drive(session, raced, executor)
    first, *others = executor.jobs
    assert first["id"] == f"{base_id()}-0.5-0" and first["args"]["seconds"] is None
    runs = {job["id"]: job["args"]["seconds"] for job in others if not job["id"].startswith(base_id())}
    full_s = track.full_steps * track.base_cost.tokens_per_step / 1e5
    assert runs and runs == pytest.approx({key: full_s * float(key.split("-")[1]) for key in runs})
    assert found.state.decisions[0].body["purpose"] == "base"


def test_search_runs_that_lose_their_worker_are_run_once_more_and_counted_once(track, tmp_path):
    """Every one dies at its first attempt, the last ones when --max-trials is reached."""
    def outcomes(job):
        return None if job["attempt"] == 1 and job["args"]["seed"] < FRESH else completed(job)

    with created(tmp_path / "s") as session:
        drive(session, track, StandIn(outcomes=outcomes))
        state = fold(session.ledger.events())
        searched = [t for t in state.trials.values() if t.decisions[0].body["purpose"] in SEARCH]
        assert len(searched) == 5 and {t.outcome for t in searched} == {"completed"}
        assert {len(t.attempts) for t in searched} == {2}
        assert list(violations(session.ledger, session.path)) == []
