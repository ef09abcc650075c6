"""Where the tokens come from. Data and batch are frozen in a track: they are what is compared on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jaxnano.config.base import Node


class Embedded(Node):
    """Docstrings of the installed jax, numpy, scipy, flax and optax, as bytes: no download."""

    kind: Literal["embedded"]
    length: int = Field(default=64, ge=2, le=65536)
    batch: int = Field(default=32, ge=1, le=65536)


class Shards(Node):
    """FineWeb `.bin` shards as modded-nanogpt prepares them: GPT-2 tokens, uint16."""

    kind: Literal["shards"]
    path: str = "data/fineweb10B"
    length: int = Field(default=1024, ge=2, le=65536)
    batch: int = Field(default=512, ge=1, le=65536)


Data = Embedded | Shards
