"""The catalogue lane: known techniques, most promising first; on the base, then on the best so far."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from jaxnano.config.base import ConfigError, Node, Problem, parse_yaml, validate
from research.propose import Part, Proposal, View, try_build

FOLDER = Path(__file__).resolve().parent.parent / "ideas"


class IdeaEdit(Node):
    """path, and what to put there; before, after: the neighbour of a list's new item."""

    path: str
    new: object = None
    before: str | None = None
    after: str | None = None


class Idea(Node):
    """A known technique as edits. effect: prior, in nats at small scale. needs: a part it only makes sense with."""

    name: str
    why: str
    source: str
    effect: float
    edits: tuple[IdeaEdit, ...]


class _File(Node):
    ideas: tuple[Idea, ...]


@cache
def ideas() -> dict[str, Idea]:
    """Every idea of research/ideas, by name.

    Raises: ConfigError for a malformed file or a name used twice.
    """
    found: dict[str, Idea] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for idea in validate(_File, parse_yaml(path.read_text(), path.name), path.name).ideas:
            if idea.name in found:
                raise ConfigError([Problem(path.name, idea.name, "an idea of this name is there already")])
            found[idea.name] = idea
    return found


def part(idea: Idea) -> Part:
    """An idea as a part of a candidate."""
    return Part(idea.name, tuple(edit.model_dump(exclude_none=True) | {"new": edit.new} for edit in idea.edits),
                idea.effect, idea.source)


class Catalogue:
    """One idea at a time."""

    name = "catalogue"

    def propose(self, view: View, rng: np.random.Generator) -> Proposal | None:
        """The most promising idea that is new on the base, or else on the best candidate."""
        ranked = sorted(ideas().values(), key=lambda idea: -idea.effect)
        for idea in ranked:
            if view.fresh([part(idea)]):
                return Proposal(idea.name, (part(idea),), idea.why, self.name, idea.source)
        best = view.best
        for idea in ranked if best else ():
            present = {p.name for p in best.parts}
            parts = (*best.parts, part(idea))
            if idea.name not in present and view.fresh(parts) and try_build(view.track.base_recipe, parts) != best.recipe:
                return Proposal(f"{best.name} + {idea.name}", parts, idea.why, self.name, idea.source, (best.recipe_id,))
        return None
