"""A run with phases: what goes on, what begins anew, what windows it sees, and that it resumes to the bit anywhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnano import data, evaluate, phases, sample, sharding, step
from jaxnano.checkpoint import Checkpoints, load
from jaxnano.cli import UserError
from jaxnano.config.base import ConfigError
from jaxnano.config.edit import ABSENT
from jaxnano.config.recipe import Recipe, hypers, stages, trained
from jaxnano.cost import preflight, run_flops, steps_for
from jaxnano.data.pipeline import Windows
from jaxnano.model import gpt
from jaxnano.model.specs import specs
from jaxnano.optim import kronecker
from jaxnano.optim.chain import Moments
from tests.jaxnano.config.test_phase_tree import HALF, ROTARY, phased
from tests.jaxnano.recipes import edited

STEPS = 60
CARRY = {"head/weight": "embedding/token"}
BASE = edited(ROTARY, {"model.depth": 1, "data.batch": 8, "optimizer.readout": {"kind": "tail_ema", "start": 0.3}})
THREE = phased(  # begin at 20, 30 and 50
    {"name": "narrow", "start": 0.3, "set": {"model": {"attention": {"window": 4}},
                                             "data": {"length": 8, "batch": 16}}},
    {"name": "untied", "start": 0.5, "set": {"model": {"embedding": {"tied": False}, "attention": {"window": 0}},
                                             "data": {"length": 32, "batch": 8}}, "carry": CARRY},
    {"name": "muon", "start": 0.8, "set": {"model": {"ffn": {"ratio": 2.0}}, "optimizer": {"groups": {
        "matrices": {"roles": ["matrix"], "chain": {"adam": {"kind": "muon"}}},
        "rest": {"roles": ["embedding", "head", "gain", "bias", "scalar", "gate"]}}}}}, base=BASE)


def run(recipe: Recipe, steps: int) -> tuple[dict[int, Any], list[float]]:
    """Each call's state, as it was then, and all losses."""
    batches = step.batches_of(recipe, STEPS, 0, data.load(recipe.data))
    states, losses = {}, []
    for call in step.run(recipe, STEPS, 0, batches, settle=lambda done: True):
        states[call.step] = (jax.tree.map(np.array, call.state), batches.get_state())
        losses += list(call.losses)
        if call.step == steps:
            break
    return states, losses


@pytest.fixture(scope="module")
def whole() -> tuple[dict[int, Any], list[float]]:
    return run(THREE, STEPS)


