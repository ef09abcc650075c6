"""The recipes every contract test walks: together they hold each node of the core space. A new node is a new row."""

from __future__ import annotations

from typing import Any

from jaxnano.config.data import Embedded
from jaxnano.config.edit import Diff, Edit, apply
from jaxnano.config.model import Model
from jaxnano.config.recipe import Recipe

TINY = Recipe(model=Model(width=16, depth=2), data=Embedded(kind="embedded", length=16, batch=2))
SWISH = {"kind": "expression", "code": "x * sigmoid(a * x)", "params": {"a": 1.7}}
CUBE = {"kind": "expression", "code": "minimum(relu(x) ** 3, 4 * abs(x)) + 1 / 8 * tanh(x)"}
JOINS = [  # x <- r x + p f(norm x)
    {"name": "attend", "source": "attention", "site": "between", "keep": {"init": 1.05}, "add": {"init": 0.7}},
    {"name": "feed", "source": "ffn", "site": "after", "keep": {"init": 1.05}, "add": {"init": 0.7}},
]


def edited(base: Recipe, changes: dict[str, Any]) -> Recipe:
    """`base` with each path of `changes` set to its value."""
    return apply(base, Diff(name="test", edits=tuple(Edit.to(base, path, new) for path, new in changes.items())))


def model(**changes: Any) -> Recipe:
    """TINY with edits below `model`; two underscores in a keyword stand for a dot."""
    return edited(TINY, {"model." + path.replace("__", "."): new for path, new in changes.items()})


