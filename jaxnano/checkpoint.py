"""Orbax checkpoints: the train state, the data iterator, and the recipe that says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxnano.config.base import ConfigError, Problem, dump, validate
from jaxnano.config.recipe import Recipe, hypers
from jaxnano.train import TrainState, program

_policies = ocp.training.preservation_policies


class Checkpoints:
    """A folder of checkpoints by step, written while training goes on; keeps the latest and the best.

    recipe, seed, total_steps, data_hash: recorded beside the state, and compared when it is restored.
    """

    def __init__(self, folder: Path, recipe: Recipe, seed: int, total_steps: int, data_hash: str):
        self.about = {"recipe": dump(recipe), "seed": seed, "total_steps": total_steps, "data_hash": data_hash}
        self.recipe, self.total_steps = recipe, total_steps
        best = _policies.BestN(get_metric_fn=lambda m: m["loss"], reverse=True, n=1)
        self._checkpointer = ocp.training.Checkpointer(
            folder.resolve(),
            preservation_policy=_policies.AnyPreservationPolicy([_policies.LatestN(1), best]),
            custom_metadata=self.about,
        )

    def save(self, state: TrainState, iterator_state: Any, loss: float) -> None:
        """Write in the background. iterator_state: the data iterator's JSON. loss: decides which is best, in nats."""
        self._checkpointer.save_checkpointables_async(
            int(state.step), {"state": state, "data": iterator_state}, metrics={"loss": loss}, overwrite=True
        )

    def restore(self) -> tuple[TrainState, Any] | None:
        """The latest state and data iterator's JSON, or None if there is none yet.

        Raises: ConfigError if the folder belongs to another recipe, seed, length or data.
        """
        if self._checkpointer.latest is None:
            return None
        found = _about(self._checkpointer.directory)
        for name, value in self.about.items():
            if found[name] != value:
                raise ConfigError([Problem(name, value, f"the checkpoint was made with {found[name]}")])
        loaded = self._checkpointer.load_checkpointables(None, {"state": _abstract(self.recipe), "data": None})
        return loaded["state"], loaded["data"]

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._checkpointer.close()


def load(folder: str | Path) -> tuple[Recipe, dict[str, jax.Array], dict[str, Any]]:
    """Open a checkpoint folder.

    Returns: the recipe, the parameters to evaluate, and what was recorded: seed, total_steps, data_hash.
    Raises: ConfigError if there is no checkpoint.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise ConfigError([Problem("checkpoint", str(folder), "no such folder; --out of jaxnano.train makes one")])
    checkpointer = ocp.training.Checkpointer(folder)
    if checkpointer.latest is None:
        raise ConfigError([Problem("checkpoint", str(folder), "holds no checkpoint")])
    about = _about(folder)
    recipe = validate(Recipe, about["recipe"], str(folder))
    state = checkpointer.load_checkpointables(None, {"state": _abstract(recipe)})["state"]
    return recipe, program(recipe).params(state, hypers(recipe, about["total_steps"])), about


def _about(folder: Any) -> dict[str, Any]:
    return ocp.training.Checkpointer(folder).root_metadata().custom_metadata


def _abstract(recipe: Recipe) -> TrainState:
    return jax.eval_shape(program(recipe).init, np.uint32(0), hypers(recipe, 1))
