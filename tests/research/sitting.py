"""Sessions of track micro that an outsider can open, and loops over them whose runs are made up."""

import threading
from contextlib import contextmanager
from unittest import mock

from stand_in import MICRO, StandIn, completed

from jaxnano.config.base import dump_full
from research.contract.part import IdeaEdit
from research.contract.track import load_track
from research.decide.scheduler import Scheduler
from research.lanes import lanes, lanes_of
from research.ledger.kinds import Crowned
from research.ledger.session import Session
from research.outside.inbox import Ask

LR = "optimizer.groups.all.lr.value"
SECRET = 0.7310585  # what the protected split's losses are off by here: no number of the search's


def made_up(job):
    """As `completed`, with losses of the protected split that are numbers of their own."""
    found = completed(job)
    if "protected" in found["loss"]:
        found["loss"]["protected"] = found["loss"]["search"] * SECRET
    return found


class Paced(StandIn):
    """Runs take a moment, as runs do, until `hurry`."""

    def __init__(self, outcomes=made_up):
        super().__init__(outcomes=outcomes)
        self.hurry = threading.Event()

    def poll(self, timeout_s):
        self.hurry.wait(0.1)
        return super().poll(timeout_s)


def created(folder, **body):
    """A new session, locked, its first event written."""
    track, session = load_track(MICRO), Session.create(folder)
    session.ledger.append("session", "", {
        "track": "micro", "source": MICRO, "contract": dump_full(track), "track_hash": track.identity,
        "data_hash": "d" * 64, "seed": 3, "workers": 2, "minutes": 10.0, "lanes": ["tuner"], "versions": {},
        "argv": []} | body)
    return session


def _crown(session, track, arm, key):
    """No checkpoint is made up, so none is installed."""
    return Crowned(trial=key, name=arm.name, seed=int(key.split("-")[-1]), heldout=3.14159265)


def loop(session, executor=None, *, max_trials=6, budget_s=600.0, names=("tuner", "recombine")):
    """A scheduler over the session."""
    return Scheduler(session, load_track(MICRO), executor or StandIn(outcomes=made_up), lanes_of(names, lanes()),
                     budget_s=budget_s, max_trials=max_trials)


def drive(session, executor=None, **options):
    """A scheduler that has run to its end and said so."""
    found = loop(session, executor, **options)
    with mock.patch("research.decide.prove.crown", _crown):
        found.record("end", "", {"reason": found.run()})
    return found


def run_out(session, track, executor=None, max_trials=5, registry=None):
    """A scheduler that has run to its end, and why it ended."""
    found = Scheduler(session, track, executor or StandIn(), lanes_of(["tuner", "recombine"], lanes()), budget_s=600.0,
                      max_trials=max_trials, registry=registry)
    reason = found.run()
    found.record("end", "", {"reason": reason})
    return found, reason


def ask(value, **more):
    """A proposal of another learning rate."""
    return Ask(**{"name": f"rate {value}", "why": "to see", "edits": (IdeaEdit(path=LR, new=value),), "on": "base"}
               | more)


@contextmanager
def looping(folder, **body):
    """A session whose loop runs in a thread until the block ends; yields its folder."""
    executor, begun, failed = Paced(), threading.Event(), []

    def run():
        with created(folder, **body) as session:
            found = loop(session, executor, max_trials=None)
            found.on_change = lambda scheduler: begun.set()
            ended.append(found)
            try:
                with mock.patch("research.decide.prove.crown", _crown):
                    found.record("end", "", {"reason": found.run()})
            except BaseException as error:
                failed.append(error)
                raise

    ended: list[Scheduler] = []
    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert begun.wait(30)
        yield folder
    finally:
        executor.hurry.set()
        for found in ended:
            found.stop()
        thread.join()
    assert not failed
