"""What a recipe may hold, in words that fit a prompt: made from the config nodes, so that it is never out of date.

For people's agents (research/mcp.py) and language models alike. Lines are indented as the tree is:

    position: one of
      rotary: Channel pairs rotated by position. ...
        base: traced 10..1e+07 log = 1e+04
"""

from __future__ import annotations

import re
import types
from collections.abc import Collection, Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from jaxnano.config.base import PATH, ConfigError, Node, Problem, is_under, name_of, traced_range
from jaxnano.config.edit import plain, show
from jaxnano.config.expression import FUNCTIONS
from jaxnano.config.recipe import Recipe
from jaxnano.config.schedule import FormulaSchedule, Schedule

Nodes = dict[str, type[Node]]  # by kind; by "" where a place takes one sort of node alone


def describe(path: str = "", frozen: Collection[str] = ()) -> list[str]:
    """Lines about what may stand at `path`, which reads as in an edit, and below it.

    Args: frozen: paths that may not be changed; they are named and not described.
    Raises: ConfigError if no recipe has such a place.
    """
    if (above := next((place for place in frozen if is_under(path, place)), None)) is not None:
        return [f"{path}: frozen by the track, with all of {above}"]
    if not path:
        return [*_fields(Recipe, "", 0, frozen), "", *legend()]
    field = _at(path)
    return [*_field(path.rpartition(".")[2], field, path, 0, frozen), "", *legend()]


@cache
def legend() -> tuple[str, ...]:
    """What `traced` and `formula` mean."""
    shapes = [f"  {kind}({', '.join(name for name in node.model_fields if name != 'kind')}): {_about(node)}"
              for kind, node in _nodes(Schedule).items() if node is not FormulaSchedule]
    return ("traced: a number in the range, or a schedule of it, or {kind: expression, code, params}; an edit of one "
            "never recompiles.",
            "schedules (value: the peak; floor: a share of it; the others: shares of the run):", *shapes,
            "expression: code is a formula of x (an activation) or progress, 0..1 (a schedule), and of the names in "
            f"params, with + - * / ** and {', '.join(FUNCTIONS)}.",
            "one of these: written whole, {kind: rotary, base: 5000}; what is left out has its default.",
            "list of named items: the path of one ends in its name, or in its kind where it has none.",
            f"path: names joined by dots, from the top of the recipe; it matches {PATH}.",
            "a bare number in the place of a schedule ends it; PATH.value moves its peak and keeps its shape.")


def _fields(node: type[Node], path: str, depth: int, frozen: Collection[str]) -> Iterator[str]:
    for name, field in node.model_fields.items():
        if name != "kind":
            yield from _field(name, field, f"{path}.{name}" if path else name, depth, frozen)


def _field(name: str, field: FieldInfo, path: str, depth: int, frozen: Collection[str]) -> Iterator[str]:
    """A field: its line, and lines for what stands below it."""
    start = f"{'  ' * depth}{name}: "
    if any(is_under(path, place) for place in frozen):
        yield start + "frozen"
        return
    nodes = {} if traced_range(field) else _nodes(field.annotation)
    if set(nodes) == {""} and not _is_list(field.annotation):
        yield start + _about(nodes[""]) + (" Or null." if _optional(field.annotation) else "") + _default(field)
        yield from _fields(nodes[""], path, depth + 1, frozen)
        return
    yield start + _takes(field) + _default(field)
    for kind, node in nodes.items():
        yield from _node(kind or "item", node, path, depth + 1, frozen)


def _node(kind: str, node: type[Node], path: str, depth: int, frozen: Collection[str]) -> Iterator[str]:
    yield f"{'  ' * depth}{kind}: {_about(node)}".rstrip()
    yield from _fields(node, path, depth + 1, frozen)


