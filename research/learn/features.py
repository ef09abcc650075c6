"""A recipe as the posterior sees it: what separates it from the base, leaf by leaf."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from pydantic_core import PydanticUndefined

from jaxnano.config import wires, wiring
from jaxnano.config.base import Node, Range, finite, name_of, traced_range
from jaxnano.config.block import BlockTree
from jaxnano.config.recipe import Recipe, beside
from jaxnano.config.schedule import Constant, Schedule


def features(base: Recipe, recipe: Recipe) -> dict[str, float | str]:
    """Displacements from the base: numbers in units of their range (logarithmic where it is), choices as text.

    A node of another kind is one choice; its numbers count as displacements from that kind's defaults. What differs
    over depth or in phases counts as each block and each step has it, by its share of them; names of diffs are none,
    and wires are called by what they do.
    """
    if not base.phases and not recipe.phases:
        return _of_stage(base, recipe)
    pairs = beside(base, recipe)
    told = [(share, _of_stage(old.recipe, new.recipe)) for share, old, new in pairs]
    carried = {f"carry.{path}": source for *_, stage in pairs for path, source in stage.carry.items()}
    return {**_shared(told), **carried}


def _of_stage(base: Recipe, recipe: Recipe) -> dict[str, float | str]:
    """The features of recipes without phases."""
    found: dict[str, float | str] = {}
    if base.model.wires or recipe.model.wires or base.model.taps or recipe.model.taps:
        (base, held), (recipe, holds) = _wires(base), _wires(recipe)
        found |= {f"model.wires.{name}.share": holds.get(name, 0.0) - held.get(name, 0.0)
                  for name in {**held, **holds} if holds.get(name) != held.get(name)}
    if not base.model.blocks and not recipe.model.blocks:
        _compare(base, recipe, "", found)
        return found
    _compare(_alike(base, recipe), recipe, "", found)
    depth, blocks = recipe.model.depth, []
    for block in range(depth):
        told: dict[str, float | str] = {}
        _compare(base.model.block(block * base.model.depth // depth), recipe.model.block(block), "model", told)
        blocks.append((1 / depth, {path: value for path, value in told.items()
                                   if path.split(".")[1] in BlockTree.model_fields}))
    return {**found, **_shared(blocks)}


def _shared(told: list[tuple[float, dict[str, float | str]]]) -> dict[str, float | str]:
    """Features that hold for shares of the whole as one's: numbers in proportion, a choice that is not all as one."""
    found, shares = {}, defaultdict(float)
    for share, features in told:
        for path, value in features.items():
            shares[path if isinstance(value, float) else f"{path}={value}"] += share * (
                value if isinstance(value, float) else 1.0)
    for name, value in shares.items():
        path, chosen, choice = name.partition("=")
        whole = chosen and value > 1 - 1e-9
        found[path if whole else name] = choice if whole else value
    return found


def _wires(recipe: Recipe) -> tuple[Recipe, dict[str, float]]:
    """The recipe with its wires at no place and called by what they are, and the share of depth where each is."""
    m = wiring.renamed(wiring.counting(recipe.model))
    shares: dict[str, float] = defaultdict(float)
    for place, tree in wires.places(m):
        for wire in wires.acting(tree, place):
            shares[wire.name] += 1.0 if wire.to in ("embedding", "head") else 1.0 / m.depth
    placeless = tuple(wire.model_copy(update={"at": "all"}) for wire in m.wires)
    return recipe.model_copy(update={"model": m.model_copy(update={"wires": placeless})}), dict(shares)


def _alike(base: Recipe, recipe: Recipe) -> Recipe:
    """The base with the recipe's blocks, so that what is left to compare is all else."""
    own = {name: getattr(recipe.model, name) for name in ("blocks", *BlockTree.model_fields)}
    return base.model_copy(update={"model": base.model.model_copy(update=own)})


def _compare(a: Any, b: Any, path: str, found: dict[str, float | str], span: Range | None = None) -> None:
    """span: of the field both stand in; it is that of a schedule's peak too, whose own range holds any field's."""
    if isinstance(a, Schedule) != isinstance(b, Schedule) and (finite(a) or finite(b)):  # a number is a schedule too
        a, b = (Constant(kind="constant", value=x) if finite(x) else x for x in (a, b))
    if a == b:
        return
    if isinstance(b, Node):
        if not (alike := type(a) is type(b)):
            found[path] = getattr(b, "kind", "present")
        for name, field in type(b).model_fields.items():
            default = field.get_default(call_default_factory=True)
            before = getattr(a, name, default) if alike or name == "value" else default
            within = span if span and name == "value" else traced_range(field)
            if before is not PydanticUndefined and (alike or name != "kind"):
                _compare(before, getattr(b, name), f"{path}.{name}" if path else name, found, within)
    elif finite(a) and finite(b):
        found[path] = _units(float(b), span) - _units(float(a), span)
    elif _named(a) and _named(b):
        old, new = {name_of(i): i for i in a}, {name_of(i): i for i in b}
        for name in {**old, **new}:
            _compare(old.get(name), new.get(name), f"{path}.{name}", found)
    elif isinstance(b, dict):
        for key in b:
            _compare(a.get(key) if isinstance(a, dict) else None, b[key], f"{path}.{key}", found, span)
    else:
        found[path] = "absent" if b is None else str(b)


def _named(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, Node) for item in value)


def _units(value: float, span: Range | None) -> float:
    return math.log(abs(value) + 1e-9) if span is None else span.units(value)
