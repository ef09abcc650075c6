"""Where documents begin, as a loop says it, and the same in two pieces."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnano.model.documents import Row, begins

TOKENS = np.random.default_rng(1).integers(0, 4, (3, 20))
POSITIONS = jnp.arange(20)


@pytest.mark.parametrize("most", [None, 1, 3])
def test_begins_of_documents_and_of_their_pieces(most: int | None) -> None:
    found, last = begins(jnp.asarray(TOKENS), POSITIONS, jnp.zeros(3, jnp.int32), 2, most)
    for row, tokens in enumerate(TOKENS):
        document = 0
        for t, token in enumerate(tokens):
            document = t if token == 2 else document
            assert found[row, t] == (document if most is None else t - (t - document) % most)
        assert last[row] == document
    half, since = begins(jnp.asarray(TOKENS[:, :7]), POSITIONS[:7], jnp.zeros(3, jnp.int32), 2, most)
    rest, _ = begins(jnp.asarray(TOKENS[:, 7:]), POSITIONS[7:], since, 2, most)
    np.testing.assert_array_equal(np.concatenate([half, rest], axis=1), found)


def test_heads_that_take_turns_have_places_of_their_own() -> None:
    row = Row(jnp.arange(3), jnp.array([[0, 0, 2]])).interleaved(2)
    assert row.positions_L.tolist() == [0, 1, 2, 3, 4, 5] and row.begins_BxL.tolist() == [[0, 0, 0, 0, 4, 4]]
    assert Row(jnp.arange(3)).interleaved(3).begins_BxL is None
