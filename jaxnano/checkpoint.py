"""Orbax checkpoints: the train state, the data iterator, and the recipe that says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from jaxnano import phases, sharding
from jaxnano.config import older
from jaxnano.config.base import ConfigError, Problem, dump, validate
from jaxnano.config.recipe import Recipe, hypers, stages
from jaxnano.model.specs import specs
from jaxnano.optim.memory import State
from jaxnano.step import TrainState, program

FOLDER = "checkpoint"  # inside the folder that `jaxnano.train --out` names

_policies: Any = ocp.training.preservation_policies


class Checkpoints:
    """A folder of checkpoints by step, written while training goes on; keeps the latest and the best.

    recipe, seed, total_steps, data_hash: recorded beside the state, and compared when it is restored.
    mesh: where a restored state is to lie; it may have been saved from another one. apart: whether each of
    several processes has such a folder to itself, for the whole state (see `hosts.gathered`).
    """

    def __init__(self, folder: Path, recipe: Recipe, seed: int, total_steps: int, data_hash: str,
                 mesh: Mesh | None = None, apart: bool = False):
        self.about = {"recipe": dump(recipe), "seed": seed, "total_steps": total_steps, "data_hash": data_hash}
        self.recipe, self.mesh, self._folder = recipe, mesh, folder
        context = ocp.Context()
        if apart:
            context.multiprocessing.primary_host = None
        best = _policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1,
                               keep_checkpoints_without_metrics=False)
        self._checkpointer = ocp.training.Checkpointer(
            str(folder.resolve()),
            preservation_policy=_policies.AnyPreservationPolicy([_policies.LatestN(1), best]),
            context=context,
            custom_metadata=self.about,
            cleanup_tmp_directories=True,  # what a killed run left half-written
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, state: TrainState, iterator_state: Any, loss: float | None) -> None:
        """Write in the background; one save waits for the one before.

        Args: iterator_state: the data iterator's JSON. loss: in nats, decides which is best; None: never the best.
        """
        self._checkpointer.save_checkpointables_async(
            int(state.step), {"state": state, "data": iterator_state}, force=True,
            metrics=None if loss is None else {"loss": loss},
        )

    def restore(self) -> tuple[TrainState, Any] | None:
        """The latest state and data iterator's JSON, or None if there is none yet.

        Raises: ConfigError if the folder belongs to another recipe, seed, length or data.
        """
        if self._checkpointer.latest is None:
            return None
        found: Any = self._checkpointer.root_metadata().custom_metadata or {}
        problems = [Problem(name, value, f"the checkpoint was made with {found.get(name)}")
                    for name, value in self.about.items() if found.get(name) != value]
        if not problems and "chains" not in _layout(self._checkpointer):
            problems = [Problem("checkpoint", str(self._folder), "of version 0.3 or older, which can be "
                                "opened and not continued; another folder would do")]
        if problems:
            raise ConfigError(problems)
        here = _recipe_at(self.recipe, self.about["total_steps"], self._checkpointer.latest.step)
        loaded = self._checkpointer.load_checkpointables(None, {"state": _abstract(here, self.mesh), "data": None})
        return loaded["state"], loaded["data"]

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._checkpointer.close()


def recorded(folder: str | Path) -> dict[str, Any] | None:
    """What was recorded beside the checkpoints in `folder`: recipe, seed, total_steps, data_hash; None without any."""
    folder = Path(folder).resolve()
    if not folder.is_dir():
        return None
    with ocp.training.Checkpointer(str(folder)) as checkpointer:
        return None if checkpointer.latest is None else checkpointer.root_metadata().custom_metadata


def load(folder: str | Path, mesh: Mesh | None = None) -> tuple[Recipe, dict[str, jax.Array], dict[str, Any]]:
    """Open a folder of checkpoints, or a run's folder that holds one, at the latest step.

    Args: mesh: where the parameters are to lie; None: on one device.
    Returns: the recipe, or of a run that stopped in an earlier phase the recipe as it was there; the parameters to
    evaluate; and what was recorded: seed, total_steps, data_hash.
    Raises: ConfigError if there is no checkpoint.
    """
    given = Path(folder).resolve()
    folder = given / FOLDER if (given / FOLDER).is_dir() else given
    about = recorded(folder)
    if about is None:
        reason = "holds no checkpoint" if given.is_dir() else "no such folder"
        raise ConfigError([Problem("checkpoint", str(given), f"{reason}; --out of jaxnano.train makes one")])
    recipe = validate(Recipe, about["recipe"], str(folder))
    with ocp.training.Checkpointer(str(folder)) as checkpointer:
        here = _recipe_at(recipe, about["total_steps"], checkpointer.latest.step)  # type: ignore[union-attr]
        old = "chains" not in _layout(checkpointer) or older.is_older(about["recipe"])
        wanted = _older(checkpointer) if old else _abstract(here, mesh)
        state = checkpointer.load_checkpointables(None, {"state": wanted})["state"]
    if old:
        state = _translated(state, here.model.depth)
    params = program(here).params(state, hypers(here, about["total_steps"]))
    if mesh is not None:  # an average is not always placed as what it is of
        params = jax.device_put(params, sharding.state_sharding(params, specs(here), mesh))
    return recipe if here == stages(recipe)[-1].recipe else here.model_copy(update={"data": recipe.data}), params, about


def _layout(checkpointer: ocp.training.Checkpointer) -> Mapping[str, Any]:
    """What the optimizer's state is made of, as it was saved."""
    return checkpointer.checkpointables_metadata(None).metadata["state"]["optimizer"]


def _older(checkpointer: ocp.training.Checkpointer) -> Any:
    """Shapes of a state of an earlier version, whatever it is made of; on one device."""
    place = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                        checkpointer.checkpointables_metadata(None).metadata["state"])


def _translated(state: Any, depth: int) -> TrainState:
    """A state of an earlier version as one that can be evaluated: parameters and what is averaged beside them."""
    optimizer = state["optimizer"]
    memory = dict(optimizer.get("memory") or {})
    if "average" in optimizer:
        memory, optimizer = {"tail": optimizer["average"]}, optimizer["inner"]
    if "displacement" in optimizer:
        memory["drift"] = optimizer["displacement"]
    kept = {name: {older.parameter(path, depth): x for path, x in part.items()} if isinstance(part, dict) else part
            for name, part in {"": optimizer["params"], **memory}.items()}
    return TrainState(state["step"], State(kept.pop(""), {}, kept))


def _recipe_at(recipe: Recipe, total_steps: int, step: int) -> Recipe:
    """The recipe as it trains in the stage that left a state after so many steps."""
    legs = phases.legs(recipe, total_steps)
    return legs[phases.leg_of(legs, step - 1)].recipe


def _abstract(recipe: Recipe, mesh: Mesh | None) -> TrainState:
    """Shapes of a train state, and where its parts are to lie."""
    shapes = jax.eval_shape(program(recipe).init, np.uint32(0), hypers(recipe, 1))
    if mesh is None:
        places = jax.tree.map(lambda _: SingleDeviceSharding(jax.local_devices()[0]), shapes)
    else:
        places = sharding.state_sharding(shapes, specs(recipe), mesh)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)
