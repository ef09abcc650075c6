"""What parts make of the track's base, applied in turn; and what others submit.

Parts are what is combined, reverted and ablated.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from jaxnano.config.base import ConfigError, Problem, is_under, unique_names, validate
from jaxnano.config.edit import Diff, Edit, apply, read
from jaxnano.config.recipe import Recipe
from research.contract.behaviour import idle, pruned
from research.contract.part import CLAIM, MOST, IdeaEdit, Part, Proposal
from research.contract.track import Track


class _Submitted(Proposal):
    """A proposal as others may submit it. The ablation tells its parts apart by their names."""

    parts: tuple[Part, ...] = Field(min_length=1, max_length=MOST)
    lane: Literal["inbox", "llm"]  # type: ignore[assignment]

    @model_validator(mode="after")
    def _named(self) -> Self:
        unique_names(self.parts, "parts")
        return self


def build(base: Recipe, parts: Sequence[Part]) -> Recipe:
    """The base with the parts applied in turn, less the optimizer's groups that they leave without a parameter.

    Raises: ConfigError where a part does not apply.
    """
    return pruned(_applied(base, parts))


def _applied(base: Recipe, parts: Sequence[Part]) -> Recipe:
    built = _build(base.model_dump_json(exclude_defaults=True), tuple(parts))
    if isinstance(built, ConfigError):
        raise built
    return built


def dead(base: Recipe, parts: Sequence[Part]) -> list[Problem]:
    """Edits of the parts that change nothing of how the recipe trains, each with the reason.

    Raises: ConfigError where a part does not apply.
    """
    edits = {edit.path: edit.new for part in parts for edit in part.edits}
    found = idle(_applied(base, parts), edits)
    return [Problem(path, edits.get(path), f"nothing reads it: {why}") for path, why in found.items()]


def live(base: Recipe, parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts less their dead edits, and less those of which nothing is left.

    Raises: ConfigError where a part does not apply.
    """
    gone = {problem.path for problem in dead(base, parts)}
    if not gone:
        return tuple(parts)
    kept = [edited(part, (e for e in part.edits if e.path not in gone)) for part in parts]
    return tuple(part for part in kept if part.edits)


@lru_cache(maxsize=1 << 14)
def _build(base: str, parts: tuple[Part, ...]) -> Recipe | ConfigError:
    """`build` from JSON, remembered with every prefix: lanes try thousands of combinations of few parts."""
    if not parts:
        return Recipe.model_validate_json(base)
    recipe = _build(base, parts[:-1])
    try:
        return recipe if isinstance(recipe, ConfigError) else apply(recipe, diff_of(recipe, parts[-1]))
    except ConfigError as error:
        return error


def without(base: Recipe, parts: Sequence[Part], names: Collection[str]) -> tuple[Part, ...]:
    """The parts less those named, and less what of later ones cannot stand without them.

    A tuning of what a part has brought has nothing to move once that is gone; its other edits stay.
    """
    kept: tuple[Part, ...] = ()
    for part in parts:
        if part.name not in names:
            kept = (*kept, *_rebased(base, kept, part))
    return live(base, kept)


def _rebased(base: Recipe, kept: tuple[Part, ...], part: Part) -> tuple[Part, ...]:
    """A part, or as many of its edits as apply after `kept`, as nothing or one part."""
    if try_build(base, (*kept, part)) is not None:
        return (part,)
    edits: tuple[IdeaEdit, ...] = ()
    for edit in part.edits:
        bare = IdeaEdit(path=edit.path, new=edit.new)
        able = (e for e in (edit, bare) if try_build(base, (*kept, edited(part, (*edits, e)))) is not None)
        edits += tuple(itertools.islice(able, 1))
    return (edited(part, edits),) if edits else ()


def edited(part: Part, edits: Iterable[IdeaEdit]) -> Part:
    """A part with other edits, or with none: then nothing is left of it."""
    return part.model_copy(update={"edits": tuple(edits)})


def diff_of(recipe: Recipe, part: Part) -> Diff:
    """A part as a diff of this very recipe; an edit that would change nothing is left out."""
    edits = []
    for edit in part.edits:
        old = read(recipe, edit.path)
        if old != edit.new:
            edits.append(Edit(old=old, **dict(edit)))
    return Diff(name=part.name, edits=tuple(edits))


def try_build(base: Recipe, parts: Sequence[Part]) -> Recipe | None:
    """`build`, or None where the parts do not go together."""
    try:
        return build(base, parts)
    except ConfigError:
        return None


def replaces(new: Part, old: Part) -> bool:
    """Whether nothing of `old` would be left once `new` is applied after it."""
    return all(any(is_under(e.path, n.path) for n in new.edits) for e in old.edits)


def submitted(data: Any, track: Track, known: Collection[Part] = ()) -> Proposal:
    """The proposal that somebody has submitted. known: parts that keep their effect; see `claimed`.

    Raises: ConfigError if it is not one.
    """
    found = validate(_Submitted, data, "proposal")
    return Proposal(name=found.name, parts=claimed(found.parts, known, track), hypothesis=found.hypothesis,
                    lane=found.lane, origin=found.origin, parents=found.parents)


def claimed(parts: Sequence[Part], known: Collection[Part], track: Track) -> tuple[Part, ...]:
    """The parts, with what those that are not known promise cut to CLAIM: together, however many are piled up."""
    most = left = CLAIM * track.epsilon
    found = []
    for one in parts:
        one = one if one in known else one.model_copy(update={"effect": min(max(one.effect, -most), left)})
        if one.effect <= most:  # what promises more is a lane's own
            left = max(0.0, left - max(0.0, one.effect))
        found.append(one)
    return tuple(found)
