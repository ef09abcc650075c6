"""What a checkpoint loses on a split, and what it writes: a worker's job, for the loop has no device to do it on."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxnano import checkpoint, data, hosts
from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe
from jaxnano.device import use_compile_cache
from jaxnano.layout import layout
from jaxnano.sample import sample
from research.execute import Report
from research.execute.trial import corpus_of, losses_of, mesh_of, room

TARGET = "research.execute.measure:run_job"
WRITTEN, TEMPERATURE = 400, 0.8  # tokens of a sample, and how they are drawn


def run_job(args: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Evaluate.

    Args: args: checkpoint (a folder), splits {name: tokens}, data_hash, mesh (axes, or None). report: is not called.
    Returns: outcome, reason and the loss by split, as a trial's result has them, and a sample of its text; a loss that
    is not finite stays so.
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
    return {"outcome": "completed", "reason": "", "loss": losses, "sample": written(recipe, hosts.gathered(params))}


def written(recipe: Recipe, params: Any) -> str:
    """What a model writes as a document, the first draw; nothing, and why in the log, where that fails: whoever waits
    for a loss can do without a text.

    Where it sees less at once than it writes, it begins with half as much, all separators: a sample goes on from half
    of what it sees, so that one program is compiled. Args: params: whole.
    """
    try:
        by, length = data.tokenizer_of(recipe.data), recipe.data.length
        start = np.full(1 if length >= WRITTEN else max(1, length // 2), by.separator)
        new = sample(recipe, jax.device_get(params), start, WRITTEN, temperature=TEMPERATURE)
        return by.decode(new).decode("utf-8", "replace")
    except Exception:  # of a tokenizer that cannot be fetched, or memory
        traceback.print_exc()
        return ""
