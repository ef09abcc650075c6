"""Proposals from outside: what is submitted is judged, run and answered, whatever is in it, and nothing leaks."""

import json
import re
from dataclasses import replace

import pytest
from sessions import Story
from sitting import LR, SECRET, ask, created, drive, loop, made_up
from stand_in import StandIn

from jaxnano.config.base import ConfigError, dump_full, validate
from jaxnano.config.recipe import recipe_id
from research.contract.part import MOST, IdeaEdit, Proposal
from research.contract.proposal import submitted
from research.contract.trial import FRESH
from research.decide import intake
from research.decide.belief import Belief
from research.decide.choose import promised
from research.decide.claims import violations
from research.decide.price import Prices
from research.ledger.events import encode
from research.ledger.kinds import Decided
from research.ledger.state import fold
from research.outside.desk import Desk
from research.outside.forms import Came
from research.outside.inbox import Inbox, visible


@pytest.fixture
def session(tmp_path):
    """A session whose base is proposed; its loop has not run yet."""
    with created(tmp_path / "s") as session:
        loop(session)
        yield session


def test_an_accepted_proposal_gets_the_first_run_that_was_promised(session):
    with Inbox(session.path) as inbox:
        found = inbox.submit(ask(0.003, source="a talk"), origin="me")
        assert found.verdict.accepted and inbox.outcome(found.number) is None
        assert inbox.wait(found.number, timeout_s=0.0) is None
        state = drive(session).state
        outcome = inbox.wait(found.number, timeout_s=0.0)
    assert outcome.accepted and outcome.recipe_id == found.recipe_id == found.trial.split("-")[0]
    run = outcome.runs[found.trial]
    assert run.outcome == "completed" and run.gain == pytest.approx(
        state.losses(state.trials[found.trial].recipe_id, 0.5)[0] * -1
        + state.losses(next(iter(state.proposals)), 0.5)[0])
    assert state.trials[found.trial].decisions[0].body.promised
    proposal = state.proposals[found.recipe_id].proposal
    assert (proposal.lane, proposal.origin, proposal.hypothesis) == ("inbox", "me", "to see")
    assert list(violations(session.ledger, session.path)) == []


def test_a_refused_proposal_is_in_the_ledger_with_its_reason(session):
    with Inbox(session.path) as inbox:
        edits = (IdeaEdit(path="data.batch", new=8), IdeaEdit(path=LR, new=99.0))
        found = inbox.submit(ask(0.1, edits=edits), origin="me")
        assert not found.verdict.accepted and found.trial is None and found.recipe_id is None
        state = drive(session).state
        outcome = inbox.outcome(found.number)
    assert outcome == Came(accepted=False, recipe_id=None, runs={}, refusals=outcome.refusals)
    assert [(r.path, r.value) for r in outcome.refusals] == [("optimizer.groups.all.lr", 99.0)]
    assert state.submissions[found.number].proposal["name"] == "rate 0.1"
    assert state.verdicts["refused"] >= 1


LR_TINY = "optimizer.groups.matrices.lr.value"
GOOD = {"name": "x", "hypothesis": "h", "lane": "inbox", "origin": "o", "parents": [], "expected_effect": 0.0,
        "parts": [{"name": "x", "edits": [{"path": LR, "new": 0.002}], "effect": 0.0, "source": ""}]}
PART = GOOD["parts"][0]
DEEP = [[]]
for _ in range(40):
    DEEP = [DEEP]
MALFORMED = {
    "empty": {}, "a number": {"proposal": 3}, "nothing": {"proposal": None},
    "no parts": {"proposal": GOOD | {"parts": []}},
    "another lane": {"proposal": GOOD | {"lane": "catalogue"}}, "more": {"proposal": GOOD | {"crown": True}},
    "a promise": {"proposal": GOOD | {"parts": [PART | {"effect": 50.0}]}},
    "parts of one name": {"proposal": GOOD | {"parts": [PART, PART]}},
    "a thousand parts": {"proposal": GOOD | {"parts": [PART | {"name": str(i)} for i in range(1200)]}},
    "a thousand edits": {"proposal": GOOD | {"parts": [PART | {"edits": PART["edits"] * 1000}]}},
    "deep": {"proposal": GOOD | {"parts": [PART | {"edits": [{"path": LR, "new": DEEP}]}]}},
    "no path": {"proposal": GOOD | {"parts": [PART | {"edits": [{"path": "", "new": 1}]}]}},
    "below a number": {"proposal": GOOD | {"parts": [PART | {"edits": [{"path": f"{LR}.x", "new": 1}]}]}},
}


