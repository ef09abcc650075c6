"""The rules every ledger keeps: each broken one is named, and a session in order breaks none."""


import sqlite3

import pytest

from jaxnano.config.base import dump_full
from jaxnano.config.recipe import Recipe, recipe_id
from research.ledger.__main__ import main
from research.ledger.events import FILE, SessionError, decode
from research.ledger.invariants import violations
from research.ledger.session import write_result
from research.ledger.spend import Spend
from research.ledger.state import fold

PROPOSAL = {"name": "x", "parts": [], "hypothesis": "h", "lane": "base"}


def good_story(session):
    """A short session that keeps every rule, as (kind, subject, body)."""
    completed = {"outcome": "completed", "loss": {"search": 1.0}}
    for key in ("base-1-0", "cand-0.5-0", "cand-1-900"):
        attempt = 2 if key == "cand-0.5-0" else 1
        write_result(session.trial_dir(key), attempt, completed)

    def attempt(key, number=1, purpose="search"):
        recipe, horizon, seed = key.split("-")
        body = {"recipe_id": recipe, "horizon": float(horizon), "seed": int(seed), "purpose": purpose}
        return ("attempt", key, {"attempt": number, "worker": 0, "pid": 1, "splits": {"search": 64}, **body})

    def decision(key):
        return ("decision", key, {"purpose": "search"})

    return [
        ("session", "", {"track": "tiny", "data_hash": "d", "seed": 0, "workers": 1}),
        ("proposal", "cand", {"proposal": PROPOSAL, "recipe": {"name": "cand"}}),
        ("verdict", "cand", {"accepted": True}),
        decision("base-1-0"),
        attempt("base-1-0", purpose="base"),
        ("result", "base-1-0", {"attempt": 1, **completed}),
        decision("cand-0.5-0"),
        attempt("cand-0.5-0"),
        ("resume", "", {"pid": 2}),
        ("result", "cand-0.5-0", {"attempt": 1, "outcome": "interrupted"}),
        attempt("cand-0.5-0", 2),
        ("result", "cand-0.5-0", {"attempt": 2, **completed}),
        ("sealed", "cand", {"attempt": 1, "alpha": 0.0005, "n": 1}),
        decision("cand-1-900"),
        attempt("cand-1-900", purpose="verify"),
        ("result", "cand-1-900", {"attempt": 1, **completed}),
        ("verification", "cand", {"passed": True}),
        ("crowned", "cand", {}),
        ("end", "", {"reason": "time"}),
    ]


def check(session, story):
    for kind, subject, body in story:
        session.ledger.append(kind, subject, body)
    return list(violations(session.ledger, session.path, identify=lambda recipe: recipe["name"]))


def carried(outcome="failed"):
    return ("transfer", "cand", {"attempt": 1, "outcome": outcome, "setting": "2x width", "role": "base",
                                 "trial": "wide-1-900", "recipe": {}, "horizon": 1.0, "seed": 900})


@pytest.mark.parametrize("later", [[], [carried()]], ids=["ended", "its card completed"])
def test_a_session_in_order_has_no_violation(session, later):
    assert check(session, good_story(session) + later) == []


def test_recipes_are_named_by_the_config_tree(session):
    recipe = Recipe()
    for subject in (recipe_id(recipe), "0123456789abcdef"):
        session.ledger.append("proposal", subject, {"proposal": PROPOSAL, "recipe": dump_full(recipe)})
    session.ledger.append("proposal", "x", {"proposal": PROPOSAL, "recipe": {"model": {"width": "wide"}}})
    lines = [line for line in violations(session.ledger, session.path) if "holds" in line]
    assert lines[0] == f"event 2: proposal 0123456789abcdef holds {recipe_id(recipe)}"
    assert lines[1].startswith("event 3: proposal x holds no valid recipe (") and len(lines) == 2


ANYTHING = {"decision": ["approve"], "reviewer": 7, "note": {}, "tokens_in": -1, "tokens_out": "many", "cost": 10**400,
            "outcome": None, "proposal": [[]], "split": {"x": 1}}


@pytest.mark.parametrize("kind", ["submission", "review", "call", "opening"])
@pytest.mark.parametrize("body", [{}, ANYTHING])
def test_what_anybody_may_append_breaks_no_rule(session, kind, body):
    assert check(session, [*good_story(session), (kind, "", body)]) == []
    state, (event,) = fold(session.ledger.events()), session.ledger.events(kind)
    assert state.seq == event.seq and not state.reviews and Spend.of(state.calls).tokens == 0


def test_what_a_node_cannot_hold_is_as_if_nothing_stood_there_in_an_open_event_alone(session):
    """A lone surrogate is JSON to some readers and none to others: whoever submits one must not end a session."""
    for kind in ("submission", "decision"):
        session.ledger._db.execute("INSERT INTO events (time, kind, subject, body) VALUES (0, ?, '', ?)",
                                   (kind, '{"purpose": "\\ud800"}'))
    (found,) = session.ledger.events("submission")
    assert found.body.written() == {}
    with pytest.raises(SessionError, match="event 2: "):
        session.ledger.events()


