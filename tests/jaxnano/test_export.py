"""What is exported computes what the model does, by a GPT-2 written from transformers' layout; the rest is refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open
from scipy.special import erf

from jaxnano import checkpoint, export, step
from jaxnano.checkpoint import Checkpoints
from jaxnano.cli import report_errors
from jaxnano.config.recipe import Recipe, at, hypers
from jaxnano.model import gpt
from jaxnano.model.specs import specs
from tests.jaxnano.recipes import RECIPES, TINY, edited, model

LENGTH = TINY.data.length
FULL = model(vocab=300, bias=True, ffn__ratio=3.0, norm={"kind": "layernorm", "eps": 1e-3})
BARE = model(
    depth=3, position={"kind": "none"}, attention__dropped=[1], attention__kv_heads=4, attention__head_dim=4,
    attention__windows=[LENGTH], head__z_loss=0.1, taps=[{"name": "unread", "after": {"block": 0}}],
    ffn={"kind": "mlp", "activation": {"kind": "gelu", "approximate": False}, "dropped": [0]},
    norm={"kind": "layernorm", "bias": False, "gain": False, "eps": {"kind": "linear", "value": 1e-2, "floor": 0.1}},
)
ACTIVATIONS = {
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
}


def saved(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """A run's folder with random parameters, biases and gains too; returns them."""
    rng = np.random.default_rng(3)
    params = {path: rng.normal(0, 0.3, spec.shape).astype(np.float32) for path, spec in specs(recipe).items()}
    shapes = jax.eval_shape(step.program(recipe).init, np.uint32(0), hypers(recipe, 10))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = jax.device_put(state._replace(optimizer=state.optimizer._replace(params=params)))
    checkpoints = Checkpoints(folder / checkpoint.FOLDER, recipe, 0, 10, "data")
    checkpoints.save(state, {"next_index": 1}, None)
    checkpoints.close()
    return params


