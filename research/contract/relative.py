"""What an idea says relative to its base: items of a list by `*`, numbers as shares of what stands in the base.

    {path: optimizer.groups.*.chain.adam.b2, new: 0.99}                       every group that has Adam
    {path: model.attention.heads, new: {times: 0.5}}                          half of the base's
    {path: model.attention.window, new: {times: 0.25, of: data.length}}       rounded down, or up to a `multiple`
    {path: model.taps.lane.after.block, new: {times: 0.5, of: model.depth, more: -1}}   the block before the later half
    {path: model.attention.dropped, new: {from: 0.5, times: 1, of: model.depth}}   the later half of the blocks
    {path: optimizer.groups.fast.lr, new: {peak: 5, of: optimizer.groups.rest.lr}}   that schedule, its peak five times
    {path: phases.late, new: {..., set: {optimizer: {groups: {"*": {lr: {peak: 2}}}}}}}   every rate, or its peak, twice
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any, get_args

from jaxnano.config.base import ConfigError, Problem, finite, kind_of, name_of
from jaxnano.config.edit import ABSENT, read
from jaxnano.config.recipe import Recipe
from jaxnano.config.schedule import Schedule
from research.contract.part import IdeaEdit

EDGE = 1e-9  # a third of three is one


def resolved(edit: IdeaEdit, base: Recipe) -> Iterator[IdeaEdit]:
    """An idea's edit as edits of this very base.

    Raises: ConfigError where nothing in the base is meant.
    """
    for path in _paths(edit.path, base):
        yield _kind_alone(edit.model_copy(update={"path": path, "new": _number(edit.new, path, base)}), base)


def _paths(path: str, base: Recipe) -> list[str]:
    items, starred, rest = path.partition(".*.")
    if not starred:
        return [path]
    found = [f"{items}.{name_of(item)}.{rest}" for item in read(base, items)]
    if here := [path for path in found if _stands(base, path)]:
        return here
    raise ConfigError([Problem(path, "*", f"no item of {items} has {rest}")])


def _stands(base: Recipe, path: str) -> bool:
    try:
        return read(base, path) != ABSENT
    except ConfigError:
        return False


def _number(new: Any, path: str, base: Recipe) -> Any:
    """Plain data with every share put to its number."""
    match new:
        case {"times": times, **more}:
            value = _value(base, more.get("of", path))
            if "from" in more:
                low = more["from"]
                return list(range(low if isinstance(low, int) else int(low * value + EDGE),
                                  int(times * value + EDGE) + more.get("more", 0)))
            if not isinstance(value, int):
                return times * value
            multiple = more.get("multiple")
            if multiple:
                return -int(-times * value // multiple) * multiple
            return int(times * value + EDGE) + more.get("more", 0)
        case {"peak": factor, "of": str(other)}:
            return _scaled(factor, other, base)
        case {"set": change, **more} if path.startswith("phases."):
            return {**more, "set": _inside(change, "", base)}
        case dict():
            return {key: _number(item, path, base) for key, item in new.items()}
        case list():
            return [_number(item, path, base) for item in new]
    return new


def _inside(new: Any, path: str, base: Recipe) -> Any:
    """What a phase sets, with every share put to its number; path: the place in the base."""
    match new:
        case {"peak": factor}:
            return _scaled(factor, path, base)
        case {"*": item}:
            names = [str(name_of(one)) for one in read(base, path)]
            return {name: _inside(item, f"{path}.{name}", base) for name in names}
        case dict() if "times" not in new:
            return {key: _inside(item, f"{path}.{key}" if path else key, base) for key, item in new.items()}
    return _number(new, path, base)


def _scaled(factor: float, path: str, base: Recipe) -> Any:
    """The number at a path, or the schedule with its peak, times a factor."""
    match found := read(base, path):
        case {"value": value}:
            return {**found, "value": factor * value}
        case int() | float():
            return factor * found
    raise ConfigError([Problem(path, found, "a number, or a schedule that has a peak")])


def _value(base: Recipe, path: str) -> Any:
    """The number at a path, of a schedule its peak; a property of a node (model.head_dim) is one too."""
    try:
        value = attrgetter(path)(base)
    except AttributeError:
        value = read(base, path)
    value = value.get("value", value) if isinstance(value, dict) else getattr(value, "value", value)
    if not finite(value):
        raise ConfigError([Problem(path, value, "a number, to take a share of")])
    return value


def _kind_alone(edit: IdeaEdit, base: Recipe) -> IdeaEdit:
    """An edit of a schedule's kind keeps what both kinds have, peak and floor among them."""
    above, _, last = edit.path.rpartition(".")
    nodes = {kind_of(node): node.model_fields for node in get_args(Schedule)}
    if last != "kind" or (new := str(edit.new)) not in nodes or not isinstance(old := read(base, above), dict):
        return edit
    if nodes.get(old["kind"], {}).keys() <= nodes[new].keys():
        return edit
    kept = {name: value for name, value in old.items() if name in nodes[new]}
    return edit.model_copy(update={"path": above, "new": kept | {"kind": new}})
