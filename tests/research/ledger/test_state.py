import copy

import pytest

from research.ledger.events import Event, node_of
from research.ledger.state import State, fold

SESSION = {"track": "tiny", "data_hash": "d", "seed": 0, "workers": 1}
PROPOSAL = {"parts": [], "hypothesis": "h", "lane": "base"}


def story(rows):
    """Events from (time, kind, subject, body) rows."""
    return [Event(seq, float(time), kind, subject, node_of(kind, body), fence=1)
            for seq, (time, kind, subject, body) in enumerate(rows, start=1)]


def attempt(time, key, worker, number=1, purpose="search"):
    recipe, horizon, seed = key.split("-")
    body = {"recipe_id": recipe, "horizon": float(horizon), "seed": int(seed), "purpose": purpose}
    return (time, "attempt", key, {"attempt": number, "worker": worker, **body})


def result(time, key, number=1, outcome="completed", **more):
    return (time, "result", key, {"attempt": number, "outcome": outcome, **more})


def decision(time, key):
    return (time, "decision", key, {"purpose": "search"})


TWO_WORKERS = [
    (0, "session", "", SESSION | {"workers": 2}),
    (5, "proposal", "a", {"proposal": PROPOSAL | {"name": "first"}, "recipe": {}}),
    (5, "proposal", "a", {"proposal": PROPOSAL | {"name": "again"}, "recipe": {}}),
    (5, "verdict", "a", {"accepted": True}),
    (6, "verdict", "", {"accepted": False, "refusals": [{"rule": "frozen"}, {"rule": "range"}]}),
    (7, "verdict", "", {"accepted": False, "refusals": [{"rule": "frozen"}]}),
    (9, "decision", "base-1-0", {"purpose": "base"}),
    attempt(10, "base-1-0", 0, purpose="base"),
    attempt(12, "a-1-0", 1),
    result(20, "base-1-0", loss={"search": 2.0}, compile_s=2.0, device_s=9.5),
    result(22, "a-1-0", outcome="killed", device_s=10.0),
    attempt(23, "base-1-900", 0, purpose="verify"),
    attempt(24, "a-1-0", 1, number=2, purpose="replicate"),
    result(28, "base-1-900", loss={"search": 2.1, "protected": 2.2}, compile_s=None, device_s=4.0),
    result(30, "a-1-0", number=2, loss={"search": 1.8}, device_s=6.0),
    (40, "end", "", {"reason": "time"}),
]


def test_fold_gathers_trials_proposals_and_verdicts():
    state = fold(story(TWO_WORKERS))
    assert state.session.track == "tiny" and state.end.reason == "time"
    assert {key: body.proposal.name for key, body in state.proposals.items()} == {"a": "first"}
    assert state.accepted == {"a"}
    assert state.verdicts == {"accepted": 1, "refused": 2} and state.refusals == {"frozen": 2, "range": 1}
    assert state.counts() == {"completed": 3}
    killed_then_finished = state.trials["a-1-0"]
    assert [a.result.outcome for a in killed_then_finished.attempts if a.result] == ["killed", "completed"]
    assert killed_then_finished.loss == {"search": 1.8}
    assert (killed_then_finished.recipe_id, killed_then_finished.horizon, killed_then_finished.seed) == ("a", 1.0, 0)
    assert state.losses("base", 1.0) == {0: 2.0, 900: 2.1}
    assert state.losses("base", 1.0, "protected") == {900: 2.2}
    assert state.device_s == 29.5 and state.wall_s == 40.0
    assert [d.subject for d in state.decisions] == ["base-1-0"]


def test_idle_fraction_and_shares_by_hand():
    # From 10 to 30 on two workers: 40 core-seconds; assigned: 10..20 and 23..28 on one, 12..22 and 24..30 on the other.
    shares = fold(story(TWO_WORKERS)).shares()
    assert shares == pytest.approx(
        {"idle": 9 / 40, "compile": 2 / 40, "replicate": 6 / 40, "kill": 10 / 40, "verification": 5 / 40}
    )


def test_time_between_a_crash_and_the_resume_counts_for_nothing():
    # One worker until the last event before the crash at 15, then from 100 on: 5 + 10 seconds, of which 5 + 8 are busy.
    rows = [
        (0, "session", "", SESSION),
        decision(10, "a-1-0"),
        attempt(10, "a-1-0", 0),
        (15, "verdict", "", {"accepted": False}),
        (100, "resume", "", {"pid": 2}),
        result(100, "a-1-0", outcome="interrupted"),
        attempt(102, "a-1-0", 0, number=2),
        result(110, "a-1-0", number=2, loss={"search": 1.0}),
    ]
    state = fold(story(rows))
    assert state.wall_s == 25.0
    assert state.shares()["idle"] == pytest.approx(2 / 15)
    assert state.trials["a-1-0"].outcome == "completed"
    assert fold(story(rows[:6])).trials["a-1-0"].outcome == "interrupted"


def test_open_attempt_is_running_and_busy():
    state = fold(story(TWO_WORKERS[:12]))
    assert state.counts() == {"completed": 1, "killed": 1, "running": 1}
    assert fold(story(TWO_WORKERS[:7])).counts() == {"decided": 1}
    assert state.trials["base-1-900"].loss == {} and state.trials["a-1-0"].loss == {}
    # 10..22, the last result: 24 core-seconds, 10 + 10 assigned.
    assert state.shares()["idle"] == pytest.approx(4 / 24)
    assert fold(story(TWO_WORKERS[:9])).shares()["idle"] == 0.0


@pytest.mark.parametrize("cut", range(len(TWO_WORKERS) + 1))
def test_fold_of_a_prefix_goes_on_to_the_same_state(cut):
    events = story(TWO_WORKERS)
    untouched = copy.deepcopy(events)
    assert fold(events[cut:], fold(events[:cut])) == fold(events)
    assert fold(events, fold(events[:cut])) == fold(events)  # what was taken in already changes nothing
    assert events == untouched


def test_empty_ledger_has_an_empty_state():
    state = fold([])
    assert state == State() and state.wall_s == 0.0 and state.champion is None
    assert set(state.shares().values()) == {0.0}


def test_proof_is_kept_in_order():
    rows = [
        (0, "session", "", SESSION),
        (1, "ablation", "a", {"recipe_id": "b", "removed": ["x"]}),
        (2, "sealed", "a", {"attempt": 1, "alpha": 0.1, "n": 4}),
        (3, "verification", "a", {"passed": True}),
        (4, "crowned", "a", {}),
        (5, "end", "", {}),
        (9, "resume", "", {}),
        (10, "review", "a", {"decision": "hold", "reviewer": "someone"}),
        (11, "review", "a", {"decision": "burn", "reviewer": "who writes what they like"}),
    ]
    state = fold(story(rows))
    assert state.champion == "a" and state.ablations["a"].removed == ("x",) and len(state.ablations) == 1
    assert [event.seq for event in state.sealed + state.verifications + state.crowned + state.reviews] == [3, 4, 5, 8]
    assert state.review("a") == "hold"
    assert state.end is None and state.wall_s == 5.0
