"""The view on a terminal and without one; it never disturbs the loop."""

import io
import time
import types

import pytest
from rich.console import Console
from sessions import Story

from research.contract.trial import Trial
from research.decide.belief import Belief
from research.decide.dispatch import Flight
from research.ledger.kinds import Judgement, Refusal
from research.ledger.state import fold
from research.show import view
from research.show.facts import Facts
from research.show.view import Frame, View


def scheduler_of(story):
    """What the view reads of a scheduler."""
    snapshot, now = story.snapshot(), time.monotonic()
    running = Flight(Trial(story.best, 0.5, 3), "search", 1, now - 2, 8.0, [(0.1, 4.0), (0.4, 3.2)], [now], 51_000.0)
    compiling = Flight(Trial(story.base, 1.0, 123_456_789), "verify", 1, now - 2, 8.0)
    return types.SimpleNamespace(state=snapshot.state, snapshot=snapshot, session=story.session, left_s=123.0,
                                 flights={0: running, 1: compiling}, stopping=False, track=story.track)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    """A session that crowned a champion."""
    with (story := Story(tmp_path_factory.mktemp("view") / "session")).session:
        yield story.search().nominate().seal()


def test_one_plain_line_for_each_result_and_stage(proven, tmp_path):
    out, scheduler = io.StringIO(), scheduler_of(proven)
    with View(out) as shown:
        shown.update(scheduler)
    shown.close_with(scheduler, tmp_path)
    lines = out.getvalue().splitlines()
    results = len(proven.session.ledger.events("result"))
    assert len(lines) == results + 6 + 3  # nominated, ablation twice, sealed, verification, crowned; then the end
    assert lines[-3].startswith("Not ended yet") and "Improvement proven" in lines[-3]
    assert lines[-1].endswith(str(tmp_path / "report.html"))
    assert sum("verification: passed" in line for line in lines) == 1
    assert "\x1b" not in out.getvalue()
    assert max(map(len, lines[:-3])) <= 80


def test_events_are_shown_once_and_not_too_often(proven, monkeypatch):
    out, scheduler, now = io.StringIO(), scheduler_of(proven), [100.0]
    monkeypatch.setattr(view, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    events = proven.session.ledger.events()
    scheduler.state = fold(events[: len(events) // 2])
    scheduler.snapshot = Belief(proven.track).at(scheduler.state)
    with View(out) as shown:
        shown.update(scheduler)
        first = out.getvalue()
        scheduler.state = fold(events)
        scheduler.snapshot = Belief(proven.track).at(scheduler.state)
        now[0] += view.PERIOD_S / 2
        shown.update(scheduler)
        assert out.getvalue() == first
        now[0] += view.PERIOD_S
        shown.update(scheduler)
    lines = out.getvalue().splitlines()
    assert len(lines) == len(set(lines)) == len(proven.session.ledger.events("result")) + 6


def test_a_view_that_fails_does_not_stop_the_loop():
    out = io.StringIO()
    with View(out) as shown:
        shown.update(types.SimpleNamespace(state=types.SimpleNamespace(seq=1)))
        shown.update(None)
    assert out.getvalue().count("\n") == 1 and "AttributeError" in out.getvalue()


def test_terminal_is_left_as_it_was(proven, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    with pytest.raises(KeyboardInterrupt), View(out) as shown:
        shown.update(scheduler_of(proven))
        assert "rotary" in out.getvalue()
        raise KeyboardInterrupt
    text = out.getvalue()
    assert text.count("\x1b[?1049h") == text.count("\x1b[?1049l") == 1  # the alternate screen
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
    assert "\x1b[2J alert" not in text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 8), (20, 3), (160, 60)])
def test_frame_keeps_within_the_terminal(proven, width, height):
    scheduler = scheduler_of(proven)
    refused = [Judgement(accepted=False, refusals=(Refusal(path="model.width", value=63, rule="odd"),))]
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(Frame(scheduler, Facts(scheduler.snapshot), refused))
    lines = out.getvalue().splitlines()
    assert len(lines) < height and max(map(len, lines)) <= width
    if width >= 80:
        text = out.getvalue()
        for word in ("2:03 left", "running", "40%", "51k tok/s", "compiling", "frontier", "last choice", "champion",
                     "model.position"):
            assert word in text


def test_frame_of_a_young_session(tmp_path):
    with (story := Story(tmp_path / "session")).session:
        story.base = story.best = story.propose()
        scheduler = scheduler_of(story)
        scheduler.flights = {}
        out = io.StringIO()
        Console(file=out, width=80, height=24).print(Frame(scheduler, Facts(scheduler.snapshot), []))
    assert "searching: the lanes make their first proposals, the workers load JAX" in out.getvalue()
