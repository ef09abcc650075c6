"""The scheduler with an executor that only makes results up: when workers die, and when it is itself killed."""

import math
import shutil

import numpy as np
import pytest
from sitting import created, run_out
from stand_in import StandIn, base_id, completed, draw

from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe, recipe_id, structure_id
from research.contract.trial import FRESH
from research.decide.choose import decide
from research.decide.claims import violations
from research.decide.dispatch import NEW
from research.decide.retry import TRIES
from research.decide.scheduler import Scheduler
from research.execute import Message
from research.lanes import lanes, lanes_of
from research.ledger.events import FILE, Ledger
from research.ledger.registry import Contest, Registry
from research.ledger.session import Session
from research.ledger.state import fold
from research.show.facts import Facts
from research.show.verdict import verdict

pytestmark = pytest.mark.usefixtures("crowns")
SEARCH = ("search", "base")


def test_a_session_goes_from_search_to_crown(whole):
    path, events = whole
    state = fold(events)
    stages = ["nominated", "ablation", "sealed", "verification", "crowned"]
    assert list(dict.fromkeys(e.kind for e in events if e.kind in stages)) == stages
    assert sum(t.decisions[0].body.purpose in SEARCH for t in state.trials.values()) == 5
    assert state.champion == state.sealed[0].subject == state.nominated[0].subject
    with Ledger(path / FILE) as ledger:
        assert list(violations(ledger, path)) == []


def cuts(events):
    """Places to cut the ledger at: after the first event of each kind, and in the middle of what takes two events."""
    kinds = [e.kind for e in events]
    found = {kind: kinds.index(kind) + 1 for kind in dict.fromkeys(kinds)}
    purposes = [getattr(e.body, "purpose", None) for e in events]
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
        found, reason = run_out(session, track)
        assert list(violations(session.ledger, session.path)) == []
        before = {e.subject: e.body for e in kept if e.kind == "result"}
        now = [e for e in session.ledger.events("result") if e.body.outcome == "completed"]
        assert len({e.subject for e in now}) == len(now) and before.items() <= {e.subject: e.body for e in now}.items()
    assert reason == "finished" and (found.state.champion is not None or not fold(kept).nominated)
    assert fold(kept).sealed == found.state.sealed[: len(fold(kept).sealed)]
    assert len(found.state.crowned) == sum(e.body.passed for e in found.state.verifications)


def test_attempts_are_counted_over_sessions_and_one_that_died_at_its_seal_counts(whole, track, tmp_path):
    path, events = whole
    seals = tmp_path / "seals.sqlite"
    for k in (1, 2):
        with Registry(seals) as registry, created(tmp_path / f"s{k}") as session:
            found, _ = run_out(session, track, registry=registry)
            assert list(violations(session.ledger, session.path)) == []
        seal, = found.state.sealed
        assert seal.body.attempt == k and seal.body.alpha == pytest.approx(1.2 / (np.pi * k) ** 2)
        assert (seal.body.split, seal.body.opened, seal.body.registry) == ("protected", k - 1, registry.name)
    before = [e.kind for e in events].index("sealed")
    shutil.copytree(path / "trials", tmp_path / "cut" / "trials")
    with Ledger(path / FILE) as old, Ledger(tmp_path / "cut" / FILE, create=True) as new:
        for row in old.raw()[:before]:
            new._db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", row)
    with Registry(seals) as registry, Session.open(tmp_path / "cut", lock=True) as session:
        died = registry.seal(registry_of(session), "a" * 16, session.path, ("protected",), 20)
        session.ledger.append("resume", "", {"pid": 1})
        found, _ = run_out(session, track, registry=registry)
        assert list(violations(session.ledger, session.path)) == []
        assert died.number == 3 and [e.body.attempt for e in found.state.sealed] == [4]
        assert len(registry.rows()) == 4


def registry_of(session):
    begun = fold(session.ledger.events()).session
    return Contest(begun.track, begun.track_hash, begun.data_hash)


