"""Sampling with a cache writes what the plain forward pass would, past the end of the context too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnano import checkpoint
from jaxnano.config.recipe import Recipe, at, hypers
from jaxnano.model import gpt
from jaxnano.model.specs import specs
from jaxnano.sample import draw, main, sample
from tests.jaxnano.recipes import RECIPES


def random_params(recipe: Recipe) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {path: rng.normal(0, 0.3, spec.shape).astype(np.float32) for path, spec in specs(recipe).items()}


def greedy(recipe: Recipe, params: Any, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest token at a time, from the whole text; after the context is full, from its last half."""
    length, text = recipe.data.length, list(prompt)
    forward = jax.jit(lambda x: gpt.logits(params, x, at(recipe, hypers(recipe, 1), 1.0))[0])
    seen = list(prompt)
    for _ in range(tokens):
        padded = np.zeros((1, length), np.int32)  # what comes after a position does not matter to it
        padded[0, : len(seen)] = seen
        text.append(int(jnp.argmax(forward(padded)[0, len(seen) - 1])))
        seen = [*seen, text[-1]] if len(seen) < length else text[-(length // 2):]
    return text[len(prompt):]


@pytest.mark.parametrize("name", ["gpt2", "windows_inclusive_rotary_swiglu", "sandwich_smear",
                                  "mixed_heads_documents"])
def test_greedy_text_is_that_of_the_plain_model(name: str) -> None:
    recipe = RECIPES[name]
    params, prompt = random_params(recipe), [7, 200, 31, 4, 4]
    found = sample(recipe, params, np.array(prompt), 40, temperature=0.0)  # 16 positions: the context fills four times
    assert found.tolist() == greedy(recipe, params, prompt, 40)
    long = np.arange(30)
    assert sample(recipe, params, long, 3, temperature=0.0).tolist() == greedy(recipe, params, [*long[-8:]], 3)


def test_draws_follow_temperature_and_top_k() -> None:
    logits, keys = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), jax.random.split(jax.random.key(0), 4000)

    def shares(temperature: float, top_k: int) -> np.ndarray:
        drawn = jax.vmap(lambda key: draw(key, logits, {"temperature": temperature, "top_k": top_k}))(keys)
        return np.bincount(drawn, minlength=4) / len(keys)

    np.testing.assert_allclose(shares(1.0, 4), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(shares(1.0, 2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(0.5, 3), np.array([0.25, 0.09, 0.0225, 0]) / 0.3625, atol=0.03)
    assert shares(0.0, 4).tolist() == [1, 0, 0, 0]


def test_a_seed_repeats_its_text_and_another_does_not() -> None:
    recipe = RECIPES["gpt2"]
    params = random_params(recipe)
    texts = [sample(recipe, params, np.arange(5), 30, seed=seed).tolist() for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2] and len(texts[0]) == 30
    with pytest.raises(ValueError, match="below 0"):
        sample(recipe, params, np.array([1]), 3, temperature=-1.0)


def test_the_command_prints_the_prompt_and_what_follows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = RECIPES["gpt2"]
    monkeypatch.setattr("jaxnano.sample.load", lambda folder: (recipe, random_params(recipe), {}))
    monkeypatch.setattr("jaxnano.sample.use_compile_cache", lambda: None)
    assert main([str(tmp_path), "--prompt", "déf:", "--tokens", "4", "--temperature", "0"]) == 0
    expected = sample(recipe, random_params(recipe), np.frombuffer("déf:".encode(), np.uint8), 4, temperature=0.0)
    assert capsys.readouterr().out == "déf:" + bytes(expected.tolist()).decode("utf-8", "replace") + "\n"
    assert main([str(tmp_path), "--tokens", "4", "--temperature", "0"]) == 0
    expected = sample(recipe, random_params(recipe), np.array([0]), 4, temperature=0.0)  # NUL stands between documents
    assert capsys.readouterr().out == bytes(expected.tolist()).decode("utf-8", "replace") + "\n"
    with pytest.raises(ValueError, match="no such folder"):
        checkpoint.load(tmp_path / "none")
