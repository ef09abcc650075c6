"""The training command around `train.run`: files, progress bar, evaluation, checkpoints, signals."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, Failure, Output, UserError, positive, report_errors, seed_number

SPLIT = "search"

PARSER = Command("jaxnano.train", "Train a recipe.")
PARSER.add_argument("--config", help="recipe in YAML; with --resume the checkpoint's is the default")
PARSER.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change the recipe")
PARSER.add_argument("--steps", type=positive, help="length of the run, to which schedules scale (400)")
PARSER.add_argument("--seed", type=seed_number, help="of initial values and data order (0)")
PARSER.add_argument("--out", metavar="DIR", help="folder for recipe.yaml, metrics.jsonl and checkpoint/")
PARSER.add_argument("--resume", action="store_true", help="go on from the latest checkpoint in DIR, if any")
PARSER.add_argument("--accumulate", type=positive, default=1, metavar="K", help="pieces a batch is taken in")
PARSER.add_argument("--mesh", metavar="AXES", help="data=2,fsdp=4,tensor=1: how devices share batch and weights")
PARSER.add_argument("--eval-every", type=positive, default=0, metavar="N", help=f"steps between {SPLIT} losses")
PARSER.add_argument("--save-every", type=positive, default=0, metavar="N", help="steps between checkpoints")
PARSER.add_argument("--tensorboard", action="store_true", help="event files too: tensorboard --logdir DIR")
PARSER.add_argument("--json", action="store_true", help="print the summary as JSON")
group = PARSER.add_argument_group("several processes, one a host")
group.add_argument("--distributed", action="store_true", help="join the others of this TPU pod or SLURM job")
group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens, instead of --distributed")
group.add_argument("--processes", type=positive, metavar="N", help="how many there are")
group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
PARSER.early(__name__)

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxnano import data, hosts, phases, sharding
from jaxnano.checkpoint import FOLDER, Checkpoints, recorded
from jaxnano.config.base import validate
from jaxnano.config.file import load, save
from jaxnano.config.recipe import Recipe, hypers, recipe_id
from jaxnano.cost import preflight
from jaxnano.curves import METRICS, Curves, require_tensorboard
from jaxnano.device import peak_flops, use_compile_cache
from jaxnano.evaluate import eval_windows, evaluate
from jaxnano.step import STEPS_PER_CALL, TrainState, batches_of, program, run

SAVES, LEAST_STEPS = 10, 100  # checkpoints a run, and steps between them, unless --save-every says otherwise


@dataclass(frozen=True)
class Training:
    """One training run. eval_every, save_every: in steps, 0 is only at the end. out: folder of its files, or None.
    tensorboard: whether event files are among them."""

    recipe: Recipe
    steps: int
    seed: int = 0
    out: Path | None = None
    mesh: Mesh | None = None
    accumulate: int = 1
    eval_every: int = 0
    save_every: int = 0
    tensorboard: bool = False

    def pauses(self, step: int) -> bool:
        """Whether to evaluate or save after this step, which ends a call."""
        return self.evaluates(step) or self._reaches(self.save_every, step)

    def evaluates(self, step: int) -> bool:
        """Whether to evaluate after this step."""
        return step == self.steps or self._reaches(self.eval_every, step)

    def _reaches(self, every: int, step: int) -> bool:
        return every > 0 and step // every > (step - STEPS_PER_CALL) // every


class Journal:
    """The curves of a run, in its folder. They go on where the checkpoint does, and forget what came after it."""

    def __init__(self, folder: Path | None, step: int, tensorboard: bool = False,
                 about: Mapping[str, str] | None = None) -> None:
        self._curves, self.elapsed_s = None, 0.0
        if folder is None:
            return
        path = folder / METRICS
        kept = [row for row in _rows(path) if row["step"] <= step] if path.exists() else []
        self.elapsed_s = kept[-1]["elapsed_s"] if kept else 0.0
        self._curves = Curves(folder, kept, tensorboard=tensorboard, about=about)

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows; they are with the operating system when this returns."""
        if self._curves:
            self._curves.write(rows)

    def close(self) -> None:
        """Close the files."""
        if self._curves:
            self._curves.close()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal; a last one that was cut short is no row."""
    for line in path.read_bytes().splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # neither JSON nor, perhaps, UTF-8
            return


class Stopwatch:
    """Tokens per second between calls; the first call compiles, and is no measure."""

    def __init__(self, job: Training):
        cost, device = preflight(job.recipe, job.accumulate), jax.local_devices()[0]
        peak = peak_flops(device.device_kind)
        self._legs = phases.legs(job.recipe, job.steps)
        self._mfu_per_rate = peak and cost.model_flops_per_token / (peak * jax.device_count())
        self._since, self.rates = time.monotonic(), []

    def lap(self, steps: int, done: int) -> float:
        """Tokens per second of the steps since the last lap or `skip`. done: in all."""
        data = self._legs[phases.leg_of(self._legs, done - 1)].recipe.data
        rate = steps * data.batch * data.length / (time.monotonic() - self._since)
        self.rates.append(rate)
        self.skip()
        return rate

    def skip(self) -> None:
        """Do not count the time that has passed."""
        self._since = time.monotonic()

    def usual(self) -> float | None:
        """Median rate, without the first call."""
        return statistics.median(self.rates[1:] or self.rates) if self.rates else None

    def mfu(self, rate: float | None) -> float | None:
        """Share of the device's bfloat16 peak that the model's FLOPs are, where the peak is known."""
        return rate and self._mfu_per_rate and rate * self._mfu_per_rate


def fit(job: Training, console: Console | None = None, resume: bool = False) -> dict[str, Any]:
    """Train, evaluate and save.

    Args: resume: go on from the folder's latest checkpoint, if there is one.
    Returns: a summary; `stopped_by` is the number of the signal that ended it early, or None.
    Raises: ValueError for a folder or an option that does not fit; Failure if the loss is not finite. Whatever it is,
        the run's files are closed, and what was being saved is on disk.
    """
    with ExitStack() as files:
        return _fit(job, console, resume, files)


def _fit(job: Training, console: Console | None, resume: bool, files: ExitStack) -> dict[str, Any]:
    corpus = data.load(job.recipe.data)
    windows = eval_windows(corpus, SPLIT, job.recipe)
    batches, legs = batches_of(job.recipe, job.steps, job.seed, corpus), phases.legs(job.recipe, job.steps)
    checkpoints, state = _open(job, corpus.data_hash, batches, resume, files)
    journal = Journal(job.out if hosts.first() else None, 0 if state is None else int(state.step), job.tensorboard,
                      {"recipe": recipe_id(job.recipe)})
    files.callback(journal.close)
    watch, losses, search_loss, step = Stopwatch(job), np.full(1, np.nan), None, 0 if state is None else int(state.step)

    def measure(state: TrainState) -> float:
        recipe = legs[phases.leg_of(legs, int(state.step) - 1)].recipe
        params = program(recipe, job.mesh, job.accumulate).params(state, hypers(recipe, job.steps))
        return evaluate(recipe.model_copy(update={"data": job.recipe.data}), params, windows)

    with hosts.signals() as stop, _bar(console, job, step) as show:
        calls = run(job.recipe, job.steps, job.seed, batches, mesh=job.mesh, accumulate=job.accumulate,
                          state=state, settle=lambda step: stop.due() or job.pauses(step))
        for call in calls:
            losses, state, step, elapsed_s = call.losses, call.state, call.step, journal.elapsed_s + call.elapsed_s
            rate = watch.lap(losses.size, step)
            _check(losses, step, job.steps)
            journal.write([{"step": step - losses.size + 1 + i, "loss": float(loss), "tokens_per_s": rate,
                            "elapsed_s": elapsed_s} for i, loss in enumerate(losses)])
            show(step, float(losses.mean()), rate, watch.mfu(rate))
            if not call.settled:
                continue
            search_loss = measure(state) if job.evaluates(step) else None
            if search_loss is not None:
                journal.write([{"step": step, f"{SPLIT}_loss": search_loss, "elapsed_s": elapsed_s}])
            if checkpoints:
                checkpoints.save(state, batches.get_state(), search_loss)
            if stop.number is not None:
                break
            watch.skip()
    if search_loss is None and state is not None and step == job.steps:  # the run had ended before this process began
        search_loss = measure(state)
    return {"steps": step, "loss": float(losses.mean()), f"{SPLIT}_loss": search_loss, "tokens_per_s": watch.usual(),
            "mfu": watch.mfu(watch.usual()), "out": job.out and str(job.out), "stopped_by": stop.number}


def _open(job: Training, data_hash: str, batches: grain.DatasetIterator, resume: bool, files: ExitStack) -> Any:
    """The folder's checkpoints and the state in them, with `batches` set to what follows; (None, None) without one."""
    if job.out is None:
        return None, None
    checkpoints = Checkpoints(job.out / FOLDER, job.recipe, job.seed, job.steps, data_hash, job.mesh)
    files.callback(checkpoints.close)
    if checkpoints.latest_step is not None and not resume:
        raise UserError(f"--out: {job.out}: holds a checkpoint at step {checkpoints.latest_step}; --resume goes on "
                        "from it, another folder starts anew")
    if hosts.first():
        save(job.recipe, job.out / "recipe.yaml")
    restored = checkpoints.restore()
    if restored is None:
        return checkpoints, None
    batches.set_state(restored[1])
    return checkpoints, restored[0]


