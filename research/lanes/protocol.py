"""What a lane is: it turns what is known so far into named diffs. None of them decides what runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from jaxnano.config.base import ConfigError
from jaxnano.config.recipe import Recipe, recipe_id
from research.contract.part import Part, Proposal
from research.contract.proposal import build, live
from research.contract.track import Track


@dataclass(frozen=True)
class Known:
    """A candidate as proposers see it. mean, sd: of its full-horizon effect (nats). runs: completed ones. worth: the
    mean, a gain as far as its run is likely to end."""

    recipe_id: str
    name: str
    recipe: Recipe
    parts: tuple[Part, ...]
    mean: float
    sd: float
    runs: int
    worth: float


@dataclass(frozen=True)
class Knowledge:
    """What proposers may know: nothing of the protected split. known: the most worth first, without recipes of which
    runs broke off and none has finished; proposed: every id so far; ran: names of the parts of all that has run. flat:
    whether nothing is to be expected of an idea before it has run."""

    track: Track
    known: Sequence[Known]
    proposed: frozenset[str]
    ran: frozenset[str] = frozenset()
    flat: bool = False

    @property
    def best(self) -> Known | None:
        """The candidate worth most among those of which a run has finished, if any beats the base."""
        return next((k for k in self.known if k.runs and k.worth > 0 and k.parts), None)

    def fresh(self, parts: Sequence[Part]) -> tuple[Part, ...]:
        """The parts less their dead edits, if they build a recipe that was not proposed yet; else none."""
        try:
            parts = live(self.track.base_recipe, parts)
            return parts if recipe_id(build(self.track.base_recipe, parts)) not in self.proposed else ()
        except ConfigError:
            return ()


class Proposer(Protocol):
    """One lane. Holds no state: what it proposes follows from the view and the generator."""

    name: str

    def propose(self, view: Knowledge, rng: np.random.Generator) -> Proposal | None:
        """The next proposal, or None if the lane has nothing to say now."""
        ...


@runtime_checkable
class Beside(Proposer, Protocol):
    """A lane that works beside the loop: asked for a proposal it says None, and submits some later."""

    def pending(self, seq: int) -> bool:
        """Whether proposals may come that a ledger up to event `seq` does not hold yet."""
        ...