def _about(node: type[Node]) -> str:
    """A node's docstring on one line, without what it goes back to."""
    return " ".join(re.sub(r"\bSource: .*?\.(?=\s*$|\s*\n)", "", node.__doc__ or "").split())


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return " (needed)"
    if isinstance(value, Node) and "kind" not in type(value).model_fields:
        return ""
    if isinstance(value, tuple) and value and isinstance(value[0], Node):
        return f" = [{', '.join(name_of(item) or '' for item in value)}]"
    value = value.get("kind") if isinstance(value := plain(value), dict) and "kind" in value else value
    return f" = {show(value)}"


def _takes(field: FieldInfo) -> str:
    """The values a field takes, on one line."""
    span, annotation = traced_range(field), field.annotation
    if span is None:
        return _words(annotation, field.metadata)
    within = f"{span.low:g}..{span.high:g}{'' if span.scale == 'linear' else f' {span.scale}'}"
    if get_origin(annotation) is dict:
        return f"names with numbers {within}"
    fixed = annotation is float or _members(annotation) == [float]
    return f"{'number' if fixed else 'traced'} {within}" + (" or null" if _optional(annotation) else "")


def _words(annotation: Any, metadata: Collection[Any] = ()) -> str:
    """A type in words."""
    annotation, more = _bare(annotation)
    metadata = [*metadata, *more]
    if _optional(annotation):
        return " or ".join(_words(member, metadata) for member in _members(annotation)) + " or null"
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if _is_list(annotation):
        named = _nodes(annotation)
        return "list of named items" if named else f"list of {_words(get_args(annotation)[0])}"
    if _nodes(annotation):
        return "one of these"
    name = {int: "whole number", float: "number", bool: "true | false", str: "text"}[annotation]
    if pattern := next((m.pattern for m in metadata if getattr(m, "pattern", None)), None):
        return f"{name} that matches {pattern}"
    ends = [next((f"{getattr(m, end):g}" for m in metadata for end in pair if hasattr(m, end)), "")
            for pair in (("ge", "gt"), ("le", "lt"))]
    return f"{name} {'..'.join(ends)}" if any(ends) else name


def _bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without `Annotated`, and what it was annotated with; of a constrained field, its constraints."""
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    inner, *more = get_args(annotation)
    return inner, tuple(m for item in more for m in (item.metadata if isinstance(item, FieldInfo) else (item,)))


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union other than null; of any other type, the type itself."""
    annotation, _ = _bare(annotation)
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation]
    return [member for member in get_args(annotation) if member is not type(None)]


def _optional(annotation: Any) -> bool:
    annotation, _ = _bare(annotation)
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def _is_list(annotation: Any) -> bool:
    return get_origin(_bare(annotation)[0]) is tuple


def _nodes(annotation: Any) -> Nodes:
    """The nodes that may stand at a place, or in the list that does."""
    found: Nodes = {}
    for member in _members(annotation):
        member, _ = _bare(member)
        if get_origin(member) in (Union, types.UnionType):
            found |= _nodes(member)
        elif get_origin(member) is tuple:
            found |= _nodes(get_args(member)[0])
        elif isinstance(member, type) and issubclass(member, Node):
            kind = member.model_fields.get("kind")
            found |= dict.fromkeys(get_args(kind.annotation) if kind else ("",), member)
    return found


def _at(path: str) -> FieldInfo:
    """The field at a path; an item of a list has the field of its list."""
    nodes, field, is_list = {"": Recipe}, None, False
    for part in path.split("."):
        if is_list:  # the name of an item, whatever it is called
            nodes = {part: nodes[part]} if part in nodes else nodes
            is_list = False
            continue
        found = next((node.model_fields[part] for node in nodes.values() if part in node.model_fields), None)
        if found is None:
            known = sorted({name for node in nodes.values() for name in node.model_fields})
            raise ConfigError([Problem(path, part, f"no such place; {', '.join(known) or 'nothing is below'}")])
        field, nodes, is_list = found, _nodes(found.annotation), _is_list(found.annotation)
    assert field is not None
    return field