def _check(losses: np.ndarray, step: int, steps: int) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise Failure(f"loss: {losses[bad[0]]} at step {step - losses.size + 1 + bad[0]} of {steps}: the run diverged; "
                      "a lower learning rate or a longer warm-up would do")


@contextmanager
def _bar(console: Console | None, job: Training, step: int) -> Iterator[Any]:
    """A progress bar; yields show(step, loss, tokens_per_s, mfu)."""
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
               TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None) as progress:
        task = progress.add_task("compiling", total=job.steps, completed=step)

        def show(step: int, loss: float, tokens_per_s: float, mfu: float | None) -> None:
            share = "" if mfu is None else f"  MFU {mfu:.1%}"
            progress.update(task, completed=step, description=f"loss {loss:.4f}  {tokens_per_s:,.0f} tokens/s{share}")

        yield show


def main(argv: list[str] | None = None) -> int:
    """The command. Exit code 0 at the end of the run, 128 + n when signal n ended it early."""
    options = PARSER.options(argv)
    return hosts.run_jointly(options, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    use_compile_cache()
    summary = fit(_job(options), Console(stderr=True) if hosts.first() else None, options.resume)
    if hosts.first():
        Output(options.json).table("run", {k: v for k, v in summary.items() if v is not None and not _nan(v)})
    return 128 + summary["stopped_by"] if summary["stopped_by"] else 0


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _job(options: argparse.Namespace) -> Training:
    """The run that is asked for; what is left out is the checkpoint's, if one is resumed."""
    out = options.out and Path(options.out)
    if options.resume and out is None:
        raise UserError("--resume: without a folder: --out DIR names the one to go on in")
    if options.tensorboard:
        require_tensorboard()
        if out is None:
            raise UserError("--tensorboard: without a folder: --out DIR names the one for event files")
    about = recorded(out / FOLDER) if options.resume else None
    if options.config is not None:
        recipe = load(options.config, tuple(options.set))
    elif about is not None:
        if options.set:
            raise UserError(f"--set: {options.set[0]}: --resume goes on with the checkpoint's recipe; leaving it out "
                            "would do")
        recipe = validate(Recipe, about["recipe"], str(out))
    else:
        raise UserError("--config: missing: configs/gpt2-tiny.yaml would do; only --resume of a checkpoint needs none")
    about = about or {"total_steps": 400, "seed": 0}
    steps = about["total_steps"] if options.steps is None else options.steps
    return Training(
        recipe, steps, about["seed"] if options.seed is None else options.seed, out, sharding.parse_mesh(options.mesh),
        options.accumulate, options.eval_every, options.save_every or max(LEAST_STEPS, steps // SAVES),
        options.tensorboard,
    )


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
