"""Edits, parts and proposals: what lanes and people write, the ledger holds and the gate judges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

from pydantic import Field, model_serializer, model_validator

from jaxnano.config.base import PATH, Node, overlap

INBOX, LLM = "inbox", "llm"  # lanes of people and coding agents, and of a language model: others submit for these
OUTSIDE = (INBOX, LLM)
INVENT = "invent"  # the lane of what nobody has said yet, which has a share of the search kept for it
BASE, FROM = "base", "from"  # lanes of the track's base, and of an earlier session's champion: this one's incumbent
CLAIM = 2.0  # of the track's epsilons: what a promise from outside may move the prior by
MOST = 32  # edits of a part, and parts of a proposal: each part is built on the one before
MAX_NAME, MAX_WHY = 80, 2000  # characters of a name and of a reason


class IdeaEdit(Node):
    """path, and what to put there; before, after: the neighbour of a list's new item."""

    path: str = Field(description="dotted; an item of a list by its name, or its kind where it has none: "
                      "optimizer.groups.matrices.chain.adam.b1; `schema` tells of each place",
                      json_schema_extra={"pattern": PATH})
    new: object = Field(default=None, description="what to put there: a value, a node whole with its kind, or "
                        "{absent: true} to remove an item of a list")
    before: str | None = None
    after: str | None = None

    @cached_property
    def _hash(self) -> int:
        return hash((self.path, json.dumps(self.new, sort_keys=True)))

    def __hash__(self) -> int:
        return self._hash  # `new` may be a map; lanes look parts up by the thousand

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        """Without the neighbours that are not named."""
        return {name: value for name, value in self if value is not None or name == "new"}


class Part(Node):
    """One named change. What stood at an edit's path is read from the recipe it is applied to.

    effect: expected, in nats, positive = better. source: a paper or a record. why: its reason, which it keeps wherever
    it is taken: what a candidate of several parts claims is what they claim.
    """

    name: str
    edits: tuple[IdeaEdit, ...] = Field(min_length=1, max_length=MOST)
    effect: float = Field(default=0.0, ge=-1, le=1)
    source: str = ""
    why: str = Field(default="", max_length=MAX_WHY)  # none in a ledger of version 0.2

    def __hash__(self) -> int:
        return hash((self.name, self.edits))


class Proposal(Node):
    """parts: in order, from the base. parents: recipe ids it grew from. origin: who or what proposed it.

    expected_effect: what the parts promise together, nats. novelty: of an invention, how far what it does lies from all
    that is known at its place, 0 to 1.
    """

    name: str
    parts: tuple[Part, ...] = Field(max_length=MOST)
    hypothesis: str
    lane: str
    origin: str = ""
    parents: tuple[str, ...] = ()
    expected_effect: float = 0.0
    novelty: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _expected(self) -> Self:
        if "expected_effect" not in self.model_fields_set:
            vars(self)["expected_effect"] = prior(self.parts)
        return self


def title(parts: Sequence[Part]) -> str:
    """What a candidate is called: its ideas, and how often it was tuned."""
    names = [part.name for part in parts if not part.name.startswith("tune ")]
    tuned = [part.name for part in parts if part.name.startswith("tune ")]
    return " + ".join(names + (tuned if len(tuned) < 2 else [f"{len(tuned)} x tuned"])) or "base"


def conflict(a: Part, b: Part) -> bool:
    """Whether one writes to, above or below a place of the other, so that the later would undo or bend the earlier."""
    return any(overlap(x.path, y.path) for x in a.edits for y in b.edits)


def prior(parts: Sequence[Part]) -> float:
    """Expected effect of parts together, nats."""
    return sum(promises(parts))


def promises(parts: Sequence[Part]) -> list[float]:
    """What each part adds to the expected effect, nats: one that bends earlier ones adds only what is more."""
    found = []
    for index, part in enumerate(parts):
        rivals = [other.effect for other in parts[:index] if conflict(part, other)]
        found.append(max(0.0, part.effect - sum(rivals)) if rivals else part.effect)
    return found
