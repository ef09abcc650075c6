"""What is saved is what is loaded, while training goes on, on any mesh, and for no other run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxnano import checkpoint, sharding, step
from jaxnano.checkpoint import Checkpoints
from jaxnano.config.base import ConfigError
from jaxnano.config.recipe import Recipe
from tests.jaxnano.test_train import RECIPE, batches, edited

STEPS = 40


def open_in(folder: Path, recipe: Recipe = RECIPE, seed: int = 0, mesh: Any = None) -> Checkpoints:
    return Checkpoints(folder, recipe, seed, STEPS, "data", mesh)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
    """A folder saved after every call of a run, step 20 being the best; and each step's state at that time."""
    folder, states, source = tmp_path_factory.mktemp("run") / checkpoint.FOLDER, {}, batches()
    checkpoints = open_in(folder)
    losses = {10: 3.0, 20: 1.0, 30: None, 40: 2.0}
    for call in step.run(RECIPE, STEPS, 0, source, settle=lambda step: True):
        states[call.step] = jax.tree.map(np.array, call.state)
        checkpoints.save(call.state, {"next_index": call.step // 10}, losses[call.step])  # the next call donates it
    checkpoints.close()
    return folder, states


def assert_same(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_latest_and_the_best_are_kept_bit_for_bit(saved: Any) -> None:
    folder, states = saved
    assert sorted(p.name for p in folder.iterdir() if p.name.isdigit()) == ["20", "40"]
    checkpoints = open_in(folder)
    state, data = checkpoints.restore()  # type: ignore[misc]
    assert checkpoints.latest_step == 40 and data == {"next_index": 4}
    assert_same(state, states[40])
    best = checkpoints._checkpointer.load_checkpointables(20, {"state": checkpoint._abstract(RECIPE, None)})
    assert_same(best["state"], states[20])
    checkpoints.close()


def test_a_state_is_restored_to_another_mesh(saved: Any) -> None:
    folder, states = saved
    mesh = sharding.parse_mesh("fsdp=4,tensor=2")
    state, _ = open_in(folder, mesh=mesh).restore()  # type: ignore[misc]
    assert_same(jax.device_get(state), states[40])
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {8}


@pytest.mark.parametrize(("other", "reason"), [
    ({"seed": 1}, "seed: 1: the checkpoint was made with 0"),
    ({"recipe": edited(RECIPE, {"optimizer.clip": 2.0})}, "recipe: "),
])
def test_another_runs_folder_is_refused(saved: Any, other: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_in(saved[0], **other).restore()


@pytest.mark.parametrize("place", ["", checkpoint.FOLDER])
def test_a_folder_loads_as_recipe_and_parameters(saved: Any, place: str) -> None:
    folder, states = saved
    recipe, params, about = checkpoint.load(folder.parent / place)
    assert recipe == RECIPE and about["seed"] == 0 and about["total_steps"] == STEPS
    assert_same(params, states[40].optimizer.params)


def test_a_folder_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        checkpoint.load(tmp_path)
    assert checkpoint.recorded(tmp_path) is None and open_in(tmp_path / "new").restore() is None
