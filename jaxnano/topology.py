"""A trial's programs compiled for TPUs that are not here: libtpu holds the compiler, which needs no chip.

    python -m jaxnano.preflight configs/track3-124m.yaml --topology v6e-8    (laid over it as a trial is)
    python -m jaxnano.preflight configs/track3-124m.yaml --topology v6e:2x4 --mesh fsdp=8 --accumulate 8
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxnano import evaluate, sharding, step
from jaxnano.cli import Failure, UserError
from jaxnano.config.recipe import Recipe, hypers, stages, structure_id, trained
from jaxnano.cost import preflight
from jaxnano.device import hbm_bytes, peak_flops
from jaxnano.model.specs import specs
from jaxnano.optim.build import blanks

# So libtpu asks no cloud what it runs on, and starts although another process has it open: no chip is used.
ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v6e-8",
               "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
# Slices by their names: those of v5e and v6e count chips, of which one host has up to eight, v5p's two cores a chip.
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
SLICES = {"v5e": FLAT, "v5litepod": FLAT, "v6e": FLAT, "v5p": {
    8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8", 512: "4x8x8"}}
ONE_HOST = {"1x1": (1, 1, 1), "2x2": (2, 2, 1), "2x4": (2, 4, 1)}  # larger slices are hosts of four
WOULD = "v6e-8, v5e-4, v5p-16, v6e:2x4 or v5p:2x2x2 would do"
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def describe(name: str) -> Sequence[Any]:
    """The chips of a slice. name: as its VMs are called, v6e-8 or v5p-16; or generation and grid, v6e:2x4 or v5p:2x2x2.

    Raises: ValueError without libtpu, or for a slice it does not know; Failure if libtpu does not start.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f'--topology {name}: libtpu is not installed; pip install "jaxnano[tpu]" would do')
    from jax.experimental import topologies

    grid, hosts = _grid(name)
    jax.config.update("jax_platforms", "cpu")  # or JAX would look for chips here
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(grid, platform="tpu", **hosts).devices
    except jax.errors.JaxRuntimeError as error:
        kind, _, reason = str(error).partition("\n")[0].partition(": ")
        if kind != "INVALID_ARGUMENT":
            raise Failure(f"--topology {name}: {kind}: {reason}") from error
        raise UserError(f"--topology {name}: {reason}; {WOULD}") from error


def _grid(name: str) -> tuple[str, dict[str, Any]]:
    """Generation and grid of a slice, and what else libtpu has to be told of its hosts."""
    if (found := re.fullmatch(r"(\w+)-(\d+)", name)) is None:
        return name, {}
    sizes = SLICES.get(found[1], {})
    if (grid := sizes.get(int(found[2]))) is None:
        known = f"{found[1]} comes in {', '.join(map(str, sizes))}" if sizes else f"{found[1]} is not known"
        raise UserError(f"--topology {name}: {known}; {WOULD}")
    bounds = {"chips_per_host_bounds": ONE_HOST[grid]} if grid in ONE_HOST else {}
    return f"{found[1].replace('litepod', 'e')}:{grid}", bounds


