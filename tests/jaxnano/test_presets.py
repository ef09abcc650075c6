"""Every shipped recipe: it loads, says how to run it, and, shrunk, learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxnano import step
from jaxnano.config.file import load
from jaxnano.config.recipe import Recipe
from tests.jaxnano.recipes import edited

PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def shrunk(recipe: Recipe) -> Recipe:
    """The same mechanisms at width 16, two blocks (the last one keeps what is wired to the middle), 16 positions."""
    changes = {"model.vocab": 256, "model.width": 16, "model.depth": max(1, min(2, recipe.model.depth)),
               "model.attention.heads": 2, "data": {"kind": "embedded", "length": 16, "batch": 8}}
    if recipe.model.attention.head_dim:
        changes["model.attention.head_dim"] = 8
    return edited(recipe, changes)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_shipped_recipe_learns(path: Path) -> None:
    recipe = shrunk(load(path))
    tokens = np.tile(np.arange(17, dtype=np.uint8), (step.STEPS_PER_CALL, 8, 1))  # one sentence, again and again
    losses = list(step.run(recipe, 10, 0, iter([tokens])))[-1].losses
    assert np.isfinite(losses).all() and losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_shipped_recipe_says_how_to_run_it_and_what_comes_out(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"python -m jaxnano.train --config configs/{path.name} --steps" in text
    assert "Cost: " in text and "Expected: " in text and "@" not in text


def test_the_presets_are_all_there() -> None:
    assert {path.stem for path in PRESETS} >= {"gpt2-tiny", "modern-tiny", "gpt2-124m", "track3-124m"}
