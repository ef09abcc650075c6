"""Wires and branches: what is identity at initial values, looking tokens up, shifts, and blocks recomputed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnano.config.recipe import Recipe, at, hypers
from jaxnano.cost import preflight
from jaxnano.model import gpt
from jaxnano.model.specs import specs
from jaxnano.model.wires import hashed, signs
from tests.jaxnano.model.outcomes import PROGRESS, outcome_of, run
from tests.jaxnano.model.references import sign
from tests.jaxnano.recipes import JOINS, RECIPES, edited, model

TOKENS = np.arange(16, dtype=np.int32)[None]


def features(recipe: Recipe, tokens: np.ndarray = TOKENS, drawn: bool = False) -> np.ndarray:
    values = hypers(recipe, 10)
    params = gpt.init(jax.random.key(0), recipe, values)
    if drawn:  # so that no gate is open by symmetry and no table empty
        rng = np.random.default_rng(1)
        params = {path: rng.normal(0, 0.3, x.shape).astype(np.float32) for path, x in params.items()}
    return run(lambda params: gpt.features(params, tokens, at(recipe, values, 0.0))[0], params)


@pytest.mark.parametrize("wires", [
    [{"name": "skip", "source": "x0"}, {"name": "out", "source": "x0", "to": "head"},
     {"name": "end", "source": "self", "site": "after", "shift": 1}],
    [{**JOINS[0], "keep": {"init": 1.0}, "add": {"init": 1.0}},
     {**JOINS[1], "keep": {"init": 1.0}, "add": {"code": "1"}}],
    [{"name": part, "to": part, "keep": {"init": 1.0, "per": "channel"}}
     for part in ("attention", "ffn", "value", "branch", "embedding", "head", "stream")],
    [{"name": "gate", "to": "value", "keep": {"code": "2 * sigmoid(z)", "per": "head", "reads": ["x0"]}}],
])
def test_a_new_wire_changes_nothing_at_the_start(wires: list[dict[str, Any]]) -> None:
    wired = model(depth=1, taps=[{"name": "x0"}], wires=wires)
    np.testing.assert_allclose(features(wired), features(model(depth=1)), atol=1e-6)


def test_one_wire_of_its_own_takes_the_place_of_plain_addition() -> None:
    """Attention joins after the FFN, which therefore does not see it; written to nothing, it is gone."""
    late = {"name": "late", "source": "attention", "site": "after", "add": {"code": "1"}}
    deaf = model(depth=1, attention__writes=[])
    np.testing.assert_allclose(features(deaf), features(model(depth=1, attention__dropped=[0])), atol=1e-6)
    both = features(edited(deaf, {"model.wires": [late]}))
    np.testing.assert_array_equal(both, features(model(depth=1, wires=[late])))
    assert np.abs(both - features(model(depth=1))).max() > 1e-4


def test_zero_projections_make_blocks_the_identity() -> None:
    deep = model(depth=2, init__zero_projections=True)
    none = model(depth=1, attention__dropped=[0], ffn__dropped=[0])
    np.testing.assert_allclose(features(deep), features(none), atol=1e-6)


@pytest.mark.parametrize("name", ["grouped_biases", "two_lanes"])
def test_recomputed_blocks_give_the_same_gradients(name: str) -> None:
    recipe, plain = edited(RECIPES[name], {"train.remat": True}), outcome_of(name)
    cfg = at(recipe, hypers(recipe, 10), PROGRESS)
    grads = run(jax.grad(lambda params: gpt.loss(params, plain.batch, cfg)[0]), plain.params)
    for path, gradient in grads.items():
        np.testing.assert_allclose(gradient, plain.grads[path], atol=1e-6, err_msg=path)


def test_a_hash_table_sees_no_later_token_and_the_tokens_it_is_of() -> None:
    recipe = RECIPES["bigrams"]
    plain = features(recipe, drawn=True)[0]
    for t in (0, 7, 15):
        tokens = TOKENS.copy()
        tokens[0, t] = 200
        moved = np.abs(features(recipe, tokens, drawn=True)[0] - plain).max(-1) > 1e-6
        assert not moved[:t].any() and moved[t] and moved[t + 1 : t + 4].all()


def test_the_first_tokens_share_the_last_row_and_products_wrap_as_whole_numbers_of_32_bits() -> None:
    tokens = np.array([[5, 9, 100_000, 2**31 - 1, 7]], np.int32)
    before = np.concatenate([[[0]], tokens[:, :-1]], axis=1).astype(np.int32)
    found = np.asarray(hashed([jnp.asarray(tokens), jnp.asarray(before)], 1000, jnp.arange(5) < 1))
    wrap = lambda n: (n + 2**31) % 2**32 - 2**31  # noqa: E731
    expected = [(wrap(36313 * int(a)) ^ wrap(27191 * int(b))) % 999 for a, b in zip(tokens[0], before[0], strict=True)]
    assert found.tolist() == [[999, *expected[1:]]]
    pair = np.asarray(signs([jnp.asarray(tokens), jnp.asarray(before)], 8192, 64))[0]
    for t in range(5):
        vector = (int(tokens[0, t]) ^ int(before[0, t])) % 8192
        assert pair[t].tolist() == [sign(vector, channel, 64) for channel in range(64)]


def test_signs_are_as_many_of_each_and_independent() -> None:
    vectors = jnp.arange(512, dtype=jnp.int32)[None]
    drawn = np.asarray(signs([vectors], 512, 64))[0]
    assert abs(drawn.mean()) < 0.03 and np.abs(drawn @ drawn.T / 64 - np.eye(512)).max() < 0.75
    assert np.abs(drawn.T @ drawn / 512 - np.eye(64)).max() < 0.25


def test_the_price_has_the_tables_and_the_gates() -> None:
    plain, wired = model(depth=1), RECIPES["bigrams"]
    cost, more = preflight(edited(plain, {"model.position": {"kind": "none"}})), preflight(wired)
    assert more.parameters - cost.parameters == 97 * 6 + 61 * 16 + 1  # rows of two tables and one number
    assert more.model_flops_per_token == cost.model_flops_per_token and more.activation_bytes > cost.activation_bytes
    gated = preflight(edited(plain, {"model.wires": [{"name": "g", "keep": {"code": "c + z", "per": "channel"}}]}))
    assert gated.parameters - preflight(plain).parameters == 12 * 16 + 16
    assert gated.model_flops_per_token - preflight(plain).model_flops_per_token == 6 * 12 * 16
    assert {spec.axes for path, spec in specs(wired).items() if path.startswith("tables/")} == {"VD"}
