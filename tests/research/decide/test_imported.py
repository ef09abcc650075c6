"""What another session has found informs the search, and nothing else."""

import numpy as np
import pytest
from sessions import Story

from jaxnano.cli import UserError
from research import loop
from research.contract.idea import ideas, part
from research.contract.trial import Trial
from research.decide.claims import violations


@pytest.fixture
def elsewhere(tmp_path):
    """A session in which rotary is worth a lot."""
    with (story := Story(tmp_path / "elsewhere")).session:
        story.search()
        yield story


def here(path):
    story = Story(path)
    story.base = story.propose()
    story.rotary = story.propose([part(ideas()["rotary"])])
    return story


def test_what_was_found_elsewhere_is_believed_and_paired_with_nothing(elsewhere, tmp_path):
    with (story := here(tmp_path / "here")).session:
        before = story.snapshot()
        brought = loop.bring(elsewhere.session.path, before.state.session)
        story.write("imported", "", brought)
        after = story.snapshot()
        at = after.index[story.rotary]
        assert after.effects[0][at] > before.effects[0][at] + 0.05 and after.effects[1][at] < before.effects[1][at]
        assert not after.finished and not after.over and after.losses(story.base) == {}  # no run of this session's
        assert after.state.gains(story.rotary, story.base) == {} and after.best is None
        assert list(violations(story.session.ledger, story.session.path)) == []
        story.run(Trial(story.base, 1.0, 0), "base", loss={"search": 99.0})  # another level of the same seed
        assert story.snapshot().effects[0][at] == pytest.approx(after.effects[0][at], abs=0.02)


def test_two_sessions_have_cells_of_their_own(elsewhere, tmp_path):
    with (story := here(tmp_path / "here")).session:
        brought = loop.bring(elsewhere.session.path, story.snapshot().state.session)
        for origin in ("one", "two"):
            story.write("imported", "", brought.model_copy(update={"origin": origin}))
        seeds = np.array([o.seed for o in story.snapshot().imported])
        assert len(seeds) == 2 * len(brought.runs) and len(set(seeds) & set(range(100))) == 0
        assert not set(seeds[: len(brought.runs)]) & set(seeds[len(brought.runs):])


def test_other_data_and_empty_sessions_are_refused(elsewhere, tmp_path):
    begun = elsewhere.snapshot().state.session
    with pytest.raises(UserError, match="its data_hash is another"):
        loop.bring(elsewhere.session.path, begun.model_copy(update={"data_hash": "e" * 64}))
    with (story := Story(tmp_path / "empty")).session:
        story.propose()
        with pytest.raises(UserError, match="it completed no run"):
            loop.bring(story.session.path, begun)
