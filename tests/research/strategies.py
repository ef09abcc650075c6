"""Hypothesis strategies. Random recipes come from the generator that the fuzzer uses, with hypothesis as its dice."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from jaxnano.config.recipe import Recipe
from research.contract.draw import random_recipe


class Dice:
    """What the generator asks of NumPy's, answered by hypothesis: a recipe that fails a test shrinks."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def random(self) -> float:
        return self.draw(st.floats(0.0, 1.0, exclude_max=True))

    def uniform(self, low: float, high: float) -> float:
        return self.draw(st.floats(low, high))

    def integers(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        one = st.integers(0, low - 1) if high is None else st.integers(low, high - 1)
        return self.draw(one) if size is None else [self.draw(one) for _ in range(size)]


@st.composite
def recipes(draw: Any, base: Recipe) -> Recipe:
    """Any valid recipe on `base`'s data."""
    return random_recipe(Dice(draw), base)  # type: ignore[arg-type]
