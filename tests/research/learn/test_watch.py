import numpy as np
import pytest

from research.learn.watch import Reference, Running, WatchConfig, is_audited, predict, watch

GRID = np.linspace(0.02, 1.0, 50)


def _cell(rng, n: int, cross_sd: float = 0.05):
    """n runs of one cell: shared batch noise, a lasting difference, and one that is gone by the end."""
    batch = rng.normal(0, 0.05, len(GRID))
    final = 1.6 + rng.normal(0, 0.04, n)
    passing = rng.normal(0, cross_sd, n)
    curves = [
        list(zip(GRID.tolist(), (f + 1.5 * (1 - GRID) ** 2 + p * (1 - GRID) + batch).tolist(), strict=True))
        for f, p in zip(final, passing, strict=True)
    ]
    return curves, final + rng.normal(0, 0.005, n)


def _upto(curve, progress: float) -> Running:
    return Running([point for point in curve if point[0] <= progress], 0.0, 10.0, (1.0, 2.0, 3.0))


def test_hopeless_kills_seldom_hit_a_run_that_would_have_won_and_do_hit_bad_ones():
    rng = np.random.default_rng(0)
    killed_winners = killed = bad = killed_bad = 0
    for _ in range(300):
        curves, final = _cell(rng, 9)
        references = [Reference(c, float(f)) for c, f in zip(curves[:8], final[:8], strict=True)]
        verdicts = [watch(_upto(curves[8], p), references, 3.1).kind for p in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
        hopeless, won = "hopeless" in verdicts, final[8] < final[:8].min()
        killed += hopeless
        killed_winners += hopeless and won
        bad += final[8] > final[:8].min() + 0.1
        killed_bad += hopeless and final[8] > final[:8].min() + 0.1
    assert killed_winners <= 0.02 * 300
    assert killed_bad > 0.6 * bad


def test_a_curve_that_is_behind_but_crosses_is_left_alone():
    """0.1 nats behind at 40 %, ahead at the end, among runs that behave alike: raw comparison would kill it."""
    rng = np.random.default_rng(1)
    curves, final = _cell(rng, 5, cross_sd=0.005)
    late = [(p, loss + 0.15 * (0.8 - p)) for p, loss in curves[0]]
    references = [Reference(c, float(f)) for c, f in zip(curves[1:], final[1:], strict=True)]
    assert watch(_upto(late, 0.4), references, 3.1).kind == "ok"


def test_no_kill_before_a_third_of_the_run_nor_without_references():
    rng = np.random.default_rng(2)
    curves, final = _cell(rng, 6)
    references = [Reference(c, float(f)) for c, f in zip(curves, final, strict=True)]
    awful = [(p, loss + 1.0) for p, loss in curves[0]]
    assert watch(_upto(awful, 0.28), references, 3.1).kind == "ok"
    assert watch(_upto(awful, 0.6), references[:3], 3.1).kind == "ok"
    assert watch(_upto(awful, 0.6), references, 3.1).kind == "hopeless"


def test_prediction_covers_the_final_loss():
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(400):
        curves, final = _cell(rng, 7)
        references = [Reference(c, float(f)) for c, f in zip(curves[:6], final[:6], strict=True)]
        p = predict(curves[6][:20], 0.4, references, WatchConfig(catch_up_sd=0.06))
        assert p is not None
        inside.append(0.05 < p.below(float(final[6])) < 0.95)
    assert 0.84 < np.mean(inside) <= 0.98


def _running(losses, messages=(1.0, 2.0, 3.0)) -> Running:
    return Running([(0.01 * (i + 1), x) for i, x in enumerate(losses)], 0.0, 10.0, messages)


@pytest.mark.parametrize(
    ("running", "now_s", "kind"),
    [
        (_running([5.5, 5.0, float("nan")]), 3.1, "nan"),
        (_running([5.5, 4.0, 3.0, 4.6, 4.7, 4.8]), 3.1, "diverged"),
        (_running([5.5, 4.0, 3.0, 4.8, 3.0, 2.9]), 3.1, "ok"),  # one spike
        (_running([5.5, 5.6, 5.5, 5.6]), 3.1, "ok"),
        (_running([5.5, 5.0, 4.5]), 22.0, "ok"),
        (_running([5.5, 5.0, 4.5]), 24.0, "stalled"),
        (_running([], ()), 100.0, "ok"),
        (_running([], ()), 130.0, "stalled"),
        (_running([5.5, 5.0, 4.5], (1.0, 80.0, 159.0)), 161.0, "timeout"),
    ],
)
def test_verdicts(running, now_s, kind):
    verdict = watch(running, [], now_s)
    assert verdict.kind == kind
    assert bool(verdict.reason) == (kind != "ok")


def test_audit_takes_its_fraction_and_depends_on_the_key_alone():
    keys = [f"{i:016x}-0.5-0" for i in range(4000)]
    chosen = [is_audited(k, 0.1) for k in keys]
    assert chosen == [is_audited(k, 0.1) for k in keys]
    assert 0.08 < np.mean(chosen) < 0.12
    assert not any(is_audited(k, 0.0) for k in keys[:50]) and all(is_audited(k, 1.0) for k in keys[:50])


def test_a_slow_compile_is_waited_for_where_it_is_known_to_be_slow():
    compiling = Running((), 0.0, 10.0, (), first_message_s=1800.0)
    assert watch(compiling, [], 200.0).kind == "ok"
    assert watch(compiling, [], 1801.0).kind == "stalled"
    assert watch(Running((), 0.0, 10.0), [], 130.0).kind == "stalled"


@pytest.mark.parametrize(("begins", "kind"), [((), "stalled"), ((0.5,), "stalled"), ((0.034,), "ok"), ((0.026,), "ok")])
def test_a_phase_that_begins_is_waited_for_as_it_compiles(begins, kind):
    running = _running([5.5, 5.0, 4.5])
    assert watch(running, [], 24.0).kind == "stalled"
    phased = Running(running.curve, 0.0, 10.0, running.messages_s, 60.0, begins)
    assert watch(phased, [], 24.0).kind == kind
    assert watch(phased, [], 64.0).kind == "stalled"


def test_a_phase_may_begin_worse_than_the_one_before_ended_but_not_get_worse():
    losses = [5.5, 4.0, 3.0, 4.6, 4.7, 4.8]
    assert watch(_running(losses), [], 3.1).kind == "diverged"
    for more, begin, kind in (([], 0.03, "ok"), ([5.6, 5.7, 5.8], 0.03, "diverged"), ([], 0.9, "diverged")):
        running = _running(losses + more)
        assert watch(Running(running.curve, 0.0, 10.0, running.messages_s, begins=(begin,)), [], 3.1).kind == kind