RECIPES: dict[str, Recipe] = {
    "gpt2": TINY,
    "grouped_biases": model(
        depth=1, bias=True, attention__kv_heads=2, embedding__tied=False, norm={"kind": "rmsnorm"},
        position={"kind": "rotary", "base": 500.0},
        ffn={"kind": "mlp", "ratio": 1.5, "activation": {"kind": "gelu", "approximate": False}},
    ),
    "multi_query_half_rotary": model(
        depth=1, attention__kv_heads=1, attention__head_dim=8, attention__qk_norm=True, attention__softcap=5.0,
        attention__scale={"kind": "constant", "value": 0.3}, position={"kind": "rotary", "fraction": 0.5},
        ffn={"kind": "mlp", "activation": {"kind": "relu2"}}, head__softcap={"kind": "rsqrt", "cap": 3.0},
    ),
    "windows_inclusive_rotary_swiglu": model(
        attention__heads=2, attention__windows=[4, 0], ffn={"kind": "glu"},
        position={"kind": "rotary", "base": 1024.0, "fraction": 0.5, "spacing": "inclusive",
                  "frequency": {"code": "f / 2 + a", "params": {"a": {"kind": "linear", "value": 0.1}}}},
    ),
    "alibi_geglu": model(
        depth=1, bias=True, position={"kind": "alibi", "reach": 6.0}, norm={"kind": "rmsnorm", "gain": False},
        ffn={"kind": "glu", "activation": {"kind": "gelu"}},
        head={"softcap": {"kind": "tanh", "cap": 4.0}, "z_loss": 0.01},
    ),
    "no_position_gate": model(
        depth=1, position={"kind": "none"}, attention__gate={"kind": "sigmoid", "channels": 5},
        ffn={"kind": "mlp", "activation": SWISH}, norm={"kind": "layernorm", "bias": False, "eps": 1e-3},
    ),
    "sandwich_smear": model(
        depth=1, norm={"kind": "rmsnorm", "placement": "sandwich"},
        wires=[*JOINS, {"name": "smear", "source": "self", "to": "embedding", "shift": 1,
                        "add": {"code": "c * sigmoid(z)", "channels": 6, "init": 0.3}}],
        embedding={"norm": True}, ffn={"kind": "mlp", "activation": CUBE},
    ),
    "x0_skips": model(taps=[{"name": "x0"}], wires=[
        {"name": "skip", "source": "x0", "at": [{"block": 1}]},
        {"name": "gated", "source": "x0", "at": [{"block": 1}], "add": {"code": "2 * c * sigmoid(z)", "init": 0.5,
                                                                         "channels": 7}},
        {"name": "last", "source": "x0", "at": [{"block": -1}], "site": "after"},
        {"name": "quiet", "to": "branch", "keep": {"code": "1 / sqrt(2 * depth)"}},
    ]),
    "unet_values": model(
        depth=3, attention__kv_heads=2, ffn={"kind": "mlp", "activation": {"kind": "silu"}},
        taps=[{"name": "early", "after": {"block": 0}}], tables=[{"name": "outer"}, {"name": "middle"}], wires=[
            {"name": "long", "source": "early", "at": [{"block": 2}], "add": {"init": 1.0}},
            {"name": "outer", "source": "outer", "to": "value", "at": [{"block": 0}, {"block": 2}],
             "keep": {"init": 0.5}, "add": {"init": 0.5}},
            {"name": "middle", "source": "middle", "to": "value", "at": [{"block": 1}], "keep": {"init": 0.8},
             "add": {"init": 0.2}},
        ]),
    "value_residual_gates": model(
        depth=3, attention__kv_heads=2, taps=[{"name": "v1", "after": {"block": 0}, "of": "value"}, {"name": "x0"}],
        tables=[{"name": "words"}], wires=[
            {"name": "first", "source": "v1", "to": "value", "at": [{"first": 1}],
             "keep": {"code": "1 - c", "init": 0.5, "key": "share"}, "add": {"code": "c", "init": 0.5, "key": "share"}},
            {"name": "word", "source": "words", "to": "value", "at": [{"block": -1}], "add": {
                "code": "2 * sigmoid(z)", "per": "head", "reads": ["here", "source"], "channels": 3}},
            {"name": "token", "to": "value", "source": "self", "shift": 2, "at": [{"block": 0}],
             "add": {"per": "channel"}},
            {"name": "into", "to": "attention", "keep": {"code": "c + 2", "init": -1.5}},
            {"name": "gate", "to": "ffn", "source": "attention", "at": [{"share": 0.5}], "add": {
                "code": "c + a * tanh(z) * (block + 1)", "params": {"a": {"kind": "linear", "value": 0.6}},
                "per": "channel", "reads": ["x0"], "channels": 5}},
            {"name": "out", "to": "head", "source": "x0", "shift": 1, "keep": {"init": 1.0}, "add": {
                "code": "c * cos(z)", "init": 0.1, "reads": ["words", "source"], "channels": 4}},
        ]),
    "two_lanes": model(
        depth=3, bias=True, taps=[{"name": "lane", "after": {"block": 0}}, {"name": "put", "after": {"block": 1},
                                                                           "of": "ffn"}],
        blocks=[{"name": "late", "at": [{"first": 1}], "set": {"ffn": {"reads": "lane"}}},
                {"name": "last", "at": [{"block": -1}], "set": {"attention": {"writes": ["lane", "stream"]},
                                                                "ffn": {"writes": []}}}],
        wires=[
            {"name": "a0", "source": "attention", "site": "between", "at": [{"block": 1}],
             "keep": {"init": 1.05, "key": "shared"}, "add": {"init": 1.0}},
            {"name": "a1", "source": "attention", "to": "lane", "site": "between", "at": [{"block": 1}],
             "keep": {"init": 1.05, "key": "shared"}, "add": {"init": 1.5}},
            {"name": "f0", "source": "ffn", "site": "after", "at": [{"first": 1}], "add": {"init": 1.0}},
            {"name": "f1", "source": "ffn", "to": "lane", "site": "after", "at": [{"block": 1}], "add": {"init": 1.0}},
            {"name": "mean", "source": "lane", "site": "after", "at": [{"block": -1}], "keep": {"code": "0.5"},
             "add": {"code": "0.5"}},
            {"name": "again", "source": "put", "at": [{"block": 2}], "shift": 3, "add": {"init": 0.3}},
            {"name": "loud", "to": "branch", "site": "between", "at": [{"block": 0}], "keep": {"init": 1.2}},
        ]),
    "bigrams": model(depth=1, position={"kind": "none"}, tables=[
        {"name": "pair", "index": {"kind": "hash", "rows": 97, "signs": 13}, "channels": 6},
        {"name": "far", "index": {"kind": "hash", "of": [1, 3], "rows": 61}},
    ], wires=[
        {"name": "pair", "source": "pair", "add": {"init": 0.1}},
        {"name": "far", "source": "far", "to": "embedding", "add": {"code": "1"}},
    ]),
    "dropped_branches": model(
        attention__dropped=[0], ffn__dropped=[1], norm={"kind": "layernorm", "gain": False, "placement": "sandwich"},
        embedding__tied=False, attention__heads=3, attention__head_dim=5,
    ),
    "depth_diffs": model(
        depth=3, attention__window=4, position={"kind": "rotary"}, tables=[{"name": "v"}],
        wires=[{"name": "v", "source": "v", "to": "value", "at": [{"block": 0}, {"block": 2}], "keep": {"init": 0.5},
                "add": {"init": 0.5}}],
        blocks=[
            {"name": "long", "at": [{"block": 0}, {"block": -1}], "set": {
                "attention": {"window": 0, "qk_norm": True, "scale": {"kind": "constant", "value": 0.3}},
                "ffn": {"ratio": 2.0, "activation": {"kind": "silu"}}, "norm": {"eps": 1e-4}, "bias": True}},
            {"name": "last", "at": [{"block": 2}], "set": {"attention": {"softcap": 5.0},
                                                           "position": {"base": 100.0}}},
            {"name": "mute", "at": [{"share": 0.34}], "set": {
                "attention": None, "ffn": {"kind": "glu", "activation": SWISH}}},
        ],
    ),
    "attention_formulas": model(
        attention__heads=4, attention__kv_heads=2, attention__windows=[5, 0], attention__logit={
            "code": "c * tanh(s / c) - a * log1p(distance) * (1 + head) / heads + depth * s / 2",
            "params": {"a": {"kind": "linear", "value": 0.5}, "c": 3.0}},
        attention__output={"params": {"a": 0.7},
                           "code": "y - a * dot(y, v) / maximum(dot(v, v), 1e-6) * v + mean(y) / 4"},
    ),
    "head_inputs_key_shift": model(
        attention__kv_heads=2, attention__qk_norm=True, attention__key_shift=0.5, attention__head_dim=6,
        attention__query={"code": "x", "gain": True},
        attention__key={"code": "a * x / maximum(norm(x), 1e-6)", "params": {"a": 1.5}, "gain": True},
        attention__value={"code": "x / sqrt(mean(x * x) + 1e-6)"},
        position={"kind": "rotary", "base": 100.0, "fraction": 0.5},
        head__logits={"code": "a * sigmoid((z + b) / c)", "params": {"a": 23.0, "b": 5.0, "c": 7.5}},
        blocks=[{"name": "far", "at": [{"block": 1}], "set": {"attention": {
            "key_shift": 1.0, "value": None, "logit": {"code": "s + distance * a", "params": {"a": -0.3}}}}}],
    ),
    "paired_heads": model(
        attention__kv_heads=2, attention__interleaved=2, attention__window=6, attention__window_block=4,
        attention__logit={"code": "s + distance * a", "params": {"a": -0.1}}, attention__key_shift=0.5,
        attention__output={"params": {"a": 0.7},
                           "code": "y - a * dot(y, v) / maximum(dot(v, v), 1e-6) * v + mean(y) / 4"},
        position={"kind": "rotary", "base": 100.0}, blocks=[{"name": "four", "at": [{"block": 1}], "set": {
            "attention": {"interleaved": 4, "kv_heads": 4, "window": 0, "logit": None},
            "position": {"kind": "alibi"}}}],
    ),
    "mixed_heads_documents": edited(TINY, {
        "data.documents": {"most": 5, "separator": 200}, "model.attention.kv_heads": 2,
        "model.head": {"z_loss": 0.01, "targets": [
            {"name": "third", "shift": 3, "weight": {"kind": "linear", "value": 0.5}}, {"name": "next", "shift": 1},
            {"name": "last", "shift": 16, "weight": 2.0}]},
        "model.attention.mix_scores": {"kind": "matrix"}, "model.attention.window": 9,
        "model.attention.mix_weights": {"kind": "vectors", "channels": 7, "rank": 2},
        "model.position": {"kind": "rotary"},
        "model.blocks": [{"name": "other", "at": [{"block": 1}], "set": {"attention": {
            "mix_scores": {"kind": "vectors", "hidden": 5}, "window_block": 4,
            "mix_weights": {"channels": 16, "rank": 1, "window": 3}}}}],
    }),
    "init_rules": model(bias=True, embedding__tied=False, init__rules=[
        {"name": "loud", "of": ["*/ffn/up"], "draw": "normal", "params": {"a": 0.3},
         "code": "a * (1 - a * block / (depth - 1))"},
        {"name": "torch", "of": ["matrix", "*_bias", "head/bias"], "draw": "uniform", "code": "1 / sqrt(3 * fan_in)"},
        {"name": "plus", "of": ["*/ffn_norm/gain"], "draw": "sign", "mean": 1.0, "key": "split", "code": "0.125"},
        {"name": "minus", "of": ["*/attention_norm/gain"], "draw": "sign", "mean": 1.0, "key": "split",
         "code": "-0.125"},
        {"name": "eye", "of": ["head"], "draw": "identity", "code": "2 / fan_out"},
        {"name": "gain", "of": ["final_norm/gain"], "draw": "constant", "code": "0.5"},
    ]),
    "scheduled": model(
        depth=1, attention__softcap={"kind": "linear", "value": 30.0, "floor": 0.1},
        position={"kind": "rotary", "base": {"kind": "cosine", "value": 1000.0, "floor": 0.01}},
        attention__scale={"kind": "constant", "value": {"kind": "power_cool", "value": 0.6, "floor": 0.1}},
        head__z_loss={"kind": "expression", "code": "a * progress", "params": {"a": 0.02}},
        norm={"kind": "layernorm", "eps": {"kind": "trapezoid", "value": 1e-2}},
    ),
}
