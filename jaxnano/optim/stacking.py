"""Apply one function to all leaves of equal shape at once.

A transformer has a few matrix shapes and many matrices. Stacking leaves of one shape keeps a matrix optimizer's compiled program as large as the number of shapes, not of layers.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

type_tree = dict[str, jax.Array]


def by_shape(tree: dict[str, jax.Array]) -> list[list[str]]:
    """Group the paths of a flat tree by the shape of their leaves, in order of first appearance."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, leaf in tree.items():
        groups.setdefault(leaf.shape, []).append(path)
    return list(groups.values())
