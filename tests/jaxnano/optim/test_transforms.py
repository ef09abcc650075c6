"""What every line of a chain owes the training step. A new one adds a row to ROWS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import group, random_tree, values_of

from jaxnano.config.base import kind_of
from jaxnano.config.recipe import at
from jaxnano.config.transforms import TRANSFORMS
from jaxnano.model.specs import OF_INPUTS
from jaxnano.optim.chain import build_chain, costs_of

MIXED = {"a": (4, 4), "b": (4, 4), "c": (6, 3), "d": (3, 6)}
VECTORS = MIXED | {"gain": (5,), "scalar": ()}
EVEN = {"a": (4, 4), "b": (4, 4), "c": (6, 4), "d": (4, 6)}
SQUARE = {"a": (4, 4), "b": (4, 4)}  # the first basis is unique only for gradients of full rank on both sides
FACTORS = {"kind": "factors", "name": "q", "decay": 0.9, "every": 2}

# A chain, its numbers' other values, and the shapes of the parameters it is tried on.
ROWS = {
    "sgd": ([{"kind": "sgd", "nesterov": True}], {"momentum": 0.5}, VECTORS),
    "adam": ([{"kind": "adam", "nesterov": True}], {"b1": 0.5, "b2": 0.8, "eps": 0.1}, VECTORS),
    "lion": ([{"kind": "lion"}], {"b1": 0.2, "b2": 0.3}, VECTORS),
    "ademamix": ([{"kind": "ademamix"}], {"b1": 0.5, "b2": 0.8, "b3": 0.9, "alpha": 5.0, "eps": 0.1}, VECTORS),
    "muon": ([{"kind": "muon"}], {"momentum": 0.2}, MIXED),
    "normuon": ([{"kind": "muon", "nesterov": False}, {"kind": "normuon"}], {"momentum": 0.2, "b2": 0.5}, MIXED),
    "soap": ([{"kind": "soap", "refresh_every": 2}], {"b1": 0.5, "b2": 0.8, "shampoo_beta": 0.5, "eps": 0.1}, SQUARE),
    "decay": ([{"kind": "decay"}], {"rate": 0.5}, VECTORS),
    "cautious_decay": ([{"kind": "cautious_decay"}], {"rate": 0.5}, VECTORS),
    "hyperball": ([{"kind": "hyperball"}], {}, VECTORS),
    "average": ([{"kind": "average", "name": "m", "decay": 0.9, "debias": True},
                 {"name": "mix", "code": "g + m - m_old"}], {"decay": 0.5}, VECTORS),
    "formula": ([{"name": "mix", "code": "sign(u) * pow(abs(u), a) + noise()", "params": {"a": 0.5}}], {"a": 0.9},
                VECTORS),
    "formula in pieces": ([{"name": "mix", "code": "u / (a + norm(u)) + noise()", "params": {"a": 0.5},
                            "pieces": {"axis": "in", "count": 2}}], {"a": 0.9}, EVEN),
    "polar in pieces": ([{"name": "mix", "code": "u + a * W", "params": {"a": 0.1}},
                         {"kind": "polar", "pieces": {"count": 2}}], {"a": 0.9}, EVEN),
    "factors": ([FACTORS, {"kind": "rotate", "name": "in", "by": "q"}, {"name": "mix", "code": "tanh(u)"},
                 {"kind": "rotate", "name": "out", "by": "q", "back": True}], {"decay": 0.5}, SQUARE),
    "rotate": ([FACTORS, {"kind": "rotate", "name": "in", "by": "q"}], {"decay": 0.5}, SQUARE),
    "root": ([FACTORS, {"kind": "root", "name": "raised", "by": "q", "floor": 0.1}], {"power": -0.1, "floor": 0.3},
             SQUARE),
    "triangles": ([{"kind": "triangles", "name": "q"}, {"kind": "whiten", "name": "w", "by": "q"}], {"rate": 0.5},
                  MIXED),
    "whiten": ([{"kind": "triangles", "name": "q", "rate": 0.3}, {"kind": "whiten", "name": "w", "by": "q", "of": "g"}],
               {"rate": 0.6}, SQUARE),
    "solve": ([{"kind": "average", "name": "c", "of": "inputs", "decay": 0.5},
               {"kind": "solve", "name": "s", "by": "c", "every": 2}], {"decay": 0.9, "damping": 2.0}, MIXED),
    "polar": ([{"name": "mix", "code": "u + a * W", "params": {"a": 0.1}}, {"kind": "polar"}], {"a": 0.9}, MIXED),
    "step": ([{"kind": "step"}, {"name": "pin", "into": "W", "code": "W * a", "params": {"a": 0.9}}], {"a": 0.5},
             VECTORS),
}


def moments(name, shapes):
    """Shapes of the second moments of inputs that a row asks for, by path."""
    asks = any(step.get("of") == "inputs" for step in ROWS[name][0])
    return {path: (1, shape[0], shape[0]) for path, shape in shapes.items()} if asks else {}


def gradients(name, seed):
    """Random gradients of a row, and moments that are some matrix's."""
    shapes = ROWS[name][2]
    return random_tree(seed, shapes) | {path + OF_INPUTS: x @ x.mT for path, x in random_tree(
        seed + 10, moments(name, shapes)).items()}


