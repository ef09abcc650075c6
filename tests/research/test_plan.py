"""How a session's time is divided."""

from sessions import Story

from research.plan import Plan


def test_a_short_session_searches_although_a_whole_proof_would_not_fit(tmp_path):
    story = Story(tmp_path / "s")
    story.propose()
    snapshot, plan = story.snapshot(), Plan(story.track, 1, 65.0)
    assert plan.proof_s(snapshot) > plan.left_s and not plan.too_late(snapshot)
    assert plan.search_left_s(snapshot, 1) > 0.2 * plan.left_s
    story.close()
