"""From one stage of a run to the next: which parameters go on, and with them what the optimizer keeps of each."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import jax

from jaxnano.config.base import ConfigError, Problem
from jaxnano.config.recipe import Recipe, Stage, first_steps, stages
from jaxnano.model.specs import Table, specs
from jaxnano.optim.kronecker import Factors


class Leg(NamedTuple):
    """A stage from the step that it begins with."""

    first: int
    stage: Stage

    @property
    def recipe(self) -> Recipe:
        """The recipe as it trains there."""
        return self.stage.recipe


class Source(NamedTuple):
    """Where a parameter comes from, and whether as its transpose."""

    path: str
    transposed: bool = False


def legs(recipe: Recipe, total_steps: int) -> tuple[Leg, ...]:
    """The stages of a run, each until the next begins; one that begins where the next does has no step."""
    return tuple(map(Leg, first_steps(recipe, total_steps), stages(recipe)))


def lengths(run: tuple[Leg, ...], total_steps: int) -> list[int]:
    """Steps of each leg."""
    ends = [leg.first for leg in run[1:]] + [total_steps]
    return [end - leg.first for leg, end in zip(run, ends, strict=True)]


def leg_of(run: tuple[Leg, ...], step: int) -> int:
    """Which leg a step, counted from 0, belongs to. A state after s steps is as that of step s - 1 left it."""
    return max(i for i, leg in enumerate(run) if leg.first <= max(step, 0))


def sources(before: Table, after: Table, carry: Mapping[str, str], place: str = "carry") -> dict[str, Source]:
    """Where each parameter of a stage comes from; those that begin anew are left out.

    Args: before, after: parameter tables. carry: {new path: old path}.
    Raises: ConfigError for a path that does not exist, or one whose shape fits neither way.
    """
    for path, table in [*((path, after) for path in carry), *((path, before) for path in carry.values())]:
        if path not in table:
            near = get_close_matches(path, table, 1) or [next(iter(table))]
            raise ConfigError([Problem(place, path, f"no parameter of the {'new' if table is after else 'old'} model; "
                                       f"{near[0]} would do")])
    found = {}
    if (same := next((path for path in carry if carry[path] == path), None)) is not None:
        raise ConfigError([Problem(f"{place}.{same}", same, "it goes on by itself; without this would do")])
    for path, spec in after.items():
        source = carry.get(path, path)
        if (old := before.get(source)) is None:
            continue
        turned = spec.axes != old.axes and (spec.axes, spec.shape) == (old.axes[::-1], old.shape[::-1])
        if path in carry and turned:
            found[path] = Source(source, True)
        elif spec.shape == old.shape:
            found[path] = Source(source)
        elif path in carry:
            raise ConfigError([Problem(f"{place}.{path}", source, f"has shape {old.shape}, {path} {spec.shape}; one of "
                                       "that shape or its transpose would do")])
    return found


def checked(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a recipe. Raises: ConfigError where a phase carries what is not there, or does not fit."""
    found = stages(recipe)
    for before, stage in zip(found, found[1:], strict=False):
        if stage.carry:
            seam(before, stage)
    return found


def seam(before: Stage, after: Stage) -> dict[str, Source]:
    """Where each parameter of a stage comes from, see `sources`."""
    return sources(specs(before.recipe), specs(after.recipe), after.carry, f"phases.{after.name}.carry")


def carried(params: Mapping[str, jax.Array], origin: Mapping[str, Source]) -> dict[str, jax.Array]:
    """The parameters that go on, by their new paths."""
    return {path: params[old].mT if turned else params[old] for path, (old, turned) in origin.items()}


def filled(fresh: Any, old: Any, origin: Mapping[str, Source]) -> Any:
    """What a new optimizer keeps at first, with what the old one kept wherever a line has its name and the shape fits.

    A parameter's part of a line goes on whole or begins anew, whichever group it is in now.
    Args: fresh, old: trees of chains and memories, whose leaves lie under the paths of parameters.
    """
    known = {_address(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(old)[0]}
    leaves, form = jax.tree_util.tree_flatten_with_path(fresh)
    found = [_kept(_address(keys), leaf, known, origin) for keys, leaf in leaves]
    anew = {_address(keys)[:2] for (keys, _), was in zip(leaves, found, strict=True) if was is None}
    kept = [leaf if _address(keys)[:2] in anew else was for (keys, leaf), was in zip(leaves, found, strict=True)]
    return jax.tree_util.tree_unflatten(form, kept)


Address = tuple[tuple[Any, ...], str | None, tuple[Any, ...]]


def _address(keys: Any) -> Address:
    """Of a leaf: its line or memory, of a group only if it is of no parameter; the parameter; the place in both."""
    names = tuple(getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in keys)
    at = next((i for i, name in enumerate(names) if isinstance(name, str) and "/" in name), None)
    if at is None:
        return names, None, ()
    first = 2 if names[0] == "chains" else 1
    return (names[0], names[first]), names[at], names[first + 1 : at] + names[at + 1 :]


def _kept(address: Address, leaf: jax.Array, known: Mapping[Address, jax.Array],
          origin: Mapping[str, Source]) -> jax.Array | None:
    """What was kept of a leaf, None if nothing, or nothing that fits."""
    line, path, inner = address
    source = Source("") if path is None else origin.get(path)
    if source is None:
        return None
    was = known.get((line, path and source.path, _turned(inner) if source.transposed else inner))
    if was is not None and source.transposed and was.ndim == 2 and not _sided(inner):
        was = was.mT
    return was if was is not None and (was.shape, was.dtype) == (leaf.shape, leaf.dtype) else None


def _sided(inner: tuple[Any, ...]) -> bool:
    return bool(inner) and inner[-1] in Factors._fields


def _turned(inner: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of the transpose the left factor is the right one."""
    if not _sided(inner):
        return inner
    side, _, rest = inner[-1].partition("_")
    return (*inner[:-1], "_".join(filter(None, ({"left": "right", "right": "left"}[side], rest))))
