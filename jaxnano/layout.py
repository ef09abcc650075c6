"""How a recipe is laid over the devices of a place: the mesh's axes, and the pieces that batches are taken in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jaxnano import sharding
from jaxnano.config.base import ConfigError, Problem
from jaxnano.config.recipe import Recipe, Stage, stages
from jaxnano.cost import ALONE, Axes, least_accumulate, preflight

MEMORY_SHARE = 0.9  # of a device's memory, which a step may fill by the estimate


class Layout(NamedTuple):
    """axes: sizes of the mesh's, by name. accumulate: pieces that each stage's batch is taken in."""

    axes: Axes
    accumulate: tuple[int, ...]

    @property
    def told(self) -> str:
        """The mesh as `--mesh` takes it."""
        return ",".join(f"{name}={self.axes[name]}" for name in sharding.AXES)


def layout(recipe: Recipe, devices: int, room: int, platform: str, mesh: str | None = None) -> Layout:
    """The plainest mesh over so many devices that a step fits on, or that asked for, and the least accumulation there.

    Every device has all weights if these fit, else more and more devices share them (axis fsdp); heads and channels are
    divided (axis tensor) only where a batch has fewer rows than there are devices. By the estimate of `cost`.

    Args: room: bytes of one device. platform: cpu, gpu or tpu. mesh: its axes, as `--mesh` takes them.
    Raises: UserError if a batch does not divide over the devices, or no mesh fits.
    """
    parts, last = stages(recipe), ALONE
    for axes in _meshes(parts, devices) if mesh is None else _given(parts, devices, mesh):
        found = [least_accumulate(part.recipe, room, platform, axes) for part in parts]
        if None not in found:
            return Layout(axes, tuple(found))  # type: ignore[arg-type]
        last = axes
    rows = last["data"] * last["fsdp"]
    least = max(preflight(part.recipe, part.recipe.data.batch // rows, platform, last).total_bytes for part in parts)
    on = f"one of {devices} devices" if devices > 1 else "one device"
    raise ConfigError([Problem("model", least, f"bytes of a step of a row a device on {on}, which has "
                               f"{room / 2**30:.1f} GiB of {platform} memory for it; fewer parameters, train.remat or "
                               "a shorter data.length would do")])


def _meshes(parts: tuple[Stage, ...], devices: int) -> Iterator[Axes]:
    """The meshes to try, the plainest first."""
    batches = [part.recipe.data.batch for part in parts]
    tensor = next(t for t in _divisors(devices) if all(batch % (devices // t) == 0 for batch in batches))
    if tensor > 1 and min(batches) >= devices:
        _divides(parts, devices)
    for fsdp in _divisors(shards := devices // tensor):
        yield dict(zip(sharding.AXES, (shards // fsdp, fsdp, tensor), strict=True))


def _given(parts: tuple[Stage, ...], devices: int, mesh: str) -> Iterator[Axes]:
    """The one mesh that was asked for."""
    axes: dict[str, int] = dict(zip(sharding.AXES, sharding.shape(sharding.sizes(mesh), devices), strict=True))
    _divides(parts, axes["data"] * axes["fsdp"])
    yield axes


def _divides(parts: tuple[Stage, ...], shards: int) -> None:
    """Raises: ConfigError if a stage's batch does not divide over so many devices."""
    for part in parts:
        if part.recipe.data.batch % shards:
            path = f"phases.{part.name}.set." * bool(part.name) + "data.batch"
            raise ConfigError([Problem(path, part.recipe.data.batch, f"its rows do not divide over {shards} devices; "
                                       f"a multiple of {shards} would do")])


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]