def without(story, kind, subject):
    return [event for event in story if event[:2] != (kind, subject)]


def doubled(story, kind, subject):
    return [copy for event in story for copy in [event] * (1 + (event[:2] == (kind, subject)))]


def with_body(story, kind, subject, **changes):
    return [(k, s, {**b, **changes} if (k, s) == (kind, subject) else b) for k, s, b in story]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda s: doubled(s, "result", "base-1-0"), "a second completed result of base-1-0"),
        (lambda s: without(s, "attempt", "base-1-0"), "result of base-1-0 for attempt 1, which is not open"),
        (lambda s: without(s, "decision", "base-1-0"), "attempt at base-1-0 without a decision"),
        (lambda s: without(s, "result", "base-1-0"), "the end leaves attempt 1 at base-1-0 open"),
        (lambda s: s + [("decision", "x-1-1", {"purpose": "search"})], "comes after the end"),
        (lambda s: s[1:], "comes before the session event"),
        (lambda s: doubled(s, "session", ""), "a second session event"),
        (lambda s: with_body(s, "proposal", "cand", recipe={"name": "other"}), "proposal cand holds other"),
        (lambda s: with_body(s, "proposal", "cand", recipe={}), "holds no valid recipe"),
        (lambda s: with_body(s, "attempt", "base-1-0", seed=5), "but its body says base-1-5"),
        (lambda s: with_body(s, "attempt", "cand-1-900", attempt=4), "attempt 4 at cand-1-900, 1 was expected"),
        (lambda s: without(s, "sealed", "cand"), "before any recipe was sealed"),
        (lambda s: without(s, "verification", "cand"), "cand crowned without a passed verification"),
        (lambda s: [*without(s, "crowned", "cand"), carried()], "cand carried over without a crown"),
        (lambda s: [*s, carried("completed")], "trial wide-1-900: completed, but "),
        (lambda s: with_body(s, "result", "base-1-0", loss={"search": 0.9}), "loss differs between result.json"),
        (lambda s: with_body(s, "result", "base-1-0", outcome="splendid"), "unknown outcome 'splendid'"),
        (lambda s: s[:1] + [("attempt", "a-1-0", {"worker": 0})] + s[1:], "without attempt, recipe_id"),
        (lambda s: with_body(s, "session", "", seed="0"), 'event 1: a session with seed: "0": a whole'),
        (lambda s: with_body(s, "attempt", "base-1-0", seed=0.5), "event 5: an attempt with seed: 0.5: a whole number"),
        (lambda s: with_body(s, "result", "base-1-0", loss=[1]), "event 6: a result with loss: [1]: a map would do"),
        (lambda s: with_body(s, "proposal", "cand", proposal={}), "event 2: a proposal without proposal.name, "),
        (lambda s: with_body(s, "sealed", "cand", alpha=None), "event 13: a sealed with alpha: null: a number"),
    ],
)
def test_each_broken_rule_is_named(session, spoil, complaint):
    lines = check(session, spoil(good_story(session)))
    assert any(complaint in line for line in lines), lines


def test_seed_seen_before_the_sealing_is_no_verification(session):
    story = good_story(session)
    seen = [("decision", "base-1-900", {"purpose": "search"})]
    body = {"recipe_id": "base", "horizon": 1.0, "seed": 900, "purpose": "search", "attempt": 1, "worker": 0}
    seen += [("attempt", "base-1-900", body), ("result", "base-1-900", {"attempt": 1, "outcome": "killed"})]
    assert check(session, story[:3] + seen + story[3:]) == [
        "event 18: verification of cand-1-900 on seed 900, used before the sealing"
    ]


def test_check_command_sees_files_gaps_and_broken_bodies(session, capsys):
    unproven = [e for e in good_story(session) if e[1] not in ("cand", "cand-1-900")]  # its recipes are none
    check(session, unproven)
    assert main(["--check", str(session.path)]) == 0
    assert "11 events, no violation" in capsys.readouterr().out
    (session.trials / "base-1-0" / "result.json").write_text("{}")
    (session.trials / "cand-0.5-0" / "result.json").unlink()
    assert main(["--check", str(session.path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["trial base-1-0", "trial cand-0.5-0"]
    database = sqlite3.connect(session.path / FILE, isolation_level=None)
    database.execute("INSERT INTO events VALUES (12, 0, 'review', '', 'not json', NULL)")
    database.execute("INSERT INTO events VALUES (30, 0, 'review', '', '{}', NULL)")
    database.close()
    assert main(["--check", str(session.path)]) == 1
    out = capsys.readouterr().out
    with pytest.raises(SessionError, match="not JSON"):
        decode("[" * 100_000, "here")
    assert "event 12: not JSON" in out and "event 30: seq is not contiguous, 13 was expected" in out
    assert main(["--check", str(session.path / "nowhere")]) == 2
    assert "no such ledger" in capsys.readouterr().err
