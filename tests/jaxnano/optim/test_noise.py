"""Noise in a chain: Gaussian, never the same twice, that of the run's seed, and the same again on resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import chain_of, directions, group, optimizer, random_tree

from jaxnano.config.base import ConfigError
from jaxnano.optim.chain import KEY, bits_of

SHAPES = {"a": (40, 50), "b": (40, 50), "gain": (30,), "one": ()}
NOISE = {"name": "jump", "code": "noise()"}


def drawn(*chain, seed=0, steps=4):
    """{path: [steps, ...]} of what a chain adds; no gradient."""
    grads = {path: np.zeros((steps, *shape), np.float32) for path, shape in SHAPES.items()}
    return directions(grads, *chain, params={path: jnp.asarray(w) for path, w in random_tree(seed, SHAPES).items()})


def correlation(a, b):
    return abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def test_it_is_gaussian_and_new_for_every_parameter_step_line_and_call():
    """5 standard errors: of the mean, the deviation, the fourth moment, and of correlations."""
    found = drawn(NOISE)
    x = found["a"].astype(np.float64)
    bound = 5 / np.sqrt(x.size)
    assert abs(x.mean()) < bound and abs(x.std() - 1) < bound and abs((x**4).mean() - 3) < 10 * bound
    twice = drawn({"name": "jump", "into": "d", "code": "noise()"}, {"name": "other", "code": "noise() + 0 * d"})
    pairs = [(x[0], x[1]), (found["a"], found["b"]), (found["a"], twice["a"])]
    assert all(correlation(a, b) < 5 / np.sqrt(a.size) for a, b in pairs)
    apart = drawn({"name": "jump", "code": "noise() - noise()"})["a"]
    assert abs(apart.std() - np.sqrt(2)) < 3 * bound
    assert found["one"].std() > 0 and len(set(found["gain"].ravel())) == 4 * 30


def test_it_follows_the_initial_parameters_and_a_state_goes_on_to_the_bit():
    assert not np.array_equal(drawn(NOISE)["a"], drawn(NOISE, seed=1)["a"])
    np.testing.assert_array_equal(drawn(NOISE)["a"], drawn(NOISE)["a"])
    chain, params = chain_of(group(NOISE)), {path: jnp.asarray(w) for path, w in random_tree(0, SHAPES).items()}
    zero = {path: jnp.zeros(shape) for path, shape in SHAPES.items()}
    state, steps = chain.init(params), []
    for _ in range(3):
        new, state = chain.update(zero, jax.tree.map(np.asarray, state), params)  # as if saved and restored
        steps.append(params["a"] - new["a"])
    np.testing.assert_allclose(np.stack(steps), drawn(NOISE, steps=3)["a"], atol=1e-6)


def test_constants_draw_by_the_other_groups_parameters():
    """A group of gains alone starts as ones whatever the seed."""
    shapes = {"embedding/token": (3, 2), "head/weight": (2, 3)}
    keys = [optimizer(shapes, 0.1, 10, chain=[NOISE]).init(random_tree(seed, shapes)).chains["all"][KEY]
            for seed in (0, 1)]
    assert not np.array_equal(*keys)
    parts = random_tree(0, shapes)
    assert bits_of(parts) == bits_of(dict(reversed(parts.items()))) == bits_of(
        {str(i): w for i, w in enumerate(np.concatenate([x.ravel() for x in parts.values()]))})


def test_a_chain_without_noise_keeps_no_key():
    assert KEY not in chain_of(group({"kind": "adam"})).init(random_tree(0))


@pytest.mark.parametrize(("step", "message"), [
    ({"name": "jump", "code": "noise(u)"}, "noise takes 0 argument(s)"),
    ({"name": "jump", "code": "u + noise"}, "no such name above this line"),
    ({"name": "jump", "code": "u * noise()", "params": {"noise": 1.0}}, "parameter 'noise': a name of its own"),
])
def test_what_is_no_noise_is_refused(step, message):
    with pytest.raises(ConfigError) as caught:
        group(step)
    assert message in str(caught.value)


def test_only_chains_draw():
    with pytest.raises(ConfigError, match="unknown function 'noise'"):
        optimizer({}, 0.5, 10, evaluated={"code": "W + noise()"})