def test_whatever_stands_in_a_submission_the_loop_goes_on(session):
    numbers = {session.ledger.append("submission", "", body): name for name, body in MALFORMED.items()}
    good = session.ledger.append("submission", "", {"proposal": GOOD})
    state = drive(session).state
    assert {numbers[n] for n, (_, answer) in state.answers.items() if n in numbers and not answer.accepted} == set(
        MALFORMED)
    assert state.answers[good][1].accepted and not state.unanswered()
    assert all(state.answers[n][1].refusals for n in numbers)


def test_a_duplicate_is_refused_at_once_and_again_by_the_loop(session):
    with Inbox(session.path) as one, Inbox(session.path) as other:
        first = one.submit(ask(0.003), origin="one")
        again, twin = one.submit(ask(0.003, name="again"), origin="one"), other.submit(ask(0.003), origin="other")
        assert first.verdict.accepted and twin.verdict.accepted  # the other could not know
        assert "the same recipe" in again.verdict.problems[0].rule
        state = drive(session).state
        answers = [state.answers[found.number][1].accepted for found in (first, again, twin)]
        assert answers == [True, False, False] and one.outcome(first.number).runs
        assert "known" in other.submit(ask(0.003), origin="other").verdict.problems[0].rule


def test_edits_go_on_the_base_the_best_or_a_recipe_that_is_named(session):
    decay = IdeaEdit(path="optimizer.groups.all.chain.decay", new={"kind": "decay", "rate": 0.01})
    with Inbox(session.path) as inbox:
        one = inbox.submit(ask(0.003), origin="me")
        drive(session, max_trials=8)
        best, parts = inbox.refresh() and inbox.parts_on("best")
        assert best == inbox.state.champion and parts
        for on, above in (("base", 1), ("best", len(parts) + 1), (one.recipe_id, 2), (one.recipe_id[:9], 2)):
            proposal = inbox.compose(ask(0.0, on=on, name="decay", edits=(decay,)), "inbox", "me")
            assert len(proposal.parts) == above and inbox.gate.judge_parts(proposal.parts).accepted, on
        assert proposal.parents == (one.recipe_id,)
        again = inbox.compose(ask(0.004, on=one.recipe_id), "inbox", "me")  # what it replaces goes
        assert [p.edits[0].new for p in again.parts] == [0.004]
        renamed = inbox.compose(ask(0.0, on=one.recipe_id, name="rate 0.003", edits=(decay,)), "inbox", "me")
        assert [p.name for p in renamed.parts] == ["rate 0.003", "rate 0.003 2"]
        for on in ("nothing", "", one.recipe_id + "0"):
            with pytest.raises(ConfigError, match="best, base or the id"):
                inbox.compose(ask(0.1, on=on), "inbox", "me")


def test_a_promise_counts_only_so_much(session):
    with Inbox(session.path) as inbox:
        most = 2 * inbox.track.epsilon
        assert inbox.compose(ask(0.003, effect=5.0), "inbox", "me").expected_effect == most
        assert dump_full(submitted(GOOD, inbox.track).parts[0])["edits"] == PART["edits"]
        first = inbox.submit(ask(0.003, effect=5.0), origin="me")
        drive(session)  # and no more by being piled up, as parts of one's own or on what one proposed before
        inbox.refresh()
        more = ask(0.9, on=first.recipe_id, effect=5.0, edits=(IdeaEdit(path="optimizer.clip", new=0.9),))
        piled = inbox.compose(more, "inbox", "me")
        assert [part.effect for part in piled.parts] == [most, 0.0]
        parts = [PART | {"name": str(i), "effect": 1.0} for i in range(20)]
        assert submitted(GOOD | {"parts": parts}, inbox.track).expected_effect <= most
        assert len(ask(0.1, edits=(IdeaEdit(path=LR),) * MOST).edits) == MOST


