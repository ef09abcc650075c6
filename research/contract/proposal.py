"""What is proposed: parts, each a named diff applied in turn to the track's base.

Parts are what is combined, reverted and ablated.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal, Self

from pydantic import Field, model_serializer, model_validator

from jaxnano.config.base import ConfigError, Node, Problem, unique_names, validate
from jaxnano.config.edit import PATH, Diff, Edit, apply, is_under, overlap, read
from jaxnano.config.recipe import Recipe
from research.contract.behaviour import idle, pruned
from research.contract.track import Track

INBOX, LLM = "inbox", "llm"  # lanes of people and coding agents, and of a language model: others submit for these
FROM = "from"  # the lane of an earlier session's champion, which is this one's incumbent
CLAIM = 2.0  # of the track's epsilons: what a promise from outside may move the prior by
MOST = 32  # edits of a part, and parts of a proposal: each part is built on the one before
MAX_WHY = 2000  # characters of a reason


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


class Proposal(Node):
    """parts: in order, from the base. parents: recipe ids it grew from. origin: who or what proposed it.

    expected_effect: what the parts promise together, nats; it follows from them, whatever was written.
    """

    name: str
    parts: tuple[Part, ...] = Field(max_length=MOST)
    hypothesis: str
    lane: str
    origin: str = ""
    parents: tuple[str, ...] = ()

    expected_effect: float = 0.0

    @model_validator(mode="after")
    def _expected(self) -> Self:
        vars(self)["expected_effect"] = prior(self.parts)
        return self


class _Submitted(Proposal):
    """A proposal as others may submit it. The ablation tells its parts apart by their names."""

    parts: tuple[Part, ...] = Field(min_length=1, max_length=MOST)
    lane: Literal["inbox", "llm"]  # type: ignore[assignment]

    @model_validator(mode="after")
    def _named(self) -> Self:
        unique_names(self.parts, "parts")
        return self


def title(parts: Sequence[Part]) -> str:
    """What a candidate is called: its ideas, and how often it was tuned."""
    names = [part.name for part in parts if not part.name.startswith("tune ")]
    tuned = [part.name for part in parts if part.name.startswith("tune ")]
    return " + ".join(names + (tuned if len(tuned) < 2 else [f"{len(tuned)} x tuned"])) or "base"


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
    return [Problem(path, edits[path], f"nothing reads it: {why}") for path, why in found.items()]


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


def submitted(data: Any, track: Track, known: Collection[Part] = ()) -> Proposal:
    """The proposal that somebody has submitted. known: parts that keep their effect; see `claimed`.

    Raises: ConfigError if it is not one.
    """
    found = validate(_Submitted, data, "proposal")
    return Proposal(**dict(found) | {"parts": claimed(found.parts, known, track)})


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
