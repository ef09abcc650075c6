"""A model in GPT-2's shape as Hugging Face's transformers read it: config.json and model.safetensors.

    python -m jaxnano.export shared/champion exported
    python -c "from transformers import GPT2LMHeadModel as M; M.from_pretrained('exported')"

What GPT-2 always has and a recipe may lack is written so that it does nothing: a bias or a position table of zeros, a
gain of ones, the output of a dropped branch times zero. What a recipe has and GPT-2 lacks cannot be written, and is
refused. No tokenizer is written: models of bytes take bytes as tokens, the others GPT-2's.
Source of the layout: transformers' GPT2LMHeadModel, whose linear maps (Conv1D) hold weights as [inputs, outputs].
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from jaxnano.cli import Command, Output, UserError, report_errors

PARSER = Command("jaxnano.export", __doc__)
PARSER.add_argument("path", help="what research.share published, or the folder of jaxnano.train --out")
PARSER.add_argument("out", help="a new folder, gs://BUCKET/FOLDER or hf://OWNER/NAME")
PARSER.add_argument("--json", action="store_true")
PARSER.early(__name__)

import numpy as np

from jaxnano import published
from jaxnano.config.base import ConfigError, Problem, is_under
from jaxnano.config.block import Gelu
from jaxnano.config.edit import diff, show
from jaxnano.config.recipe import Recipe, at, hypers, shipped

CONFIG, WEIGHTS = "config.json", "model.safetensors"
END_OF_TEXT, NUL = 50256, 0  # what stands between documents, of GPT-2's tokens and of bytes

# What may differ: sizes, what only training reads, and what GPT-2 can hold as zeros or ones.
FREE = (
    "vocab", "width", "depth", "bias", "init", "attention.heads", "attention.dropped", "ffn.ratio", "ffn.dropped",
    "ffn.activation.approximate", "norm.gain", "norm.bias", "norm.eps", "taps", "tables", "head.z_loss", "head.targets",
)


def misfit(recipe: Recipe) -> Problem | None:
    """The first thing in a recipe that GPT-2 does not have, or None if it can be exported."""
    m, documents = shipped(recipe).model, recipe.data.documents
    a, plain = m.attention, {}
    if documents is not None and documents.mask:
        return Problem("data.documents.mask", True, "GPT-2 attends from one document to another; false would do")
    if m.kv_heads == a.heads:
        plain["kv_heads"] = None
    if m.head_dim * a.heads == m.width:
        plain["head_dim"] = None
    if all(m.block(block).window(recipe.data.length) is None for block in range(m.depth) if m.block(block).attention):
        plain["windows"] = ()
    alike = m.model_copy(update={"attention": a.model_copy(update=plain)})
    for edit in diff(Recipe(), Recipe.model_construct(model=alike)).edits:  # defaults are GPT-2's mechanisms
        nothing = edit.path == "model.position" and m.position.kind == "none"
        if not nothing and not any(is_under(edit.path, f"model.{free}") for free in FREE):
            return Problem(edit.path, edit.new, f"GPT-2's files cannot hold it; {show(edit.old)} would do")
    return None


def config(recipe: Recipe) -> dict[str, Any]:
    """config.json of a recipe that fits, with the numbers that hold at the end of training."""
    m = shipped(at(recipe, hypers(recipe, 1), 1.0)).model
    activation, end = shipped(recipe).model.ffn.activation, END_OF_TEXT if m.vocab > END_OF_TEXT else NUL
    assert isinstance(activation, Gelu)
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": m.vocab,
        "n_positions": recipe.data.length, "n_embd": m.width, "n_layer": m.depth, "n_head": m.attention.heads,
        "n_inner": m.ffn_width, "activation_function": "gelu_new" if activation.approximate else "gelu",
        "layer_norm_epsilon": float(str(np.float32(m.norm.eps))), "initializer_range": 0.02,  # 1e-05, not 9.99e-06
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "scale_attn_weights": True,
        "tie_word_embeddings": True, "bos_token_id": end, "eos_token_id": end, "torch_dtype": "float32",
    }


def tensors(recipe: Recipe, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """model.safetensors of a recipe that fits: float32 arrays by transformers' names; the tied head is left out."""
    m, length = shipped(recipe).model, recipe.data.length
    width, inner = m.width, m.ffn_width

    def get(path: str, *shape: int, fill: float = 0.0) -> np.ndarray:
        found = params.get(path)
        return np.full(shape, fill, np.float32) if found is None else np.asarray(found, np.float32)

    def norm(name: str, path: str) -> dict[str, np.ndarray]:
        return {f"{name}.weight": get(f"{path}/gain", width, fill=1.0), f"{name}.bias": get(f"{path}/bias", width)}

    def linear(name: str, path: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": get(path, inputs, outputs), f"{name}.bias": get(f"{path}_bias", outputs)}

    out = {"wte.weight": get("embedding/token"), "wpe.weight": get("embedding/position", length, width)}
    for block in range(m.depth):
        name, path = f"h.{block}", f"blocks_{block}"
        out |= norm(f"{name}.ln_1", f"{path}/attention_norm") | norm(f"{name}.ln_2", f"{path}/ffn_norm")
        projections = [linear("", f"{path}/attention/{part}", width, width) for part in "qkv"]
        out |= {f"{name}.attn.c_attn{end}": np.concatenate([p[end] for p in projections], -1)
                for end in (".weight", ".bias")}
        out |= linear(f"{name}.attn.c_proj", f"{path}/attention/o", width, width)
        out |= linear(f"{name}.mlp.c_fc", f"{path}/ffn/up", width, inner)
        out |= linear(f"{name}.mlp.c_proj", f"{path}/ffn/down", inner, width)
    out |= norm("ln_f", "final_norm")
    return {f"transformer.{name}": array for name, array in out.items()}


def export(path: str, out: str) -> dict[str, Any]:
    """Write a published model or a run's folder as config.json and model.safetensors, all or nothing.

    Args: path: what `jaxnano.load` opens. out: a new or empty folder, gs:// path or hf:// repository.
    Returns: path, parameters, bytes.
    Raises: ConfigError naming the first thing GPT-2 does not have; ValueError without safetensors or a free `out`.
    """
    try:
        from safetensors.numpy import save
    except ImportError:
        raise UserError('export: safetensors is not installed; pip install "jaxnano[safetensors]" would do') from None
    recipe, params, _ = published.load(path)
    if problem := misfit(recipe):
        raise ConfigError([problem], path)
    arrays = tensors(recipe, params)
    with published.publishing(out) as folder:
        (folder / CONFIG).write_text(json.dumps(config(recipe), indent=2) + "\n")
        size = (folder / WEIGHTS).write_bytes(save(arrays, metadata={"format": "pt"}))  # transformers asks for "pt"
    return {"path": out, "parameters": sum(a.size for a in arrays.values()), "bytes": size}


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = PARSER.options(argv)
    Output(options.json).table("exported", export(options.path, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
