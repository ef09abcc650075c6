"""The list of known techniques, lanes/techniques.yaml: which ideas say each exactly, or what is missing for it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from jaxnano.config.base import ConfigError, Node, overlap, refuse, unique_names, validate
from jaxnano.config.recipe import Recipe
from jaxnano.config.text import read_yaml
from research.contract.behaviour import behaviour
from research.contract.gate import Gate
from research.contract.idea import FOLDER, Idea, ideas, part
from research.contract.proposal import build, live

FILE = FOLDER.parent / "techniques.yaml"


class Technique(Node):
    """One of the speedruns' techniques. what: its definition. ideas: say it exactly. missing: why no idea can."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    what: str
    source: str
    ideas: tuple[str, ...] = ()
    missing: str = ""

    @model_validator(mode="after")
    def _either(self) -> Technique:
        if bool(self.ideas) == bool(self.missing):
            raise refuse("ideas", list(self.ideas), "ideas that say it, or what is missing for one")
        if unknown := sorted(set(self.ideas) - ideas().keys()):
            raise refuse("ideas", unknown[0], "no such idea")
        return self


class _File(Node):
    techniques: tuple[Technique, ...]

    @model_validator(mode="after")
    def _once(self) -> _File:
        unique_names(self.techniques, "techniques")
        return self


@cache
def techniques() -> tuple[Technique, ...]:
    """The list. Raises: ConfigError for a malformed file, a name used twice, or an idea that is not there."""
    return validate(_File, read_yaml(FILE), FILE.name).techniques


class Standing(NamedTuple):
    """How an idea stands to a base. held: the base trains like that already. recipe: None where it does not fit."""

    state: Literal["applies", "held", "frozen", "refused"]
    reason: str
    recipe: Recipe | None


def standings(tried: Iterable[Idea], base: Recipe, gate: Gate | None) -> dict[str, Standing]:
    """Whether each idea can be tried on a base. gate: of the track whose rules count; None for no rules."""
    alike = behaviour(base)
    return {idea.name: _standing(idea, base, alike, gate) for idea in tried}


def _standing(idea: Idea, base: Recipe, alike: str, gate: Gate | None) -> Standing:
    try:
        one = part(idea, base)
        recipe = build(base, [one])
        if behaviour(recipe) == alike:
            return Standing("held", "the base trains like that already", recipe)
        kept = live(base, [one])
        if gate is None:
            return Standing("applies", "", build(base, kept))
        found = gate.judge_parts(kept)
    except ConfigError as error:
        return Standing("refused", str(error.problems[0]), None)
    shut = [edit.path for edit in one.edits if any(overlap(edit.path, path) for path in gate.track.frozen)]
    if shut:
        return Standing("frozen", f"track {gate.track.name} has settled {shut[0]}", recipe)
    reason = str(found.problems[0]) if found.problems else ""
    return Standing("refused" if reason else "applies", reason, found.recipe)
