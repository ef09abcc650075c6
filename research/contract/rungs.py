"""The speedrun's records as a ladder, configs/records/ladder.yaml: each rung is the one below and what its record
brought."""

from __future__ import annotations

from pydantic import Field

from jaxnano.cli import UserError
from jaxnano.config.base import Node, validate
from jaxnano.config.recipe import Recipe
from jaxnano.config.text import read_yaml
from research.contract.idea import ideas, part
from research.contract.part import IdeaEdit, Part
from research.contract.proposal import build
from research.contract.track import CONFIGS


class Rung(Node):
    """What a record of track 1 brought: ideas by name, in turn, and edits of what stands by then."""

    name: str
    record: int
    ideas: tuple[str, ...] = ()
    edits: tuple[IdeaEdit, ...] = ()


class Ladder(Node):
    """Rungs from the bottom; the lowest is a track's base."""

    rungs: tuple[Rung, ...] = Field(min_length=2)


def ladder() -> tuple[Rung, ...]:
    """The rungs of configs/records/ladder.yaml."""
    return validate(Ladder, read_yaml(CONFIGS / "records/ladder.yaml"), "ladder.yaml").rungs


def stacks(rungs: tuple[Rung, ...], base: Recipe) -> list[tuple[Part, ...]]:
    """The parts of each rung, from a track's base: none for the lowest.

    Raises: ConfigError where a rung does not fit the base; UserError for an idea that there is not.
    """
    found: list[tuple[Part, ...]] = [()]
    for rung in rungs[1:]:
        parts = found[-1]
        for name in rung.ideas:
            if name not in ideas():
                raise UserError(f"ladder.yaml: {rung.name}: {name}: no such idea")
            parts = (*parts, part(ideas()[name], build(base, parts)))
        found.append((*parts, Part(name=rung.name, edits=rung.edits)) if rung.edits else parts)
    return found
