"""One device and eight do the same, and a parameter's state lies where the parameter lies."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxnano import evaluate, sharding, step
from jaxnano.config.recipe import hypers
from jaxnano.model import backend
from jaxnano.model.specs import specs
from tests.jaxnano.test_train import RECIPE, after_three_steps, assert_close, batches, fresh


@pytest.fixture(scope="module")
def alone() -> Any:
    return after_three_steps(RECIPE)


@pytest.mark.parametrize(("axes", "accumulate"), [
    ("data=8", 1), ("fsdp=8", 1), ("data=4,tensor=2", 1), ("data=2,fsdp=2,tensor=2", 2),
])
def test_eight_devices_do_what_one_does(axes: str, accumulate: int, alone: Any) -> None:
    mesh = sharding.parse_mesh(axes)
    losses, params = after_three_steps(RECIPE, mesh=mesh, accumulate=accumulate)
    assert_close((losses, params), alone)
    compiled = step.program(RECIPE, mesh, accumulate)
    state, _ = compiled.steps(fresh(), next(batches()), np.int32(0), hypers(RECIPE, 3))
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {8}


def test_evaluation_on_eight_devices_is_that_on_one() -> None:
    mesh, table, params = sharding.parse_mesh("data=4,tensor=2"), specs(RECIPE), fresh().optimizer.params
    assert mesh is not None
    spread = {path: jax.device_put(x, NamedSharding(mesh, sharding.partition(table[path].axes, x.shape, mesh)))
              for path, x in params.items()}
    params = jax.device_put(params, jax.devices()[0])
    assert sharding.mesh_of(spread) == mesh and sharding.mesh_of(params) is None
    losses = [evaluate.evaluate(RECIPE, place, next(batches())) for place in (params, spread)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_optimizer_state_is_sharded_like_its_parameters() -> None:
    mesh, table = sharding.parse_mesh("fsdp=4,tensor=2"), specs(RECIPE)
    assert mesh is not None
    state = step.program(RECIPE, mesh).init(np.uint32(0), hypers(RECIPE, 3))
    seen = 0
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(state):
        path = next((key.key for key in reversed(key_path) if getattr(key, "key", None) in table), None)
        if path is not None and leaf.shape == table[path].shape and leaf.ndim == 2:
            seen += 1
            names = sharding.partition(table[path].axes, leaf.shape, mesh)
            parts = math.prod(mesh.shape[name] for name in names if name)
            assert len({str(shard.index) for shard in leaf.addressable_shards}) == parts >= 4, path
    assert seen == 2 * 6 + 2 * 3  # six matrices with one moment, two tables with two
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    counted = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert sharding.bytes_per_device(state, places) == counted
    assert counted < 0.2 * whole  # about an eighth; gains are whole


def test_a_dimension_that_does_not_divide_stays_whole() -> None:
    mesh = sharding.parse_mesh("fsdp=4,tensor=2")
    assert mesh is not None
    assert sharding.partition("DF", (16, 7), mesh) == PartitionSpec("fsdp", None)
    assert sharding.partition("DH", (16, 8), mesh) == PartitionSpec("fsdp", "tensor")
    assert sharding.partition("", (), mesh) == PartitionSpec()


def test_kernels_see_the_mesh_while_a_program_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, attention = [], backend.attention

    def watched(*arrays: Any, **options: Any) -> Any:
        seen.append(dict(jax.sharding.get_abstract_mesh().shape))
        return attention(*arrays, **options)

    monkeypatch.setattr(backend, "attention", watched)
    mesh, values = sharding.parse_mesh("data=4,tensor=2"), hypers(RECIPE, 3)
    step._program.cache_clear()
    compiled = step.program(RECIPE, mesh)
    compiled.steps.trace(fresh(), next(batches()), np.int32(3), values)  # type: ignore[attr-defined]
    assert seen and set(map(str, seen)) == {str({"data": 4, "fsdp": 1, "tensor": 2})}


@pytest.mark.parametrize(("text", "reason"), [
    ("data=3", "data=3,fsdp=1,tensor=1: the sizes multiply to the 8 .* data=8,fsdp=1,tensor=1 would do"),
    ("fsdp=3", "would do"), ("rows=8", "'rows=8': .* axes data, fsdp, tensor"), ("data", "written as"),
    ("data=0", "written as"), ("data=-8", "written as"),
])
def test_a_mesh_that_cannot_be_is_refused_with_what_would_do(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        sharding.parse_mesh(text)


def test_all_devices_share_the_batch_unless_told_otherwise() -> None:
    mesh = sharding.parse_mesh(None)
    assert mesh is not None and dict(mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    with pytest.raises(ValueError, match="data.batch"):
        step.program(RECIPE, mesh, accumulate=2)


def test_rows_that_do_not_divide_go_whole_to_every_device() -> None:
    mesh = sharding.make_mesh(2, 2, 2)
    assert sharding.rows(8, mesh).shard_shape((3, 8, 5)) == (3, 2, 5)
    assert sharding.rows(6, mesh).shard_shape((3, 6, 5)) == (3, 6, 5)
    tokens = np.arange(3 * 8 * 5).reshape(3, 8, 5)
    assert sharding.place_rows(tokens, mesh) is tokens  # one process: the program places them