def test_a_candidate_that_was_lucky_on_the_seeds_that_picked_it_spends_no_attempt(track, tmp_path):
    """All gains are of seeds 0 and 1, the only ones that ran before a nomination."""
    def outcomes(job):
        found, seed = completed(job), job["args"]["seed"]
        fair = 5.3 + 0.03 * math.sin(seed) + 0.004 * draw(job["id"])
        return found if seed < 2 else found | {"loss": dict.fromkeys(found["loss"], fair)}

    with Registry(tmp_path / "r") as registry, created(tmp_path / "s") as session:
        found, reason = run_out(session, track, StandIn(outcomes=outcomes), registry=registry)
        assert list(violations(session.ledger, session.path)) == []
        assert registry.rows() == []
    assert reason == "finished" and found.state.futile and not found.state.sealed and found.state.champion is None
    assert found.state.futile[0].body.nomination == 1 and len(found.state.nominated) > 1  # the next had its chance


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
        found, reason = run_out(session, track, StandIn(outcomes=outcomes))
        assert list(violations(session.ledger, session.path)) == []
    assert "the machine failed: " in reason and found.trouble in reason
    trial = found.state.trials[victims[0]]
    assert [a.result.outcome for a in trial.attempts] == ["interrupted"] * TRIES
    assert not found.state.verifications and trial.recipe_id not in found.snapshot.broken
    kind, text = verdict(Facts(found.snapshot))
    assert kind == "none" and "ended before the proof did" in text and found.trouble in text
    mended.append(True)
    with Session.open(tmp_path / "s", lock=True) as session:
        session.ledger.append("resume", "", {"pid": 1})
        found, reason = run_out(session, track, StandIn(outcomes=outcomes))
        assert list(violations(session.ledger, session.path)) == []
    assert reason == "finished" and len(found.state.sealed) == 1
    assert [e.body.passed for e in found.state.verifications] == [True] and found.state.champion is not None
    test = found.state.verifications[0].body
    assert test.comparisons["incumbent"]["n"] == len(test.seeds) in (3, track.significance.n)


def test_a_search_run_that_takes_its_worker_along_every_time_has_failed(track, tmp_path):
    def outcomes(job):
        return completed(job) if recipe_id(validate(Recipe, job["args"]["recipe"])) == base_id() else None

    with created(tmp_path / "s") as session:
        found, _ = run_out(session, track, StandIn(outcomes=outcomes), max_trials=3)
        assert list(violations(session.ledger, session.path)) == []
    failed = [t for t in found.state.trials.values() if t.outcome == "failed"]
    assert failed and {len(t.attempts) for t in failed} == {TRIES}


def test_a_machine_that_lets_nothing_finish_stops_the_loop_and_is_no_verdict(track, tmp_path):
    full = {"outcome": "interrupted", "machine": True, "reason": "OSError: [Errno 28] No space left on device"}
    with created(tmp_path / "s") as session:
        found, reason = run_out(session, track, StandIn(outcomes=lambda job: full))
        assert list(violations(session.ledger, session.path)) == []
    assert "No space left on device" in reason and {t.outcome for t in found.state.trials.values()} == {"interrupted"}
    kind, text = verdict(Facts(found.snapshot))
    assert kind == "none" and text.startswith("Nothing found out: ") and "No space left on device" in text


def test_nothing_better_means_no_nomination(track, tmp_path):
    def flat(job):
        return completed(job) | {"loss": dict.fromkeys(job["args"]["splits"], 5.0 + 0.001 * len(job["id"]))}

    with created(tmp_path / "s") as session:
        found, reason = run_out(session, track, StandIn(outcomes=flat))
    assert reason == "finished" and not found.state.nominated and found.state.champion is None