def test_nor_does_one_that_was_written_straight_into_the_ledger(session):
    bold = GOOD | {"parts": [PART | {"effect": 1.0}]}
    number = session.ledger.append("submission", "", {"proposal": bold})
    found = loop(session)
    found.intake.judge()
    recipe, answer = found.state.answers[number]
    assert answer.accepted and found.state.proposals[recipe].proposal.expected_effect == (
        2 * found.track.epsilon)
    parts = validate(Proposal, bold).parts
    assert submitted(bold, found.track, parts).parts == parts  # known: a lane's own promise


def test_a_flood_of_submissions_neither_stalls_the_loop_nor_swells_the_belief(session, monkeypatch):
    monkeypatch.setattr(intake, "ROOM", 3)
    numbers = [session.ledger.append("submission", "", {"proposal": GOOD | {"parts": [
        PART | {"edits": [{"path": LR, "new": 0.001 + 1e-5 * i}]}]}}) for i in range(12)]
    found = loop(session)
    assert [found.state.answers[n][1].accepted for n in numbers] == [True] * 3 + [False] * 9
    assert "later would do" in found.state.answers[numbers[-1]][1].refusals[0].rule
    monkeypatch.setattr(intake, "JUDGE_S", -1.0)
    late = session.ledger.append("submission", "", {"proposal": GOOD})
    found.book.refresh()
    found.intake.judge()
    assert list(found.state.unanswered()) == [late]
    monkeypatch.setattr(intake, "JUDGE_S", 1.0)
    found.intake.judge()
    assert not found.state.unanswered()


