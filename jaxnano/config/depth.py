"""Places in the depth of a model, which mean the same at every depth."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from jaxnano.config.base import Node, refuse

BLOCKS = 255


class DepthPlace(Node):
    """One of: block, counted from 0, or from the end with -1; share of the depth, block floor(share * depth); or the
    blocks from `first` to `last`, both included, each `every`-th.
    """

    block: int | None = Field(default=None, ge=-BLOCKS, le=BLOCKS)
    share: Annotated[float | None, Field(ge=0.0, lt=1.0)] = None
    first: int | None = Field(default=None, ge=-BLOCKS, le=BLOCKS)
    last: int | None = Field(default=None, ge=-BLOCKS, le=BLOCKS)
    every: int | None = Field(default=None, ge=1, le=BLOCKS)

    @model_validator(mode="after")
    def _one_form(self) -> DepthPlace:
        ranged = any(value is not None for value in (self.first, self.last, self.every))
        if (self.block is not None) + (self.share is not None) + ranged != 1:
            raise refuse("", self.model_dump(exclude_none=True), "one of {block: 3}, {share: 0.5} and {first: 0, last: "
                         "-1, every: 2} would do")
        return self

    def at(self, depth: int) -> list[int]:
        """The blocks it is, some of which may lie outside."""
        if self.block is not None:
            return [self.block + depth * (self.block < 0)]
        if self.share is not None:
            return [math.floor(self.share * depth)]
        first, last = self.first or 0, -1 if self.last is None else self.last
        return list(range(first + depth * (first < 0), last + depth * (last < 0) + 1, self.every or 1))


Places = Annotated[Literal["all"], Tag("all")] | Annotated[tuple[DepthPlace, ...], Tag("places")]


def blocks_at(places: Places, depth: int, path: str = "at") -> tuple[int, ...]:
    """The blocks that places are at a depth, in order.

    Raises: a rule's error for a place that is none at this depth, and for two that are one block.
    """
    if places == "all":
        return tuple(range(depth))
    if not places:
        raise refuse(path, [], "at least one place, or all")
    found: list[int] = []
    for place in places:
        blocks = place.at(depth)
        if not blocks or min(blocks) < 0 or max(blocks) >= depth:
            raise refuse(path, place.model_dump(exclude_none=True), f"no block of a model of depth {depth}; "
                         f"0..{depth - 1}, -1, or a share would do")
        if twice := sorted(set(blocks) & set(found)):
            raise refuse(path, place.model_dump(exclude_none=True), f"block {twice[0]} is among the places before it; "
                         "once would do")
        found += blocks
    return tuple(sorted(found))
