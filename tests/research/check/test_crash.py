"""A real session on the smallest track, its loop and a worker killed; `research.check.crashtest` kills twenty times."""

import pytest

from research.check.crashtest import Victim, crashes
from research.ledger.events import Ledger
from research.ledger.session import write_result


def test_nothing_is_lost_or_counted_twice_whenever_loop_or_worker_is_killed(tmp_path):
    victims = crashes(tmp_path, kills=2, seed=5, track="tests/research/micro.yaml")
    assert [victim.faults for victim in victims] == [[]] * len(victims)
    assert sum(victim.kills for victim in victims) == 2 and all("completed" in victim.summary for victim in victims)


@pytest.mark.parametrize("fault", [None, "lost", "twice", "open", "on disk only", "changed"])
def test_the_check_finds_what_is_wrong(tmp_path, fault):
    folder = tmp_path / "session"
    (folder / "trials" / "a-1-0").mkdir(parents=True)
    body = {"attempt": 1, "outcome": "completed", "loss": {"search": 2.0}}
    attempt = {"attempt": 1, "worker": 0, "recipe_id": "a", "horizon": 1.0, "seed": 0, "purpose": "search"}
    story = [("session", "", {"track": "t", "data_hash": "", "seed": 0, "workers": 1}),
             ("decision", "a-1-0", {"purpose": "search"}), ("attempt", "a-1-0", attempt), ("result", "a-1-0", body)]
    if fault in ("open", "on disk only"):
        story.pop()
    if fault == "twice":
        story += [("attempt", "a-1-0", attempt | {"attempt": 2}), ("result", "a-1-0", body | {"attempt": 2})]
    with Ledger(folder / "ledger.sqlite", create=True) as ledger:
        ledger.acquire()
        for event in (*story, ("end", "", {"reason": "finished"})):
            ledger.append(*event)
    if fault != "open":
        write_result(folder / "trials" / "a-1-0", 1, body)
    with open(tmp_path / "log", "wb") as output:
        victim = Victim(folder, "t", 1, 0, output)
        victim.remember()
    if fault == "lost":
        victim.completed["b-1-0", 1] = body
    if fault == "changed":
        victim.completed["a-1-0", 1] = body | {"loss": {"search": 1.0}}
    victim.check()
    words = {None: "", "lost": "gone", "twice": "2 completed results", "open": "has no result",
             "on disk only": "completed on disk", "changed": "changed"}[fault]
    assert any(words in line for line in victim.faults) if fault else victim.faults == []
