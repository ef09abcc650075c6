"""Changes to a recipe as data: an edit names a path, what stood there and what will; a diff is a named list of them."""

from __future__ import annotations

import json
from typing import Any, TypeGuard

from pydantic import Field

from jaxnano.config.base import ConfigError, Node, Problem, dump, dump_full, name_of, overlap, validate
from jaxnano.config.partial import Partial
from jaxnano.config.recipe import Recipe

ABSENT = {"absent": True}  # stands for "nothing there" on either side of an edit; plain data, so that JSON carries it


class Edit(Node):
    """One change. Items of a list are addressed by name (`optimizer.groups.matrices.lr`).

    old: what must stand at `path` (a stale edit is refused). before, after: the neighbour of an inserted item.
    """

    path: str
    old: Any = None
    new: Any = None
    before: str | None = None
    after: str | None = None

    @staticmethod
    def to(recipe: Recipe, path: str, new: Any, before: str | None = None, after: str | None = None) -> Edit:
        """The edit that puts `new` at `path` of `recipe`, with `old` read from it."""
        return Edit(path=path, old=read(recipe, path), new=new, before=before, after=after)


class Diff(Node):
    """A named list of edits that only make sense together: the unit of proposing and of ablating."""

    name: str
    edits: tuple[Edit, ...] = Field(default=())


def read(recipe: Recipe, path: str) -> Any:
    """What stands at `path`, as plain data with defaults omitted; ABSENT where a list has no such item.

    Raises: ConfigError where the path leads nowhere.
    """
    here: Any = recipe
    for index, part in enumerate(path.split(".")):
        if isinstance(here, Partial) and part in type(here).model_fields and part not in here.model_fields_set:
            return ABSENT  # where the diff is silent, below as well
        if isinstance(here, Node) and part in type(here).model_fields:
            here = getattr(here, part)
        elif isinstance(here, dict) and part in here:
            here = here[part]
        elif isinstance(here, tuple) and (item := _item(here, part)) is not None:
            here = item
        elif isinstance(here, tuple | dict) and index == len(path.split(".")) - 1:
            return ABSENT
        else:
            raise ConfigError([Problem(path, part, f"no such place; {_known(here)}")])
    return plain(here)


def plain(value: Any) -> Any:
    """Nodes, and tuples of them, as plain data with defaults omitted."""
    match value:
        case Node():
            return dump(value)
        case tuple():
            return [plain(item) for item in value]
        case dict():
            return {key: plain(item) for key, item in value.items()}
    return value


def _item(items: Any, name: str) -> Any:
    return next((item for item in items if not isinstance(item, int | float | str) and name_of(item) == name), None)


def _known(here: Any) -> str:
    if isinstance(here, Node):
        return f"known: {', '.join(type(here).model_fields)}"
    if isinstance(here, tuple):
        return f"known: {', '.join(str(name_of(i)) for i in here if isinstance(i, Node)) or 'a plain list'}"
    return "nothing is below a plain value"


def apply(recipe: Recipe, diff: Diff) -> Recipe:
    """The recipe with the diff applied.

    Raises: ConfigError for a stale `old`, a path that leads nowhere, two edits of one place, or a result that is no
        valid recipe.
    """
    data = dump_full(recipe)
    for index, edit in enumerate(diff.edits):
        if other := next((e.path for e in diff.edits[:index] if overlap(e.path, edit.path)), None):
            raise ConfigError([Problem(edit.path, edit.new, f"edited already, as {other}; one edit says it")])
        standing = read(recipe, edit.path)
        if standing != edit.old:
            raise ConfigError([Problem(edit.path, edit.old, f"stale: {json.dumps(standing)} stands there")])
        _write(data, edit)
    return validate(Recipe, data)


def _write(data: Any, edit: Edit) -> None:
    *parents, last = edit.path.split(".")
    here = data
    for part in parents:  # a partial tree may be silent about what stands above
        here = here.setdefault(part, {}) if isinstance(here, dict) else _item(here, part)
    if isinstance(here, dict):
        if edit.new == ABSENT:
            here.pop(last, None)
        else:
            here[last] = edit.new
        return
    if edit.new != ABSENT and name_of(edit.new) != last:
        raise ConfigError([Problem(edit.path, edit.new, f"an item at this path is called {last!r}")])
    names = [name_of(item) for item in here]
    if edit.old != ABSENT:
        spot = names.index(last)
        here[spot : spot + 1] = [] if edit.new == ABSENT else [edit.new]
        return
    for neighbour, shift in ((edit.before, 0), (edit.after, 1)):
        if neighbour is not None:
            if neighbour not in names:
                raise ConfigError([Problem(edit.path, neighbour, f"no such neighbour; known: {names}")])
            here.insert(names.index(neighbour) + shift, edit.new)
            return
    here.append(edit.new)