def compiled_cost(recipe: Recipe, mesh: Mesh, accumulate: int | Sequence[int] = 1) -> dict[str, Any]:
    """Compile the programs that a trial runs, for the chips of a mesh, and ask the compiler what they take.

    Args: accumulate: pieces a batch is taken in, or those of each stage.

    Of several phases' training programs the one that takes the most is told, with the time of all.

    Returns: by name, memory of one chip in bytes among it; init, params and evaluation by names of their own. `fits`:
    whether the compiler found room for all; if not, `peak_bytes` is what it would have taken, where it says so.
    `splash_kernels`: how many differ; layers share them. `optimizer_flops_per_chip`: of an update, counted by the
    compiler, while `optimizer_flops` are those of all of it by the table.
    Raises: ValueError if the batch does not divide over the mesh.
    """
    chip: Any = mesh.devices.flat[0]
    pieces = (accumulate,) * len(stages(recipe)) if isinstance(accumulate, int) else tuple(accumulate)
    peak, cost = peak_flops(chip.device_kind), preflight(recipe, max(pieces), "tpu")
    flops = cost.flops_per_step / mesh.size
    told: dict[str, list[dict[str, Any]]] = {}
    for name, lowered in _programs(recipe, mesh, pieces):
        told.setdefault(name, []).append(_compiled(lowered, hbm_bytes(chip.device_kind)))
    (update,) = told.pop("update")
    most = max(told["steps"], key=lambda one: (not one["fits"], one["peak_bytes"] or math.inf))
    found = {"chip": chip.device_kind, "chips": mesh.size, "hosts": len({d.process_index for d in mesh.devices.flat}),
             "accumulate": max(pieces), "mesh": ",".join(f"{name}={mesh.shape[name]}" for name in sharding.AXES),
             "flops_per_step_and_chip": flops, "least_step_ms": peak and 1000 * flops / peak, **most}
    del found["flops"]
    for name, ones in told.items():
        found[f"{name}_compile_s"] = sum(one["compile_s"] for one in ones)
        if name != "steps":
            found[f"{name}_peak_bytes"] = ones[0]["peak_bytes"]
    every = [one for ones in told.values() for one in ones]
    return found | {
        "optimizer_flops_per_chip": update["flops"], "optimizer_flops": cost.optimizer_flops_per_step,
        "compile_s": sum(one["compile_s"] for one in every), "fits": all(one["fits"] for one in every)}


def _programs(recipe: Recipe, mesh: Mesh, pieces: Sequence[int]) -> Iterator[tuple[str, Any]]:
    """The programs of a trial, lowered, in its order; and an update by itself."""
    parts = [part.recipe for part in stages(recipe)]
    compiled: Any = [step.program(part, mesh, count) for part, count in zip(parts, pieces, strict=True)]
    first, last = compiled[0], compiled[-1]
    yield "init", first.init.lower(np.uint32(0), hypers(parts[0], 1))
    for part, its in zip(parts, compiled, strict=True):
        shape = step.STEPS_PER_CALL, part.data.batch, part.data.length + 1
        batches, values = jax.ShapeDtypeStruct(shape, np.uint16), hypers(part, 1)
        state: Any = jax.eval_shape(its.init, np.uint32(0), values)
        yield "steps", its.steps.lower(state, batches, np.int32(0), values)
    part, values = parts[-1], hypers(parts[-1], 1)
    state = _placed(jax.eval_shape(last.init, np.uint32(0), values), part, mesh)
    yield "params", last.params.lower(state, values)
    params = _placed(jax.eval_shape(last.params, state, values), part, mesh)
    windows = max(1, evaluate.EVAL_TOKENS // recipe.data.length // recipe.data.batch)
    tokens = jax.ShapeDtypeStruct((windows, recipe.data.batch, recipe.data.length + 1), np.uint16)
    whole = trained(recipe)
    measure = evaluate.compiled(step.Structure(structure_id(whole), mesh, 1, whole))
    yield "evaluation", measure.lower(params, tokens, hypers(whole, 1))

    def update(state: step.TrainState, grads: Any, values: Any) -> Any:
        with sharding.within(mesh):
            return step.optimizer_at(part, state.step, values)[1].update(grads, state.optimizer)

    grads = state.optimizer.params | jax.eval_shape(lambda: blanks(part.optimizer, specs(part)))
    yield "update", jax.jit(update).lower(state, grads, values)


def _placed(tree: Any, recipe: Recipe, mesh: Mesh) -> Any:
    """Shapes of a train state, or of parameters, with where they lie."""
    places = sharding.state_sharding(tree, specs(recipe), mesh)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)


def _compiled(lowered: Any, room: int | None) -> dict[str, Any]:
    """What the compiler says of a program."""
    found: dict[str, Any] = {"splash_kernels": lowered.as_text().count("@tpu_custom_call"), "flops": None}
    start = time.monotonic()
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
        "device_bytes": room, "fits": True, "flops": (program.cost_analysis() or {}).get("flops"),
    }


def _refusal(message: str, room: int | None) -> tuple[int | None, int | None]:
    """What the compiler says that it would have taken, and what there is: 'Used 74.6G of 31.2G hbm', in bytes."""
    stated = re.search(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm", message)
    if stated is None:
        return None, room
    used, used_unit, limit, limit_unit = stated.groups()
    return int(float(used) * _UNITS[used_unit]), int(float(limit) * _UNITS[limit_unit])
