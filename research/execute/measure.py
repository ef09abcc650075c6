"""What a checkpoint loses on a split: a worker's job, for the loop has no device to do it on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jaxnano import checkpoint
from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe
from jaxnano.device import use_compile_cache
from jaxnano.layout import layout
from research.execute import Report
from research.execute.trial import corpus_of, losses_of, mesh_of, room

TARGET = "research.execute.measure:run_job"


def run_job(args: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Evaluate.

    Args: args: checkpoint (a folder), splits {name: tokens}, data_hash, mesh (axes, or None). report: is not called.
    Returns: outcome, reason and the loss by split, as a trial's result has them; one that is not finite stays so.
    Raises: ValueError if there is no checkpoint, or if this machine's data is not the session's.
    """
    use_compile_cache()
    about, devices = checkpoint.recorded(args["checkpoint"]), jax.devices()
    mesh = None
    if about is not None:
        recipe = validate(Recipe, about["recipe"])
        laid = layout(recipe, len(devices), room(devices), jax.default_backend(), args.get("mesh"))
        mesh = mesh_of(laid, devices)
    recipe, params, _ = checkpoint.load(args["checkpoint"], mesh)
    losses = losses_of(recipe, params, corpus_of(recipe, args["data_hash"]), args["splits"])
    return {"outcome": "completed", "reason": "", "loss": losses}
