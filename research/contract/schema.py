"""What a recipe may hold, in words that fit a prompt: made from the config nodes, so that it is never out of date.

For people's agents (research/mcp.py) and language models alike. Lines are indented as the tree is:

    position: one of
      rotary: Channel pairs rotated by position. ...
        base: traced 10..1e+07 log = 1e+04
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Collection, Iterator
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from jaxnano.config.base import (
    PATH,
    ConfigError,
    Node,
    Problem,
    Range,
    is_under,
    kind_of,
    leaves,
    name_of,
    nodes_in,
    traced_range,
    walk,
)
from jaxnano.config.edit import plain, show
from jaxnano.config.expression import ELEMENTWISE, REDUCTIONS
from jaxnano.config.partial import flat
from jaxnano.config.presets import expand
from jaxnano.config.recipe import Recipe
from jaxnano.config.schedule import FormulaSchedule, Schedule
from jaxnano.config.transforms import GIVEN, NAME, PRESETS

FORMULA = {"code", "params"}  # told once, in the legend
MAX_VALUE, MAX_ITEMS = 120, 16  # characters of a value that is written as text, items of a list


def describe(path: str = "", frozen: Collection[str] = ()) -> list[str]:
    """Lines about what may stand at `path`, which reads as in an edit, and below it.

    Args: frozen: paths that may not be changed; they are named and not described.
    Raises: ConfigError if no recipe has such a place.
    """
    if (above := next((place for place in frozen if is_under(path, place)), None)) is not None:
        return [f"{path}: frozen by the track, with all of {above}"]
    if not path:
        return [*_fields(Recipe, "", 0, frozen), "", *legend()]
    field = field_at(path)
    presets = [node for node in nodes_in(field.annotation) if node in PRESETS]
    return [*_field(path.rpartition(".")[2], field, path, 0, frozen), *map(_stands_for, presets), "", *legend()]


class Standing(NamedTuple):
    """A place in which something stands. takes: what may be put there, in words. value: the same as a JSON schema; a
    node is its kind there, and what is no choice, number or list of them is written as text."""

    path: str
    now: str
    takes: str
    value: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.path} = {self.now} ({self.takes})"


def standing(recipe: Recipe, frozen: Collection[str] = ()) -> list[Standing]:
    """The places of a recipe in which something stands that may be changed, but for lists of nodes.

    A fifth of `describe`, as text. frozen: see there.
    """
    within, found = {leaf.path: leaf.range for leaf in leaves(recipe)}, []
    for path, value, field in walk(recipe):
        inner = isinstance(value, Node) and "kind" not in type(value).model_fields
        if inner or isinstance(value, tuple) and (not value or isinstance(value[0], Node)) \
                or path.endswith(".kind") or any(is_under(path, place) for place in frozen):
            continue
        now = kind_of(type(value)) if isinstance(value, Node) else show(plain(value))
        told = takes(field) if traced_range(field) else _choices(field) or takes(field)
        schema = _values(field)
        if (span := within.get(path)) is not None and _span(span) not in told:  # in a schedule: its place has the range
            told, schema = f"number {_span(span)}", _number(span)
        found.append(Standing(path, now, told, schema))
    return found


def _choices(field: FieldInfo) -> str:
    """The kinds that may stand at a place, or the fields of what has no kinds; empty where it takes no nodes."""
    found = [kind or f"{{{', '.join(node.model_fields)}}}" for kind, node in kinds(field.annotation).items()]
    null = ["null"] if found and any(member is types.NoneType for member, _ in _members(field.annotation)) else []
    return " | ".join([*found, *null])


def _values(field: FieldInfo) -> dict[str, Any]:
    """The JSON schema of what may stand at a place."""
    span, members = traced_range(field), _members(field.annotation, field.metadata)
    null = any(kind is types.NoneType for kind, _ in members)
    named = [] if span else [name for name in kinds(field.annotation) if name]
    if span or named:
        found = [_number(span) if span else {"type": "string", "enum": named}]
    else:
        found = [_schema(*member) for member in members if member[0] is not types.NoneType]
    found += [{"type": "null"}] * null
    return found[0] if len(found) == 1 else {"anyOf": found}


def _schema(kind: Any, metadata: Collection[Any]) -> dict[str, Any]:
    if get_origin(kind) is Literal:
        return {"type": "string", "enum": [*map(str, get_args(kind))]}
    if get_origin(kind) is tuple and not kinds(kind):
        return {"type": "array", "items": _schema(get_args(kind)[0], ()), "maxItems": MAX_ITEMS}
    if kind not in (bool, int, float):
        return {"type": "string", "maxLength": MAX_VALUE}
    ends = {name: getattr(m, end) for m in metadata for end, name in (("ge", "minimum"), ("le", "maximum"))
            if hasattr(m, end)}
    return {"type": {bool: "boolean", int: "integer", float: "number"}[kind], **ends}


def _number(span: Range) -> dict[str, Any]:
    return {"type": "number", "minimum": span.low, "maximum": span.high}


def _stands_for(preset: type[Node]) -> str:
    """The steps of a preset with its defaults, as they are written out to change one of them."""
    steps = expand(preset(kind=kind_of(preset)))  # type: ignore[call-arg]
    return f"{kind_of(preset)} stands for: {json.dumps([plain(step) for step in steps])}"


@cache
def legend() -> tuple[str, ...]:
    """What `traced` and `formula` mean."""
    shapes = [f"  {kind}({', '.join(name for name in node.model_fields if name != 'kind')}): {about(node)}"
              for kind, node in kinds(Schedule).items() if node is not FormulaSchedule]
    return ("traced: a number in the range, or a schedule of it, or {kind: expression, code, params}; an edit of one "
            "never recompiles.",
            "schedules (value: the peak; floor: a share of it; the others: shares of the run):", *shapes,
            "formula: {code, params}: names with traced numbers; + - * / ** and "
            f"{', '.join(ELEMENTWISE)}; x in an activation, progress (0..1) in a schedule.",
            f"formulas of a chain, memories, views and moves also reduce whole tensors: {', '.join(REDUCTIONS)}; "
            "rows is a norm per output, columns per input, neurons along the longer axis, schatten the root of "
            "the norm of x x^T, cos of two tensors their cosine.",
            f"in scope of a chain's formulas: {', '.join(GIVEN)}, the group's params, and every name above the line; "
            "noise() is Gaussian, of the parameter's shape; steps are the run's; inputs: second moments of what a map "
            "is given.",
            "one of these: written whole, {kind: rotary, base: 5000}; what is left out has its default.",
            "list of named items: the path of one ends in its name, or in its kind where it has none.",
            f"name: matches {NAME}.",
            f"path: names joined by dots, from the top of the recipe; it matches {PATH}.",
            "a bare number in the place of a schedule ends it; PATH.value moves its peak and keeps its shape.")


def _fields(node: type[Node], path: str, depth: int, frozen: Collection[str]) -> Iterator[str]:
    told: dict[Any, str] = {}
    for name, field in node.model_fields.items():
        here = f"{path}.{name}" if path else name
        if name == "kind" or {name} < FORMULA <= node.model_fields.keys():
            continue
        traced = traced_range(field) is not None  # whose ranges differ though their types do not
        first = name if traced else told.setdefault(field.annotation, name)
        if first != name and kinds(field.annotation) and not any(is_under(place, here) for place in frozen):
            yield f"{'  ' * depth}{name}: as {first}"
        else:
            yield from _field(name, field, here, depth, frozen)


def _field(name: str, field: FieldInfo, path: str, depth: int, frozen: Collection[str]) -> Iterator[str]:
    """A field: its line, and lines for what stands below it."""
    start = f"{'  ' * depth}{name}: "
    if any(is_under(path, place) for place in frozen):
        yield start + "frozen"
        return
    nodes = {} if traced_range(field) else kinds(field.annotation)
    if any(node.sparse for node in nodes.values()):
        yield f"{start}{about(next(iter(nodes.values())))} In the shape that stands above; null takes away."
        return
    if set(nodes) == {""} and get_origin(field.annotation) is not tuple:
        node = nodes[""]
        null = "" if field.annotation is node else " Or null."
        yield start + about(node) + null + default(field)
        yield from _fields(node, path, depth + 1, frozen)
        return
    yield start + takes(field) + default(field)
    for kind, node in nodes.items():
        yield f"{'  ' * (depth + 1)}{kind or 'item'}: {about(node)}".rstrip()
        yield from _fields(node, path, depth + 2, frozen)


def about(node: type[Node]) -> str:
    """A node's docstring on one line, without what it goes back to."""
    return " ".join(re.sub(r"\bSource: .*?\.(?=\s*$|\s*\n)", "", node.__doc__ or "").split())


