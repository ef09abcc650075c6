"""One mesh with named axes and one table that places parameters and optimizer state on it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from jaxnano.cli import UserError
from jaxnano.model.specs import Table

AXES = ("data", "fsdp", "tensor")

# The first pattern that matches a parameter's axes (letters of the legend) decides. "" covers scalars.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"V[DH]", PartitionSpec("tensor", "fsdp")),
    (r"LD", PartitionSpec(None, "fsdp")),
    (r"D[HFV]", PartitionSpec("fsdp", "tensor")),
    (r"[HF]D", PartitionSpec("tensor", "fsdp")),
    (r".*", PartitionSpec()),
)
BATCH = PartitionSpec(None, ("data", "fsdp"))  # [steps, batch, length + 1]


def make_mesh(data: int = 0, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over the given devices, or all there are; `data` 0 takes what the other axes leave.

    Raises: ValueError if the axes do not multiply to the number of devices.
    """
    found = shape((data, fsdp, tensor), jax.device_count() if devices is None else len(devices))
    return jax.make_mesh(found, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def shape(asked: tuple[int, int, int], count: int) -> tuple[int, int, int]:
    """The sizes of the three axes over so many devices, of those that `sizes` has read; raises as `make_mesh`."""
    data, fsdp, tensor = asked
    found = (data or max(1, count // (fsdp * tensor)), fsdp, tensor)
    if math.prod(found) != count:
        rest, left = divmod(count, fsdp * tensor)
        would = (1, count, 1) if left else (rest, fsdp, tensor)
        given, right = (",".join(f"{n}={s}" for n, s in zip(AXES, x, strict=True)) for x in (found, would))
        raise UserError(f"mesh: {given}: the sizes multiply to the {count} device(s) there are; {right} would do")
    return found


def parse_mesh(text: str | None) -> Mesh | None:
    """The mesh of "data=2,fsdp=4"; without text all devices share the batch, and one device needs no mesh.

    Raises: ValueError for an axis there is not, a size that is no number, or sizes that do not fit the devices.
    """
    return None if text is None and jax.device_count() == 1 else make_mesh(*sizes(text))


def sizes(text: str | None) -> tuple[int, int, int]:
    """The sizes of the three axes in "data=2,fsdp=4", as `make_mesh` takes them. Raises: ValueError as `parse_mesh`."""
    found = {"data": 0, "fsdp": 1, "tensor": 1}
    for part in text.split(",") if text is not None else ():
        name, _, size = part.partition("=")
        if name not in AXES or not size.isdigit() or int(size) < 1:
            raise UserError(f"mesh: {part!r}: written as data=2,fsdp=4 with axes {', '.join(AXES)}")
        found[name] = int(size)
    return found["data"], found["fsdp"], found["tensor"]


def rows(batch: int, mesh: Mesh) -> NamedSharding:
    """Where tokens [S, B, L+1] go; whole to every device if there are more devices than a batch of B divides into."""
    return NamedSharding(mesh, BATCH if batch % batch_shards(mesh) == 0 else PartitionSpec())


def place_rows(tokens_SxBxM: np.ndarray, mesh: Mesh | None) -> Any:
    """Tokens [S, B, L+1] that every process holds, as one array of which each keeps its own devices' rows."""
    if mesh is None or not mesh.is_multi_process:
        return tokens_SxBxM  # the compiled program puts them where it wants them
    place = rows(tokens_SxBxM.shape[1], mesh)
    return jax.make_array_from_callback(tokens_SxBxM.shape, place, lambda index: tokens_SxBxM[index])


def within(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Inside a traced function: tells kernels, which the compiler cannot split, what to split themselves over."""
    return nullcontext() if mesh is None else use_abstract_mesh(mesh.abstract_mesh)


def mesh_of(params: dict[str, jax.Array]) -> Mesh | None:
    """The mesh that parameters lie on, or None on one device."""
    place = getattr(next(iter(params.values())), "sharding", None)
    return place.mesh if isinstance(place, NamedSharding) and place.mesh.size > 1 else None  # type: ignore[return-value]


def batch_shards(mesh: Mesh) -> int:
    """How many devices have rows of a batch to themselves."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def partition(axes: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where an array with these axes goes; a dimension that a mesh axis does not divide stays whole."""
    return PartitionSpec(*_names(axes, shape, mesh.shape))


def parts(axes: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> int:
    """In how many parts an array with these axes lies on a mesh of these sizes, which need not be there."""
    return math.prod(sizes[name] for name in _names(axes, shape, sizes) if name is not None)


def _names(axes: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> list[str | None]:
    rule = next(spec for pattern, spec in RULES if re.fullmatch(pattern, axes))
    pairs = zip(rule, shape, strict=False)
    return [name if name is None or size % sizes[name] == 0 else None for name, size in pairs]


def state_sharding(state: Any, table: Table, mesh: Mesh) -> Any:
    """A sharding per leaf of a train state: a leaf under a parameter's path and of its shape goes where it goes.

    state: arrays or ShapeDtypeStructs. Returns: the same tree of NamedSharding.
    """

    def place(key_path: Any, leaf: Any) -> NamedSharding:
        for key in reversed(key_path):
            spec = table.get(getattr(key, "key", None))  # type: ignore[arg-type]
            if spec is not None and spec.shape == leaf.shape:
                return NamedSharding(mesh, partition(spec.axes, spec.shape, mesh))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)


def bytes_per_device(state: Any, shardings: Any) -> int:
    """Bytes of a sharded tree on one device."""
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in leaves)
