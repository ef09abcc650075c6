"""A table whose runs are made up, as `bench record` makes it."""

from stand_in import MICRO, StandIn, completed

from research.check.bench import record, table
from research.contract.track import load_track

PLAN = {"recipes": 20, "seeds": 2, "seed": 5, "round": 6, "lanes": ["tuner", "recombine", "simplify"]}


class Killed(Exception):
    """The loop dies."""


class Mortal(StandIn):
    """Dies after so many polls; runs with a rate far off diverge."""

    def __init__(self, polls=10**6):
        super().__init__(outcomes=self._outcome)
        self.polls = polls

    def poll(self, timeout_s):
        self.polls -= 1
        if not self.polls:
            raise Killed
        return super().poll(timeout_s)

    def _outcome(self, job):
        if "far " in job["about"]["name"]:
            return {"outcome": "diverged", "reason": "loss is nan", "curve": [[0.5, 9.0]], "device_s": 0.5, "steps": 5}
        return completed(job)


def recorded(session, executor):
    """The table that a recorder makes of a session."""
    record.Recorder(session, load_track(MICRO), executor, PLAN).run()
    return table.table_of(session)
