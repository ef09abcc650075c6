"""Review: the loop waits before it crowns, not before it searches; a veto keeps the crown off; what a person reads."""

import json
import shutil
import types

import pytest
from sitting import created, drive, loop, made_up
from stand_in import StandIn

from jaxnano.cli import report_errors
from research import review
from research.decide import plan
from research.decide.champion import crown
from research.decide.claims import violations
from research.decide.proof import pending
from research.ledger.session import Session
from research.ledger.state import fold
from research.show.facts import Facts
from research.show.report import write_report
from research.show.verdict import verdict

MINUTES = 40  # two rounds, so that there is search after the first proof
SEARCH_S, PROOF_S = 250.0, 5.0  # the clock goes on by so much a poll


@pytest.fixture(scope="module", autouse=True)
def clock():
    """The plan's clock, which the executor puts on."""
    now = types.SimpleNamespace(seconds=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
        yield now


class Ticking(StandIn):
    """Has a look at the ledger at each poll; the clock goes on."""

    def __init__(self, session, clock, look=lambda: None):
        super().__init__(outcomes=made_up)
        self.ledger, self.clock, self.look = session.ledger, clock, look

    def poll(self, timeout_s):
        decided = [*self.ledger.events("verification"), *self.ledger.events("review")]
        proving = len(self.ledger.events("nominated")) > len(decided)
        self.clock.seconds += PROOF_S if proving else SEARCH_S
        self.look()
        return super().poll(timeout_s)


def decide(session, decision, recipe_id, *more):
    """A person's word, through the command."""
    code = report_errors(lambda: review.main([str(session.path), f"--{decision}", recipe_id[:10], "--reviewer", "ada",
                                              *more]))
    assert code == 0


def run(session, clock, when=None, **options):
    """A driven loop; `when(events)` is asked at each poll and returns what to decide, once."""
    done = []

    def look():
        if when and not done and (found := when(session.ledger.events())):
            done.append(found)
            decide(session, *found)

    return drive(session, Ticking(session, clock, look), max_trials=None, budget_s=60.0 * MINUTES, **options)


def searched(events, after):
    return [e for e in events if e.seq > after and e.kind == "decision" and e.body.purpose == "search"]


def after_passing(decision, *more):
    """Decide about what passed first, once two search runs have followed."""
    def when(events):
        passed = next((e for e in events if e.kind == "verification" and e.body.passed), None)
        return (decision, passed.subject, *more) if passed and len(searched(events, passed.seq)) > 1 else None

    return when


def test_it_searches_on_while_it_waits_and_crowns_what_is_approved(tmp_path, clock, capsys):
    with created(tmp_path / "s", require_review=True) as session:
        found = run(session, clock, after_passing("approve"))
        kinds = [e.kind for e in session.ledger.events() if e.kind in ("verification", "review", "crowned")]
        assert kinds[:3] == ["verification", "review", "crowned"] and found.state.end.reason == "finished"
        assert found.state.crowned[0].subject == found.state.verifications[0].subject
        assert list(violations(session.ledger, session.path)) == []
    assert "approved by ada" in capsys.readouterr().out


@pytest.fixture(scope="module")
def ended(tmp_path_factory, clock):
    """A session that ended with a verified candidate nobody has looked at: its folder and state."""
    with created(tmp_path_factory.mktemp("review") / "s", require_review=True) as session:
        found = run(session, clock)
        state, passed = found.state, [e for e in found.state.verifications if e.body.passed]
        assert state.champion is None and state.end.reason == "awaiting review"
        assert searched(session.ledger.events(), passed[0].seq)
        assert {e.subject for e in passed} == {key.rsplit("-", 2)[0] for key in found.prover.needed()}
    return session.path, state


@pytest.fixture
def waiting(ended, tmp_path):
    """A copy of it."""
    shutil.copytree(ended[0], tmp_path / "copy")
    return tmp_path / "copy", ended[1]


def resumed(path, clock):
    with Session.open(path, lock=True) as session:
        session.ledger.append("resume", "", {"pid": 1})
        return drive(session, Ticking(session, clock), max_trials=None, budget_s=15.1)


def test_a_pending_one_is_called_verified_and_crowned_at_resume(waiting, clock, capsys):
    path, state = waiting
    facts = Facts.of(state)
    best, (kind, text) = facts.waiting()[0], verdict(facts)
    assert kind == "verified" and text.startswith("Verified, awaiting review: ") and "p = " in text
    write_report(path)
    page = (path / "report.md").read_text()
    assert "Verified, not crowned" in page and f"--approve {best[:8]}" in page and "## The champion" not in page
    with Session.open(path) as session:
        decide(session, "approve", best)
    assert "--resume --session SESSION crowns it" in capsys.readouterr().out
    state = resumed(path, clock).state
    assert state.champion == best and verdict(Facts.of(state))[0] == "proven"


@pytest.mark.parametrize(("decision", "reason"), [("veto", "finished"), ("hold", "awaiting review")])
def test_a_veto_or_a_hold_is_not_crowned_at_resume(waiting, clock, decision, reason):
    path, state = waiting
    with Session.open(path) as session:
        for recipe_id in Facts.of(state).waiting():
            decide(session, decision, recipe_id, "--note", "too odd")
    state = resumed(path, clock).state
    assert state.champion is None and state.end.reason == reason
    done = {"veto": "vetoed", "hold": "held"}[decision]
    assert f"Verified, {done} by ada: too odd: " in verdict(Facts.of(state))[1]
    write_report(path)
    assert "too odd" in (path / "report.md").read_text()


def test_a_veto_keeps_the_crown_off_where_no_review_is_required(tmp_path, clock):
    with created(tmp_path / "s") as session:
        state = run(session, clock, lambda events: next((
            ("veto", e.subject) for e in events if e.kind == "sealed"), None)).state
        vetoed = state.sealed[0].subject
        assert state.verifications[0].body.passed and vetoed not in {e.subject for e in state.crowned}
        assert [e.subject for e in state.nominated].count(vetoed) <= 1


def test_a_vetoed_recipe_is_not_nominated_and_a_proof_of_it_not_gone_on_with(tmp_path, clock):
    with created(tmp_path / "s") as session:
        state = run(session, clock, lambda events: next((
            ("veto", e.subject) for e in events if e.kind == "nominated"), None)).state
        first, vetoed = state.nominated[0], state.reviews[0]
        assert vetoed.subject == first.subject and first.subject not in {e.subject for e in state.sealed}
        assert [e.subject for e in state.nominated].count(first.subject) == 1


def test_whatever_a_review_holds_it_is_short_text_to_read(waiting, capsys):
    path, state = waiting
    best = Facts.of(state).waiting()[0]
    with Session.open(path) as session:
        for note in (["<script>", {"\x1b": 1}], 10**300, "n" * 1_000_000, None):
            session.ledger.append("review", best, {"decision": "hold", "reviewer": {"a": note}, "note": note})
        session.ledger.append("review", best, {"decision": ["approve"], "reviewer": "eve"})
        session.ledger.append("review", "nobody <b>", {"decision": "veto"})
        state = fold(session.ledger.events())
    write_report(path)
    assert state.review(best) == "hold" and state.review("nobody <b>") == "veto"
    text = (path / "report.html").read_text()
    assert "n" * 900 in text and "n" * 1001 not in text and "<script>" not in text and "<b>" not in text
    assert review.main([str(path)]) == 0 and "\x1b" not in capsys.readouterr().out


def test_of_several_that_wait_the_best_comes_first(ended):
    facts = Facts.of(ended[1])
    effects = [row["comparisons"]["incumbent"]["effect"] for rid in facts.waiting()
               for row in facts.verifications() if row["recipe_id"] == rid]
    assert effects == sorted(effects, reverse=True)


def test_candidates_are_listed_with_evidence_cost_and_transfer(waiting, capsys):
    path, state = waiting
    assert review.main([str(path)]) == 0
    text = capsys.readouterr().out
    for words in ("verified, awaiting review", "hypothesis: ", "optimizer.groups.all.lr", "fresh seeds", "p = ",
                  "FLOPs a step (", "device-seconds a full run", "transfer, gain over the base by horizon: ",
                  "run in full"):
        assert words in text, words
    assert review.main([str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["recipe_id"] == Facts.of(state).waiting()[0] and rows[0]["proofs"][0]["passed"]


@pytest.mark.parametrize(("argv", "words"), [
    (["--approve", "zzz"], "--approve: 'zzz': no recipe"), (["--veto", ""], "--veto: '': no recipe"),
    (["--note", "x"], "--note: 'x': with --approve"), (["--hold", "AMBIGUOUS"], "a longer beginning would do"),
    (["--hold", "zzz", "--note", "x" * 2000], "2000 characters"),
])
def test_bad_input_is_one_line_and_decides_nothing(tmp_path, capsys, argv, words):
    with created(tmp_path / "s") as session:
        book = loop(session)
        book.intake.stock()
        heads = [recipe_id[0] for recipe_id in book.state.accepted]
        twice = next(head for head in heads if heads.count(head) > 1)
        argv = [twice if word == "AMBIGUOUS" else word for word in argv]
        code = report_errors(lambda: review.main([str(session.path), *argv]))
        out, err = capsys.readouterr()
        assert code == 2 and out == "" and err.count("\n") == 1 and words in err
        assert session.ledger.events("review") == []


def test_a_veto_that_is_taken_back_finds_its_checkpoint(waiting, clock):
    path, state = waiting
    best = Facts.of(state).waiting()[0]
    with Session.open(path) as session:
        decide(session, "veto", best)
    needed = resumed(path, clock).prover.needed()
    assert best in {key.rsplit("-", 2)[0] for key in needed}  # what `tidy` leaves
    with Session.open(path) as session:
        decide(session, "approve", best)
    assert resumed(path, clock).state.champion == best


def test_without_its_checkpoint_nobody_is_crowned_and_the_old_champion_stays(waiting, track):
    path, state = waiting
    proof = pending(Facts.of(state).snapshot)[0]
    with Session.open(path) as session:
        session.champion.mkdir()
        (session.champion / "recipe.yaml").write_text("old")
        with pytest.raises(ValueError, match="missing, so .* cannot be crowned; research.review --veto"):
            crown(session, track, proof.candidate, proof.shipped.key)
        assert (session.champion / "recipe.yaml").read_text() == "old"
