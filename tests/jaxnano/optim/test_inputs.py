"""Second moments of what maps are given, and chains that use them: against NumPy, from the model to the parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import group

from jaxnano.config.base import ConfigError
from jaxnano.config.recipe import hypers
from jaxnano.cost import preflight
from jaxnano.model import backend, gpt
from jaxnano.model.specs import OF_INPUTS, moments_of, specs
from jaxnano.optim.build import blanks
from jaxnano.optim.chain import build_chain
from jaxnano.step import init_state, program, train_step
from tests.jaxnano.recipes import TINY, edited

SOLVE = [{"kind": "average", "name": "c", "of": "inputs", "decay": 0.9},
         {"kind": "solve", "name": "inverse", "by": "c", "of": "g", "damping": 0.2, "every": 2}]


def with_chain(chain, **changes):
    node = {"name": "hidden", "roles": ["matrix"], "lr": 0.02, "chain": chain}
    groups = [node, *TINY.model_dump(mode="json", exclude_defaults=True).get("optimizer", {}).get("groups", [])]
    if len(groups) == 1:
        groups += [g.model_dump(mode="json", exclude_defaults=True) for g in TINY.optimizer.groups]
    return edited(TINY, {"optimizer.groups": groups, **changes})


def test_moments_are_those_of_the_channels_in_blocks():
    x = np.random.default_rng(0).standard_normal((2, 5, 6)).astype(np.float32)
    value, pull = jax.vjp(backend.watch, jnp.asarray(x), jnp.zeros((2, 3, 3)))
    np.testing.assert_array_equal(value, x)
    gradient = np.ones_like(x)
    through, moments = pull(jnp.asarray(gradient))
    np.testing.assert_array_equal(through, gradient)
    rows = x.astype(np.float64).reshape(10, 2, 3)
    np.testing.assert_allclose(moments, [rows[:, i].T @ rows[:, i] / 10 for i in range(2)], rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_holds_the_moments_of_what_the_maps_of_a_block_are_given(accumulate):
    """Without attention the first FFN sees the normed embedding, which NumPy makes by itself."""
    recipe = with_chain(SOLVE, **{"model.attention.dropped": [0], "model.position": {"kind": "none"},
                                  "model.blocks": [], "data.batch": 4})
    values = hypers(recipe, 10)
    params = init_state(recipe, np.uint32(0), values).optimizer.params
    batch = np.random.default_rng(1).integers(0, 256, (4, recipe.data.length + 1)).astype(np.int32)
    state = init_state(recipe, np.uint32(0), values)
    new, _ = jax.jit(lambda state: train_step(recipe, state, batch, values, accumulate))(state)
    found = new.optimizer.chains["hidden"]["c"].total
    assert set(found) == {path for path, spec in specs(recipe).items() if spec.role == "matrix"}
    x = np.asarray(params["embedding/token"], np.float64)[batch[:, :-1]].reshape(-1, recipe.model.width)
    x = x - x.mean(-1, keepdims=True) if recipe.model.norm.kind == "layernorm" else x
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + recipe.model.norm.eps)
    np.testing.assert_allclose(found["blocks_0/ffn/up"][0], 0.1 * x.T @ x / len(x), rtol=1e-3, atol=1e-5)
    blocks = recipe.model.ffn_width // recipe.model.width
    assert found["blocks_0/ffn/down"].shape == (blocks, recipe.model.width, recipe.model.width)


def test_a_solution_by_moments_is_that_of_numpy_and_its_inverse_is_kept():
    rng, m, n = np.random.default_rng(2), 8, 3
    rows = rng.standard_normal((4, 20, m))
    moments = np.einsum("tmi,tmj->tij", rows, rows) / 20
    blocks = np.stack([moments[:, :4, :4], moments[:, 4:, 4:]], axis=1).astype(np.float32)
    grads = rng.standard_normal((4, m, n)).astype(np.float32)
    node = group(*SOLVE)
    chain = build_chain(node.steps, {"lr": 1.0, "progress": 0.5}, {"w": "DF"}, moments={"w": (2, 4, 4)})
    w, c = {"w": jnp.zeros((m, n))}, np.zeros((2, 4, 4))
    state, inverse = chain.init(w), None
    for t in range(4):
        new, state = jax.jit(chain.update)({"w": grads[t], "w" + OF_INPUTS: blocks[t]}, state, w)
        c = 0.9 * c + 0.1 * blocks[t]
        if t % 2 == 0:
            inverse = [np.linalg.inv(a + (0.2 * np.trace(a) / 4 + 1e-8) * np.eye(4)) for a in c]
        expected = np.concatenate([inverse[0] @ grads[t][:4], inverse[1] @ grads[t][4:]])
        np.testing.assert_allclose(-new["w"], expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_training_goes_on_with_moments_and_costs_them():
    recipe = with_chain([SOLVE[0], SOLVE[1] | {"into": "p"}, {"kind": "average", "name": "m", "of": "p", "decay": 0.95},
                         {"kind": "polar", "of": "m"}])
    run, values = program(recipe), hypers(recipe, 4)
    state = run.init(np.uint32(0), values)
    batches = np.random.default_rng(3).integers(0, 256, (2, recipe.data.batch, recipe.data.length + 1)).astype(np.int32)
    state, losses = run.steps(state, batches, np.int32(2), values)
    assert np.isfinite(losses).all() and all(np.isfinite(w).all() for w in state.optimizer.params.values())
    plain = with_chain([{"kind": "average", "name": "m", "decay": 0.95}, {"kind": "polar", "of": "m"}])
    table = specs(recipe)
    shapes = {path: moments_of(path, table) for path, spec in table.items() if spec.role == "matrix"}
    numbers = sum(int(np.prod(shape)) for shape in shapes.values())
    cost, before = preflight(recipe), preflight(plain)
    assert cost.model_flops_per_token == before.model_flops_per_token + 2 * numbers
    assert cost.optimizer_bytes == before.optimizer_bytes + 8 * numbers
    assert cost.optimizer_flops_per_step > before.optimizer_flops_per_step


def test_who_asks_for_no_moments_is_given_none_and_clipping_sees_gradients_alone():
    assert blanks(TINY.optimizer, specs(TINY)) == {}
    recipe = with_chain([SOLVE[0], SOLVE[1] | {"into": "p"}, {"name": "plain", "code": "u + 0 * p"}],
                        **{"optimizer.clip": 1e-3})
    plain = with_chain([{"name": "plain", "code": "u"}], **{"optimizer.clip": 1e-3})
    batch = np.random.default_rng(4).integers(0, 256, (TINY.data.batch, TINY.data.length + 1)).astype(np.int32)
    ends = []
    for one in (recipe, plain):
        values = hypers(one, 4)
        ends.append(train_step(one, init_state(one, np.uint32(0), values), batch, values)[0].optimizer.params)
    for path, w in ends[0].items():
        np.testing.assert_allclose(w, ends[1][path], rtol=1e-6, atol=1e-9)


def test_the_loss_and_sampling_see_no_blank():
    recipe = with_chain(SOLVE)
    params = init_state(recipe, np.uint32(0), hypers(recipe, 4)).optimizer.params
    assert not any(path.endswith(OF_INPUTS) for path in params)
    assert gpt.features(params, jnp.zeros((1, 4), jnp.int32), recipe)[0].shape == (1, 4, recipe.model.width)


@pytest.mark.parametrize(("chain", "roles", "rule"), [
    (SOLVE, ["embedding"], "inputs are those of attention's and the FFN's maps"),
    ([{"kind": "average", "name": "c", "decay": 0.9}, SOLVE[1]], ["matrix"], "an average of inputs would do"),
])
def test_chains_that_have_no_moments_are_refused(chain, roles, rule):
    node = {"name": "hidden", "roles": roles, "lr": 0.02, "chain": chain}
    groups = [node, *(g.model_dump(mode="json", exclude_defaults=True) for g in TINY.optimizer.groups)]
    with pytest.raises(ConfigError, match=rule):
        preflight(edited(TINY, {"optimizer.groups": groups}))


def test_moments_are_of_one_step_and_what_solves_names_an_average():
    with pytest.raises(ConfigError, match="inputs are those of one step"):
        group(*SOLVE, every=2, accumulate=True)
    with pytest.raises(ConfigError, match="a line of kind average would do"):
        group({"kind": "factors", "name": "c"}, SOLVE[1])
