"""The training step: what may change nothing, changes nothing; what is traced, compiles nothing new."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest

from jaxnano import step
from jaxnano.config.recipe import Recipe, hypers
from tests.jaxnano.recipes import TINY, edited

LENGTH, BATCH = 16, 8
ADAM = {"kind": "adam", "eps": 1e-6}  # far above rounding errors of a gradient that should be 0
RECIPE = edited(TINY, {
    "data.batch": BATCH, "model.depth": 1, "train.dtype": "float32", "model.head.softcap": {"kind": "tanh"},
    "model.attention.qk_norm": True, "optimizer.groups": [
        {"name": "matrices", "roles": ["matrix"], "lr": 0.02, "chain": [{"kind": "muon"}, {"kind": "decay"}]},
        {"name": "rest", "roles": ["embedding", "head", "gain", "bias", "scalar", "gate"], "lr": 0.01, "chain": [ADAM]},
    ],
})


def batches(recipe: Recipe = RECIPE, seed: int = 0) -> Iterator[np.ndarray]:
    """Endless random tokens, with the shape and dtype the pipeline gives."""
    rng = np.random.default_rng(seed)
    shape = (step.STEPS_PER_CALL, recipe.data.batch, recipe.data.length + 1)
    while True:
        yield rng.integers(0, 256, shape, np.uint8)


@cache
def fresh() -> step.TrainState:
    """The state RECIPE starts from on seed 0, in NumPy; compiling the initial values takes as long as the step."""
    return jax.device_get(step.program(RECIPE).init(np.uint32(step.seeds(0)[0]), hypers(RECIPE, 3)))


def after_three_steps(recipe: Recipe, **options: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Losses and parameters after three steps of `train.run` from `fresh`."""
    last = list(step.run(recipe, 3, 0, batches(recipe), state=fresh(), **options))[-1]
    return last.losses, jax.device_get(last.state.optimizer.params)


def assert_close(found: Any, expected: Any, atol: float = 1e-5) -> None:
    """Two trees of arrays differ by no more than `atol` anywhere."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=atol), found, expected)


@pytest.fixture(scope="module")
def plain() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return after_three_steps(RECIPE)


def test_three_steps_are_what_they_were(plain: Any) -> None:
    # A change means that every recorded run changes: bump the version and rerun `python -m research.qualify tiny`.
    np.testing.assert_allclose(plain[0], [5.5491314, 5.5548167, 5.5571103], rtol=1e-4)


def test_an_edit_of_traced_values_compiles_nothing_new(plain: Any) -> None:
    other = edited(RECIPE, {
        "optimizer.groups.matrices.lr": 0.003, "optimizer.groups.rest.chain.adam.b2": 0.9, "optimizer.clip": 3.0,
        "model.head.softcap.cap": 30.0, "model.init.std": 0.1, "model.norm.eps": 1e-4,
    })
    list(step.run(RECIPE, 3, 5, batches()))
    events: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        losses = list(step.run(other, 4, 5, batches()))[-1].losses
        assert events == []
        jax.jit(lambda x: x + 1)(1)
        assert events  # the listener hears of what is compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert np.isfinite(losses).all() and not np.allclose(losses[:3], plain[0])
    assert step.program(other) is step.program(RECIPE)


def test_an_edit_of_structure_is_another_program() -> None:
    assert step.program(edited(RECIPE, {"model.width": 32})) is not step.program(RECIPE)
    schedule = edited(RECIPE, {"optimizer.groups.rest.lr": {"kind": "linear", "value": 0.01}})
    assert step.program(schedule) is not step.program(RECIPE)


def test_a_batch_taken_in_pieces_gives_the_same_step(plain: Any) -> None:
    assert_close(after_three_steps(RECIPE, accumulate=4), plain)


def test_recomputing_blocks_gives_the_same_step(plain: Any) -> None:
    assert_close(after_three_steps(edited(RECIPE, {"train.remat": True})), plain)


def test_a_batch_that_does_not_divide_is_refused_with_what_would_do() -> None:
    with pytest.raises(ValueError, match="data.batch: 8 .* a multiple of 3 would do"):
        step.program(RECIPE, accumulate=3)


def test_eight_vmapped_runs_equal_eight_single_ones() -> None:
    recipes = [edited(RECIPE, {"optimizer.groups.matrices.lr": 0.005 * (i + 1), "model.head.softcap.cap": 5.0 + i})
               for i in range(8)]
    values = [hypers(recipe, 3) for recipe in recipes]
    stacked = jax.tree.map(lambda *x: np.stack(x), *values)
    data = np.stack([next(batches(seed=i))[:3] for i in range(8)])  # [runs, steps, B, L+1]
    init, once = step.program(RECIPE).init, partial(step.train_step, RECIPE)
    alone = [init(np.uint32(i), v) for i, v in enumerate(values)]
    together = jax.tree.map(lambda *x: np.stack(x), *alone)
    one, many = jax.jit(once), jax.jit(jax.vmap(once))
    for t in range(3):
        together, metrics = many(together, data[:, t], stacked)
        pairs = [one(state, data[i, t], values[i]) for i, state in enumerate(alone)]
        alone = [state for state, _ in pairs]
        assert_close(metrics["loss"], np.stack([m["loss"] for _, m in pairs]))
    assert_close(jax.device_get(together), jax.tree.map(lambda *x: np.stack(x), *jax.device_get(alone)))


def test_a_run_yields_every_loss_once_and_settles_where_it_is_asked_to() -> None:
    calls = list(step.run(RECIPE, 33, 0, batches(), settle=lambda step: step == 10))
    assert [(call.step, call.losses.size, call.settled) for call in calls] == [
        (10, 10, True), (20, 10, False), (30, 10, False), (33, 3, True)]
    assert all(np.isfinite(call.losses).all() for call in calls)
    assert int(calls[-1].state.step) == 33


def test_the_two_seeds_of_a_trial_differ_and_stay() -> None:
    # Recorded trials name their seed: other numbers here would make them other trials.
    assert step.seeds(0) == (3672123365, 185618596)
    assert len({s for seed in range(50) for s in step.seeds(seed)}) == 100
