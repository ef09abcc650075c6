"""A trial: one recipe trained for one horizon on one seed. What the workers run."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnano import data, evaluate, step
from jaxnano.checkpoint import Checkpoints
from jaxnano.cli import UserError
from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe, hypers
from jaxnano.cost import least_accumulate
from jaxnano.device import device_bytes, use_compile_cache
from research.execute import Cancelled, Report
from research.machine import fingerprint

TARGET = "research.execute.trial:run_job"
MEMORY_SHARE = 0.9  # of a device's memory, which a step may fill by the estimate
TIMED_SHARE = 0.01  # of the training time, for each of two timings of a step
WARM = ("research.execute.trial",)  # what a worker imports before its first job


def run_job(args: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Train and evaluate.

    Args: args: recipe (plain data), total_steps, seed, splits {name: tokens}, data_hash, checkpoint (a folder, or
    None), and seconds (None, or the training time that decides the steps instead of total_steps). report: takes
    {progress, loss, tokens_per_s} after every few steps.
    Returns: the body of a `result` event. A loss that is not finite is outcome `diverged`, with no number.
    Raises: ValueError if this machine's data is not the session's.
    """
    use_compile_cache()
    recipe, steps, seed = validate(Recipe, args["recipe"]), args["total_steps"], args["seed"]
    corpus = data.load(recipe.data)
    if corpus.data_hash != args["data_hash"]:
        raise UserError(f"data {corpus.data_hash[:12]} is not the session's {args['data_hash'][:12]}")
    batches = data.train_batches(corpus, recipe.data.batch, recipe.data.length, step.seeds(seed)[1],
                                 step.STEPS_PER_CALL, recipe.data.aligned)
    tokens = recipe.data.batch * recipe.data.length
    curve: list[tuple[float, float]] = []
    result: dict[str, Any] = {"outcome": "completed", "reason": "", "steps": steps, "loss": {}, "curve": curve}
    clock = time.process_time if jax.default_backend() == "cpu" else time.monotonic
    start, marks, accumulate = clock(), [], pieces(recipe)
    if args.get("seconds"):
        first = batches.get_state()
        steps = result["steps"] = steps_within(recipe, args["seconds"], accumulate, next(batches), clock)
        batches.set_state(first)
    for progress in step.run(recipe, steps, seed, batches, accumulate=accumulate):
        loss, state = float(progress.losses.mean()), progress.state
        if not math.isfinite(loss):
            result |= {"outcome": "diverged", "reason": f"loss is {loss} at step {progress.step} of {steps}"}
            break
        curve.append((progress.step / steps, loss))
        marks.append((progress.step, clock()))
        try:
            report({"step": progress.step, "progress": progress.step / steps, "loss": loss,
                    "tokens_per_s": tokens / _step_seconds(marks)})
        except Cancelled as reason:  # what it has cost is still to be known
            result |= {"outcome": "killed", "reason": str(reason), "steps": progress.step}
            break
    trained_s, step_s = clock() - start, _step_seconds(marks)
    if result["outcome"] == "completed":
        result |= _evaluated(recipe, state, steps, corpus, args["splits"])
    if result["outcome"] == "completed" and args.get("checkpoint"):
        shutil.rmtree(args["checkpoint"], ignore_errors=True)  # left by an attempt that was interrupted
        with _writing(), closing(Checkpoints(Path(args["checkpoint"]), recipe, seed, steps, corpus.data_hash)) as made:
            made.save(state, batches.get_state(), next(iter(result["loss"].values())))
    backend, device = jax.default_backend(), jax.local_devices()[0].device_kind
    done = marks[-1][0] if marks else 0
    return result | {
        "device_s": clock() - start,
        "compile_s": max(0.0, trained_s - step_s * done),
        "tokens_per_s": tokens / step_s,
        "fingerprint": fingerprint(backend, None if backend == "cpu" else device) | {"data": corpus.data_hash},
    }


@contextmanager
def _writing() -> Iterator[None]:
    """Raises: OSError if a checkpoint cannot be written: of a full disk, Orbax and TensorStore say what they like."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise OSError(f"the checkpoint cannot be written ({type(error).__name__}: {said})") from error


def pieces(recipe: Recipe) -> int:
    """Pieces the batch is taken in, so that a step fits into this device's memory.

    Raises: ValueError if not even one row does.
    """
    room, platform = int(MEMORY_SHARE * device_bytes()), jax.default_backend()
    found = least_accumulate(recipe, room, platform)
    if found is None:
        raise UserError(f"data.batch: a step of one row does not fit into {room / 2**30:.1f} GiB of {platform} memory")
    return found


def steps_within(recipe: Recipe, seconds: float, accumulate: int, batch_SxBxM: np.ndarray,
                 clock: Callable[[], float]) -> int:
    """How many steps fit into so many seconds of training here, compiling not counted: a few are timed and forgotten.

    Args: batch_SxBxM: tokens to time them on. clock: seconds.
    """
    compiled, values = step.program(recipe, None, accumulate), hypers(recipe, 1)
    state = compiled.init(np.uint32(0), values)

    def timed(count: int) -> float:
        nonlocal state
        start = clock()
        state, losses = compiled.steps(state, batch_SxBxM, np.int32(count), values)
        losses.block_until_ready()
        return (clock() - start) / count

    timed(1)  # compiles
    count = min(max(1, round(TIMED_SHARE * seconds / timed(1))), step.STEPS_PER_CALL)
    return max(1, int(seconds / min(timed(count), timed(count))))


def _evaluated(recipe: Recipe, state: Any, steps: int, corpus: data.Corpus, splits: Mapping[str, int]):
    """Outcome and losses by split of a trained state."""
    params = step.program(recipe).params(state, hypers(recipe, steps))
    losses = {split: evaluate.evaluate(recipe, params, evaluate.eval_windows(corpus, split, recipe, tokens))
              for split, tokens in splits.items()}
    if all(map(math.isfinite, losses.values())):
        return {"outcome": "completed", "loss": losses}
    return {"outcome": "diverged", "reason": "the evaluated loss is not finite", "loss": {}}


def _step_seconds(marks: list[tuple[int, float]]) -> float:
    """Device-seconds of a step once it is compiled; marks: (step, clock) after calls, of which the first compiles."""
    (first, begin), (last, end) = (marks[0], marks[-1]) if marks else ((0, 0.0), (0, 0.0))
    return (end - begin) / (last - first) if last > first and end > begin else math.inf
