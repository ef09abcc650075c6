"""The training step and the run around it.

    python -m jaxnano.train --config configs/gpt2-tiny.yaml --steps 400 --out runs/first

The command itself, with its files, progress bar and signals, is in `run.py`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnano import data, phases, sharding
from jaxnano.cli import UserError
from jaxnano.config.recipe import STEPS_PER_CALL, Recipe, at, hypers, structure_id
from jaxnano.model import gpt
from jaxnano.model.specs import specs
from jaxnano.optim.build import blanks, build
from jaxnano.optim.memory import Updater
from jaxnano.optim.precision import with_weights


class TrainState(NamedTuple):
    """step: int32, how many are done. optimizer: the optimizer's state, which holds the parameters."""

    step: jax.Array
    optimizer: Any


def seeds(seed: int) -> tuple[int, int]:
    """A trial's seed as two independent ones: for initial values and for the data order."""
    return tuple(int.from_bytes(hashlib.sha256(f"{use}:{seed}".encode()).digest()[:4]) for use in ("init", "data"))  # type: ignore[return-value]


def optimizer_at(recipe: Recipe, step: Any, values: Any) -> tuple[Recipe, Updater]:
    """The resolved recipe and its optimizer at a step. Progress is taken in the step's middle, so none has rate 0."""
    progress = jnp.minimum((jnp.asarray(step, jnp.float32) + 0.5) / values["total_steps"], 1.0)
    cfg = at(recipe, values, progress)
    optimizer = build(cfg.optimizer, specs(recipe), progress, values["total_steps"])
    return cfg, with_weights(recipe.train.weights, optimizer)


def init_state(recipe: Recipe, init_seed: jax.Array, values: Any) -> TrainState:
    """A fresh train state. init_seed: uint32 scalar."""
    params = gpt.init(jax.random.key(init_seed), recipe, values)
    _, optimizer = optimizer_at(recipe, 0, values)
    return TrainState(jnp.zeros((), jnp.int32), optimizer.init(params))


def train_step(recipe: Recipe, state: TrainState, batch_BxM: jax.Array, values: Any, accumulate: int = 1):
    """One step: (state, tokens [B, L+1], hypers) -> (state, metrics). accumulate: pieces the batch is taken in."""
    cfg, optimizer = optimizer_at(recipe, state.step, values)
    params = optimizer.grad_params(state.optimizer) | blanks(cfg.optimizer, specs(recipe))
    grad = jax.value_and_grad(gpt.loss, has_aux=True)
    if accumulate == 1:
        (_, metrics), grads = grad(params, batch_BxM, cfg)
    else:
        # Piece i takes every accumulate-th row, so that each piece lies on all devices, as the batch does.
        pieces = batch_BxM.reshape(-1, accumulate, batch_BxM.shape[1]).swapaxes(0, 1)

        def add(total: Any, piece: jax.Array) -> Any:
            (_, metrics), grads = grad(params, piece, cfg)
            return jax.tree.map(jnp.add, total, (metrics, grads)), None

        zero = ({"loss": jnp.zeros(())}, jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, pieces)
        metrics, grads = jax.tree.map(lambda x: x / accumulate, total)
    return TrainState(state.step + 1, optimizer.update(grads, state.optimizer)), metrics


def train_steps(recipe: Recipe, state: TrainState, batches_SxBxM: jax.Array, count: jax.Array, values: Any,
                accumulate: int = 1) -> tuple[TrainState, jax.Array]:
    """The first `count` (traced) of S steps in one call. Returns: state, losses [S] in nats, zero past `count`."""

    def one(i: jax.Array, carry: Any) -> Any:
        state, losses = carry
        state, metrics = train_step(recipe, state, batches_SxBxM[i], values, accumulate)
        return state, losses.at[i].set(metrics["loss"])

    return jax.lax.fori_loop(0, count, one, (state, jnp.zeros(batches_SxBxM.shape[0])))


