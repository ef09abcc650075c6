"""Random gradients, and one compiled run of a chain or an optimizer over them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnano.config.base import leaves, validate
from jaxnano.config.optimizer import Group, Optimizer
from jaxnano.config.recipe import at
from jaxnano.model.specs import Initial, Spec
from jaxnano.optim import kronecker
from jaxnano.optim.build import build
from jaxnano.optim.chain import build_chain

SHAPES = {"square": (6, 6), "tall": (9, 5), "wide": (5, 9), "wide_again": (5, 9)}
STEPS = 5


def random_tree(seed, shapes=None, steps=None):
    """{path: float32 array}, with a leading axis of steps if given."""
    rng = np.random.default_rng(seed)
    lead = () if steps is None else (steps,)
    return {path: rng.normal(size=lead + shape).astype(np.float32) for path, shape in (shapes or SHAPES).items()}


def group(*chain, lr=1.0, **fields):
    """A group that takes every parameter."""
    return validate(Group, {"name": "all", "paths": ["*"], "lr": lr, "chain": list(chain), **fields})


def values_of(node):
    """The traced numbers of a node, by path."""
    return {leaf.path: np.float32(leaf.value) for leaf in leaves(node)}


def chain_of(node, values=None, progress=0.5):
    """The functions of a group's chain, its numbers traced."""
    node = at(node, values or values_of(node), jnp.float32(progress))
    return build_chain(node.steps, {"lr": node.lr, "progress": progress, **node.params})


def trajectory(node, grads, params):
    """Parameters {path: [steps, ...]} after each update of a chain over gradients with a leading axis of steps."""

    @jax.jit
    def run(values, grads, params):
        chain = chain_of(node, values)

        def step(carry, g):
            params, state = chain.update(g, carry[1], carry[0])
            return (params, state), params

        return jax.lax.scan(step, (params, chain.init(params)), grads)[1]

    return {path: np.asarray(w) for path, w in run(values_of(node), grads, params).items()}


def directions(grads, *chain, params=None):
    """Directions {path: [steps, ...]} of a chain over gradients, and over parameters where they are given.

    The parameters stay as they are: each is what W was less what it becomes at a learning rate of 1.
    """
    node = group(*chain)
    params = {path: np.zeros_like(g[0]) for path, g in grads.items()} if params is None else params

    @jax.jit
    def run(values, grads, params):
        chain = chain_of(node, values)

        def step(state, g):
            new, state = chain.update(g, state, params)
            return state, {path: params[path] - new[path] for path in params}

        return jax.lax.scan(step, chain.init(params), grads)[1]

    return {path: np.asarray(u) for path, u in run(values_of(node), grads, params).items()}


def optimizer(table_shapes, progress, steps, **fields):
    """An optimizer of one group, plain gradient descent at a rate of 0.1 unless `chain` says else, at one step.

    clock: the group's.
    """
    chain, clock = fields.pop("chain", [{"kind": "step"}]), fields.pop("clock", {})
    cfg = validate(Optimizer, {"clip": None, **fields, "groups": [
        {"name": "all", "roles": ["matrix", "embedding", "head", "gain", "bias", "scalar", "gate"], "lr": 0.1,
         "chain": chain, **clock}]})
    table = {path: Spec(shape, "matrix", Initial("normal", 0.1), "DD") for path, shape in table_shapes.items()}
    return build(at(cfg, values_of(cfg), jnp.float32(progress)), table, progress, jnp.float32(steps))


def known_factor(size, seed):
    """A preconditioner with separate eigenvalues, and its eigenvectors, largest first."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    return (basis * np.geomspace(8, 1, size)) @ basis.T, basis


def factors_of(left, right):
    """Kronecker factors from (factor, basis) pairs of both sides, the eigenvalues those of `known_factor`."""
    values = [np.sort(np.linalg.eigvalsh(factor))[::-1] for factor, _ in (left, right)]
    return kronecker.Factors(*map(jnp.asarray, (left[0], right[0], left[1], right[1], *values)))


def assert_all_close(actual, expected, rtol):
    """Compare trees, each leaf relative to its largest entry."""
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(actual[path], value, rtol=0, atol=rtol * np.abs(value).max(), err_msg=path)
