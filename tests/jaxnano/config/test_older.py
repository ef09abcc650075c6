"""What version 0.4 wrote is read as wires: recipes, patterns of groups, checkpoints, and the ids of ledgers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxnano import checkpoint, step
from jaxnano.checkpoint import Checkpoints
from jaxnano.config.base import ConfigError, digest, dump, dump_full, validate
from jaxnano.config.older import is_older, parameter
from jaxnano.config.recipe import Recipe, hypers, recipe_id
from jaxnano.model.specs import specs
from research.ledger.invariants import _recipe_id
from tests.jaxnano.recipes import TINY

RESIDUAL = {
    "branch": "depth_scaled", "scalars": {"stream": 1.1},
    "saves": [{"name": "x0", "after": 0}, {"name": "early", "after": 1}],
    "injections": [{"name": "x0", "source": "x0", "before": [1, 2], "coefficient": {"kind": "gate", "channels": 4}},
                   {"name": "up", "source": "early", "before": [1]}],
    "value_embeddings": [{"name": "v", "blocks": [1], "init": 0.25}],
}
VALUES = {"name": "values", "paths": ["value_embeddings/*", "blocks_*/ffn_stream"], "lr": 0.1,
          "chain": [{"kind": "adam"}]}
OLD: dict[str, Any] = {
    "model": {"width": 16, "depth": 2, "embedding": {"smear": {"init": 0.5}}, "residual": RESIDUAL},
    "optimizer": {"groups": [VALUES, *dump_full(TINY)["optimizer"]["groups"]]},
    "data": {"kind": "embedded", "length": 16, "batch": 2},
}
# What version 0.4 called its parameters, role by role, and what each starts from.
THERE = {
    "embedding/smear/weight": 0.0, "embedding/smear/scale": 0.5, "inject_x0_1/weight": 0.0, "inject_x0_1/scale": 0.5,
    "inject_x0_2/weight": 0.0, "inject_x0_2/scale": 0.5, "inject_up_1/scale": 0.0,
    "blocks_1/attention/mix_v_value": 0.75, "blocks_1/attention/mix_v_table": 0.25, "value_embeddings/v": 0.02,
    **{f"blocks_{block}/{branch}_{end}": value for block in (0, 1) for branch in ("attention", "ffn")
       for end, value in (("stream", 1.1), ("branch", 1.0))},
}


def test_it_is_the_same_model_in_other_words() -> None:
    recipe, plain = validate(Recipe, OLD), specs(TINY)
    table = specs(recipe)
    assert set(table) == {*plain, *(parameter(path, 2) for path in THERE)}
    for path, value in THERE.items():
        assert table[parameter(path, 2)].init.value == pytest.approx(value), path
    assert validate(Recipe, dump(recipe)) == recipe and not is_older(dump(recipe)) and is_older(OLD)
    held = {path for path, spec in table.items() if recipe.optimizer.group_of(path, spec.role).name == "values"}
    assert held == {"tables/v", "blocks_0/wire_feed_keep", "blocks_1/wire_feed_keep"}


@pytest.mark.parametrize("change", [
    {"residual": {"branches": 1}}, {"residual": {"saves": [{"after": 0}]}}, {"residual": 3}])
def test_what_no_version_wrote_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="model.residual: .*: no such field"):
        validate(Recipe, {"model": change})


def test_a_ledgers_recipe_keeps_the_id_it_was_written_under() -> None:
    assert _recipe_id(OLD) == digest(OLD) != recipe_id(validate(Recipe, OLD))
    assert _recipe_id(dump(TINY)) == recipe_id(TINY)


def test_its_checkpoint_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, rng = validate(Recipe, OLD), np.random.default_rng(0)
    shapes = jax.eval_shape(step.program(recipe).init, np.uint32(0), hypers(recipe, 10))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    called = {parameter(path, 2): path for path in THERE}
    params = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in state.optimizer.params.items()}
    old = {called.get(path, path): x for path, x in params.items()}
    monkeypatch.setattr(checkpoint, "dump", lambda recipe: OLD)
    checkpoints = Checkpoints(tmp_path / checkpoint.FOLDER, recipe, 0, 10, "data")
    state = state._replace(optimizer=state.optimizer._replace(params=old))
    checkpoints.save(jax.device_put(state), {"next_index": 1}, None)
    checkpoints.close()
    monkeypatch.undo()
    found, loaded, _ = checkpoint.load(tmp_path)
    assert found == recipe
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    with pytest.raises(ConfigError, match="recipe: .*the checkpoint was made with"):
        Checkpoints(tmp_path / checkpoint.FOLDER, recipe, 0, 10, "data").restore()
