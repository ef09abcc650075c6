"""Names of recipes and structures: stable, and different where the claim or the program differs."""

from __future__ import annotations

from typing import Any

import pytest

from jaxnano.config.base import ConfigError, digest, dump, dump_full, leaves, validate
from jaxnano.config.file import load, save
from jaxnano.config.recipe import Recipe, recipe_id, structure_id
from jaxnano.config.text import parse_yaml, to_yaml
from tests.jaxnano.recipes import RECIPES, TINY, edited, model

GOLDEN = {"plain": "b7a23df9cf5f6caf", "full": "d0476d352fc817ba"}


def test_defaults_are_frozen() -> None:
    """With defaults omitted a recipe's id cannot see that a default changed; this test does."""
    optional = edited(TINY, {"optimizer.wrapper": {"kind": "ema_nesterov"}, "optimizer.readout": {"kind": "tail_ema"}})
    every = [dump_full(recipe) for recipe in (Recipe(), optional, *RECIPES.values(), *_optimizers())]
    assert {"plain": recipe_id(RECIPES["grouped_biases"]), "full": digest(every)} == GOLDEN, (
        "a default, a field or the canonical form changed. `plain` must never change: old ledgers would lose their "
        "recipes. `full` changes with each new field (then put the new value here), and with a changed default: then "
        "every recipe that relied on the old one means something else under the same id, so add a new kind instead"
    )


def _optimizers() -> list[Recipe]:
    kinds = ["sgd", "adam", "lion", "ademamix", "muon", "soap"]
    chains = [[{"kind": kind}, {"kind": "cautious_decay"}] for kind in kinds]
    chains.append([{"kind": "muon"}, {"kind": "normuon"}, {"kind": "hyperball"}])
    return [edited(TINY, {"optimizer.groups.matrices.chain": chain}) for chain in chains]


@pytest.mark.parametrize("recipe", [*RECIPES.values(), *_optimizers()])
def test_ids_survive_a_round_trip(recipe: Recipe, tmp_path) -> None:
    assert recipe_id(validate(Recipe, dump_full(recipe))) == recipe_id(recipe)
    assert recipe_id(validate(Recipe, parse_yaml(to_yaml(dump(recipe))))) == recipe_id(recipe)
    save(recipe, tmp_path / "recipe.yaml")
    assert load(tmp_path / "recipe.yaml") == recipe


def test_ids_differ_between_recipes() -> None:
    everything = [*RECIPES.values(), *_optimizers()]
    assert len({recipe_id(recipe) for recipe in everything}) == len(everything)
    assert len({structure_id(recipe) for recipe in everything}) == len(everything)


def test_one_number_written_in_two_ways_is_one_recipe() -> None:
    assert recipe_id(edited(TINY, {"optimizer.clip": 2})) == recipe_id(edited(TINY, {"optimizer.clip": 2.0}))
    assert recipe_id(edited(TINY, {"optimizer.clip": 1})) == recipe_id(TINY)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_numeric_edit_keeps_the_structure_and_changes_the_claim(name: str) -> None:
    recipe = RECIPES[name]
    for leaf in leaves(recipe):
        new = leaf.range.low + 0.37 * (leaf.range.high - leaf.range.low)
        other = edited(recipe, {leaf.path: new})
        assert structure_id(other) == structure_id(recipe), leaf.path
        assert recipe_id(other) != recipe_id(recipe), leaf.path


@pytest.mark.parametrize("changes", [
    {"model.width": 32}, {"model.bias": True}, {"model.attention.qk_norm": True}, {"model.attention.softcap": 20.0},
    {"model.position": {"kind": "rotary"}}, {"model.ffn.ratio": 2.0}, {"optimizer.clip": None}, {"data.batch": 4},
    {"optimizer.clip": {"kind": "cosine", "value": 1.0}}, {"optimizer.groups.rest.chain": [{"kind": "lion"}]},
    {"optimizer.groups.rest.paths": ["*/gain"]}, {"train.remat": True}, {"model.init.zero_projections": True},
])
def test_an_edit_that_needs_another_program_changes_the_structure(changes: dict[str, Any]) -> None:
    assert structure_id(edited(TINY, changes)) != structure_id(TINY)


def test_a_formulas_text_is_structure_and_its_numbers_are_not() -> None:
    def swish(code: str, a: float) -> str:
        return structure_id(model(ffn__activation={"kind": "expression", "code": code, "params": {"a": a}}))

    assert swish("x * sigmoid(a * x)", 1.0) == swish("x*sigmoid(a*x)", 2.0) != swish("x * tanh(a * x)", 1.0)