def gpt2(folder: Path, tokens_BxL: np.ndarray) -> np.ndarray:
    """Logits of GPT2LMHeadModel in float64, from the exported files alone."""
    cfg = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        w = {name.removeprefix("transformer."): file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
    assert (cfg["model_type"], cfg["architectures"]) == ("gpt2", ["GPT2LMHeadModel"])
    width, heads, length = cfg["n_embd"], cfg["n_head"], tokens_BxL.shape[1]
    assert w["wte.weight"].shape == (cfg["vocab_size"], width) and w["wpe.weight"].shape == (cfg["n_positions"], width)
    assert w["h.0.mlp.c_fc.weight"].shape == (width, cfg["n_inner"])

    def conv1d(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg["layer_norm_epsilon"])
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][tokens_BxL] + w["wpe.weight"][:length]
    for block in range(cfg["n_layer"]):
        qkv = conv1d(norm(x, f"h.{block}.ln_1"), f"h.{block}.attn.c_attn")
        q, k, v = (y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2) for y in np.split(qkv, 3, -1))
        scores = q @ k.swapaxes(2, 3) / math.sqrt(width // heads)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = (weights / weights.sum(-1, keepdims=True)) @ v
        x = x + conv1d(y.swapaxes(1, 2).reshape(x.shape), f"h.{block}.attn.c_proj")
        hidden = ACTIVATIONS[cfg["activation_function"]](conv1d(norm(x, f"h.{block}.ln_2"), f"h.{block}.mlp.c_fc"))
        x = x + conv1d(hidden, f"h.{block}.mlp.c_proj")
    assert cfg["tie_word_embeddings"] and "lm_head.weight" not in w
    return norm(x, "ln_f") @ w["wte.weight"].T


@pytest.mark.parametrize("recipe", [FULL, BARE], ids=["full", "bare"])
def test_an_exported_model_computes_the_same_logits(tmp_path: Path, recipe: Recipe) -> None:
    params = saved(tmp_path / "run", recipe)
    found = export.export(str(tmp_path / "run"), str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert found["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    tokens = np.random.default_rng(0).integers(0, recipe.model.vocab, (3, LENGTH))
    ours = jax.jit(lambda params: gpt.logits(params, tokens, at(recipe, hypers(recipe, 1), 1.0))[0])(params)
    np.testing.assert_allclose(ours, gpt2(tmp_path / "out", tokens), rtol=0, atol=2e-5)


def test_the_config_says_what_the_recipe_does() -> None:
    full, bare = export.config(FULL), export.config(BARE)
    assert (full["layer_norm_epsilon"], full["n_inner"], full["activation_function"]) == (0.001, 48, "gelu_new")
    assert bare["layer_norm_epsilon"] == pytest.approx(1e-3) and bare["activation_function"] == "gelu"  # its last value
    assert export.config(TINY)["layer_norm_epsilon"] == 1e-05 and export.config(TINY)["eos_token_id"] == 0
    assert export.config(model(vocab=50304))["eos_token_id"] == 50256


@pytest.mark.parametrize(("name", "path", "would"), [
    ("grouped_biases", "model.attention.kv_heads: 2:", "null would do"),
    ("multi_query_half_rotary", "model.attention.kv_heads: 1:", "null would do"),
    ("windows_inclusive_rotary_swiglu", "model.attention.windows: [4, 0]:", "[] would do"),
    ("alibi_geglu", 'model.position: {"kind": "alibi", "reach": 6.0}:', "learned() would do"),
    ("no_position_gate", 'model.attention.gate: {"kind": "sigmoid", "channels": 5}:', "null would do"),
    ("sandwich_smear", "model.ffn.activation: ", "gelu() would do"),
    ("x0_skips", "model.wires.skip: ", "absent would do"),
    ("unet_values", "model.attention.kv_heads: 2:", "null would do"),
    ("dropped_branches", "model.attention.head_dim: 5:", "null would do"),
    ("scheduled", "model.attention.scale: ", "inverse_sqrt() would do"),
])
def test_what_gpt2_lacks_is_named(name: str, path: str, would: str) -> None:
    problem = str(export.misfit(RECIPES[name]))
    assert problem.startswith(path) and problem.endswith(would) and "\n" not in problem


@pytest.mark.parametrize(("changes", "path"), [
    ({"embedding__tied": False}, "model.embedding.tied: false:"), ({"attention__qk_norm": True}, "model.attention.qk_"),
    ({"head__softcap": {"kind": "tanh"}}, "model.head.softcap: "), ({"norm": {"kind": "rmsnorm"}}, "model.norm: "),
    ({"norm__placement": "sandwich"}, "model.norm.placement: "), ({"embedding__norm": True}, "model.embedding.norm: "),
    ({"attention__reads": "x0", "taps": [{"name": "x0"}]}, "model.attention.reads: "),
    ({"attention__softcap": 9.0}, "model.attention.softcap: "),
    ({"attention__windows": [0, LENGTH - 1]}, "model.attention.windows: "), ({"ffn": {"kind": "glu"}}, "model.ffn: "),
])
def test_one_change_from_gpt2_is_enough(changes: dict[str, Any], path: str) -> None:
    assert export.misfit(TINY) is None
    assert str(export.misfit(model(**changes))).startswith(path)


def test_a_model_that_does_not_fit_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "run", model(position={"kind": "rotary"}))
    assert report_errors(lambda: export.main([str(tmp_path / "run"), str(tmp_path / "out")])) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "model.position: " in err and "learned() would do" in err
    assert not (tmp_path / "out").exists()


def test_without_safetensors_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ValueError, match=r'pip install "jaxnano\[safetensors\]" would do'):
        export.export(str(tmp_path), str(tmp_path / "out"))


def test_a_model_that_keeps_documents_apart_is_refused_and_what_only_training_asks_for_is_not() -> None:
    apart = edited(TINY, {"data.documents": {"most": 4}})
    assert str(export.misfit(apart)).startswith("data.documents.mask: true: GPT-2 attends")
    aligned = {"data.documents": {"mask": False, "align": True}, "model.head.targets": [{"name": "two", "shift": 2}]}
    assert export.misfit(edited(TINY, aligned)) is None
