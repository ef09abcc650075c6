"""An executor that runs nothing: every job ends at the next poll, as `outcomes` says. For tests of the scheduler."""

import hashlib
import math
from functools import cache
from pathlib import Path

from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe, recipe_id
from research.contract.track import load_track
from research.execute import Message
from research.ledger.session import write_result

MICRO = "tests/research/micro.yaml"


@cache
def base_id():
    """Id of the base of track micro."""
    return recipe_id(load_track(MICRO).base_recipe)


def draw(text):
    """A number in [0, 1) that goes with the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32


def loss_of(recipe, seed):
    """A made-up loss: each recipe has an effect of its own, up to 0.3 nats; seeds shift all alike, but for noise."""
    name = recipe_id(recipe)
    gain = 0.0 if name == base_id() else 0.4 * draw(name) - 0.1
    return 5.3 - gain + 0.03 * math.sin(seed) + 0.004 * draw(f"{name} {seed}")


def completed(job):
    """The result of a run that ends as it should."""
    args = job["args"]
    loss = loss_of(validate(Recipe, args["recipe"]), args["seed"])
    return {"outcome": "completed", "reason": "", "loss": dict.fromkeys(args["splits"], loss),
            "steps": args["total_steps"], "curve": [[0.5, loss + 0.5], [1.0, loss]], "device_s": 1.0, "wall_s": 1.0,
            "compile_s": 0.0, "tokens_per_s": 1e5, "fingerprint": {}}


class StandIn:
    """outcomes: job -> result, or None for a worker that dies. jobs: all that were submitted."""

    def __init__(self, workers=2, outcomes=completed):
        self.workers, self.outcomes = workers, outcomes
        self.jobs, self._open = [], {}

    def present(self, worker):
        return True

    def where(self, worker):
        return f"worker {worker} (core {worker})"

    def submit(self, worker, job):
        assert worker not in self._open
        self.jobs.append(job)
        self._open[worker] = job

    def poll(self, timeout_s):
        jobs, self._open = self._open, {}
        return [self._end(worker, job) for worker, job in jobs.items()]

    def _end(self, worker, job):
        result = self.outcomes(job)
        about = (worker, job["id"], job["attempt"])
        if result is None:
            return Message("died", *about, {"exit": -9, "reason": "the process ended by signal 9"})
        return Message("result", *about, write_result(Path(job["dir"]), job["attempt"], result))

    def cancel(self, worker, reason):
        pass

    def kill(self, worker):
        job = self._open.pop(worker)
        self._open[worker] = job

    def pid(self, worker):
        return 1000 + worker

    def close(self):
        pass
