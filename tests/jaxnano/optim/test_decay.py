"""Weight decay and clipping."""

import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import assert_all_close, directions, random_tree

from jaxnano.optim import decay


def test_decoupled_decay():
    grads, params = random_tree(0, steps=2), random_tree(1)
    got = directions(lambda h: decay.decoupled_decay(h["rate"]), {"rate": 0.3}, grads, params)
    assert_all_close(got, {path: g + 0.3 * params[path] for path, g in grads.items()}, 1e-6)


def test_cautious_decay_acts_only_where_the_update_shrinks_the_weight():
    grads, params = random_tree(2, steps=2), random_tree(3)
    grads["square"][0] = 0
    got = directions(lambda h: decay.cautious_decay(h["rate"]), {"rate": 0.3}, grads, params)
    for path, w in params.items():
        decayed = got[path] - grads[path]
        shrinking = np.sign(grads[path]) == np.sign(w)
        np.testing.assert_allclose(decayed, np.where(shrinking, 0.3 * w, 0), atol=1e-6)
        assert np.all(decayed * grads[path] >= 0)
        assert shrinking.any() and not shrinking.all()


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clip_gradients_bounds_the_joint_norm(max_norm):
    grads = random_tree(4)
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
    got = decay.clip_gradients(grads, jnp.float32(max_norm))
    assert_all_close(got, {path: g * min(1, max_norm / norm) for path, g in grads.items()}, 1e-6)


def test_clip_gradients_keeps_zero_and_shows_divergence():
    assert not np.any(decay.clip_gradients({"w": jnp.zeros(3)}, 1.0)["w"])
    assert np.all(np.isnan(decay.clip_gradients({"w": jnp.array([jnp.inf, jnp.nan]), "b": jnp.ones(1)}, 1.0)["b"]))
