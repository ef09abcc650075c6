"""The catalogue lane: known techniques, most promising first; on the base, then on the best so far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from jaxnano.config.base import ConfigError, overlap
from jaxnano.config.recipe import Recipe, recipe_id
from research.contract.idea import Idea, ideas, part, try_part
from research.contract.part import Part, Proposal, conflict, prior, title
from research.contract.proposal import build, replaces, try_build
from research.contract.track import Track, load_track, tracks
from research.lanes.protocol import Knowledge


@lru_cache(maxsize=4)
def ranked(track: Track) -> tuple[Part, ...]:
    """Every idea for a track's base that touches nothing frozen, most promising first, of equals the oldest.

    Each earlier one that it conflicts with halves what it promises.
    """
    found = (try_part(idea, track.base_recipe, track.epsilon) for idea in ideas().values())
    parts = {p.name: p for p in found if p is not None and not any(
        overlap(edit.path, path) for edit in p.edits for path in track.frozen)}
    by_age = sorted(parts, key=lambda name: (ideas()[name].age, len(parts[name].edits)))
    promise, order = {name: parts[name].effect for name in by_age}, []
    while promise:
        first = parts[max(promise, key=promise.__getitem__)]
        del promise[first.name]
        promise = {name: p * (0.5 if conflict(parts[name], first) else 1.0) for name, p in promise.items()}
        order.append(first)
    return tuple(order)


@lru_cache(maxsize=4)
def alone(track: Track) -> dict[str, str]:
    """The recipe id of each idea on the track's base, for those that fit there, in the order of `ranked`."""
    built = {new.name: try_build(track.base_recipe, [new]) for new in ranked(track)}  # type: ignore[arg-type]  # frozen, so it hashes
    return {name: recipe_id(recipe) for name, recipe in built.items() if recipe is not None}


def left_out(track: Track, known: Iterable[Idea]) -> Iterator[str]:
    """A line for each idea that applies to no base there is, with path, value and rule; one for all that other tracks'
    bases would take."""
    bases = [Recipe(), *(load_track(name).base_recipe for name in tracks())]
    elsewhere = []
    for idea in known:
        try:
            build(track.base_recipe, [part(idea, track.base_recipe)])
        except ConfigError as error:
            if any((p := try_part(idea, base)) and try_build(base, [p]) is not None for base in bases):
                elsewhere.append(idea.name)
            else:
                yield f"idea {idea.name} is left out: {error.problems[0]}"
    if elsewhere:
        yield f"{len(elsewhere)} of the ideas do not fit on track {track.name}: {', '.join(elsewhere)}"


class Catalogue:
    """One idea at a time."""

    name = "catalogue"

    def propose(self, view: Knowledge, rng: np.random.Generator) -> Proposal | None:
        """The most promising idea that is new: by turns on the base and on the best candidate, if there is one."""
        places = (self._on_base, self._on_best) if rng.random() < 0.5 else (self._on_best, self._on_base)
        return next((proposal for place in places if (proposal := place(view))), None)

    def _on_base(self, view: Knowledge) -> Proposal | None:
        for name, found in alone(view.track).items():  # type: ignore[arg-type]  # frozen, so it hashes
            if found not in view.proposed:
                return self._proposal((part(ideas()[name], view.track.base_recipe, view.track.epsilon),))
        return None

    def _on_best(self, view: Knowledge) -> Proposal | None:
        if (best := view.best) is None:
            return None
        choices = [(*(old for old in best.parts if not replaces(new, old)), new)
                   for new in ranked(view.track)]  # type: ignore[arg-type]
        for parts in sorted(choices, key=lambda parts: -prior(parts)):
            if parts := view.fresh(parts):
                return self._proposal(parts, best.recipe_id)
        return None

    def _proposal(self, parts: tuple[Part, ...], *parents: str) -> Proposal:
        idea = ideas()[parts[-1].name]
        return Proposal(name=title(parts), parts=parts, hypothesis=idea.why, lane=self.name, origin=idea.source,
                        parents=parents)