def test_promised_runs_are_at_most_every_second_search_run(session):
    with Inbox(session.path) as inbox:
        found = [inbox.submit(ask(0.001 + 0.0005 * i), origin="me") for i in range(1, 6)]
    state = drive(session, max_trials=14).state
    searched = [bool(e.body.promised) for e in state.decisions if e.body.purpose == "search"]
    assert sum(searched) == 5 and all(sum(searched[:n]) <= (n + 1) // 2 for n in range(len(searched)))
    assert [t.recipe_id for t in state.trials.values() if t.decisions[0].body.promised] == [
        one.recipe_id for one in found]  # the oldest first


def test_a_first_run_that_was_interrupted_is_still_owed(session):
    with Inbox(session.path) as inbox:
        found = inbox.submit(ask(0.003), origin="me")

        def dies_once(job):
            mine = [j for j in executor.jobs if j["id"] == found.trial]
            return None if job["id"] == found.trial and len(mine) == 1 else made_up(job)

        executor = StandIn(outcomes=dies_once)
        state, events = drive(session, executor).state, session.ledger.events()
    assert [a.result.outcome for a in state.trials[found.trial].attempts] == ["interrupted", "completed"]
    died = next(e for e in events if e.kind == "result" and e.body.outcome == "interrupted")
    then = fold(e for e in events if e.seq <= died.seq)
    then.decisions.append(replace(died, body=Decided(purpose="search")))  # another one's turn has passed
    trial, body = promised(Prices(Belief(inbox.track).at(then)), 0, 600.0)
    assert trial.key == found.trial and body.promised


def test_waiting_ends_with_the_session_or_its_loop(session):
    with Inbox(session.path) as inbox:
        drive(session)
        late = inbox.submit(ask(0.003), origin="me")
        assert inbox.wait(late.number, timeout_s=600.0) is None and inbox.state.end is not None
        session.ledger.append("resume", "", {"pid": 1})
        session.ledger.release()
        assert inbox.wait(late.number, timeout_s=600.0) is None and not inbox.running
        with pytest.raises(ConfigError, match="no such submission"):
            inbox.outcome(10**6)


def secrets(events):
    """Numbers that follow from the protected or the held-out split, with as many digits as tell them from others."""
    def numbers(value):
        match value:
            case dict() | list():
                for item in value.values() if isinstance(value, dict) else value:
                    yield from numbers(item)
            case float():
                yield value

    for event in events:
        body = json.loads(encode(event.body))
        found = {"result": {k: v for k, v in body.get("loss", {}).items() if k != "search"} if event.kind == "result"
                 else {}, "verification": {k: body.get(k) for k in ("comparisons", "losses")},
                 "crowned": {"heldout": body.get("heldout")}}.get(event.kind, {})
        for number in map(abs, numbers(found)):
            yield from (f"{number:.4f}", repr(number)[:6]) if 1 < number < 100 else (repr(number)[:10],)


def everything(path, session):
    """All that an outsider can be told of a session."""
    with Inbox(path) as inbox:
        desk = Desk(inbox)
        yield desk.rules()
        yield desk.schema()
        yield desk.state()
        yield desk.trials(limit=200)
        verified = [key for key, trial in inbox.state.trials.items() if trial.seed >= FRESH]
        for name in (inbox.state.champion, *list(inbox.state.proposals)[:2], verified[0], verified[-1]):
            yield desk.explain(name)
        for number in inbox.state.submissions:
            yield desk.wait(number)
        yield [event.body.written() for event in visible(session.ledger.events(), inbox.track)]
        yield inbox.snapshot.view(), inbox.state.verifications, inbox.state.crowned, inbox.state.reviews


def test_nothing_of_the_protected_split_is_told_but_pass_or_fail(session):
    with Inbox(session.path) as inbox:
        inbox.submit(ask(0.003), origin="me")
    found = drive(session, max_trials=5)
    note = f"protected loss {3 * SECRET}"
    session.ledger.append("review", found.state.champion, {"decision": "hold", "reviewer": "eve", "note": note})
    session.ledger.append("review", found.state.champion, {"decision": "approve", "reviewer": note, "note": note,
                                                              "more": {"deep": note}})
    events = session.ledger.events()
    hidden = {number for number in secrets(events) if len(number) > 5}  # not 0.95, say
    assert found.state.champion is not None
    shown = "".join(str(answer) for answer in everything(session.path, session))
    assert any(e.body.passed for e in fold(events).verifications) and "passed=True" in shown
    plain = json.dumps([json.loads(encode(event.body)) for event in events])
    assert sum(number in plain for number in hidden) > 12  # the search would find them
    assert [number for number in sorted(hidden) if number in shown] == []
    assert str(3 * SECRET) not in shown


def test_recipes_of_the_inbox_are_what_was_asked_for(session):
    with Inbox(session.path) as inbox:
        found = inbox.submit(ask(0.0042), origin="me")
    assert found.verdict.recipe.optimizer.groups[0].lr.value == 0.0042
    assert recipe_id(found.verdict.recipe) == found.recipe_id


def test_a_number_that_ends_a_schedule_is_accepted_and_said(tmp_path):
    story = Story(tmp_path / "s")
    story.propose()
    place = "optimizer.groups.matrices.lr"
    with Inbox(story.session.path) as inbox:
        said = {path: Desk(inbox).propose(ask(0.006, edits=(IdeaEdit(path=path, new=0.006),)), origin="me")
                for path in (place, f"{place}.value")}
        assert all(verdict.accepted for verdict in said.values()) and said[f"{place}.value"].notes == []
        (note,) = said[place].notes
        assert note.startswith(f"{place}: 0.006 replaces cosine(") and f"{place}.value would keep the schedule" in note
    story.session.close()


def test_the_stage_is_ended_once_no_loop_works_on_it(session):
    with Inbox(session.path) as inbox:
        assert Desk(inbox).state().stage.startswith("searching")
        session.ledger.release()  # as when the loop is killed
        gone = Desk(inbox).state()
        assert (gone.stage, gone.running, gone.ended) == ("ended", False, "its loop is gone without an end")
        session.ledger.acquire()
        session.ledger.append("end", "", {"reason": "time is up"})
        assert (Desk(inbox).state().stage, Desk(inbox).state().ended) == ("ended", "time is up")


def test_a_refusal_says_by_how_much_or_what_would_pass(tmp_path):
    story = Story(tmp_path / "s")
    story.propose()
    edits = {"model.depth": (8, r"fewer \(\d+\.\d%\) would do"), LR_TINY: (50.0, "between 0 and 10; 10 would do"),
             "model.width": ("64", "a whole number; 64 would do"), "model.widht": (64, "no such"),
             "data.batch": (16, "frozen by track tiny; .* would do")}
    with Inbox(story.session.path) as inbox:
        for path, (value, words) in edits.items():
            found = inbox.submit(ask(0.1, edits=(IdeaEdit(path=path, new=value),)), origin="me")
            assert re.search(words, found.verdict.problems[0].rule), found.verdict.problems
    story.session.close()
