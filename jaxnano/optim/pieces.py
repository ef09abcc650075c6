"""Equal pieces of a matrix, on an axis of their own, so that a line of a chain may see each by itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnano.config.expression import ExpressionError
from jaxnano.config.transforms import Pieces


class Cut(NamedTuple):
    """Of a parameter: the axis it is cut along, -2 or -1; its length; the number of pieces."""

    axis: int
    size: int
    count: int


def cut_of(pieces: Pieces, shape: tuple[int, ...], axes: str) -> Cut:
    """Where a parameter is cut. axes: its letters in the parameter table.

    Raises: ExpressionError for what is no matrix, has no heads, or does not divide.
    """
    if len(shape) < 2:
        raise ExpressionError(f"pieces are of a matrix; {shape} is the shape of none")
    if pieces.axis == "heads" and "H" not in axes[-2:]:
        raise ExpressionError("pieces.axis heads: the parameter has no axis of heads; in or out would do")
    axis = {"in": -2, "out": -1}.get(pieces.axis) or axes.index("H") - len(axes)
    size, count = shape[axis], pieces.count
    if size % count:
        near = [n for n in range(2, size + 1) if size % n == 0] or [1]
        best = min(near, key=lambda n: abs(n - count))
        raise ExpressionError(f"pieces.count {count} does not divide a length of {size}; {best} would do")
    return Cut(axis, size, count)


def split_shape(shape: tuple[int, ...], cut: Cut) -> tuple[int, ...]:
    """[m, n] as [pieces, m, n]; a length of 1, left by a reduction, is that of every piece; scalars stay."""
    if len(shape) < 2:
        return shape
    *lead, m, n = shape
    if shape[cut.axis] == 1 != cut.size:
        return (*lead, 1, m, n)
    return (*lead, cut.count, *((m // cut.count, n) if cut.axis == -2 else (m, n // cut.count)))


def joined_shape(shape: tuple[int, ...], cut: Cut) -> tuple[int, ...]:
    """The way back: along the cut every piece has its whole length again, whatever a reduction left."""
    if len(shape) < 3:
        return shape
    *lead, _, m, n = shape
    return (*lead, *((cut.size, n) if cut.axis == -2 else (m, cut.size)))


def split(x: Any, cut: Cut) -> Any:
    """A value in pieces, see `split_shape`."""
    shape = split_shape(jnp.shape(x), cut)
    if len(shape) < 3 or cut.axis == -2 or shape[-3] == 1:
        return _reshape(x, shape)
    *lead, count, m, n = shape
    return _reshape(x, (*lead, m, count, n)).swapaxes(-3, -2)


def join(x: Any, cut: Cut) -> Any:
    """Pieces as one value, see `joined_shape`."""
    shape = joined_shape(jnp.shape(x), cut)
    if len(shape) == jnp.ndim(x):
        return x
    x = (np if isinstance(x, np.ndarray) else jnp).broadcast_to(x, split_shape(shape, cut))
    return _reshape(x if cut.axis == -2 else x.swapaxes(-3, -2), shape)


def _reshape(x: Any, shape: tuple[int, ...]) -> Any:
    """NumPy's stay NumPy's: who probes a chain wants no JAX."""
    return x.reshape(shape) if isinstance(x, np.ndarray) else jnp.reshape(x, shape)
