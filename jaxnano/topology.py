"""A training step compiled for TPUs that are not here: libtpu holds the compiler, which needs no chip.

    python -m jaxnano.preflight configs/track3-124m.yaml --topology v6e:2x4 --accumulate 8
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxnano import step
from jaxnano.cli import Failure, UserError
from jaxnano.config.recipe import Recipe, hypers, shares_of
from jaxnano.cost import preflight
from jaxnano.device import hbm_bytes, peak_flops
from jaxnano.sharding import AXES

# So libtpu asks no cloud what it runs on, and starts although another process has it open: no chip is used.
ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v6e-8",
               "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def describe(name: str) -> Sequence[Any]:
    """The chips of a slice. name: generation and grid, as v6e:2x4 or v5p:2x2x2.

    Raises: ValueError without libtpu, or for a slice it does not know; Failure if libtpu does not start.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f'--topology {name}: libtpu is not installed; pip install "jaxnano[tpu]" would do')
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # or JAX would look for chips here
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(name, platform="tpu").devices
    except jax.errors.JaxRuntimeError as error:
        kind, _, reason = str(error).partition("\n")[0].partition(": ")
        if kind != "INVALID_ARGUMENT":
            raise Failure(f"--topology {name}: {kind}: {reason}") from error
        raise UserError(f"--topology {name}: {reason}; v6e:2x4 or v5p:2x2x2 would do") from error


def compiled_cost(recipe: Recipe, mesh: Mesh, accumulate: int = 1) -> dict[str, Any]:
    """Compile the program that `jaxnano.train` runs, for the chips of a mesh, and ask the compiler what it takes.

    Of several phases' programs the one that takes the most is told, with the time of all.

    Returns: by name, memory of one chip in bytes among it. `fits`: whether the compiler found room; if not,
    `peak_bytes` is what it would have taken, where it says so. `splash_kernels`: how many differ; layers share them.
    Raises: ValueError if the batch does not divide over the mesh.
    """
    told = [_compiled_cost(part, mesh, accumulate) for _, part in shares_of(recipe)]
    chip: Any = mesh.devices.flat[0]
    peak, flops = peak_flops(chip.device_kind), preflight(recipe, accumulate, "tpu").flops_per_step / mesh.size
    found = {"chip": chip.device_kind, "chips": mesh.size, "accumulate": accumulate,
             "mesh": ",".join(f"{name}={mesh.shape[name]}" for name in AXES),
             "flops_per_step_and_chip": flops, "least_step_ms": peak and 1000 * flops / peak}
    most = max(told, key=lambda one: (not one["fits"], one["peak_bytes"] or math.inf))
    return found | most | {"compile_s": sum(one["compile_s"] for one in told)}


def _compiled_cost(recipe: Recipe, mesh: Mesh, accumulate: int) -> dict[str, Any]:
    """What the compiler says of a recipe without phases."""
    chip: Any = mesh.devices.flat[0]
    lowered, room, start = _lower(recipe, mesh, accumulate), hbm_bytes(chip.device_kind), time.monotonic()
    found: dict[str, Any] = {"splash_kernels": lowered.as_text().count("@tpu_custom_call")}
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used, room = _refusal(str(error), room)
        return found | {"compile_s": time.monotonic() - start, "peak_bytes": used, "device_bytes": room, "fits": False}
    memory = program.memory_analysis()
    return found | {
        "compile_s": time.monotonic() - start, "state_bytes": memory.argument_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes, "peak_bytes": memory.peak_memory_in_bytes,
        "device_bytes": room, "fits": True,
    }


def _lower(recipe: Recipe, mesh: Mesh, accumulate: int) -> Any:
    compiled: Any = step.program(recipe, mesh, accumulate)
    values, data = hypers(recipe, 1), recipe.data
    state = jax.eval_shape(compiled.init, np.uint32(0), values)
    batches = jax.ShapeDtypeStruct((step.STEPS_PER_CALL, data.batch, data.length + 1), np.uint16)
    return compiled.steps.lower(state, batches, np.int32(0), values)


def _refusal(message: str, room: int | None) -> tuple[int | None, int | None]:
    """What the compiler says that it would have taken, and what there is: 'Used 74.6G of 31.2G hbm', in bytes."""
    stated = re.search(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm", message)
    if stated is None:
        return None, room
    used, used_unit, limit, limit_unit = stated.groups()
    return int(float(used) * _UNITS[used_unit]), int(float(limit) * _UNITS[limit_unit])