def test_divergence_is_an_outcome_and_no_number(track, tmp_path):
    base = {}

    def outcomes(job):
        base.setdefault("recipe", job["args"]["recipe"])
        if job["args"]["recipe"] == base["recipe"]:
            return completed(job)
        return completed(job) | {"outcome": "diverged", "reason": "loss is nan", "loss": {}}

    with created(tmp_path / "s") as session:
        found, reason = run_out(session, track, StandIn(outcomes=outcomes))
        assert list(violations(session.ledger, session.path)) == []
    assert reason == "finished" and found.state.counts()["diverged"] >= 3 and not found.state.nominated
    arm = next(a for a in found.snapshot.arms if a.recipe_id in found.snapshot.over and a.parts)
    assert found.snapshot.p_diverge[found.snapshot.index[arm.recipe_id]] > 0.3


def test_all_runs_are_to_be_made_where_the_first_was(track, tmp_path):
    place = {"device": "NVIDIA H100", "devices": 2, "processes": 1}
    topology = place | {"mesh": "data=2,fsdp=1,tensor=1", "accumulate": [1]}
    executor = StandIn(1, outcomes=lambda job: completed(job) | {"topology": topology})
    with created(tmp_path / "s") as session:
        run_out(session, track.model_copy(update={"mesh": "fsdp=2"}), executor, max_trials=3)
    first, *others = [job["args"]["place"] for job in executor.jobs]
    assert first is None and others and all(other == place for other in others)
    assert {job["args"]["mesh"] for job in executor.jobs} == {"fsdp=2"}


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
        found, _ = run_out(session, raced, executor)
    first, *others = executor.jobs
    assert first["id"] == f"{base_id()}-0.5-0" and first["args"]["seconds"] is None
    runs = {job["id"]: job["args"]["seconds"] for job in others
            if not job["id"].startswith(base_id()) and "transfer" not in job["dir"]}
    full_s = track.full_steps * track.base_cost.tokens_per_step / 1e5
    assert runs and runs == pytest.approx({key: full_s * float(key.split("-")[1]) for key in runs})
    assert found.state.decisions[0].body.purpose == "base"


def test_search_runs_that_lose_their_worker_are_run_once_more_and_counted_once(track, tmp_path):
    """Every one dies at its first attempt, the last ones when --max-trials is reached."""
    def outcomes(job):
        return None if job["attempt"] == 1 and job["args"]["seed"] < FRESH else completed(job)

    with created(tmp_path / "s") as session:
        run_out(session, track, StandIn(outcomes=outcomes))
        state = fold(session.ledger.events())
        searched = [t for t in state.trials.values() if t.decisions[0].body.purpose in SEARCH]
        assert len(searched) == 5 and {t.outcome for t in searched} == {"completed"}
        assert {len(t.attempts) for t in searched} == {2}
        assert list(violations(session.ledger, session.path)) == []


class Losing(StandIn):
    """Every run but the first eight reports, half-way, a loss that is far above all that finished."""

    def __init__(self):
        super().__init__()
        self.cancelled = []

    def poll(self, timeout_s):
        if len(self.jobs) <= 8:
            return super().poll(timeout_s)
        told = [job for job in self._open.values() if job["id"] not in self.told]
        self.told |= {job["id"] for job in told}
        about = {"progress": 0.5, "loss": 9.0, "tokens_per_s": 1e5}
        return [Message("progress", worker, job["id"], job["attempt"], about) for worker, job in self._open.items()
                if job in told] or super().poll(timeout_s)

    told: set[str] = set()

    def cancel(self, worker, reason):
        self.cancelled.append(reason)


def test_runs_that_only_look_bad_go_on(track, tmp_path):
    executor = Losing()
    executor.told = set()
    with created(tmp_path / "s", kills=True) as session:  # as an earlier version might have begun it
        run_out(session, track, executor, max_trials=11)
    assert executor.told and not executor.cancelled


