"""Schedules against closed forms, and resolution of every traced value of the tree."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnano.config.base import ConfigError, dump_full, leaves, validate
from jaxnano.config.recipe import Recipe, at, hypers
from jaxnano.config.schedule import Constant, Cosine, FormulaSchedule, Linear, PowerCool, Trapezoid, evaluate
from tests.jaxnano.model.references import number
from tests.jaxnano.recipes import TINY, edited

PROGRESS = (0.0, 0.05, 0.2, 0.5, 0.9, 1.0)
HALF_DECAY = {"kind": "expression", "code": "a * (1 - progress / 2)", "params": {"a": 0.4}}


@pytest.mark.parametrize(("node", "expected"), [
    (Constant(kind="constant", value=3.0), [3, 3, 3, 3, 3, 3]),
    (Constant(kind="constant", value=3.0, warmup=0.2), [0, 0.75, 3, 3, 3, 3]),
    (Linear(kind="linear", value=2.0), [2, 1.9, 1.6, 1, 0.2, 0]),
    (Linear(kind="linear", value=2.0, floor=0.5), [2, 1.95, 1.8, 1.5, 1.1, 1]),
    (Linear(kind="linear", value=2.0, warmup=0.2), [0, 0.5, 2, 1.25, 0.25, 0]),
    (Cosine(kind="cosine", value=1.0), [(1 + math.cos(math.pi * p)) / 2 for p in PROGRESS]),
    (Cosine(kind="cosine", value=4.0, warmup=0.2, floor=0.5), [0, 1, 4, 3 + math.cos(math.pi * 3 / 8),
                                                                3 + math.cos(math.pi * 7 / 8), 2]),
    (Trapezoid(kind="trapezoid", value=2.0), [2, 2, 2, 2, 0.4, 0]),
    (Trapezoid(kind="trapezoid", value=2.0, warmup=0.1, cooldown=0.2, floor=0.1), [0, 1, 2, 2, 1.1, 0.2]),
    (PowerCool(kind="power_cool", value=2.0, cooldown=0.5, power=2.0), [2, 2, 2, 2, 0.08, 0]),
    (PowerCool(kind="power_cool", value=2.0), [2, 2, 2, 2 * (0.5 / 0.8) ** 1.2, 2 * (0.1 / 0.8) ** 1.2, 0]),
    (Linear(kind="linear", value=2.0, between=(0.2, 0.9)), [2, 2, 2, 2 * 0.4 / 0.7, 0, 0]),
    (Cosine(kind="cosine", value=4.0, warmup=0.5, floor=0.5, between=(0.0, 0.4)), [0, 1, 4, 2, 2, 2]),
    (Trapezoid(kind="trapezoid", value=2.0, cooldown=0.5, between=(0.5, 1.0)), [2, 2, 2, 2, 0.8, 0]),
    (FormulaSchedule(kind="expression", code="a * (1 - progress) ** 2", params={"a": 2.0}),
     [2, 1.805, 1.28, 0.5, 0.02, 0]),
])
def test_values_at_several_moments(node: Any, expected: list[float]) -> None:
    got = [float(evaluate(node, jnp.float32(p))) for p in PROGRESS]
    np.testing.assert_allclose(got, expected, atol=2e-6)
    if not isinstance(node, FormulaSchedule):
        np.testing.assert_allclose(got, [number(node.model_dump(), p) for p in PROGRESS], atol=2e-6)


def test_every_traced_number_can_be_a_schedule_and_is_resolved() -> None:
    """Each traced field of a large recipe in turn becomes a formula; `at` must then hold its value."""
    full = edited(TINY, {
        "model.position": {"kind": "alibi"}, "model.head": {"softcap": {"kind": "tanh"}, "z_loss": 1e-3},
        "model.wires": [{"name": "smear", "source": "self", "to": "embedding", "shift": 1,
                         "add": {"code": "c * sigmoid(z)"}}],
        "optimizer.wrapper": {"kind": "ema_nesterov"},
        "optimizer.readout": {"kind": "tail_ema"},
    })
    read_once = re.compile(r"init")
    paths = [leaf for leaf in leaves(full) if not read_once.search(leaf.path)]
    assert len(paths) > 15
    recipe = full
    for leaf in paths:
        middle = {"a": (leaf.range.low + leaf.range.high) / 2}
        recipe = edited(recipe, {leaf.path: {"kind": "expression", "code": "a + 0 * progress", "params": middle}})
    values = hypers(recipe, 10)
    assert {f"{leaf.path}.params.a" for leaf in paths} <= set(values)
    resolved = jax.jit(lambda values, progress: dict(_numbers(at(recipe, values, progress))))(values, jnp.float32(0.3))
    for leaf in paths:
        assert float(resolved[leaf.path]) == pytest.approx((leaf.range.low + leaf.range.high) / 2, rel=1e-6), leaf.path


def _numbers(node: Any, path: str = "") -> Any:
    for name in type(node).model_fields:
        value, here = getattr(node, name), f"{path}.{name}" if path else name
        if hasattr(type(value), "model_fields"):
            yield from _numbers(value, here)
        elif isinstance(value, tuple):
            for item in value:
                if hasattr(type(item), "model_fields"):
                    yield from _numbers(item, f"{here}.{getattr(item, 'name', None) or item.kind}")
        elif isinstance(value, jax.Array):
            yield here, value


def test_a_formula_of_the_optimizer_may_read_the_horizon() -> None:
    recipe = edited(TINY, {"optimizer.groups.matrices.lr": {"kind": "expression", "params": {"a": 0.5},
                                                            "code": "a / sqrt(horizon) * (1 - progress)"}})
    for steps in (100, 400):
        lr = jax.jit(lambda values: at(recipe, values, 0.5).optimizer.groups[0].lr)(hypers(recipe, steps))
        assert float(lr) == pytest.approx(0.5 / steps**0.5 / 2, rel=1e-6)
    with pytest.raises(ConfigError, match="model.attention.softcap: .*: a trained model has no horizon; progress"):
        edited(TINY, {"model.attention.softcap": {"kind": "expression", "code": "5 + horizon / 1000"}})
    old = {"kind": "expression", "code": "horizon * progress", "params": {"horizon": 3}}
    own = edited(TINY, {"optimizer.clip": old})
    assert float(at(own, hypers(own, 100), 0.5).optimizer.clip) == 1.5  # a name that recipes of old may have
    for steps in ((0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ConfigError, match=r"between: .*the first below the second; \[0.0, 0.5\] would do"):
            edited(TINY, {"optimizer.clip": {"kind": "linear", "value": 1.0, "between": list(steps)}})
    whole = edited(TINY, {"optimizer.clip": {"kind": "linear", "value": 1.0, "between": [0.0, 1.0]}})
    assert whole == edited(TINY, {"optimizer.clip": {"kind": "linear", "value": 1.0}})


def test_a_schedule_is_held_inside_the_range_of_its_field() -> None:
    recipe = edited(TINY, {"model.attention.softcap": {"kind": "linear", "value": 30.0},
                           "optimizer.groups.matrices.lr": {"kind": "expression", "code": "1 / (progress - 1) - 1"}})
    cfg = at(recipe, hypers(recipe, 10), 1.0)
    assert float(cfg.model.attention.softcap) == 0.5
    assert float(at(recipe, hypers(recipe, 10), 0.5).optimizer.groups[0].lr) == 0


@pytest.mark.parametrize("path", ["model.init.std", "model.init.head_std", "model.wires.fade.keep.init"])
def test_initial_values_take_no_schedule(path: str) -> None:
    scaled = edited(TINY, {"model.wires": [{"name": "fade", "keep": {"init": 1.0}}]})
    with pytest.raises(ConfigError, match=f"{path}: .*: a number would do"):
        edited(scaled, {path: {"kind": "cosine", "value": 1.0}})


def test_hypers_are_all_numbers_of_the_tree_and_the_horizon() -> None:
    recipe = edited(TINY, {"optimizer.groups.rest.lr": HALF_DECAY, "optimizer.clip": {"kind": "cosine", "value": 2.0}})
    values = hypers(recipe, 123)
    assert values["total_steps"] == 123 and all(v.dtype == np.float32 for v in values.values())
    assert values["optimizer.groups.rest.lr.params.a"] == np.float32(0.4)
    assert values["optimizer.clip.value"] == 2 and values["optimizer.clip.floor"] == 0
    assert values["optimizer.groups.matrices.chain.adam.b2"] == np.float32(0.95)
    assert float(at(recipe, values, 0.5).optimizer.groups[1].lr) == pytest.approx(0.3)


def test_one_compiled_step_serves_every_numeric_edit() -> None:
    traces = []

    @jax.jit
    def step(values: Any, progress: Any) -> Any:
        traces.append(1)
        return at(TINY, values, progress).optimizer.groups[0].lr

    for lr in (1e-3, 5e-3):
        other = edited(TINY, {"optimizer.groups.matrices.lr": lr})
        assert float(step(hypers(other, 10), jnp.float32(0.5))) == pytest.approx(lr)
    assert len(traces) == 1


def test_defaults_lie_in_their_ranges() -> None:
    validate(Recipe, dump_full(TINY))
    for leaf in leaves(TINY):
        assert leaf.range.low <= leaf.value <= leaf.range.high
