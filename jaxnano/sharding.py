"""One mesh with named axes and one table that places parameters and optimizer state on it."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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


def make_mesh(data: int = 0, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over all devices; `data` 0 takes what the other axes leave.

    Raises: ValueError if the axes do not multiply to the number of devices.
    """
    count = jax.device_count()
    data = data or count // (fsdp * tensor)
    if data * fsdp * tensor != count:
        would = max(1, count // (fsdp * tensor))
        raise ValueError(f"mesh: {data} x {fsdp} x {tensor} is not the {count} device(s) there are; "
                         f"data {would} would do" if would * fsdp * tensor == count else
                         f"mesh: {data} x {fsdp} x {tensor} is not the {count} device(s) there are; 1 x {count} x 1 would do")
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def partition(axes: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where an array with these axes goes; a dimension that a mesh axis does not divide stays whole."""
    rule = next(spec for pattern, spec in RULES if re.fullmatch(pattern, axes))
    names = [name if name is None or size % mesh.shape[name] == 0 else None for name, size in zip(rule, shape, strict=False)]
    return PartitionSpec(*names)


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
