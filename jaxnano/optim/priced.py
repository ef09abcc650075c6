"""What a node of the optimizer builds, together with what it costs, so that the one cannot drift from the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class UpdateCost(NamedTuple):
    """Of one update of one parameter: floating-point operations, and float32 values of state kept for it."""

    flops: float
    floats: int


class Priced(NamedTuple, Generic[T]):
    """built: what the node stands for. cost: of a parameter, from its shape."""

    built: T
    cost: Callable[[tuple[int, ...]], UpdateCost]


def per_entry(flops: float, floats: int = 0) -> Callable[[tuple[int, ...]], UpdateCost]:
    """The cost of what treats every entry of a parameter alike."""
    return lambda shape: UpdateCost(flops * math.prod(shape), floats * math.prod(shape))