def test_every_kind_has_a_row():
    assert {name for name in ROWS if " in " not in name} == {kind_of(node) for node in TRANSFORMS}


@pytest.mark.parametrize("name", ROWS)
def test_contract(name):
    """Finite; traced once for all numbers, which matter; donation; types kept; vmap over numbers equals single runs."""
    (chain, other, shapes), traces = ROWS[name], []
    node = group(*chain, lr=0.1)

    def build(values):
        resolved = at(node, values, jnp.float32(0.5))
        return build_chain(resolved.steps, {"lr": resolved.lr, "progress": 0.5}, moments=moments(name, shapes))

    def step(carry, grads, values):
        traces.append(name)
        return build(values).update(grads, carry[1], carry[0])

    first = values_of(node)
    second = {path: np.float32(other.get(path.rpartition(".")[2], 0.2)) for path in first}
    params = {path: jnp.asarray(w) for path, w in random_tree(0, shapes).items()}
    grads = [gradients(name, seed) for seed in (1, 2, 3)]
    jitted = jax.jit(step, donate_argnums=0)

    def start():
        copies = jax.tree.map(jnp.copy, params)
        return copies, build(first).init(copies)

    ends = []
    for values in (first, second):
        carry = start()
        types = jax.tree.map(jax.typeof, carry)
        for g in grads:
            carry = jitted(carry, g, values)
        assert jax.tree.map(jax.typeof, carry) == types
        ends.append(carry)
    assert len(traces) == 1, "changing a number traced the step again"
    assert all(np.isfinite(x).all() for end in ends for x in jax.tree.leaves(end))
    assert any(not np.allclose(ends[0][0][path], ends[1][0][path], atol=1e-4) for path in params)

    both = jax.tree.map(lambda x: jnp.stack([x, x]), start())
    pair = {path: np.stack([first[path], second[path]]) for path in first}
    many = jax.jit(jax.vmap(step, in_axes=(0, None, 0)))
    for g in grads:
        both = many(both, g, pair)
    for i in range(2):
        for path in params:
            np.testing.assert_allclose(both[0][path][i], ends[i][0][path], atol=1e-4, err_msg=path)


@pytest.mark.parametrize("name", ROWS)
def test_the_cost_of_a_chain_is_that_of_what_it_builds(name):
    """What a chain keeps for a matrix is what its cost says, the counter of its factors apart."""
    node = group(*ROWS[name][0])
    costs = {shape: [c for _, c in costs_of(node.steps, shape, ("lr", "progress"), moments=moments(
        name, {"w": shape}).get("w"))] for shape in ((6, 10), (12, 20))}
    state = build_chain(node.steps, {"lr": 0.1, "progress": 0.5}, moments=moments(name, {"w": (6, 10)})).init(
        {"w": jnp.zeros((6, 10))})
    kept = [leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32]
    assert sum(kept) == sum(c.floats for c in costs[6, 10])
    small, large = (sum(c.flops for c in costs[shape]) for shape in costs)
    assert small >= 60 and large >= 3.9 * small