def test_a_worker_for_which_nothing_was_found_is_not_asked_for_again_at_the_same_state(track, tmp_path, monkeypatch):
    asked = []

    def counted(prices, seed, worker, left_s):
        asked.append((worker, prices.snapshot.state.seq))
        return decide(prices, seed, worker, left_s) if len(asked) < 4 else None

    monkeypatch.setattr("research.decide.scheduler.decide", counted)
    with created(tmp_path / "s") as session:
        found = Scheduler(session, track, StandIn(), lanes_of(["tuner"], lanes()), budget_s=600.0, max_trials=9)
        found.run()
        once = list(asked)
        for _ in range(3):
            found._search(0, 1.0)
    assert len(set(once)) == len(once) and asked[len(once):] in ([], [(0, found.state.seq)])


class Recycled(StandIn):
    """Worker 0 is another process after each of its runs."""

    def poll(self, timeout_s):
        found = super().poll(timeout_s)
        return [*found, *(Message("ready", 0, body={"pid": 7}) for message in found if message.worker == 0)]


def test_a_worker_whose_process_was_replaced_between_runs_is_priced_as_one_that_compiled_nothing(track, tmp_path):
    with created(tmp_path / "s") as session:
        found, _ = run_out(session, track, Recycled(), max_trials=8)
    searched = [e.body for e in found.state.decisions if e.body.priced is not None]
    assert {(body.worker, body.priced) for body in searched[2:]} == {(0, NEW), (1, 1)}
    arm = found.snapshot.arms[0]
    assert found.book.prices.seconds(arm, 1.0, NEW) > found.book.prices.seconds(arm, 1.0, 1)


def dull(monkeypatch):
    """No run's gain matters."""
    monkeypatch.setattr("research.decide.scheduler.matters", lambda prices, decided: False)
    monkeypatch.setattr("research.decide.intake.STOCK", 6)


def test_a_session_with_nothing_to_prove_uses_its_time_although_no_gain_matters(track, tmp_path, monkeypatch):
    """The lanes are asked for more first."""
    dull(monkeypatch)
    def flat(job):
        return completed(job) | {"loss": dict.fromkeys(job["args"]["splits"], 5.3)}

    with created(tmp_path / "s") as session:
        found, reason = run_out(session, track, StandIn(outcomes=flat), max_trials=12)
        assert list(violations(session.ledger, session.path)) == []
    searched = [t for t in found.state.trials.values() if t.decisions[0].body.purpose in SEARCH]
    assert reason == "finished" and len(searched) == 12 and not found.state.nominated
    assert len(found.state.proposals) > 12  # although six may be the next best already


def test_a_candidate_is_proven_early_where_no_gain_matters_and_the_search_goes_on(track, tmp_path, monkeypatch):
    dull(monkeypatch)
    with created(tmp_path / "s") as session:
        found, reason = run_out(session, track, max_trials=9)
        assert list(violations(session.ledger, session.path)) == []
    first = found.state.nominated[0].seq
    searched = [d.seq for d in found.state.decisions if d.body.purpose in SEARCH]
    assert reason == "finished" and sum(seq < first for seq in searched) < 9 and len(searched) == 9
    assert found.state.verifications[0].seq < max(searched) and found.state.champion is not None


def test_what_a_structure_compiles_is_shared(track, tmp_path):
    """A worker's first run of a structure takes ten seconds more: what shares one keeps to the worker that has it."""
    seen: dict[int, set[str]] = {0: set(), 1: set()}

    class Compiling(StandIn):
        def _end(self, worker, job):
            structure = structure_id(validate(Recipe, job["args"]["recipe"]))
            compile_s = 0.0 if structure in seen[worker] else 10.0
            seen[worker].add(structure)
            self.outcomes = lambda job: completed(job) | {"compile_s": compile_s, "device_s": 1.0 + compile_s}
            return super()._end(worker, job)

    with created(tmp_path / "s") as session:
        found = Scheduler(session, track, Compiling(), lanes_of(["catalogue", "tuner"], lanes()), budget_s=600.0,
                          max_trials=24)
        found.run()
    runs = [t for t in found.state.trials.values() if t.decisions[0].body.purpose in SEARCH]
    assert sum(bool(t.result.compile_s) for t in runs) < 0.7 * len(runs)
