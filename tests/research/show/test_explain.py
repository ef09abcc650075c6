"""Why a run was chosen and what it taught, recomputed from what was known then."""

import pytest
from sessions import Story

from jaxnano.cli import report_errors
from research.contract.trial import Trial
from research.explain import main
from research.show.explain import before


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A session whose search is over; nobody writes to it."""
    made = Story(tmp_path_factory.mktemp("explain") / "session").search()
    made.end()
    return made


def said(story, capsys, text):
    assert main([str(story.session.path), text]) == 0
    return capsys.readouterr().out


def test_trial_is_explained_from_its_decision_to_its_lesson(story, capsys):
    key = Trial(story.singles["rotary"], 1.0, 0).key
    text = said(story, capsys, key)
    assert f"trial {key}: completed" in text and "recipe" in text and "hypothesis: it helps" in text
    assert "model.position: learned() -> rotary()" in text and "arXiv:2104.09864" in text
    assert "decision (event" in text and "promised 0.5 nats" in text and "rather than" in text
    assert "gain, on seed 0: +0.3" in text and "over the base" in text and "what it taught: before" in text


def test_a_run_narrows_the_belief_about_its_recipe(story):
    from research.ledger.events import Ledger

    recipe = story.singles["relu-squared"]
    with Ledger(story.session.path / "ledger.sqlite") as ledger:
        events = ledger.events()
    end = next(e.seq for e in events if e.kind == "result" and e.subject == Trial(recipe, 1.0, 0).key)
    old, new = before(events, end), before(events, end + 1)
    assert old.state.seq == end - 1 and new.state.seq == end
    at = old.index[recipe]
    assert new.effects[1][at] < old.effects[1][at]
    assert abs(new.effects[0][at] - 0.05) < abs(old.effects[0][at] - 0.05) + 0.01


def test_kills_divergence_and_recipes_are_explained(story, capsys):
    assert "killed: hopeless: 1 %" in said(story, capsys, Trial(story.singles["rotary"], 0.25, 1).key)
    assert "diverged: nan: loss is nan" in said(story, capsys, Trial(story.singles["silu"], 0.25, 1).key)
    assert "finished for the audit" in said(story, capsys, Trial(story.base, 0.25, 1).key)
    text = said(story, capsys, story.best[:10])
    assert "belief now: +0." in text and "runs:" in text and "\x1b" not in text


@pytest.mark.parametrize("text", ["", "nothing-like-this"])
def test_unknown_and_ambiguous_ids_are_one_line(story, capsys, text):
    assert report_errors(lambda: main([str(story.session.path), text])) == 2
    assert capsys.readouterr().err.count("\n") == 1
    key = f"{story.base}-0.25"
    assert report_errors(lambda: main([str(story.session.path), key])) == 2
    assert f"{key}-0" in capsys.readouterr().err
