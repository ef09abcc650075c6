"""The table's arithmetic against known models and against what the compiler counts."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxnano import step
from jaxnano.cli import report_errors
from jaxnano.config.file import load
from jaxnano.config.recipe import hypers
from jaxnano.cost import least_accumulate, preflight
from jaxnano.preflight import main
from tests.jaxnano.recipes import TINY, edited

CONFIGS = Path(__file__).parents[2] / "configs"


def test_gpt2_has_the_published_number_of_parameters() -> None:
    assert preflight(load(CONFIGS / "gpt2-124m.yaml")).parameters == 124_439_808


def test_track_3_has_the_parameters_and_flops_of_its_record() -> None:
    cost = preflight(load(CONFIGS / "track3-124m.yaml"), accumulate=16)
    d, v, n = 768, 50304, 12
    block = 4 * (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 2 * d
    assert cost.parameters == v * d + d + n * block + d + (d * v + v)
    # modded-nanogpt's log: 488 thousand tokens/s are 42 % of 989 TFLOP/s, the optimizer not counted
    assert cost.model_flops_per_token * 488e3 / 989e12 == pytest.approx(0.42, abs=0.005)
    assert cost.tokens_per_step == 524_288
    assert cost.optimizer_flops_per_step / cost.flops_per_step < 0.01
    kept = 4 * (n * 12 * d * d + 2 * (cost.parameters - n * 12 * d * d))  # and the weights of Adam's averages
    assert 0 < cost.optimizer_bytes - kept < 2000


def test_modern_tiny_is_no_larger_than_the_track_allows() -> None:
    base, modern = (preflight(load(CONFIGS / f"{name}-tiny.yaml")) for name in ("gpt2", "modern"))
    assert modern.parameters <= 1.05 * base.parameters
    assert modern.tokens_per_step == base.tokens_per_step


WIDE = {"model.width": 64, "data.length": 64, "data.batch": 8}
MUON = [{"name": "m", "roles": ["matrix"], "lr": 0.02, "chain": [{"kind": "muon"}]},
        {"name": "r", "roles": ["embedding", "head", "gain", "bias", "scalar", "gate"], "lr": 0.01,
         "chain": [{"kind": "adam"}]}]


@pytest.mark.parametrize("changes", [
    {"model.depth": 2},
    {"model.depth": 1, "model.ffn": {"kind": "glu"}, "model.attention.kv_heads": 1, "model.embedding.tied": False,
     "model.norm": {"kind": "rmsnorm"}, "optimizer.groups": MUON},
    {"model.depth": 1, "optimizer.readout": {"kind": "tail_ema"}, "optimizer.wrapper": {"kind": "ema_nesterov"}},
], ids=["gpt2", "swiglu_muon", "averaged"])
def test_flops_and_memory_are_about_what_the_compiler_counts(changes: dict[str, Any]) -> None:
    recipe = edited(TINY, WIDE | changes)
    values = hypers(recipe, 10)
    state = jax.eval_shape(partial(step.init_state, recipe), np.uint32(0), values)
    batch = jax.ShapeDtypeStruct((recipe.data.batch, recipe.data.length + 1), np.uint8)
    compiled = jax.jit(partial(step.train_step, recipe)).lower(state, batch, values).compile()
    cost, memory = preflight(recipe, platform="cpu"), compiled.memory_analysis()
    # We leave out what is elementwise, the compiler the products that the causal mask makes needless.
    assert compiled.cost_analysis()["flops"] == pytest.approx(cost.flops_per_step, rel=0.1)  # type: ignore[index]
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.optimizer))
    assert cost.parameter_bytes + cost.optimizer_bytes == pytest.approx(held, rel=0.001)
    assert 0.8 < (cost.gradient_bytes + cost.activation_bytes) / memory.temp_size_in_bytes < 1.6


def test_a_batch_in_pieces_and_remat_need_less_memory() -> None:
    recipe = load(CONFIGS / "track3-124m.yaml")
    whole = preflight(recipe)
    assert preflight(recipe, accumulate=16).activation_bytes < whole.activation_bytes / 8
    assert preflight(edited(recipe, {"train.remat": True})).activation_bytes < whole.activation_bytes / 5
    assert preflight(recipe, platform="cpu").activation_bytes > 2 * whole.activation_bytes
    unfused = edited(recipe, {"model.attention.head_dim": 60})  # which no kernel of the GPU takes
    assert preflight(unfused).activation_bytes > 1.3 * whole.activation_bytes
    formula = edited(recipe, {"model.attention.logit": {"code": "s - log1p(distance)"}})  # nor this
    assert preflight(formula).activation_bytes > 1.3 * whole.activation_bytes
    pieces = least_accumulate(recipe, 141 * 10**9, "gpu")
    assert pieces is not None and preflight(recipe, pieces).total_bytes <= 141 * 10**9
    assert least_accumulate(recipe, 10**9, "gpu") is None


def test_attention_costs_what_its_queries_may_see() -> None:
    """By hand: L 16, H 4, K 4, two blocks; three times a forward pass, two FLOPs a multiplication."""
    def more(changes: dict[str, Any]) -> float:
        found = [preflight(edited(TINY, {f"model.attention.{name}": new for name, new in change.items()}))
                 for change in ({}, changes)]
        return (found[1].model_flops_per_token - found[0].model_flops_per_token) / 3 / 2

    seen = 4 * 4 * 4  # a key, scored and weighed, by all heads
    assert more({"interleaved": 2}) == 16 * seen
    assert more({"window": 5}) == (5 - 16) * seen and more({"window": 5, "window_block": 4}) == (8 - 16) * seen
    assert more({"mix_scores": {"kind": "matrix"}}) == 2 * 4 * 4 + 16 * 2 * 4 * 4
    vectors = 2 * 2 * (5 * 4 + 4)  # two maps of five channels with a bias
    assert more({"mix_weights": {"kind": "vectors", "channels": 5}}) == vectors + 16 * 4 * 4
    assert more({"mix_weights": {"kind": "vectors", "channels": 5, "window": 3}}) == vectors + 3 * 4 * 4 + 3 * seen


def test_weights_that_the_model_sees_in_halves_are_held_twice() -> None:
    plain, halves = (preflight(edited(TINY, {"train.weights": kind})) for kind in ("float32", "upper_half"))
    assert halves.parameter_bytes - plain.parameter_bytes == 4 * (256 * 16 + 16 * 16 + 2 * 12 * 16 * 16)
    assert preflight(edited(TINY, {"train.weights": "bfloat16"})) == plain


def test_what_no_kernel_says_keeps_its_scores() -> None:
    recipe = edited(load(CONFIGS / "track3-124m.yaml"), {"model.attention.window": 512})
    fused = preflight(recipe).activation_bytes
    for changes in ({"model.attention.window_block": 128}, {"data.documents": {}},
                    {"model.attention.mix_weights": {"kind": "matrix"}}):
        assert preflight(edited(recipe, changes)).activation_bytes > 1.2 * fused, changes
    apart = edited(recipe, {"data.documents": {}})  # which the TPU's kernel can say
    assert preflight(apart, platform="tpu").activation_bytes == preflight(recipe, platform="tpu").activation_bytes


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(CONFIGS / "gpt2-tiny.yaml")
    assert main([config]) == 0
    assert "170,560" in capsys.readouterr().out
    assert main([config, "--json", "--set", "model.bias=false"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] < 170_560 and found["fits"] is True
    assert main([config, "--json", "--devices", "64"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["mesh"], found["accumulate"]) == ("data=8,fsdp=1,tensor=8", "1")
    assert main([config, "--set", "data.length=65536", "--set", "data.batch=65536"]) == 1


@pytest.mark.parametrize("arguments", [
    ["nowhere.yaml"], ["gpt2-tiny.yaml", "--set", "model.width=50"], ["gpt2-tiny.yaml", "--set", "model.widht=64"],
    ["gpt2-tiny.yaml", "--set", "model"],
])
def test_a_bad_config_is_one_line_and_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments[0] = str(CONFIGS / arguments[0])
    assert report_errors(lambda: main(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
