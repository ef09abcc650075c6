"""A fixed list of trials, run to the end without a ledger: for comparing, qualifying and replaying."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from rich.progress import Progress

from jaxnano.cli import Failure
from jaxnano.config.base import dump
from jaxnano.config.recipe import Recipe, recipe_id
from jaxnano.device import stay_at
from research.contract.track import Track
from research.contract.trial import Trial
from research.execute import Job, executors
from research.execute.trial import TARGET, WARM
from research.ledger.events import node_of
from research.ledger.kinds import Result

HERE = argparse.Namespace(executor="local", devices_per_trial=None, platform=None)


def job(recipe: Recipe, horizon: float, seed: int, steps: int, splits: Mapping[str, int], data_hash: str,
        seconds: float | None = None) -> Job:
    """A trial as a job; its folder is filled in by `run_batch`. seconds: of training, to decide the steps instead."""
    args = {"recipe": dump(recipe), "total_steps": steps, "seed": seed, "splits": dict(splits), "data_hash": data_hash,
            "checkpoint": None, "seconds": seconds}
    return Job(id=Trial(recipe_id(recipe), horizon, seed).key, attempt=1, dir="", target=TARGET, args=args)


def run_batch(jobs: Iterable[Job], workers: int | None = None, title: str = "trials",
              options: argparse.Namespace = HERE, devices: int = 1) -> dict[str, Result]:
    """Run all jobs, one at a time on each worker.

    Args: options, devices: see `executors.offer`.
    Returns: results by trial key. A worker that dies costs its job a second try, then the run.
    Raises: Failure naming the first trial that did not complete.
    """
    stay_at({"JAX_PLATFORMS": "cpu"})  # the devices are the workers'
    waiting: list[Job] = list({j["id"]: j for j in jobs}.values())
    total = len(waiting)
    results: dict[str, Result] = {}
    running: dict[int, Job] = {}
    offered = executors.offer(options, workers, devices)
    if offered.workers > total > 0:
        offered = executors.offer(options, total, devices)
    with (tempfile.TemporaryDirectory() as folder, closing(offered.start(Path(folder) / "workers", WARM)) as executor,
          Progress(transient=True) as bar):
        task = bar.add_task(title, total=total)
        while len(results) < total:
            for worker in range(executor.workers):
                if worker not in running and waiting:
                    running[worker] = Job(**{**waiting.pop(0), "dir": f"{folder}/{worker}"})
                    executor.submit(worker, running[worker])
            for message in executor.poll(1.0):
                if message.kind == "result" and message.id:
                    found = results[message.id] = node_of("result", message.body)
                    if found.outcome not in ("completed", "diverged"):
                        raise Failure(f"{message.id}: {found.outcome}: {found.reason}")
                    del running[message.worker]
                    bar.advance(task)
                elif message.kind == "died" and message.id:
                    again = running.pop(message.worker)
                    if again["attempt"] > 1:
                        raise Failure(f"{message.id}: {message.body['reason']}")
                    waiting.insert(0, Job(**{**again, "attempt": again["attempt"] + 1}))
    return results


def full_runs(track: Track, recipes: Iterable[Recipe], seeds: Iterable[int], data_hash: str,
              workers: int | None = None) -> list[Job]:
    """Jobs of a track's full horizon, seed by seed, with the budget that the loop gives them: FLOPs, steps or time.

    Where the base's steps set everybody's time, a short run of it is made first, and the base itself keeps its steps.
    """
    splits, base, seconds = {track.splits.search: track.eval_tokens}, track.base_recipe, track.seconds(1.0, None)
    if by_base := track.objective.waits_for_base:
        horizon = min(track.horizons)
        timed = job(base, horizon, 0, track.steps(base, horizon), splits, data_hash)
        result = run_batch([timed], 1, "the base's step", devices=track.devices)[timed["id"]]
        seconds = track.seconds(1.0, base.data.batch * base.data.length / (result.tokens_per_s or math.inf))
    kinds = list(recipes)
    return [job(recipe, 1.0, seed, track.steps(recipe, 1.0), splits, data_hash,
                None if by_base and recipe == base else seconds) for seed in seeds for recipe in kinds]


def losses(results: Mapping[str, Result], recipe: Recipe, horizon: float, seeds: Sequence[int],
           split: str) -> dict[int, float]:
    """Loss by seed of one recipe's completed trials."""
    keys = {seed: Trial(recipe_id(recipe), horizon, seed).key for seed in seeds}
    found = {seed: results[key].loss.get(split) for seed, key in keys.items() if results[key].outcome == "completed"}
    return {seed: loss for seed, loss in found.items() if loss is not None}


def all_losses(results: Mapping[str, Result], recipe: Recipe, horizon: float, seeds: Sequence[int], split: str,
               name: str) -> dict[int, float]:
    """Loss by seed of one recipe, called `name`, whose trials must all have completed.

    Raises: Failure that names the seeds on which it diverged: the mean over the others would flatter it.
    """
    found = losses(results, recipe, horizon, seeds, split)
    if missing := [str(seed) for seed in seeds if seed not in found]:
        raise Failure(f"{name}: diverged on seed {', '.join(missing)} of {len(seeds)} seeds; the mean over the others "
                      "would flatter it, so there is nothing to compare")
    return found