def default(field: FieldInfo) -> str:
    """A field's default as its line ends in it; nothing for a node whose own fields tell it."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return " (needed)"
    if isinstance(value, Node) and "kind" not in type(value).model_fields:
        return ""
    if isinstance(value, tuple) and value and isinstance(value[0], Node):
        return f" = [{', '.join(name_of(item) or '' for item in value)}]"
    value = value.get("kind") if isinstance(value := plain(value), dict) and "kind" in value else value
    return f" = {show(value)}"


def takes(field: FieldInfo) -> str:
    """The values a field takes, on one line."""
    span, annotation = traced_range(field), field.annotation
    if span is None:
        return _words(annotation, field.metadata)
    within = _span(span)
    if get_origin(annotation) is dict:
        return f"names with numbers {within}"
    allowed = {member for member, _ in _members(annotation)}
    fixed = allowed <= {float, type(None)}
    return f"{'number' if fixed else 'traced'} {within}" + (" or null" if type(None) in allowed else "")


def _span(span: Range) -> str:
    return f"{span.low:g}..{span.high:g}{'' if span.scale == 'linear' else f' {span.scale}'}"


def _words(annotation: Any, metadata: Collection[Any] = ()) -> str:
    """A type in words; that something may be null comes last."""
    members = sorted(_members(annotation, metadata), key=lambda member: member[0] is type(None))
    return " or ".join(dict.fromkeys(_word(*member) for member in members))


def _word(kind: Any, metadata: Collection[Any]) -> str:
    if kind is type(None):
        return "null"
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return "list of named items" if kinds(kind) else f"list of {_words(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "map from text to text"
    if issubclass(kind, Node):
        return "one of these"
    name = {int: "whole number", float: "number", bool: "true | false", str: "text"}[kind]
    if any(getattr(m, "pattern", None) == NAME for m in metadata):
        return "name"
    if pattern := next((m.pattern for m in metadata if getattr(m, "pattern", None)), None):
        return f"{name} that matches {pattern}"
    ends = [next((f"{getattr(m, end):g}" for m in metadata for end in pair if hasattr(m, end)), "")
            for pair in (("ge", "gt"), ("le", "lt"))]
    return f"{name} {'..'.join(ends)}" if any(ends) else name


def _members(annotation: Any, metadata: Collection[Any] = ()) -> list[tuple[Any, list[Any]]]:
    """The alternatives that a type is made of, null among them, each with its constraints."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        told = (m for item in more for m in (item.metadata if isinstance(item, FieldInfo) else (item,)))
        return _members(inner, [*metadata, *told])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for inner in get_args(annotation) for member in _members(inner, metadata)]
    return [(annotation, list(metadata))]


def kinds(annotation: Any) -> dict[str, type[Node]]:
    """The nodes that may stand at a place, or in the list that does, by kind; by "" where a kind is not told."""
    named = {node: node.model_fields.get("kind") for node in nodes_in(annotation)}
    return {name: node for node, kind in named.items() for name in (get_args(kind.annotation) if kind else ("",))}


def field_at(path: str) -> FieldInfo:
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
        field, nodes, is_list = found, kinds(found.annotation), any(
            get_origin(kind) in (tuple, dict) for kind in flat(found.annotation))
    assert field is not None
    return field
