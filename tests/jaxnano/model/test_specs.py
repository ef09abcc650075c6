"""The parameter table: what the modules declare, and the initial values it says."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxnano.config.optimizer import ROLES
from jaxnano.config.recipe import Recipe, at, hypers
from jaxnano.model import gpt
from jaxnano.model.specs import Initial, Spec, initialize, parameter_count, specs
from tests.jaxnano.recipes import RECIPES, TINY, model


def test_the_table_is_what_the_modules_declare(recipe: Recipe) -> None:
    cfg = at(recipe, hypers(recipe, 10), 0.5)
    tokens = jnp.zeros((1, recipe.data.length), jnp.int32)
    declared = jax.eval_shape(lambda: gpt.Gpt(cfg).init(jax.random.key(0), tokens, None))["params"]
    shapes = {path: array.shape for path, array in flatten_dict(declared, sep="/").items()}
    assert {path: spec.shape for path, spec in specs(recipe).items()} == shapes


def test_every_dimension_has_a_letter_and_every_role_is_known(recipe: Recipe) -> None:
    for path, spec in specs(recipe).items():
        assert len(spec.axes) == len(spec.shape), path
        assert spec.role in ROLES, path


def test_all_roles_occur_in_the_recipes_of_the_tests() -> None:
    assert {spec.role for recipe in RECIPES.values() for spec in specs(recipe).values()} == set(ROLES)


def test_count_of_gpt2_by_hand() -> None:
    table, positions, block, norms = 256 * 16, 16 * 16, 12 * 16 * 16, 2 * 16
    assert parameter_count(specs(TINY)) == table + positions + 2 * (block + 2 * norms) + norms


@pytest.mark.parametrize(("changes", "path", "std"), [
    ({}, "embedding/token", 0.02),
    ({"init__embedding_std": 0.5}, "embedding/position", 0.5),
    ({"init__std": 0.3}, "blocks_0/attention/q", 0.3),
    ({"init__attention_std": 0.1}, "blocks_1/attention/v", 0.1),
    ({"init__attention_std": 0.1, "init__ffn_std": 0.7}, "blocks_1/ffn/up", 0.7),
    ({"init__unit": "fan_in", "init__std": 1.0}, "blocks_0/attention/k", 1 / 4),
    ({"init__unit": "fan_in", "init__std": 1.0, "init__depth_scaled": False}, "blocks_0/ffn/down", 1 / 8),
    ({"init__std": 0.3}, "blocks_0/ffn/down", 0.3 / 2),
    ({"init__std": 0.3, "init__distribution": "uniform"}, "blocks_0/attention/o", 0.3 / 2),
    ({"init__std": 0.3, "init__zero_projections": True}, "blocks_0/attention/o", 0.0),
    ({"init__zero_projections": True}, "blocks_0/ffn/down", 0.0),
    ({"embedding__tied": False, "init__embedding_std": 0.4}, "head/weight", 0.4),
    ({"embedding__tied": False, "init__head_std": 0.01}, "head/weight", 0.01),
])
def test_initial_standard_deviations(changes: dict, path: str, std: float) -> None:
    recipe = model(**changes)
    spec = specs(recipe)[path]
    assert spec.init == (Initial("zeros") if std == 0 else Initial(recipe.model.init.distribution, pytest.approx(std)))


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_draws_have_the_mean_and_the_deviation_they_state(kind: str) -> None:
    w = np.asarray(initialize(jax.random.key(3), {"w": Spec((200, 200), "matrix", Initial(kind, 0.5), "DF")})["w"])
    assert w.mean() == pytest.approx(0, abs=4 * 0.5 / 200)
    assert w.std() == pytest.approx(0.5, rel=0.02)
    assert np.abs(w).max() <= 0.5 * math.sqrt(3) + 1e-6 if kind == "uniform" else np.abs(w).max() > 1.5


def test_initial_values_of_gains_biases_scalars_and_gates() -> None:
    params = gpt.init(jax.random.key(0), RECIPES["x0_skips"], hypers(RECIPES["x0_skips"], 10))
    assert np.all(np.asarray(params["final_norm/gain"]) == 1) and np.all(np.asarray(params["final_norm/bias"]) == 0)
    assert params["blocks_1/wire_skip_add"] == 0 and params["blocks_1/wire_gated_add"] == 0.5
    assert np.all(np.asarray(params["blocks_1/gate_gated_add"]) == 0)


def test_rules_say_the_initial_values_of_the_parameters_that_they_match_first() -> None:
    recipe = RECIPES["init_rules"]
    found = {k: np.asarray(v) for k, v in gpt.init(jax.random.key(0), recipe, hypers(recipe, 10)).items()}
    for path, fan_in in {"attention/q": 16, "attention/q_bias": 16, "ffn/down": 64, "ffn/down_bias": 64,
                         "ffn/up_bias": 16}.items():  # what PyTorch's nn.Linear starts from
        value = found[f"blocks_1/{path}"]
        assert 0.5 / math.sqrt(fan_in) < np.abs(value).max() <= 1 / math.sqrt(fan_in)
        assert value.size < 1000 or value.std() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.1)
    assert found["blocks_0/ffn/up"].std() == pytest.approx(0.3, rel=0.1)
    assert found["blocks_1/ffn/up"].std() == pytest.approx(0.3 * 0.7, rel=0.1)
    plus, minus = (np.stack([found[f"blocks_{i}/{n}_norm/gain"] for i in (0, 1)]) for n in ("ffn", "attention"))
    assert set(plus.flat) == {0.875, 1.125} and np.all(plus + minus == 2) and np.any(plus[0] != plus[1])
    np.testing.assert_allclose(found["head/weight"], np.eye(16, 256) * 2 / 256)
    assert np.all(found["final_norm/gain"] == 0.5) and np.all(found["blocks_0/ffn_norm/bias"] == 0)


def test_a_rule_that_only_sizes_is_on_top_of_what_stands_wherever_it_is_listed() -> None:
    late = {"name": "late", "of": ["blocks_*/ffn/up"], "draw": "same", "params": {"a": 0.3},
            "code": "std * (1 - a * block / maximum(depth - 1, 1))"}
    fans = {"name": "fans", "of": ["matrix"], "draw": "uniform", "code": "1 / sqrt(fan_in)", "mean": 0.01}
    key, path = jax.random.key(3), "blocks_{}/ffn/up"
    for others in ([], [fans]):
        plain, *sized = (initialize(key, specs(model(init__rules=rules))) for rules in (
            others, [*others, late], [late, *others]))
        for block, factor in ((0, 1.0), (1, 0.7)):
            mean = 0.01 if others else 0.0
            expected = (np.asarray(plain[path.format(block)]) - mean) * factor + mean
            for found in sized:
                np.testing.assert_allclose(found[path.format(block)], expected, rtol=1e-5, atol=1e-8)
        np.testing.assert_array_equal(sized[0]["blocks_1/ffn/down"], plain["blocks_1/ffn/down"])


def test_two_recipes_share_the_initial_values_of_the_paths_they_share() -> None:
    key, other = jax.random.key(5), model(norm={"kind": "rmsnorm"}, embedding__tied=False, position={"kind": "none"})
    a, b = (initialize(key, specs(recipe)) for recipe in (TINY, other))
    shared = [path for path in a if path in b and path.startswith("blocks")]
    assert len(shared) >= 12
    for path in shared:
        np.testing.assert_array_equal(a[path], b[path])
    assert not np.array_equal(a["blocks_0/attention/q"], a["blocks_0/attention/k"])


def test_a_traced_standard_deviation_scales_the_same_draw() -> None:
    wide = model(init__embedding_std=0.06)
    a, b = (gpt.init(jax.random.key(1), recipe, hypers(recipe, 10))["embedding/token"] for recipe in (TINY, wide))
    np.testing.assert_allclose(3 * np.asarray(a), np.asarray(b), rtol=1e-6)