ADAM, DECAY, CHAIN = {"kind": "adam"}, {"kind": "decay"}, "optimizer.groups.matrices.chain"


@pytest.mark.parametrize(("changes", "message"), [
    ({"model.vocab": 100}, "model.vocab: 100: embedded data has 256 tokens; 256 would do"),
    ({"model.attention.heads": 5}, "model.attention.heads: 5: width 16 is not divisible by 5 heads; 4, 2, 8 would do"),
    ({"model.attention.kv_heads": 3}, "model.attention.kv_heads: 3: divides 4 heads; 1, 2, 4 would do"),
    ({"model.attention.head_dim": 3, "model.position": {"kind": "rotary"}}, "model.attention.head_dim: 3: even"),
    ({"model.attention.logit": {"code": "s + dist"}},
     "model.attention.logit.code: \"s + dist\": column 5: unknown name 'dist'; known: depth, distance, head, heads, s"),
    ({"model.attention.logit": {"code": "s * norm(s)"}}, "column 5: unknown function 'norm'"),
    ({"model.attention.logit": {"code": "s"}}, 'logit.code: "s": it leaves s as it is; null, for no formula, would do'),
    ({"model.attention.logit": {"code": "s * 2"}, "model.attention.softcap": 9.0},
     "model.attention.softcap: 9.0: attention.logit takes its place; null would do"),
    ({"model.head.targets": [{"name": "a", "shift": 2}, {"name": "b", "shift": 2}]},
     "model.head.targets.b.shift: 2: each token once"),
    ({"model.head.targets": [{"name": "a", "shift": 16}], "data.length": 8},
     "model.head.targets.a.shift: 16: rows have 8 tokens to predict; 8 would do"),
    ({"model.attention.interleaved": 3},
     "model.attention.interleaved: 3: divides 4 heads and 4 heads of keys; 1, 2, 4 would do"),
    ({"model.attention.interleaved": 2, "model.attention.kv_heads": 1}, "4 heads and 1 heads of keys; 1 would do"),
    ({"model.attention.interleaved": 2, "model.attention.mix_weights": {"kind": "matrix"}},
     'model.attention.mix_weights: "matrix": heads that take turns in a row have nothing to share; null would do'),
    ({"model.attention.heads": 1, "model.attention.mix_scores": {"kind": "matrix"}}, "one head has nothing to share"),
    ({"model.attention.mix_scores": {"kind": "vectors", "window": 3}}, "model.attention.mix_scores.window: 3: weights"),
    ({"model.attention.mix_scores": {"kind": "vectors", "channels": 17}}, "mix_scores.channels: 17: at most the width"),
    ({"model.attention.output": {"code": "y * rows(v)"}}, "column 5: unknown function 'rows'"),
    ({"model.attention.output": {"code": "v"}}, "column 1: y is not used"),
    ({"model.attention.key": {"code": "x"}}, 'attention.key.code: "x": it leaves x as it is'),
    ({"model.head": {"logits": {"code": "z / 2"}, "softcap": {"kind": "tanh"}}}, "head.logits takes its place"),
    ({"model.init.rules": [{"name": "a", "of": ["*"], "draw": "normal", "code": "1 / fanin"}]},
     "model.init.rules.a.code: \"1 / fanin\": column 5: unknown name 'fanin'"),
    ({"model.attention.dropped": [2]}, "model.attention.dropped: [2]: blocks are 0..1"),
    ({"model.ffn.dropped": [1, 1]}, "model.ffn.dropped: [1, 1]: each block at most once"),
    ({"model.attention.gate": {"kind": "sigmoid", "channels": 17}},
     "model.attention.gate.channels: 17: at most the width"),
    ({"optimizer.groups.rest.roles": ["gain", "bias"]}, "no group takes the role(s) scalar, gate"),
    ({CHAIN: [DECAY, ADAM]}, 'chain.decay: "decay": nothing reads what it writes, so it does nothing'),
    ({CHAIN: [ADAM, {"kind": "lion"}]}, 'chain.adam: "adam": nothing reads what it writes'),
    ({CHAIN: [ADAM, {"name": "mix", "code": "u + v * n"}]}, 'matrices.chain.mix: "n": no such name above this line'),
    ({CHAIN: [ADAM, {"kind": "hyperball"}], "model.init.zero_projections": True},
     "model.init.zero_projections: true: group 'matrices' keeps norms, so nothing may start at 0; false would do"),
])
def test_rules_across_fields_name_path_value_and_what_would_do(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        edited(TINY, changes)
    assert message in str(caught.value)
    assert all("\n" not in str(problem) for problem in caught.value.problems)