@dataclass(frozen=True)
class Structure:
    """What a compiled program depends on; recipes that differ in traced numbers alone are equal here."""

    name: str
    mesh: Mesh | None
    accumulate: int
    recipe: Recipe = field(compare=False)


class Program(NamedTuple):
    """Compiled functions of one structure. init(seed, hypers) -> state; steps(state, batches, count, hypers)."""

    init: Callable[..., TrainState]
    steps: Callable[..., tuple[TrainState, jax.Array]]
    params: Callable[..., gpt.Params]


def program(recipe: Recipe, mesh: Mesh | None = None, accumulate: int = 1) -> Program:
    """The compiled program of a recipe's structure; an edit of traced values finds the one that is there.

    Raises: ValueError if the batch does not divide into `accumulate` pieces over the mesh.
    """
    check_rows(recipe, mesh, accumulate)
    recipe = recipe.model_copy(update={"evaluation": None})  # which training does not see
    return _program(Structure(structure_id(recipe), mesh, accumulate, recipe))


def check_rows(recipe: Recipe, mesh: Mesh | None, accumulate: int, phase: str = "") -> None:
    """Raises: ValueError if the batch, of a phase, does not divide into `accumulate` pieces over the mesh."""
    rows = accumulate * (1 if mesh is None else sharding.batch_shards(mesh))
    if recipe.data.batch % rows:
        raise UserError(f"{f'phases.{phase}.set.' * bool(phase)}data.batch: {recipe.data.batch} rows are not divisible "
                        f"by {accumulate} piece(s) on {rows // accumulate} device(s); a multiple of {rows} would do")


@lru_cache(maxsize=8)
def _program(structure: Structure) -> Program:
    recipe, mesh, accumulate = structure.recipe, structure.mesh, structure.accumulate

    def init(seed: jax.Array, values: Any) -> TrainState:
        return init_state(recipe, seed, values)

    def steps(state: TrainState, batches: jax.Array, count: jax.Array, values: Any) -> Any:
        with sharding.within(mesh):
            return train_steps(recipe, state, batches, count, values, accumulate)

    def eval_params(state: TrainState, values: Any) -> gpt.Params:
        return optimizer_at(recipe, values["total_steps"], values)[1].eval_params(state.optimizer)

    first: Any = {}
    places: Any = {}
    if mesh is not None:
        state = sharding.state_sharding(jax.eval_shape(init, np.uint32(0), hypers(recipe, 1)), specs(recipe), mesh)
        batch = NamedSharding(mesh, sharding.BATCH)
        first = {"out_shardings": state}
        whole = NamedSharding(mesh, PartitionSpec())
        places = {"in_shardings": (state, batch, None, None), "out_shardings": (state, whole)}
    return Program(jax.jit(init, **first), jax.jit(steps, donate_argnums=0, **places), jax.jit(eval_params))


def migrate(state: TrainState, before: Recipe, leg: phases.Leg, seed: int, total_steps: int,
            mesh: Mesh | None = None) -> TrainState:
    """A state as a stage leaves it, as the next one takes it on (`config.recipe.Phase`)."""
    old, new = (Structure(structure_id(recipe), mesh, 1, recipe) for recipe in (before, leg.recipe))
    moved = _migration(old, new, tuple(leg.stage.carry.items()))
    return state if moved is None else moved(state, np.uint32(seeds(seed)[0]), hypers(leg.recipe, total_steps))


