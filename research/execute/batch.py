"""A fixed list of trials, run to the end without a ledger: for comparing, qualifying and replaying."""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from rich.progress import Progress

from jaxnano import data
from jaxnano.cli import Failure
from jaxnano.config.base import dump
from jaxnano.config.recipe import Recipe, recipe_id
from jaxnano.device import stay_at
from research.contract.track import Track
from research.contract.trial import Trial
from research.execute import Executor, Job, executors
from research.execute.trial import TARGET, WARM
from research.ledger.events import node_of
from research.ledger.kinds import Result
from research.text import clean

HERE = argparse.Namespace(executor="local", devices_per_trial=None, platform=None)
FEW_STEPS, FEW_STEPS_S = 3, 1800.0  # of a recipe on every place at first; for all of them, starting and compiling too


def job(recipe: Recipe, horizon: float, seed: int, steps: int, splits: Mapping[str, int], data_hash: str,
        seconds: float | None = None, mesh: str | None = None) -> Job:
    """A trial as a job; its folder is filled in by `run_batch`.

    Args: seconds: of training, to decide the steps instead. mesh: its axes, None for those that `layout` chooses.
    """
    args = {"recipe": dump(recipe), "total_steps": steps, "seed": seed, "splits": dict(splits), "data_hash": data_hash,
            "checkpoint": None, "seconds": seconds, "mesh": mesh}
    return Job(id=Trial(recipe_id(recipe), horizon, seed).key, attempt=1, dir="", target=TARGET, args=args)


def run_batch(jobs: Iterable[Job], workers: int | None = None, title: str = "trials",
              options: argparse.Namespace = HERE, track: Track | None = None, first: Job | None = None
              ) -> dict[str, Result]:
    """Run all jobs, one at a time on each worker.

    Args: options: see `executors.offer`. track: whose devices and mesh the runs have. first: what each worker there is
    has to do before the jobs; without it no more are started than there are jobs.
    Returns: results by trial key. A worker that dies costs its job a second try, then the run.
    Raises: Failure naming the workers that fail at `first`, or the first trial that did not complete; UserError for a
    track whose runs cannot have the devices.
    """
    stay_at({"JAX_PLATFORMS": "cpu"})  # the devices are the workers'
    waiting: list[Job] = list({j["id"]: j for j in jobs}.values())
    total = len(waiting)
    results: dict[str, Result] = {}
    running: dict[int, Job] = {}
    devices = 1 if track is None else track.devices
    offered = executors.offer(options, workers, devices)
    if track is not None:
        track.admit(offered.place.devices)
    if offered.workers > total > 0 and first is None:
        offered = executors.offer(options, total, devices)
    with (tempfile.TemporaryDirectory() as folder, closing(offered.start(Path(folder) / "workers", WARM)) as executor,
          Progress(transient=True) as bar):
        if first is not None:
            _try(executor, first, folder)
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


def few_steps(track: Track, data_hash: str) -> Job:
    """A job that trains the base for a few steps: whether a place works at all."""
    return job(track.base_recipe, min(track.horizons), 0, FEW_STEPS, {}, data_hash, mesh=track.mesh)


def _try(executor: Executor, first: Job, folder: str) -> None:
    """Have all workers do a job at once: devices that work one by one may not do so together.

    Raises: Failure naming each that fails, dies, or has not ended in time.
    """
    silent, failed = set(range(executor.workers)), dict[int, str]()
    for worker in silent:
        executor.submit(worker, Job(**{**first, "dir": f"{folder}/{worker}"}))
    end_s = time.monotonic() + FEW_STEPS_S
    while silent and time.monotonic() < end_s:
        for message in executor.poll(1.0):
            if message.kind in ("result", "died") and message.id and message.worker in silent:
                silent.remove(message.worker)
                if message.body.get("outcome") not in ("completed", "diverged"):
                    failed[message.worker] = message.body["reason"]
    failed |= dict.fromkeys(silent, f"silent for {FEW_STEPS_S:.0f} s")
    if failed:
        named = "; ".join(f"{executor.where(worker)}: {clean(failed[worker])}" for worker in sorted(failed))
        raise Failure(f"{len(failed)} of {executor.workers} places do not train: {named}")


def full_runs(track: Track, recipes: Iterable[Recipe], seeds: Iterable[int], data_hash: str,
              workers: int | None = None, options: argparse.Namespace = HERE) -> list[Job]:
    """Jobs of a track's full horizon, seed by seed, with the budget that the loop gives them: FLOPs, steps or time.

    Where the base's steps set everybody's time, a short run of it is made first, and the base itself keeps its steps.
    """
    splits, base, seconds = {track.splits.search: track.eval_tokens}, track.base_recipe, track.seconds(1.0, None)
    if by_base := track.objective.waits_for_base:
        horizon = min(track.horizons)
        timed = job(base, horizon, 0, track.steps(base, horizon), splits, data_hash, mesh=track.mesh)
        result = run_batch([timed], 1, "the base's step", options, track)[timed["id"]]
        seconds = track.seconds(1.0, base.data.batch * base.data.length / (result.tokens_per_s or math.inf))
    kinds = list(recipes)
    return [job(recipe, 1.0, seed, track.steps(recipe, 1.0), splits, data_hash,
                None if by_base and recipe == base else seconds, track.mesh) for seed in seeds for recipe in kinds]


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


def paired(track: Track, recipes: Sequence[tuple[str, Recipe]], seeds: Sequence[int], workers: int | None,
           title: str, options: argparse.Namespace = HERE) -> list[dict[int, float]]:
    """Train recipes of one text, by name, in full on the same seeds. Returns: of each, its search losses by seed.

    Raises: as `run_batch` and `all_losses`.
    """
    data_hash = data.load(recipes[0][1].data).data_hash
    jobs = full_runs(track, [recipe for _, recipe in recipes], seeds, data_hash, workers, options)
    results = run_batch(jobs, workers, title, options, track)
    return [all_losses(results, recipe, 1.0, seeds, track.splits.search, name) for name, recipe in recipes]
