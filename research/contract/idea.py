"""Known techniques as data: lanes/ideas/*.yaml."""

from __future__ import annotations

import re
from functools import cache
from math import inf
from pathlib import Path
from typing import Literal

from jaxnano.config.base import ConfigError, Node, Problem, validate
from jaxnano.config.recipe import Recipe
from jaxnano.config.text import read_yaml
from research.contract.part import IdeaEdit, Part
from research.contract.relative import resolved

FOLDER = Path(__file__).resolve().parent.parent / "lanes" / "ideas"


CLASSES = {"worse": -3.0, "none": 0.0, "small": 1.0, "medium": 3.0, "large": 10.0}  # expected, in a track's epsilons
EPSILON = 0.01  # nats, where no track is meant


class Idea(Node):
    """A known technique as edits. why: one sentence. prior: what is expected of it, and on what evidence: records where
    it was new (large: 5 % of the training saved for each of their changes, medium 2 %, small less), or its paper."""

    name: str
    why: str
    source: str
    prior: Literal["worse", "none", "small", "medium", "large"]
    evidence: str = ""
    edits: tuple[IdeaEdit, ...]

    @property
    def age(self) -> tuple[bool, float, float]:
        """Least for what the records had first; what a plainer idea's evidence speaks for comes after the rest."""
        record = re.search(r"track (\d) #(\d+)", self.evidence)
        track, number = map(int, record.groups()) if record else (inf, inf)
        return self.evidence.startswith("brings"), track, number


class _File(Node):
    ideas: tuple[Idea, ...]


@cache
def families() -> dict[str, tuple[Idea, ...]]:
    """The ideas of each file of research/lanes/ideas, by its name.

    Raises: ConfigError for a malformed file or a name used twice.
    """
    found: dict[str, tuple[Idea, ...]] = {}
    names: set[str] = set()
    for path in sorted(FOLDER.glob("*.yaml")):
        found[path.stem] = validate(_File, read_yaml(path), path.name).ideas
        for idea in found[path.stem]:
            if idea.name in names:
                raise ConfigError([Problem(path.name, idea.name, "an idea of this name is there already")])
            names.add(idea.name)
    return found


@cache
def ideas() -> dict[str, Idea]:
    """Every idea, by name. Raises: as `families`."""
    return {idea.name: idea for family in families().values() for idea in family}


def part(idea: Idea, base: Recipe | None = None, epsilon: float = EPSILON) -> Part:
    """An idea as a part of a candidate.

    Args: base: what it is relative to, for the ideas that are (relative.py). epsilon: the track's, nats.
    Raises: ConfigError where nothing in the base is meant.
    """
    edits = idea.edits if base is None else tuple(e for edit in idea.edits for e in resolved(edit, base))
    return Part(name=idea.name, edits=edits, effect=CLASSES[idea.prior] * epsilon, source=idea.source, why=idea.why)


def try_part(idea: Idea, base: Recipe, epsilon: float = EPSILON) -> Part | None:
    """`part`, or None where nothing in the base is meant."""
    try:
        return part(idea, base, epsilon)
    except ConfigError:
        return None
