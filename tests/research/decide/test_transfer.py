"""The transfer card: what is run of it and when, what it says, and that nothing rests on it."""

import math
import re

import pytest
from sessions import Story, changes
from sitting import created
from stand_in import MICRO, StandIn, completed

from jaxnano.cli import report_errors
from jaxnano.config.base import ConfigError
from jaxnano.config.file import load
from research import transfer as command
from research.contract.track import CONFIGS, TimeToTarget, load_track
from research.contract.transfer import BESIDE, HELD_OUT, HOME, PRESET, preset
from research.contract.trial import Trial
from research.decide.belief import Belief
from research.decide.book import Book
from research.decide.claims import violations
from research.decide.scheduler import Scheduler
from research.decide.transfer import NOT_RUN, SHARE, Card, Carrier
from research.lanes import lanes, lanes_of
from research.ledger.session import Session
from research.ledger.state import fold
from research.outside.inbox import visible
from research.show.facts import Facts

pytestmark = pytest.mark.usefixtures("crowns")
SETTINGS = ["2x horizon", "2x width", "1/2 batch", "2x batch", "text: code of matplotlib, pydantic, rich"]


def session_of(folder, budget_s, executor):
    """A session that crowned a champion and ended; its folder."""
    with created(folder) as session:
        found = Scheduler(session, load_track(MICRO), executor, lanes_of(["tuner", "recombine"], lanes()),
                          budget_s=budget_s, max_trials=5)
        reason = found.run()
        found.record("end", "", {"reason": reason})
        assert reason == "finished" and found.state.champion
        assert list(violations(session.ledger, session.path)) == []
        return session.path


def events_of(path):
    with Session.open(path) as session:
        return session.ledger.events()


def narrow(job):
    """As `completed`, on a machine that has no room for twice the width."""
    return None if job["args"].get("recipe", {}).get("model", {}).get("width") == 32 else completed(job)


@pytest.fixture(scope="module")
def whole(crowns, tmp_path_factory):
    """A session with time for its whole card."""
    return session_of(tmp_path_factory.mktemp("whole") / "s", 600.0, StandIn(outcomes=narrow))


def test_the_card_comes_after_the_crown_beside_nothing_else_and_enters_nothing(whole):
    events = events_of(whole)
    kinds = [e.kind for e in events]
    runs, state = [e for e in events if e.kind == "transfer"], fold(events)
    assert kinds[-1 - len(runs):] == ["transfer"] * len(runs) + ["end"] and len(runs) == 2 * len(SETTINGS) + 1
    without = fold(e for e in events if e.kind != "transfer")
    assert state.trials == without.trials and state.wall_s == without.wall_s
    mine, theirs = (Belief(load_track(MICRO)).at(s).effects for s in (state, without))
    assert all((a == b).all() for a, b in zip(mine, theirs, strict=True))
    shipped = state.trials[state.crowned[-1].body.trial]
    assert {e.body.seed for e in runs} == {shipped.seed}
    opened = [e for e in runs if "heldout" in e.body.loss]
    assert [(e.body.setting, e.body.role) for e in opened] == [(HELD_OUT, "base")] and opened[0] is runs[0]
    assert all("protected" not in e.body.loss for e in runs)


def test_a_line_is_the_base_less_the_champion_on_one_seed(whole):
    state = fold(events_of(whole))
    lines = Facts.of(state).transfer()
    assert [line.setting for line in lines] == [HOME, HELD_OUT, *SETTINGS, BESIDE]
    assert lines.pop().why.startswith("refused: model: ")  # the preset is far larger than what track micro is about
    runs = {(e.body.setting, e.body.role): e.body.loss for e in state.transfers}
    assert lines[3].setting == "2x width" and lines[3].gain is None  # which is no failure of the session
    assert lines[3].why == ("base: interrupted: the process ended by signal 9; "
                            "champion: interrupted: the process ended by signal 9")
    for line in (lines[2], *lines[4:]):
        assert line.base == runs[line.setting, "base"]["search"]
        assert line.gain == line.base - runs[line.setting, "champion"]["search"]
        assert line.share == line.gain / lines[0].gain and line.seconds == 2.0 and not line.why
    seed = lines[0].seed
    assert lines[0].gain == state.gains(state.champion, Card(Facts.of(state).snapshot).snapshot.arms[0].recipe_id,
                                        1.0)[seed]
    assert lines[1].base == runs[HELD_OUT, "base"]["heldout"] and lines[1].champion == state.crowned[-1].body.heldout