def assert_same(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("done", [10, 20, 30, 40, 50])
def test_killed_in_each_phase_and_at_each_seam_it_resumes_to_the_bit(done: int, whole: Any, tmp_path: Path) -> None:
    states, losses = whole
    state, position = jax.tree.map(jnp.asarray, states[done][0]), states[done][1]
    if done == 30:  # of a seam, where the state still is as the phase before has left it
        saved = Checkpoints(tmp_path, THREE, 0, STEPS, "data")
        saved.save(state, position, None)
        saved.close()
        state, position = Checkpoints(tmp_path, THREE, 0, STEPS, "data").restore()  # type: ignore[misc]
        recipe, params, _ = load(tmp_path)
        assert recipe == trained(edited(THREE, {"phases.untied": ABSENT, "phases.muon": ABSENT}))
        assert params.keys() == specs(recipe).keys()
    batches = step.batches_of(THREE, STEPS, 0, data.load(THREE.data))
    batches.set_state(position)
    *_, last = calls = list(step.run(THREE, STEPS, 0, batches, state=state))
    assert_same(last.state, states[STEPS][0])
    assert [loss for call in calls for loss in call.losses] == losses[done:] and np.isfinite(losses).all()


def test_what_was_trained_is_evaluated_and_sampled_as_the_last_phase_has_it(whole: Any) -> None:
    state = jax.tree.map(jnp.asarray, whole[0][STEPS][0])
    last, windows = trained(THREE), np.random.default_rng(0).integers(0, 256, (1, 8, 17), dtype=np.uint16)
    params = step.program(last).params(state, hypers(last, STEPS))
    wide = stages(THREE)[-1].recipe
    assert last.data == THREE.data != wide.data and wide.data.length == 32
    assert evaluate.evaluate(THREE, params, windows) == evaluate.evaluate(last, params, windows)
    assert_same(sample.sample(THREE, params, np.arange(5), 20), sample.sample(last, params, np.arange(5), 20))


def test_on_a_mesh_what_goes_on_lies_where_the_new_stage_wants_it() -> None:
    recipe, mesh = edited(THREE, {"phases.narrow": ABSENT}), sharding.parse_mesh("fsdp=4,tensor=2")
    begin, leg, _ = phases.legs(recipe, STEPS)
    states = [step.migrate(step.program(begin.recipe, at).init(np.uint32(1), hypers(begin.recipe, STEPS)),
                           begin.recipe, leg, 0, STEPS, at) for at in (None, mesh)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *states)
    head = states[1].optimizer.params["head/weight"]
    assert head.sharding.shard_shape(head.shape) == (4, 128)


def test_the_step_before_a_seam_is_as_without_phases(whole: Any) -> None:
    states, losses = run(BASE, 20)
    assert losses[:10] != losses[10:20] and losses != whole[1][:20]  # windows are cut from longer ones
    same = edited(THREE, {"phases.untied.set.data": {"length": 16, "batch": 4}})
    assert run(same, 20)[1] == losses
    assert_same(run(same, 20)[0][20][0], states[20][0])


def test_a_phase_that_begins_with_the_run_still_begins_as_carry_says() -> None:
    """Short runs round its begin to 0: without carry there, they would be of another kind than long ones."""
    change = {"name": "untied", "set": {"model": {"embedding": {"tied": False}}}, "carry": CARRY}
    early, late = (run(phased({**change, "start": start}, base=BASE), 10) for start in (0.05, 0.9))
    assert early[1][0] == late[1][0] and "head/weight" in early[0][10][0].optimizer.params


def test_a_batch_that_cannot_be_divided_is_refused_before_the_first_step() -> None:
    recipe = phased({**HALF, "set": {"data": {"batch": 12}}}, base=BASE)
    batches = step.batches_of(recipe, STEPS, 0, data.load(recipe.data))
    with pytest.raises(UserError, match=r"phases\.half\.set\.data\.batch: 12 rows .* a multiple of 8 would do"):
        next(step.run(recipe, STEPS, 0, batches, accumulate=8))


def moved(recipe: Recipe) -> tuple[Any, Any, Recipe]:
    """A state, of any numbers, before and after the one seam of a recipe, and the recipe after it."""
    before, leg = phases.legs(recipe, 20)
    shapes = jax.eval_shape(lambda seed, values: step.init_state(before.recipe, seed, values), np.uint32(0),
                            hypers(before.recipe, 20))
    rng = np.random.default_rng(0)
    old = jax.tree.map(lambda x: rng.uniform(0.1, 1.0, x.shape).astype(x.dtype), shapes)._replace(step=np.int32(10))
    return old, jax.tree.map(np.array, step.migrate(old, before.recipe, leg, 0, 20)), leg.recipe


def test_a_head_that_is_untied_begins_as_the_table_with_its_moments() -> None:
    recipe = phased({**HALF, "set": {"model": {"embedding": {"tied": False}}}, "carry": CARRY}, base=BASE)
    old, new, after = moved(recipe)
    table = old.optimizer.params["embedding/token"]
    assert_same(new.optimizer.params["head/weight"], table.T)
    assert_same({p: w for p, w in new.optimizer.params.items() if p != "head/weight"}, old.optimizer.params)
    for line in ("m", "v"):
        was, now = (state.optimizer.chains["matrices"][line] for state in (old, new))
        assert_same(now.total["head/weight"], was.total["embedding/token"].T)
        assert_same((now.weight["head/weight"], now.total["embedding/token"]),
                    (was.weight["embedding/token"], was.total["embedding/token"]))
    assert_same(new.optimizer.memory["tail"]["head/weight"], table.T)  # it was kept of no table, so begins as it is
    batch = np.random.default_rng(0).integers(0, 256, (8, 17), dtype=np.uint16)
    losses = [float(jax.jit(lambda params, r=r: gpt.loss(params, batch, r)[0])(state.optimizer.params))
              for r, state in ((BASE, old), (after, new))]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_what_has_another_shape_begins_anew_with_moments_at_zero_and_what_is_dropped_is_gone() -> None:
    base = edited(BASE, {"model.embedding.tied": False})
    old, new, after = moved(phased({**HALF, "set": {"model": {"ffn": {"ratio": 2.0}, "embedding": {"tied": True}}}},
                                   base=base))
    fresh = step.init_state(after, np.uint32(step.seeds(0)[0]), hypers(after, 20)).optimizer.params
    chains = new.optimizer.chains["matrices"]
    for path, w in new.optimizer.params.items():
        anew = "ffn/up" in path or "ffn/down" in path
        np.testing.assert_allclose(w, fresh[path] if anew else old.optimizer.params[path], rtol=1e-6)
        if path in chains["m"].total:
            assert (np.abs(chains["m"].total[path]).max() == 0) == anew == (chains["v"].weight[path] == 0)
    assert "head/weight" in old.optimizer.params and not any(
        "head/weight" in str(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(new)[0])


def test_another_chain_keeps_lines_of_the_same_name_and_a_group_s_change_keeps_all() -> None:
    change = {"optimizer": {"groups": {"matrices": {"chain": {"adam": {"kind": "lion"}}, "roles": ["matrix"]},
                                       "rest": {"roles": ["embedding", "head", "gain", "bias", "scalar", "gate"]}}}}
    old, new, _ = moved(phased({**HALF, "set": change}, base=BASE))
    assert_same(new.optimizer.params, old.optimizer.params)
    assert_same(new.optimizer.memory, old.optimizer.memory)
    was, now = old.optimizer.chains, new.optimizer.chains
    assert_same(now["rest"]["m"].total["embedding/token"], was["matrices"]["m"].total["embedding/token"])
    assert_same(now["rest"]["v"].total["final_norm/gain"], was["rest"]["v"].total["final_norm/gain"])
    assert "v" not in now["matrices"] and set(now["matrices"]["m"].total) < set(was["matrices"]["m"].total)
    for path, total in now["matrices"]["m"].total.items():
        assert_same(total, was["matrices"]["m"].total[path])


def test_a_parameter_s_part_of_a_line_goes_on_whole_or_begins_anew() -> None:
    """An average that a weight corrects is nothing without it."""
    old = {"chains": {"all": {"m": Moments({"a/b": np.ones((2, 3))}, {}), "n": Moments({"a/b": np.ones((2, 3))}, {})}}}
    fresh = {"chains": {"new": {"m": Moments({"a/b": np.zeros((2, 3))}, {"a/b": np.zeros(())}),
                                "n": Moments({"a/b": np.zeros((2, 3))}, {})}}}
    found = phases.filled(fresh, old, {"a/b": phases.Source("a/b")})["chains"]["new"]
    assert found["m"].total["a/b"].sum() == 0 and found["n"].total["a/b"].sum() == 6


def test_a_memory_that_a_phase_brings_begins_as_what_it_is_of_is_then() -> None:
    base = edited(BASE, {"optimizer.readout": None})
    old, new, _ = moved(phased({**HALF, "set": {"optimizer": {"readout": {"kind": "tail_ema"}}}}, base=base))
    assert "tail" not in old.optimizer.memory
    assert_same(new.optimizer.memory["tail"], {path: w for path, w in old.optimizer.params.items()
                                               if path != "embedding/token"})


def test_a_stage_like_an_earlier_one_shares_its_program_whatever_is_evaluated() -> None:
    def windowed(name: str, start: float, window: int) -> dict[str, Any]:
        return {"name": name, "start": start, "set": {"model": {"attention": {"window": window}}}}

    recipe = phased(windowed("near", 0.3, 4), windowed("far", 0.6, 0), base=BASE,
                    evaluation={"set": {"model": {"attention": {"window": 8}}}})
    first, near, far = (step.program(part.recipe) for part in stages(recipe))
    assert first is far is not near


def test_numbers_alone_change_no_state() -> None:
    recipe = phased({**HALF, "set": {"optimizer": {"clip": 0.5}, "data": {"batch": 4}}}, base=BASE)
    before, leg = phases.legs(recipe, 20)
    state = step.init_state(BASE, np.uint32(0), hypers(BASE, 20))
    assert step.migrate(state, before.recipe, leg, 0, 20) is state


def test_factors_of_a_transpose_are_the_others_factors() -> None:
    rng, paths = np.random.default_rng(0), {"embedding/token": (6, 4), "head/weight": (4, 6)}
    left, right = (np.cov(rng.normal(size=(size, 20))).astype(np.float32) for size in (6, 4))
    full = kronecker.Factors(left, right, np.linalg.eigh(left)[1], np.linalg.eigh(right)[1],
                             np.linalg.eigvalsh(left), np.linalg.eigvalsh(right))
    old = {"chains": {"tables": {"q": {"factors": {"embedding/token": full}}}}}
    fresh = {"chains": {"heads": {"q": {"factors": {"head/weight": kronecker.init(jnp.zeros((4, 6)))}}}}}
    found = phases.filled(fresh, old, {"head/weight": phases.Source("embedding/token", True)})
    x = rng.normal(size=paths["head/weight"]).astype(np.float32)
    new = found["chains"]["heads"]["q"]["factors"]["head/weight"]
    np.testing.assert_allclose(kronecker.rotate(new, x), kronecker.rotate(full, x.T).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("carry", "message"), [
    ({"head/wieght": "embedding/token"}, 'phases.half.carry: "head/wieght": no parameter of the new model; head/weig'),
    ({"head/weight": "head/weight"}, "no parameter of the old model"),
    ({"final_norm/gain": "final_norm/gain"}, "it goes on by itself; without this would do"),
    ({"head/weight": "blocks_0/ffn/up"}, '"blocks_0/ffn/up": has shape (16, 64), head/weight (16, 256); one of that'),
])
def test_a_carry_that_does_not_fit_is_refused_by_preflight(carry: dict[str, str], message: str) -> None:
    recipe = phased({**HALF, "set": {"model": {"embedding": {"tied": False}}}, "carry": carry}, base=BASE)
    with pytest.raises(ConfigError) as caught:
        preflight(recipe)
    assert message in str(caught.value)


def test_a_run_costs_the_sum_of_its_phases_and_the_most_of_their_memory() -> None:
    alone = [preflight(part.recipe) for part in stages(THREE)]
    counts = phases.lengths(phases.legs(THREE, STEPS), STEPS)
    assert counts == [20, 10, 20, 10]
    flops = [cost.flops_per_step for cost in alone]
    assert run_flops(THREE, STEPS) == pytest.approx(np.dot(counts, flops), rel=1e-12)
    cost = preflight(THREE)
    assert cost.flops_per_step == pytest.approx(np.dot([0.3, 0.2, 0.3, 0.2], flops), rel=1e-12)
    assert cost.tokens_per_step == pytest.approx(0.5 * 128 + 0.5 * 256)
    assert cost.total_bytes == max(one.total_bytes for one in alone)
    assert cost.parameters == max(one.parameters for one in alone) == alone[2].parameters
    for budget in np.linspace(1.0, 40.0, 14) * 7.7 * flops[0]:
        steps = steps_for(THREE, budget)
        assert run_flops(THREE, steps) <= budget < run_flops(THREE, steps + 1)
    assert steps_for(BASE, 40 * preflight(BASE).flops_per_step) == 40


def stream(legs: tuple[tuple[int, int, int], ...], calls: int) -> list[np.ndarray]:
    """Windows of tokens that are their own places, by call."""
    (_, batch, length), *later = legs
    whole: Any = SimpleNamespace(size=40_000, gather=lambda starts, size: starts[:, None] + np.arange(size))
    source = Windows(whole, batch, length, 3, 10, None, tuple(later))
    return [source[i].reshape(-1, source[i].shape[-1]) for i in range(calls)]


def test_no_token_is_skipped_or_repeated_where_batch_and_length_change() -> None:
    plain, mixed = stream(((0, 4, 16),), 20), stream(((0, 8, 4), (3, 4, 16), (5, 2, 8), (5, 6, 8), (9, 4, 16)), 20)
    assert [call.shape for call in mixed[:6:2]] == [(80, 5), (80, 5), (40, 17)] and mixed[5].shape == (60, 9)
    targets = [np.sort(np.concatenate([call[:, 1:].ravel() for call in calls])) for calls in (plain, mixed)]
    count = min(map(len, targets))
    firsts = [np.concatenate([call[:, 1:].ravel() for call in calls]) for calls in (plain, mixed)]
    assert_same(*(np.sort(first[:count]) for first in firsts))
    assert all((np.diff(call.astype(int)) == 1).all() for call in mixed)  # windows are of one piece
    first = mixed[0].reshape(10, 8, 5)[0, :, 0]
    assert len(set(first // 16)) >= 7  # those cut from one lie in other batches


def test_a_new_batch_cuts_the_same_stream() -> None:
    plain, mixed = stream(((0, 4, 16),), 9), stream(((0, 4, 16), (2, 8, 16), (4, 2, 16)), 6)
    count = len(np.concatenate(mixed))
    assert_same(np.concatenate(mixed), np.concatenate(plain)[:count])