def diff(a: Recipe, b: Recipe, name: str = "diff") -> Diff:
    """The smallest diff that turns `a` into `b`: one edit per leaf, or per node whose kind changes."""
    return Diff(name=name, edits=tuple(differences(a, b, "")))


def differences(a: Any, b: Any, path: str) -> list[Edit]:
    """The edits that turn what stands at a path into something else."""
    if a == b:
        return []
    if isinstance(a, Partial) and type(a) is type(b):
        a, b = a.as_set(), b.as_set()
        return [e for f in {**a, **b} for e in (differences(a[f], b[f], f"{path}.{f}") if f in a and f in b else [
            Edit(path=f"{path}.{f}", old=plain(a.get(f, ABSENT)), new=plain(b.get(f, ABSENT)))])]
    if isinstance(a, Node) and type(a) is type(b) and getattr(a, "kind", 0) == getattr(b, "kind", 0):
        fields = type(a).model_fields
        return [e for f in fields for e in differences(getattr(a, f), getattr(b, f), f"{path}.{f}" if path else f)]
    if _named(a) and _named(b):
        return _listdifferences(a, b, path)
    if isinstance(a, dict) and isinstance(b, dict):
        return [Edit(path=f"{path}.{key}", old=plain(a.get(key, ABSENT)), new=plain(b.get(key, ABSENT)))
                for key in {**a, **b} if a.get(key) != b.get(key)]
    return [Edit(path=path, old=plain(a), new=plain(b))]


def _named(value: Any) -> TypeGuard[tuple[Node, ...]]:
    return isinstance(value, tuple) and all(isinstance(item, Node) and name_of(item) for item in value)


def _listdifferences(a: tuple[Node, ...], b: tuple[Node, ...], path: str) -> list[Edit]:
    old, new = {name_of(i): i for i in a}, {name_of(i): i for i in b}
    kept = [n for n in old if n in new]
    if kept != [n for n in new if n in old]:  # another order of the same items: say it whole
        return [Edit(path=path, old=plain(a), new=plain(b))]
    edits = [Edit(path=f"{path}.{n}", old=plain(old[n]), new=ABSENT) for n in old if n not in new]
    previous: str | None = None
    for n, item in new.items():
        if n in old:
            edits += differences(old[n], item, f"{path}.{n}")
        else:
            first = None if previous else next(iter(kept), None)
            edits.append(Edit(path=f"{path}.{n}", old=ABSENT, new=plain(item), before=first, after=previous))
        previous = n
    return edits


def invert(recipe: Recipe, change: Diff) -> Diff:
    """The diff that takes `apply(recipe, change)` back to `recipe`."""
    return diff(apply(recipe, change), recipe, f"undo {change.name}")


def conflicts(a: Diff, b: Diff) -> bool:
    """Whether a path of one is a prefix of a path of the other, so that the two cannot simply be combined."""
    return any(overlap(x.path, y.path) for x in a.edits for y in b.edits)


def render(change: Diff) -> str:
    """The diff as lines a reviewer reads: `path: old -> new`."""
    return "\n".join(changed(e.path, e.old, e.new) for e in change.edits)


def changed(path: str, old: Any, new: Any) -> str:
    """An edit as one line: `path: old -> new`."""
    return f"{path}: {show(old)} -> {show(new)}"


def show(value: Any) -> str:
    """Plain data on one line; `absent` for ABSENT."""
    if value == ABSENT:
        return "absent"
    if isinstance(value, dict):
        inner = ", ".join(f"{k}={show(v)}" for k, v in value.items() if k != "kind")
        return f"{value['kind']}({inner})" if "kind" in value else f"({inner})"
    if isinstance(value, list):
        return "[" + ", ".join(show(v) for v in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value) if not isinstance(value, str) else value
