"""How recipes are laid over devices, by hand; and what the estimate says beside what lies on a device."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxnano import sharding, step
from jaxnano.config.recipe import Recipe, hypers
from jaxnano.cost import ALONE, preflight
from jaxnano.layout import layout
from jaxnano.model.specs import specs
from tests.jaxnano.recipes import TINY, edited

RECIPE = edited(TINY, {"model.width": 64, "data.length": 64, "data.batch": 16, "train.dtype": "float32"})
PHASES = [{"name": "more", "start": 0.5, "set": {"data": {"batch": 48}}}]


def bytes_of(axes: tuple[int, int, int], accumulate: int = 1, recipe: Recipe = RECIPE) -> int:
    return preflight(recipe, accumulate, "cpu", dict(zip(sharding.AXES, axes, strict=True))).total_bytes


@pytest.mark.parametrize(("devices", "changes", "room", "mesh", "accumulate"), [
    (1, {}, bytes_of((1, 1, 1)), "data=1,fsdp=1,tensor=1", (1,)),
    (1, {}, bytes_of((1, 1, 1), 4), "data=1,fsdp=1,tensor=1", (4,)),
    (8, {}, bytes_of((8, 1, 1)), "data=8,fsdp=1,tensor=1", (1,)),
    (8, {}, bytes_of((8, 1, 1)) - 1, "data=8,fsdp=1,tensor=1", (2,)),
    (8, {}, bytes_of((8, 1, 1), 2) - 1, "data=4,fsdp=2,tensor=1", (2,)),
    (8, {}, bytes_of((1, 8, 1), 2), "data=1,fsdp=8,tensor=1", (2,)),
    (8, {"data.batch": 4}, 1 << 30, "data=4,fsdp=1,tensor=2", (1,)),
    (6, {"data.batch": 4}, 1 << 30, "data=2,fsdp=1,tensor=3", (1,)),
    (8, {"phases": PHASES}, bytes_of((8, 1, 1), 2), "data=8,fsdp=1,tensor=1", (2, 6)),
])
def test_the_first_mesh_that_fits_and_the_least_accumulation(
    devices: int, changes: dict[str, Any], room: int, mesh: str, accumulate: tuple[int, ...]
) -> None:
    found = layout(edited(RECIPE, changes), devices, room, "cpu")
    assert (found.told, found.accumulate) == (mesh, accumulate)


@pytest.mark.parametrize(("mesh", "room", "found", "accumulate"), [
    ("fsdp=8", 1 << 30, "data=1,fsdp=8,tensor=1", (1,)), ("tensor=2", 1 << 30, "data=4,fsdp=1,tensor=2", (1,)),
    ("fsdp=8", bytes_of((1, 8, 1), 2), "data=1,fsdp=8,tensor=1", (2,))])
def test_a_mesh_that_is_asked_for_is_taken(mesh: str, room: int, found: str, accumulate: tuple[int, ...]) -> None:
    laid = layout(RECIPE, 8, room, "cpu", mesh)
    assert (laid.told, laid.accumulate) == (found, accumulate)


@pytest.mark.parametrize(("mesh", "devices", "room", "reason"), [
    ("fsdp=3", 8, 1 << 30, "mesh: data=2,fsdp=3,tensor=1: the sizes multiply to the 8 device.* would do"),
    ("rows=2", 8, 1 << 30, "mesh: 'rows=2': written as data=2,fsdp=4"),
    ("fsdp=2", 6, 1 << 30, "data.batch: 16: its rows do not divide over 6 devices; a multiple of 6 would do"),
    ("fsdp=2", 8, bytes_of((4, 2, 1), 2) - 1, "bytes of a step of a row a device on one of 8 devices, .* would do")])
def test_a_mesh_that_does_not_fit_is_one_line(mesh: str, devices: int, room: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        layout(RECIPE, devices, room, "cpu", mesh)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("devices", "changes", "room", "reason"), [
    (6, {}, 1 << 30, "data.batch: 16: its rows do not divide over 6 devices; a multiple of 6 would do"),
    (16, {"phases": [{"name": "odd", "start": 0.5, "set": {"data": {"batch": 24}}}]}, 1 << 30,
     "phases.odd.set.data.batch: 24: its rows do not divide over 16 devices; a multiple of 16"),
    (8, {}, 1 << 12, "on one of 8 devices, which has 0.0 GiB"), (1, {}, 1 << 12, "on one device"),
])
def test_what_cannot_be_laid_is_one_line(devices: int, changes: dict[str, Any], room: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        layout(edited(RECIPE, changes), devices, room, "cpu")
    assert "\n" not in str(refused.value) and "would do" in str(refused.value)


@pytest.mark.parametrize("kind", ["muon", "soap", "normuon"])
def test_state_on_a_device_is_what_is_counted(kind: str) -> None:
    rest = {"name": "r", "roles": ["embedding", "head", "gain", "bias", "scalar", "gate"], "lr": 0.01,
            "chain": [{"kind": "adam"}]}
    recipe = edited(RECIPE, {"optimizer.groups": [
        {"name": "m", "roles": ["matrix"], "lr": 0.02, "chain": [{"kind": kind}]}, rest]})
    state = jax.eval_shape(step.program(recipe).init, np.uint32(0), hypers(recipe, 1)).optimizer
    for text in ("data=8", "fsdp=8", "data=2,fsdp=2,tensor=2"):
        mesh = sharding.make_mesh(*sharding.sizes(text))
        held = sharding.bytes_per_device(state, sharding.state_sharding(state, specs(recipe), mesh))
        cost = preflight(recipe, 1, "cpu", mesh.shape)
        gathered = 0 if text == "data=8" else 4 * 256 * 64  # the table, whole
        assert cost.parameter_bytes - gathered + cost.optimizer_bytes == pytest.approx(held, rel=0.005), text
        assert cost.flops_per_step == preflight(recipe, 1, "cpu").flops_per_step
    assert preflight(recipe, 1, "cpu", ALONE) == preflight(recipe, 1, "cpu")