@lru_cache(maxsize=8)
def _migration(old: Structure, new: Structure, carry: tuple[tuple[str, str], ...]) -> Any:
    """The compiled function from one structure's state to another's; None where it would change nothing."""
    recipe, table = new.recipe, specs(new.recipe)
    origin = phases.sources(specs(old.recipe), table, dict(carry))

    def moved(state: TrainState, seed: jax.Array, values: Any) -> TrainState:
        fresh = gpt.init(jax.random.key(seed), recipe, values)
        params = {path: fresh[path] for path in table} | phases.carried(state.optimizer.params, origin)
        begun = optimizer_at(recipe, state.step, values)[1].init(params)
        kept = phases.filled({"chains": begun.chains, "memory": begun.memory},
                             {"chains": state.optimizer.chains, "memory": state.optimizer.memory}, origin)
        return TrainState(state.step, begun._replace(**kept))

    before, after = (jax.eval_shape(lambda seed, values, r=r: init_state(r, seed, values), np.uint32(0), hypers(r, 1))
                     for r in (old.recipe, recipe))
    if not carry and (jax.tree.structure(before), jax.tree.leaves(before)) == (
            jax.tree.structure(after), jax.tree.leaves(after)):
        return None
    return jax.jit(moved, **({} if new.mesh is None else {"out_shardings": sharding.state_sharding(
        after, table, new.mesh)}))


def batches_of(recipe: Recipe, total_steps: int, seed: int, corpus: data.Corpus) -> Any:
    """The iterator of a run's training batches, [STEPS_PER_CALL, B, L+1] a call; see `data.train_batches`."""
    (_, batch, length), *later = [(leg.first // STEPS_PER_CALL, leg.recipe.data.batch, leg.recipe.data.length)
                                  for leg in phases.legs(recipe, total_steps)]
    return data.train_batches(corpus, batch, length, seeds(seed)[1], STEPS_PER_CALL, recipe.data.aligned,
                              tuple(later))


class Progress(NamedTuple):
    """After a call: steps done, that call's losses in nats, seconds since the run began, and the newest state.

    settled: whether `state` is of this very step, and not of the call that runs meanwhile.
    """

    step: int
    losses: np.ndarray
    elapsed_s: float
    state: TrainState
    settled: bool


def run(
    recipe: Recipe, total_steps: int, seed: int, batches: Iterator[np.ndarray], *,
    mesh: Mesh | None = None, accumulate: int | Sequence[int] = 1, state: TrainState | None = None,
    settle: Callable[[int], bool] = lambda step: False,
) -> Iterator[Progress]:
    """Train to `total_steps`, yielding after every call; losses are fetched one call late, so the device never waits.

    Args: batches: [STEPS_PER_CALL, B, L+1] a call. accumulate: pieces a batch is taken in, or those of each stage.
    state: where to go on; fresh if None. settle: asked after every call, with the steps done, whether to wait for it,
    so that state and losses belong together; the last one does.
    """
    start, legs = time.monotonic(), phases.legs(recipe, total_steps)
    pieces = [accumulate] * len(legs) if isinstance(accumulate, int) else accumulate

    def begin(leg: int) -> tuple[Any, Program]:
        return hypers(legs[leg].recipe, total_steps), program(legs[leg].recipe, mesh, pieces[leg])

    for leg, count in zip(legs, pieces, strict=True):  # now, and not when it begins
        check_rows(leg.recipe, mesh, count, leg.stage.name)
    here = 0 if state is None else phases.leg_of(legs, int(state.step) - 1)
    values, compiled = begin(here)
    if state is None:
        state = compiled.init(np.uint32(seeds(seed)[0]), values)
    step, late = int(state.step), None
    while step < total_steps:
        if (due := phases.leg_of(legs, step)) != here:
            if late is not None:  # the device has to be waited for, as the next stage compiles
                yield Progress(late[0], np.asarray(late[1])[: late[2]], time.monotonic() - start, state, False)
                late = None
            for leg in range(here + 1, due + 1):
                state = migrate(state, legs[leg - 1].recipe, legs[leg], seed, total_steps, mesh)
            here, (values, compiled) = due, begin(due)
        count = min(STEPS_PER_CALL, total_steps - step)
        state, losses = compiled.steps(state, sharding.place_rows(next(batches), mesh), np.int32(count), values)
        step += count
        if late is not None:
            yield Progress(late[0], np.asarray(late[1])[: late[2]], time.monotonic() - start, state, False)
        late = (step, losses, count)
        if step == total_steps or settle(step):
            yield Progress(step, np.asarray(losses)[:count], time.monotonic() - start, state, True)
            late = None
