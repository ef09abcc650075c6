"""How a session's time is divided."""

import pytest
from sessions import Story
from test_proof import nominate, proof, settle

from research.contract.track import load_track
from research.decide.choose import fitting
from research.decide.plan import EXPECTED, REPORT_S, Plan, least_minutes, unbegun
from research.decide.price import Prices
from research.ledger.kinds import Begun

BEGUN = Begun(track="tiny", data_hash="d", seed=0, workers=1)


def test_a_short_session_searches_although_a_whole_proof_would_not_fit(tmp_path):
    story = Story(tmp_path / "s")
    story.propose()
    prices, plan = story.prices(), Plan(story.track, 1, 65.0)
    assert plan.proof_s(prices) > plan.left_s and not plan.too_late(prices)
    assert plan.search_left_s(prices, 1) > 0.2 * plan.left_s
    story.close()


def test_an_ablation_that_looks_leaves_more_than_one_that_tries_and_a_plain_effect_needs_less_of_it(tmp_path):
    story = Story(tmp_path / "s").search()
    nominate(story, story.best)
    settle(story)
    prices, plan, found = story.prices(), Plan(story.track, 2, 600.0), proof(story)
    seeds = found.expected(1e-3)
    assert seeds == 6 and found.expected(1e-12) > seeds  # 0.4 nats, of runs that differ by 0.004
    looking, trying = (plan.kept_s(prices, programs, seeds) for programs in (1, 0))
    assert looking - trying > prices.compile_s + 2 * prices.full_run_s / 2
    assert trying < plan.kept_s(prices, 0, EXPECTED)
    story.session.close()


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("name", ["tiny", "tests/research/micro.yaml", "budget-5min"])
def test_the_least_time_has_room_for_the_base_and_a_tenth_of_a_minute_to_spare(name, workers):
    snapshot = unbegun(load_track(name), BEGUN)
    prices = Prices(snapshot)
    least = least_minutes(snapshot, workers, 0.1)
    first_s = prices.wall_s(snapshot.arms[0], min(snapshot.belief.track.horizons), 0)
    assert REPORT_S + first_s <= 60 * least < 2 * 60 + 10 * first_s
    for minutes in (least - 0.1, least):  # the tenth below it has room too: what is told has one to spare
        found = Plan(snapshot.belief.track, workers, 60 * minutes)
        assert fitting(prices, 0, found.search_left_s(prices, 1) / 2)  # the base's run, and one of another
        assert least_minutes(snapshot, workers, minutes) == minutes


def test_what_an_accelerator_does_in_two_hours_is_not_priced_as_a_cores_work():
    """Before anything was measured: a GPU or a TPU makes at least 100 TFLOP/s of what these runs do, a core 0.3."""
    track = load_track("optimizer-124m")
    sessions = (BEGUN.model_copy(update={"accelerator": found}) for found in (False, True))
    here, there = (least_minutes(unbegun(track, session), 1, 0.1) for session in sessions)
    assert there < 120 < 100 * there < here


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("accelerator", [False, True])
def test_a_model_whose_runs_take_hours_has_rounds_that_its_search_and_proof_fit_into(accelerator, workers):
    snapshot = unbegun(load_track("optimizer-124m"), BEGUN.model_copy(update={"accelerator": accelerator}))
    prices = Prices(snapshot)
    for minutes in (6e2, 6e4, 6e6):
        least = least_minutes(snapshot, workers, minutes)
        left_s = Plan(snapshot.belief.track, workers, 60 * least).search_left_s(prices, 1)
        assert minutes <= least < 1e7 and left_s >= 2 * prices.wall_s(snapshot.arms[0], 0.125, 0)