def test_outsiders_do_not_see_the_held_out_split(whole):
    seen = list(visible(events_of(whole), load_track(MICRO)))
    assert all(e.body.loss.keys() <= {"search"} for e in seen if e.kind == "transfer")


def test_settings_fit_or_wait_for_the_command_which_completes_them_once(tmp_path):
    jobs = StandIn()
    path = session_of(tmp_path / "s", 60.0, jobs)  # into whose tenth no compiling fits, as predicted
    before = fold(events_of(path))
    lines = {line.setting: line for line in Facts.of(before).transfer()}
    ran = {name for name, line in lines.items() if line.gain is not None}
    assert {HOME, "2x horizon"} <= ran and "2x width" not in ran and lines["2x width"].why == NOT_RUN
    with Session.open(path, lock=True) as session:
        command.complete(session, load_track(MICRO), StandIn(outcomes=lambda job: None))  # every worker dies
        assert list(violations(session.ledger, path)) == []
        failed = Card(Facts.of(fold(session.ledger.events())).snapshot).failed()
        assert len(failed) >= 8 and "interrupted: the process ended by signal 9" in failed[0]
        again = StandIn()
        command.complete(session, load_track(MICRO), again)
        command.complete(session, load_track(MICRO), idle := StandIn())
        assert len(again.jobs) == len(failed) and not idle.jobs
        assert list(violations(session.ledger, path)) == []
    after = fold(events_of(path))
    assert all(line.gain is not None for line in Facts.of(after).transfer() if line.setting not in (HELD_OUT, BESIDE))
    assert after.end == before.end and after.wall_s == before.wall_s


def test_a_run_that_outlasts_the_cards_time_is_cut_off_and_leaves_nothing(tmp_path, monkeypatch):
    class Endless(StandIn):
        """Runs of the card do not end, unless they are killed. Five seconds pass at every look."""

        def submit(self, worker, job):
            super().submit(worker, job)
            if "transfer" in job["dir"]:
                self.carried.setdefault(worker, now[-1])

        def poll(self, timeout_s):
            now.append(now[-1] + 5.0)
            kept = {w: self._open.pop(w) for w in self.carried if w in self._open and w not in self.killed}
            found = super().poll(timeout_s)
            self._open |= kept
            return found

        def kill(self, worker):
            self.killed[worker] = now[-1]
            self.outcomes = lambda job: None

    now, executor = [0.0], Endless()
    executor.carried, executor.killed = {}, {}
    monkeypatch.setattr("time.monotonic", lambda: now[-1])
    path = session_of(tmp_path / "s", 600.0, executor)
    assert executor.carried.keys() == executor.killed.keys() == {0, 1}
    begun = min(executor.carried.values())
    assert all(0 < killed - begun - SHARE * 600.0 <= 5.0 for killed in executor.killed.values())
    state = fold(events_of(path))
    assert state.transfers == [] and {line.why for line in Facts.of(state).transfer()[1:-1]} == {NOT_RUN}


