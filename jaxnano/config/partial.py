"""Partial trees: `set` says what differs from a tree, in the tree's own shape, and nothing else.

A mapping merges; another `kind` replaces the node, with that kind's defaults; null removes an optional node; a list of
named items is a mapping from names to partial items, null removing one; a plain list is replaced whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import Discriminator, Tag, create_model, model_serializer
from pydantic.fields import FieldInfo

from jaxnano.config.base import Node, kind_of, name_of, nodes_in, traced_range


class Partial(Node):
    """What differs from nodes of `stands_for`: the fields that are set, null among them."""

    sparse: ClassVar[bool] = True
    stands_for: ClassVar[tuple[type[Node], ...]] = ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.as_set() == other.as_set()  # type: ignore[union-attr]

    __hash__ = Node.__hash__

    def as_set(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    @classmethod
    def _kinds(cls, name: str) -> tuple[type[Node], ...]:
        """The nodes that may stand in a field of the stands_for."""
        return tuple(nodes_in(next(t.model_fields[name] for t in cls.stands_for if name in t.model_fields).annotation))

    @model_serializer(mode="wrap")
    def _set_alone(self, handler: Any) -> dict[str, Any]:
        data = handler(self)  # which may leave out what is null, as that is the default
        return {name: data.get(name) for name in self.as_set()}


@cache
def partial(*nodes: type[Node]) -> type[Partial]:
    """The type of partial trees of a node, or of any of several kinds while none is named."""
    fields: dict[str, Any] = {}
    for node in nodes:
        for name, field in node.model_fields.items():
            if name == "kind":
                fields[name] = (field.annotation | None if len(nodes) == 1 else None, None)  # type: ignore[operator]
            elif name not in fields:
                fields[name] = (_annotation(field), None)
    names = [node.__name__ for node in nodes]
    about = f"What differs from {' or '.join(names)}."
    built = create_model(f"{'Or'.join(names)}Partial", __base__=Partial, __doc__=about, **fields)
    built.stands_for = nodes
    return built


def _annotation(field: FieldInfo) -> Any:
    """What a field takes in a partial tree."""
    hint: Any = field.annotation
    marks = tuple(field.metadata)
    inner = tuple(nodes_in(hint))
    mixed = any(get_origin(kind) is Literal for kind in flat(hint))  # a word or nodes
    if traced_range(field) or mixed or all(node.sparse for node in inner):
        told = tuple(mark for mark in marks if isinstance(mark, Discriminator))  # which may not see null
        marks = tuple(mark for mark in marks if mark not in told)
        inner_hint: Any = Annotated[(hint, *told)] if told else hint
        return Annotated[(inner_hint | None, *marks)] if marks else inner_hint | None
    if get_origin(hint) is tuple:
        return dict[str, _one(inner) | None] | None
    return _one(inner) | None


def flat(hint: Any) -> list[Any]:
    """The alternatives of a type, without what they are annotated with."""
    if get_origin(hint) is Annotated:
        return flat(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [kind for inner in get_args(hint) for kind in flat(inner)]
    return [hint]


def _one(nodes: tuple[type[Node], ...]) -> Any:
    """A partial node of one kind, or of the kind that stands there where none is named."""
    if len(nodes) == 1:
        return partial(*nodes)
    kinds = {kind_of(node): partial(node) for node in nodes}
    tagged = [Annotated[kind, Tag(name)] for name, kind in kinds.items()]
    return Annotated[Union[(*tagged, Annotated[partial(*nodes), Tag("same")])], Discriminator(_tag)]


def _tag(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "same" if kind is None else str(kind)


_SILENT = object()  # stands for what a partial tree does not say


def overlay(node: Any, change: Any) -> Any:
    """A tree with a partial one laid over it; numbers of either may be traced."""
    if not isinstance(change, Partial):
        return change
    told = change.as_set()
    if isinstance(node, Partial):  # a diff over another
        return node.model_copy(update={name: _laid(node.as_set().get(name), value) if name in node.as_set() else value
                                       for name, value in told.items()})
    kind = told.pop("kind", None)
    if node is None or kind is not None and kind != getattr(node, "kind", kind):
        fitting = (t for t in change.stands_for if (told.keys() <= t.model_fields.keys() if kind is None else
                                                 kind in get_args(t.model_fields["kind"].annotation)))
        target = next(fitting, change.stands_for[0])
        start: dict[str, Any] = {"kind": kind_of(target)} if "kind" in target.model_fields else {}
        node = target.model_construct(**start)
    return node.model_copy(update={name: _laid(getattr(node, name, None), value) for name, value in told.items()})


def _laid(old: Any, new: Any) -> Any:
    if isinstance(new, dict) and isinstance(old, tuple):
        return tuple(overlay(item, new[name]) if (name := name_of(item)) in new else item for item in old
                     if new.get(name_of(item) or "", item) is not None)
    if isinstance(new, dict) and isinstance(old, dict):
        return {**old, **new}
    return overlay(old, new)


def pruned(change: Partial, node: Any, kept: frozenset[str] = frozenset(), path: str = "") -> Partial | None:
    """A partial tree without what stands in the tree already, or None if nothing is left.

    kept: paths that stay whatever they say, as something else changes them first.
    """
    told: dict[str, Any] = {}
    for name, new in change.as_set().items():
        here = f"{path}.{name}" if path else name
        silent = isinstance(node, Partial) and name not in node.model_fields_set
        old = _SILENT if silent else getattr(node, name, None)
        if isinstance(new, dict) and isinstance(old, tuple):
            items = {name_of(item): item for item in old}
            left = {key: pruned(value, items[key], kept, f"{here}.{key}") if value and key in items else value
                    for key, value in new.items()}
            left = {key: value for key, value in left.items() if value is not None or new[key] is None}
            told |= {name: left} if left else {}
        elif isinstance(new, Partial) and isinstance(old, Node) and getattr(new, "kind", None) in (
                None, getattr(old, "kind", None)):
            kinds, new = getattr(new, "kind", None) and type(change)._kinds(name), pruned(new, old, kept, here)
            if new is not None:  # a kind that stands there already goes unsaid
                told[name] = partial(*kinds).model_construct(**new.as_set()) if kinds else new
        elif name != "kind" and (new != old or here in kept) or name == "kind" and new != getattr(node, "kind", None):
            told[name] = new
    return type(change).model_construct(**told) if told else None


def strangers(change: Partial, node: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """The items that a partial tree names and no list has: path, name, and the names there are."""
    for name, new in change.as_set().items():
        here, old = f"{path}.{name}" if path else name, getattr(node, name, None)
        if isinstance(new, dict) and isinstance(old, tuple):
            items = {name_of(item): item for item in old}
            for key, value in new.items():
                if key not in items:
                    yield f"{here}.{key}", key, ", ".join(map(str, items)) or "none, as there is none,"
                elif isinstance(value, Partial):
                    yield from strangers(value, items[key], f"{here}.{key}")
        elif isinstance(new, Partial) and not isinstance(old, Partial):
            yield from strangers(new, old, here)


def settings(change: Mapping[str, Any] | Partial, path: str = "") -> dict[str, Any]:
    """Every place that a partial tree sets, with what it puts there."""
    found: dict[str, Any] = {}
    for name, value in (change.as_set() if isinstance(change, Partial) else change).items():
        here = f"{path}.{name}" if path else name
        inner = value.as_set() if isinstance(value, Partial) else value
        nested = isinstance(inner, dict) and (isinstance(value, Partial) or any(
            isinstance(item, Partial) for item in inner.values()))
        found |= settings(inner, here) if nested and inner else {here: value}
    return found
