"""A trial: one recipe trained for one horizon on one seed, on a mesh over all devices of its process or processes."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxnano import data, evaluate, hosts, phases, sharding, step
from jaxnano.checkpoint import Checkpoints
from jaxnano.cli import UserError
from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe, hypers, shares_of, stages
from jaxnano.cost import Cost, preflight, stage_costs
from jaxnano.device import device_bytes, use_compile_cache
from jaxnano.layout import MEMORY_SHARE, Layout, layout
from research.execute import Cancelled, Report
from research.machine import fingerprint

TARGET = "research.execute.trial:run_job"
TIMED_SHARE = 0.01  # of the training time, for each of two timings of a step
NEVER = 1000  # steps from one move of a group to the next, of which no timing sees the first
WARM = ("research.execute.trial",)  # what a worker imports before its first job


def run_job(args: Mapping[str, Any], report: Report, devices: Sequence[Any] | None = None) -> dict[str, Any]:
    """Train and evaluate.

    Args: args: recipe (plain data), total_steps, seed, splits {name: tokens}, data_hash (or None), checkpoint (a
    folder, or None), seconds (None, or the training time that decides the steps instead of total_steps), mesh (its
    axes, or None) and place (None, or the device's model, devices and processes that it has to be run on). report:
    takes {progress, loss, tokens_per_s} after every few steps. devices: to train on, all there are by default.
    Returns: the body of a `result` event. A loss that is not finite is outcome `diverged`, with no number.
    Raises: ValueError if this machine's data is not the session's, or the recipe cannot be laid over the devices;
    OSError if they are others than the session's: that says nothing of the recipe.
    """
    use_compile_cache()
    recipe, steps, seed = validate(Recipe, args["recipe"]), args["total_steps"], args["seed"]
    corpus = corpus_of(recipe, args["data_hash"])
    clock = time.process_time if jax.default_backend() == "cpu" else time.monotonic
    start, devices = clock(), devices or jax.devices()
    here = {"device": devices[0].device_kind, "devices": len(devices), "processes": jax.process_count()}
    if args.get("place") not in (None, here):
        raise OSError(f"this place, {here}, is not that of the session's results, {args['place']}")
    laid = layout(recipe, len(devices), room(devices), jax.default_backend(), args.get("mesh"))
    mesh = mesh_of(laid, devices)
    if args.get("seconds"):
        steps = hosts.agreed(steps_within(recipe, args["seconds"], laid.accumulate, corpus, clock, mesh))
    curve: list[tuple[float, float]] = []
    result: dict[str, Any] = {"outcome": "completed", "reason": "", "steps": steps, "loss": {}, "curve": curve}
    batches, pace = step.batches_of(recipe, steps, seed, corpus), Pace(recipe, steps)
    for progress in step.run(recipe, steps, seed, batches, mesh=mesh, accumulate=laid.accumulate):
        loss, state = float(progress.losses.mean()), progress.state
        if not math.isfinite(loss):
            result |= {"outcome": "diverged", "reason": f"loss is {loss} at step {progress.step} of {steps}"}
            break
        curve.append((progress.step / steps, loss))
        pace.mark(progress.step, clock())
        try:
            report({"step": progress.step, "progress": progress.step / steps, "loss": loss,
                    "tokens_per_s": pace.tokens_per_s})
        except Cancelled as reason:  # what it has cost is still to be known
            result |= {"outcome": "killed", "reason": str(reason), "steps": progress.step}
            break
    trained_s = clock() - start
    if result["outcome"] == "completed":
        params = step.program(last := stages(recipe)[-1].recipe, mesh, laid.accumulate[-1]).params
        result |= _evaluated(recipe, params(state, hypers(last, steps)), corpus, args["splits"])
    if result["outcome"] == "completed" and args.get("checkpoint"):
        shutil.rmtree(args["checkpoint"], ignore_errors=True)  # left by an attempt that was interrupted
        folder, state = Path(args["checkpoint"]), hosts.gathered(state)  # of a gang, each process writes all of it
        about, apart = (recipe, seed, steps, corpus.data_hash), jax.process_count() > 1
        with _writing(), closing(Checkpoints(folder, *about, apart=apart)) as made:
            made.save(state, batches.get_state(), next(iter(result["loss"].values())))
    backend = jax.default_backend()
    return result | {
        "device_s": clock() - start,
        "compile_s": max(0.0, trained_s - pace.steady_s),
        "tokens_per_s": pace.tokens_per_s,
        "topology": here | {"mesh": laid.told, "accumulate": laid.accumulate},
        "fingerprint": fingerprint(backend, None if backend == "cpu" else here["device"]) | {"data": corpus.data_hash},
    }


def corpus_of(recipe: Recipe, data_hash: str | None) -> data.Corpus:
    """The recipe's data on this machine. Raises: ValueError if it is not the session's, where that is said."""
    corpus = data.load(recipe.data)
    if data_hash is not None and corpus.data_hash != data_hash:
        raise UserError(f"data {corpus.data_hash[:12]} is not the session's {data_hash[:12]}")
    return corpus


def losses_of(recipe: Recipe, params: Any, corpus: data.Corpus, splits: Mapping[str, int]) -> dict[str, float]:
    """Losses of parameters, by split. splits: tokens of each."""
    return {split: evaluate.evaluate(recipe, params, evaluate.eval_windows(corpus, split, recipe, tokens))
            for split, tokens in splits.items()}


@contextmanager
def _writing() -> Iterator[None]:
    """Raises: OSError if a checkpoint cannot be written: of a full disk, Orbax and TensorStore say what they like."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise OSError(f"the checkpoint cannot be written ({type(error).__name__}: {said})") from error


def room(devices: Sequence[Any]) -> int:
    """Bytes that a step may fill of each device, the same for all processes; those of a CPU share its memory."""
    here = sum(device.process_index == jax.process_index() for device in devices)
    share = MEMORY_SHARE * device_bytes() / (here if devices[0].platform == "cpu" else 1)
    return hosts.agreed(int(share) >> 20) << 20


def mesh_of(laid: Layout, devices: Sequence[Any]) -> Mesh | None:
    """The mesh over the devices; one of them needs none."""
    return sharding.make_mesh(**laid.axes, devices=devices) if len(devices) > 1 else None


def steps_within(recipe: Recipe, seconds: float, accumulate: Sequence[int], corpus: data.Corpus,
                 clock: Callable[[], float], mesh: Mesh | None = None) -> int:
    """How many steps fit into so many seconds of training here, compiling not counted: a few are timed and forgotten.

    Args: accumulate: pieces of each stage's batch. clock: seconds. mesh: to train on.
    """
    step_s = 0.0
    for (share, part), cost, k in zip(shares_of(recipe), stage_costs(recipe), accumulate, strict=True):
        timed = [_timed_step(one, share * seconds, k, corpus, clock, mesh) for one in paces(part)]
        step_s += share * (timed[0] + moving(part, cost) * (timed[-1] - timed[0]))
    return max(1, int(seconds / step_s))


def paces(recipe: Recipe) -> list[Recipe]:
    """A recipe as it trains where its groups with clocks all rest, and where none does: few steps tell neither.

    In the few that are timed a group of every third step, or one that rests then, might never move.
    """
    def paced(every: int) -> Recipe:
        groups = tuple(group if group.every == 1 and not group.frozen else group.model_copy(
            update={"every": every, "frozen": (), "accumulate": False}) for group in recipe.optimizer.groups)
        return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"groups": groups})})

    clocks = any(group.every > 1 or group.frozen for group in recipe.optimizer.groups)
    return [paced(NEVER), paced(1)] if clocks else [recipe]


