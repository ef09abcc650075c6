import pytest

from research.learn.watch import Running, watch


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
    verdict = watch(running, now_s)
    assert verdict.kind == kind
    assert bool(verdict.reason) == (kind != "ok")


def test_a_slow_compile_is_waited_for_where_it_is_known_to_be_slow():
    compiling = Running((), 0.0, 10.0, (), first_message_s=1800.0)
    assert watch(compiling, 200.0).kind == "ok"
    assert watch(compiling, 1801.0).kind == "stalled"
    assert watch(Running((), 0.0, 10.0), 130.0).kind == "stalled"


@pytest.mark.parametrize(("begins", "kind"), [((), "stalled"), ((0.5,), "stalled"), ((0.034,), "ok"), ((0.026,), "ok")])
def test_a_phase_that_begins_is_waited_for_as_it_compiles(begins, kind):
    running = _running([5.5, 5.0, 4.5])
    assert watch(running, 24.0).kind == "stalled"
    phased = Running(running.curve, 0.0, 10.0, running.messages_s, 60.0, begins)
    assert watch(phased, 24.0).kind == kind
    assert watch(phased, 64.0).kind == "stalled"


def test_a_phase_may_begin_worse_than_the_one_before_ended_but_not_get_worse():
    losses = [5.5, 4.0, 3.0, 4.6, 4.7, 4.8]
    assert watch(_running(losses), 3.1).kind == "diverged"
    for more, begin, kind in (([], 0.03, "ok"), ([5.6, 5.7, 5.8], 0.03, "diverged"), ([], 0.9, "diverged")):
        running = _running(losses + more)
        assert watch(Running(running.curve, 0.0, 10.0, running.messages_s, begins=(begin,)), 3.1).kind == kind
