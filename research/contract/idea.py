"""Known techniques as data: lanes/ideas/*.yaml."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jaxnano.config.base import ConfigError, Node, Problem, read_yaml, validate
from jaxnano.config.recipe import Recipe
from research.contract.part import IdeaEdit, Part
from research.contract.relative import resolved

FOLDER = Path(__file__).resolve().parent.parent / "lanes" / "ideas"


class Idea(Node):
    """A known technique as edits. why: one sentence. effect: prior, in nats at small scale, positive = better."""

    name: str
    why: str
    source: str
    effect: float
    edits: tuple[IdeaEdit, ...]


class _File(Node):
    ideas: tuple[Idea, ...]


@cache
def ideas() -> dict[str, Idea]:
    """Every idea of research/lanes/ideas, by name.

    Raises: ConfigError for a malformed file or a name used twice.
    """
    found: dict[str, Idea] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for idea in validate(_File, read_yaml(path), path.name).ideas:
            if idea.name in found:
                raise ConfigError([Problem(path.name, idea.name, "an idea of this name is there already")])
            found[idea.name] = idea
    return found


def part(idea: Idea, base: Recipe | None = None) -> Part:
    """An idea as a part of a candidate. base: what it is relative to, for the ideas that are (relative.py).

    Raises: ConfigError where nothing in the base is meant.
    """
    edits = idea.edits if base is None else tuple(e for edit in idea.edits for e in resolved(edit, base))
    return Part(name=idea.name, edits=edits, effect=idea.effect, source=idea.source, why=idea.why)


def try_part(idea: Idea, base: Recipe) -> Part | None:
    """`part`, or None where nothing in the base is meant."""
    try:
        return part(idea, base)
    except ConfigError:
        return None