def moving(recipe: Recipe, cost: Cost) -> float:
    """How much of the difference between its two paces a step takes in the mean. cost: of the stage."""
    still, *busy = (preflight(one).optimizer_flops_per_step for one in paces(recipe))
    return (cost.optimizer_flops_per_step - still) / (busy[0] - still) if busy and busy[0] > still else 1.0


def _timed_step(recipe: Recipe, seconds: float, accumulate: int, corpus: data.Corpus,
                clock: Callable[[], float], mesh: Mesh | None) -> float:
    compiled, values = step.program(recipe, mesh, accumulate), hypers(recipe, 1)
    state = compiled.init(np.uint32(0), values)
    batch_SxBxM = sharding.place_rows(next(step.batches_of(recipe, 1, 0, corpus)), mesh)

    def timed(count: int) -> float:
        nonlocal state
        start = clock()
        state, losses = compiled.steps(state, batch_SxBxM, np.int32(count), values)
        losses.block_until_ready()
        return (clock() - start) / count

    timed(1)  # compiles
    count = hosts.agreed(min(max(1, round(TIMED_SHARE * seconds / timed(1))), step.STEPS_PER_CALL))
    return min(timed(count), timed(count))


class Pace:
    """Device-seconds of steps once they are compiled: in each stage of a run from the end of its first call on."""

    def __init__(self, recipe: Recipe, total_steps: int):
        self._legs = phases.legs(recipe, total_steps)
        self._marks: list[list[tuple[int, float]]] = [[] for _ in self._legs]

    def mark(self, done: int, clock_s: float) -> None:
        """A call has ended, with so many steps done in all."""
        self._marks[phases.leg_of(self._legs, done - 1)].append((done, clock_s))

    @property
    def tokens_per_s(self) -> float:
        """Over the stages that have gone on for two calls; 0 before one has."""
        told = [(marks[-1][0] - leg.first, _step_seconds(marks), leg.recipe.data)
                for leg, marks in zip(self._legs, self._marks, strict=True) if len(marks) > 1]
        seconds = sum(steps * step_s for steps, step_s, _ in told)
        return sum(steps * data.batch * data.length for steps, _, data in told) / seconds if seconds else 0.0

    @property
    def steady_s(self) -> float:
        """Seconds that the steps so far take without compiling; without end before that is known."""
        tokens = sum((marks[-1][0] - leg.first) * leg.recipe.data.batch * leg.recipe.data.length
                     for leg, marks in zip(self._legs, self._marks, strict=True) if marks)
        return tokens / self.tokens_per_s if self.tokens_per_s else math.inf


def _evaluated(recipe: Recipe, params: Any, corpus: data.Corpus, splits: Mapping[str, int]):
    """Outcome and losses by split of trained parameters."""
    losses = losses_of(recipe, params, corpus, splits)
    if all(map(math.isfinite, losses.values())):
        return {"outcome": "completed", "loss": losses}
    return {"outcome": "diverged", "reason": "the evaluated loss is not finite", "loss": {}}


def _step_seconds(marks: list[tuple[int, float]]) -> float:
    """Device-seconds of a step once it is compiled; marks: (step, clock) after calls, of which the first compiles."""
    (first, begin), (last, end) = (marks[0], marks[-1]) if marks else ((0, 0.0), (0, 0.0))
    return (end - begin) / (last - first) if last > first and end > begin else math.inf
