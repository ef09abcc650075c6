"""Where documents begin within a row, so that attention may stay within one."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Row(NamedTuple):
    """positions_L: of the tokens at hand. begins_BxL: where the document of each begins, or its piece; None where
    attention does not ask."""

    positions_L: jax.Array
    begins_BxL: jax.Array | None = None

    def interleaved(self, heads: int) -> Row:
        """The same where so many heads take turns at each token."""
        if heads == 1:
            return self
        positions_L = (self.positions_L[:, None] * heads + jnp.arange(heads)[None]).reshape(-1)
        begins = self.begins_BxL
        return Row(positions_L, None if begins is None else jnp.repeat(begins * heads, heads, axis=1))


def begins(tokens_BxL: jax.Array, positions_L: jax.Array, since_B: jax.Array, separator: int,
           most: int | None) -> tuple[jax.Array, jax.Array]:
    """Where the document of each token begins.

    Args: since_B: where the document began that the tokens go on with; the first row's is its first position.
    separator: the token that begins a document. most: longer ones are divided into pieces of so many tokens.
    Returns: int32 [B, L], by piece, and where the last token's document began [B].
    """
    here_BxL = jnp.where(tokens_BxL == separator, positions_L[None], since_B[:, None])
    since_BxL = jax.lax.cummax(here_BxL, axis=1)
    pieces_BxL = since_BxL if most is None else since_BxL + (positions_L[None] - since_BxL) // most * most
    return pieces_BxL, since_BxL[:, -1]
