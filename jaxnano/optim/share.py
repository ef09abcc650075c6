"""Work on matrices shared by devices: of a stack of them each does a part, and all have the whole afterwards.

Where a batch lies on several devices, all of them hold the gradient and would do the same sums. Matrices of one shape
are stacked, so n devices take ceil(k / n) of k each. What a device does is its own program (`shard_map`): also what
goes through a stack one by one, or asks whether any of it is due.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def shared(function: Callable[..., Any], stacks: Any, *whole: Any) -> Any:
    """function(stacks, *whole), by the devices of the mesh in use together.

    Args: function: acts on each of k matrices by itself. stacks: a tree of arrays [k, ...]. whole: trees of what all
        devices need. Returns: a tree of arrays [k, ...].
    """
    mesh, count = jax.sharding.get_abstract_mesh(), len(jax.tree.leaves(stacks)[0])
    if mesh.size <= 1 or count == 1:
        return function(stacks, *whole)
    each, names = -(-count // mesh.size), mesh.axis_names

    def part(stacks: Any, *whole: Any) -> Any:
        first = each * jax.lax.axis_index(names)
        own = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(_filled(x, each * mesh.size - count), first, each),
                           stacks)
        return jax.tree.map(lambda x: jax.lax.all_gather(x, names, tiled=True)[:count], function(own, *whole))

    # All devices are given all of it, and gather it: left to itself the compiler divides what comes before as well.
    return jax.shard_map(part, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)(stacks, *whole)


def _filled(x: jax.Array, more: int) -> jax.Array:
    """A stack with as many identities behind it, on which nothing fails."""
    one = jnp.eye(*x.shape[-2:], dtype=x.dtype) if x.ndim > 2 else jnp.ones(x.shape[1:], x.dtype)
    return jnp.concatenate([x, jnp.broadcast_to(one, (more, *x.shape[1:]))]) if more else x