def test_where_the_base_sets_the_time_it_runs_first(whole):
    track = load_track(MICRO)
    timed = track.model_copy(update={"objective": TimeToTarget(kind="time_to_target", target=1.0)})
    with Session.open(whole) as session:
        book = Book(session, timed)
        book.state.transfers.clear()
        carrier = Carrier(book)
        first = [errand for _ in range(20) if (errand := carrier.next(2)) is not None]
        assert [e.trip.role for e in first] == ["base"] * (1 + len(SETTINGS)) and {e.budget_s for e in first} == {None}
        card = carrier.card
        longer = next(s for s in card.settings if s.name == "2x horizon")
        made = next(e for e in fold(events_of(whole)).transfers if e.body.setting == longer.name)
        book.state.transfers.append(made)
        errand = carrier.next(2)
    assert (errand.trip.role, errand.trip.setting) == ("champion", longer)
    step_s = track.base_recipe.data.batch * track.base_recipe.data.length / made.body.tokens_per_s
    assert errand.budget_s == pytest.approx(2.0 * track.full_steps * step_s)


def test_a_setting_that_cannot_be_says_why_and_is_not_run(tmp_path):
    story = Story(tmp_path / "session")
    story.base = story.propose()
    heads = changes("many heads", {"model.attention.heads": 256, "model.attention.head_dim": 2})
    story.best = story.propose([heads], 0.4)
    for recipe in (story.base, story.best):
        for horizon in (0.25, 1.0):
            story.run(Trial(recipe, horizon, 0))
    _, state = story.nominate().seal().end()
    card = Card(Facts.of(state).snapshot)
    lines = {line.setting: line for line in card.lines()}
    assert lines["2x width"].why == "refused: model.attention.heads: 512: at most 256 would do"
    assert [s.name for s in card.settings if not card.missing(s)] == ["2x width"]
    assert lines[HELD_OUT].why == NOT_RUN and lines[HELD_OUT].champion == 1.9 and math.isclose(
        lines[HOME].gain, 0.4, abs_tol=0.05)


def test_a_champion_at_home_beside_the_preset_in_bits_per_byte(tmp_path):
    story = Story(tmp_path / "session", bytes_per_token=4.0).search().nominate().seal()
    card = Card(story.snapshot())
    (trip,) = card.missing(card.settings[-1])
    made, base = load(CONFIGS / f"{PRESET}.yaml"), story.track.base_recipe
    assert (trip.role, trip.seed, trip.setting.horizon) == (PRESET, card.seed, 1.0)
    assert (trip.recipe.model, trip.recipe.data, trip.recipe.train) == (made.model, base.data, base.train)
    assert trip.steps == story.track.steps(trip.recipe, 1.0)
    assert Facts.of(fold(story.events)).beside()["why"] == NOT_RUN
    _, state = story.beside(1.9).end()
    line, found = Facts.of(state).transfer()[-1], Facts.of(state).beside()
    own = state.losses(story.best, 1.0)[card.seed]
    assert line.champion == own and line.gain == line.base - own and (line.setting, line.base) == (BESIDE, 1.9)
    assert (found["bits"], found["champion"]) == (line.base / math.log(2) / 4, own / math.log(2) / 4)


@pytest.mark.parametrize(("track", "words"), [
    ("one-gpu", "model.vocab: 50304: modern-tiny has 256"), ("laptop", "10,844,160 parameters\": modern-tiny")])
def test_a_track_of_another_kind_goes_without_the_preset(track, words):
    with pytest.raises(ConfigError, match=words):
        preset(load_track(track))


@pytest.mark.parametrize(("made", "options", "words"), [
    (lambda story: story.search().close(), (), "its loop has not come to its end; --resume"),
    (lambda story: story.search().end(), (), "no champion was crowned, so there is nothing to carry over"),
    (lambda story: story.search().nominate().seal().end(), ("--text", "nowhere"), "nowhere: no such file or folder"),
    (lambda story: story.search().nominate().seal().end(), (), f"data_hash is .* here, {'d' * 12} there: other data"),
], ids=["open", "crownless", "textless", "elsewhere"])
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, made, options, words):
    path, _ = made(Story(tmp_path / "session"))
    assert report_errors(lambda: command.main([str(path), *options])) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(words, said)
    with Session.open(path) as session:
        assert not session.ledger.held()
