"""What every transform owes the training step. A new one adds a row to ROWS."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optim_reference import random_tree

from jaxnano.config.base import kind_of
from jaxnano.config.optimizer import TRANSFORMS
from jaxnano.optim import adam, constraint, decay, kronecker, muon, wrapper
from jaxnano.optim.build import build_transform

MIXED = {"a": (4, 4), "b": (4, 4), "c": (6, 3), "d": (3, 6)}
SQUARE = {"a": (4, 4), "b": (4, 4)}  # the first basis of SOAP is unique only for gradients of full rank on both sides


class Row(NamedTuple):
    """build: hypers -> transform. hypers: name -> two values. shapes: of the parameters it is tried on."""

    build: object
    hypers: dict
    shapes: dict = MIXED


ROWS = {
    "sgd": Row(lambda h: adam.sgd(h["momentum"], nesterov=True), {"momentum": (0.9, 0.5)}),
    "adam": Row(lambda h: adam.adam(h["b1"], h["b2"], h["eps"], True, True),
                {"b1": (0.9, 0.5), "b2": (0.95, 0.8), "eps": (1e-8, 0.1)}, MIXED | {"gain": (5,), "scalar": ()}),
    "lion": Row(lambda h: adam.lion(h["b1"], h["b2"]), {"b1": (0.9, 0.2), "b2": (0.95, 0.3)}),
    "ademamix": Row(lambda h: adam.ademamix(h["b1"], h["b2"], h["b3"], h["alpha"], h["eps"]),
                    {"b1": (0.9, 0.5), "b2": (0.95, 0.8), "b3": (0.99, 0.9), "alpha": (2.0, 5.0), "eps": (1e-8, 0.1)}),
    "muon": Row(lambda h: muon.muon(h["momentum"], True, "quintic", "aspect"), {"momentum": (0.95, 0.2)}),
    "normuon": Row(lambda h: optax.chain(muon.muon(h["momentum"], False, "quintic", "none"), muon.normuon(h["b2"])),
                   {"momentum": (0.95, 0.2), "b2": (0.95, 0.5)}),
    "soap": Row(lambda h: kronecker.soap(h["b1"], h["b2"], h["beta"], h["eps"], 2),
                {"b1": (0.9, 0.5), "b2": (0.95, 0.8), "beta": (0.9, 0.5), "eps": (1e-8, 0.1)}, SQUARE),
    "decay": Row(lambda h: decay.decoupled_decay(h["rate"]), {"rate": (0.1, 0.5)}),
    "cautious_decay": Row(lambda h: decay.cautious_decay(h["rate"]), {"rate": (0.1, 0.5)}),
    "hyperball": Row(lambda h: constraint.hyperball(-h["angle"]), {"angle": (0.02, 0.2)}),
}


@pytest.mark.parametrize("name", ROWS)
def test_contract(name):
    """Finite; traced once for all scalars, which matter; donation; types kept; vmap over scalars equals single runs."""
    row, traces = ROWS[name], []

    def step(state, grads, hypers):
        traces.append(name)
        transform = optax.chain(row.build(hypers), constraint.learning_rate(hypers["lr"]))
        return wrapper.from_transform(transform).update(grads, state)

    pair = {path: np.array(values, np.float32) for path, values in row.hypers.items()} | {"lr": np.float32([0.1, 0.1])}
    singles = [jax.tree.map(lambda values, i=i: values[i], pair) for i in range(2)]
    params = {path: jnp.asarray(w) for path, w in random_tree(0, row.shapes).items()}
    grads = [random_tree(seed, row.shapes) for seed in (1, 2, 3)]
    init = wrapper.from_transform(optax.chain(row.build(singles[0]), constraint.learning_rate(0.1))).init
    jitted = jax.jit(step, donate_argnums=0)

    ends = []
    for hypers in singles:
        state = init(params)
        types = jax.tree.map(jax.typeof, state)
        for g in grads:
            state = jitted(state, g, hypers)
        assert jax.tree.map(jax.typeof, state) == types
        ends.append(state)
    assert len(traces) == 1, "changing a scalar traced the step again"
    assert all(np.isfinite(x).all() for end in ends for x in jax.tree.leaves(end))
    assert any(not np.allclose(ends[0].params[path], ends[1].params[path], atol=1e-4) for path in params)

    both = jax.tree.map(lambda x: jnp.stack([x, x]), init(params))
    many = jax.jit(jax.vmap(step, in_axes=(0, None, 0)))
    for g in grads:
        both = many(both, g, pair)
    for i in range(2):
        for path in params:
            np.testing.assert_allclose(both.params[path][i], ends[i].params[path], atol=1e-4, err_msg=path)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_cost_of_a_node_is_that_of_the_transform_it_builds(kind):
    """Every node has a row above; what its transform keeps for a matrix is what its cost says, a few scalars apart."""
    name = kind_of(kind)
    assert name in ROWS
    transform, cost = build_transform(kind(kind=name), 0.1)
    state = transform.init({"w": jnp.zeros((6, 10))})
    assert sum(x.size for x in jax.tree.leaves(state)) == pytest.approx(cost((6, 10)).floats, abs=2)
    assert cost((6, 10)).flops >= 60 and cost((12, 20)).flops >= 4 * cost((6, 10)).flops
