"""The shapes that both sides of a benchmark train."""

from __future__ import annotations

from dataclasses import dataclass

from jaxnano.config.edit import Diff, Edit, apply
from jaxnano.config.recipe import Recipe


@dataclass(frozen=True)
class Shape:
    """A GPT-2: LayerNorm, tanh GELU, biases, learned positions, tied embedding, AdamW. vocab is 256 bytes."""

    width: int
    depth: int
    length: int
    batch: int
    heads: int = 4

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.length

    def recipe(self) -> Recipe:
        """The shape in our terms."""
        base = Recipe()
        places = {"model.width": self.width, "model.depth": self.depth, "model.attention.heads": self.heads,
                  "model.bias": True, "data.length": self.length, "data.batch": self.batch}
        return apply(base, Diff(name="shape", edits=tuple(Edit.to(base, path, v) for path, v in places.items())))


PEER_SHAPES = (Shape(64, 3, 64, 32), Shape(128, 4, 128, 16))
