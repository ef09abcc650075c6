"""The catalogue lane: known techniques, on the base and on the best so far.

What is promised of them was measured elsewhere, if at all: half of the time the lane brings what has not run yet, by
lot, and the other half the most promising.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from jaxnano.config.base import ConfigError, overlap
from jaxnano.config.recipe import Recipe, recipe_id
from research.contract.idea import Idea, families, ideas, part, try_part
from research.contract.part import Part, Proposal, conflict, prior, title
from research.contract.proposal import build, replaces, try_build
from research.contract.track import Track, load_track, tracks
from research.lanes.protocol import Knowledge

UNSEEN = 0.5  # of the proposals, those that are of what has not run


@lru_cache(maxsize=4)
def offered(track: Track) -> dict[str, Part]:
    """Every idea for a track's base that touches nothing frozen, by name."""
    found = (try_part(idea, track.base_recipe, track.epsilon) for idea in ideas().values())
    return {p.name: p for p in found if p is not None and not any(
        overlap(edit.path, path) for edit in p.edits for path in track.frozen)}


def by_family(track: Track) -> dict[str, tuple[str, ...]]:
    """Names of what is offered, by the file that each idea is in."""
    names = offered(track)  # type: ignore[arg-type]  # frozen, so it hashes
    found = {family: tuple(idea.name for idea in known if idea.name in names) for family, known in families().items()}
    return {family: some for family, some in found.items() if some}


@lru_cache(maxsize=4)
def ranked(track: Track) -> tuple[Part, ...]:
    """What is offered, most promising first, of equals the oldest.

    Each earlier one that it conflicts with halves what it promises.
    """
    parts = offered(track)  # type: ignore[arg-type]
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
    built = {new.name: try_build(track.base_recipe, [new]) for new in ranked(track)}  # type: ignore[arg-type]
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


def drawn(parts: Iterable[Part], rng: np.random.Generator, flat: bool = False) -> Iterator[Part]:
    """All of them, by lot: from a class of promises that is drawn first, so that the few large ones tend to come before
    the many small ones; flat: from all."""
    left: dict[str, list[Part]] = {}
    for one in parts:
        left.setdefault("" if flat else ideas()[one.name].prior, []).append(one)
    while left:
        prior = [*left][int(rng.integers(len(left)))]
        yield left[prior].pop(int(rng.integers(len(left[prior]))))
        if not left[prior]:
            del left[prior]


class Catalogue:
    """One idea at a time."""

    name = "catalogue"

    def propose(self, view: Knowledge, rng: np.random.Generator) -> Proposal | None:
        """An idea that is new: by turns on the base and on the best candidate, if there is one."""
        known = ranked(view.track)  # type: ignore[arg-type]  # frozen, so it hashes
        places = (self._on_base, self._on_best) if rng.random() < 0.5 else (self._on_best, self._on_base)
        unseen = rng.random() < UNSEEN
        lots = [*drawn((p for p in known if p.name not in view.ran), rng, view.flat)] if unseen else []
        orders = (lots, [*drawn(known, rng, flat=True)] if view.flat else known)
        return next((proposal for order in orders for place in places if (proposal := place(view, order))), None)

    def _on_base(self, view: Knowledge, order: Sequence[Part]) -> Proposal | None:
        ids = alone(view.track)  # type: ignore[arg-type]
        new = next((p for p in order if p.name in ids and ids[p.name] not in view.proposed), None)
        return self._proposal(view, (new,)) if new is not None else None

    def _on_best(self, view: Knowledge, order: Sequence[Part]) -> Proposal | None:
        if (best := view.best) is None:
            return None
        choices = ((*(old for old in best.parts if not replaces(new, old)), new) for new in order)
        if order is ranked(view.track):  # type: ignore[arg-type]
            choices = sorted(choices, key=lambda parts: -prior(parts))  # what it replaces has promised something, too
        fitting = next((parts for choice in choices if (parts := view.fresh(choice))), None)
        return self._proposal(view, fitting, best.recipe_id) if fitting else None

    def _proposal(self, view: Knowledge, parts: tuple[Part, ...], *parents: str) -> Proposal:
        idea = ideas()[parts[-1].name]
        new = parts[-1].model_copy(update={"effect": 0.0}) if view.flat else parts[-1]
        return Proposal(name=title(parts), parts=(*parts[:-1], new), hypothesis=idea.why, lane=self.name,
                        origin=idea.source, parents=parents)
