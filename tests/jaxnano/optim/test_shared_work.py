"""What devices do of matrices together is what one does alone, and each does its part only."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from optim_reference import group, random_tree, values_of

from jaxnano import sharding
from jaxnano.config.recipe import at
from jaxnano.model import backend
from jaxnano.model.specs import OF_INPUTS
from jaxnano.optim import polar
from jaxnano.optim.chain import build_chain
from jaxnano.optim.share import shared

SHAPES = {"a": (4, 4), "b": (4, 4), "c": (4, 4)}
LINES = {  # whatever works matrix by matrix, each on the gradient
    "polar": {"kind": "polar", "of": "g", "coefficients": "quintic"},
    "ahead": {"kind": "factors", "decay": 0.9, "every": 1, "ahead": True},
    "raised": {"kind": "root", "by": "ahead", "of": "g", "power": {"kind": "linear", "value": -0.3}, "floor": 0.1},
    "triangles": {"kind": "triangles", "rate": 0.5},
    "white": {"kind": "whiten", "by": "triangles", "of": "g"},
    "moment": {"kind": "average", "of": "inputs", "decay": 0.9},
    "solved": {"kind": "solve", "by": "moment", "of": "g", "every": 2, "damping": 0.3},
}


def test_every_line_that_works_on_matrices_is_the_same_on_eight_devices():
    lines = [{"name": name} | line | ({"into": name} if line["kind"] in ("polar", "root", "whiten", "solve")
                                      else {}) for name, line in LINES.items()]
    node = group(*lines, {"name": "sum", "code": "polar + raised + white / 100 + solved"}, lr=0.1)
    moments = {path: (shape[0] // 4, 4, 4) for path, shape in SHAPES.items()}
    grads, params = random_tree(0, SHAPES, 3), random_tree(1, SHAPES)
    for path, shape in SHAPES.items():
        rows = np.random.default_rng(2).standard_normal((3, shape[0] // 4, 9, 4)).astype(np.float32)
        grads[path + OF_INPUTS] = np.einsum("tkmi,tkmj->tkij", rows, rows) / 9
    ends = {}
    for mesh in (None, sharding.make_mesh(2, 2, 2)):
        whole = None if mesh is None else NamedSharding(mesh, jax.P())

        def update(values, g, state, params, mesh=mesh):
            with sharding.within(mesh):
                return at_values(node, values, moments).update(g, state, params)

        step = jax.jit(update) if whole is None else jax.jit(update, in_shardings=whole, out_shardings=whole)
        w, state = params, jax.device_get(at_values(node, values_of(node), moments).init(params))
        for t in range(3):
            w, state = jax.device_get(step(values_of(node), {path: g[t] for path, g in grads.items()}, state, w))
        ends[mesh] = w, state
    one, eight = ends.values()
    assert max(np.abs(one[0][path] - params[path]).max() for path in SHAPES) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), eight, one)


def at_values(node, values, moments):
    node = at(node, values | {"total_steps": np.float32(10)}, jnp.float32(0.5))
    return build_chain(node.steps, {"lr": node.lr, "progress": 0.5}, dict.fromkeys(SHAPES, "DF"), moments=moments)


@pytest.mark.parametrize(("count", "devices"), [(6, 2), (6, 8), (12, 8), (1, 8)])
def test_each_of_n_devices_orthogonalises_its_part_by_the_compiler_s_count(count, devices):
    tree = {str(i): jax.ShapeDtypeStruct((32, 64), jnp.float32) for i in range(count)}
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])

    def run(tree):
        with sharding.within(mesh):
            return polar.polar_leaves(tree, "quintic")

    whole = NamedSharding(mesh, jax.P())
    program = jax.jit(run, in_shardings=whole, out_shardings=whole).lower(tree).compile()
    one = polar.polar_flops((32, 64), "quintic")  # without what is added and scaled between the products
    assert program.cost_analysis()["flops"] / one == pytest.approx(math.ceil(count / devices), rel=0.15)
    assert ("all-gather" in program.as_text()) == (count > 1)


def test_without_a_mesh_and_of_one_matrix_nothing_is_shared():
    seen = []
    shared(lambda x, scale: seen.append(x.shape) or x * scale, jnp.ones((3, 2, 2)), 2.0)
    with jax.sharding.use_abstract_mesh(sharding.make_mesh(8).abstract_mesh):
        jax.jit(lambda x: shared(lambda x: seen.append(x.shape) or x, x)).trace(jnp.ones((1, 2, 2)))
        jax.jit(lambda x: shared(lambda x: seen.append(x.shape) or x, x)).trace(jnp.ones((9, 2, 2)))
    assert seen == [(3, 2, 2), (1, 2, 2), (2, 2, 2)]


@pytest.mark.parametrize(("target", "products"), [("cpu", "f32"), ("gpu", "bf16"), ("tpu", "bf16")])
def test_accelerators_iterate_in_bfloat16(monkeypatch, target, products):
    monkeypatch.setattr(polar, "platform", lambda: target)
    assert backend.platform() == "cpu"
    text = jax.jit(lambda tree: polar.polar_leaves(tree, "quintic")).lower({"w": jnp.ones((4, 8))}).as_text()
    found = {line.rpartition("x")[2].partition(">")[0] for line in text.splitlines() if "dot_general" in line}
    assert found == {products} and "-> (tensor<4x8xf32>" in text
