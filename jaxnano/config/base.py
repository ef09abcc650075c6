"""The base of every config node: frozen, closed, data only, and walked the same way by everybody."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from jaxnano.cli import UserError

PATH = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$"  # what the path of an edit looks like
MAX_PLACES, MAX_DEPTH, MAX_TEXT = 10_000, 32, 4096  # of plain data before anything looks inside


@dataclass(frozen=True)
class Range:
    """Marks a field as traced: it changes no shape and no control flow, so an edit of it never recompiles.

    low, high: the accepted values, both ends included. scale: on which equal steps matter equally: `linear`, `log`,
    `decay`, the factor an average keeps a step, whose memory 1 / (1 - value) is what matters, or `signed`, the size of
    a number of either sign.
    """

    low: float
    high: float
    scale: Literal["linear", "log", "decay", "signed"] = "linear"

    def units(self, value: float) -> float:
        """A value in steps that matter: a factor of e, or a tenth of a linear range."""
        match self.scale:
            case "log":
                return math.log(max(value, self.low, 1e-9))
            case "decay":
                return -math.log(max(1.0 - value, 1e-6))
            case "signed":
                return math.copysign(math.log1p(abs(value) / 1e-3), value)
        return 10.0 * (value - self.low) / (self.high - self.low)


class Node(BaseModel):
    """A frozen config node. Unknown fields, non-finite numbers, wrong types and values out of range are refused."""

    sparse: ClassVar[bool] = False  # whether only the fields that are set are there

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        for name, span in _spans(type(self)):
            if (value := getattr(self, name)) is None:
                continue
            for peak in value.values() if isinstance(value, dict) else [value]:
                peak = getattr(peak, "value", peak)
                if isinstance(peak, int | float) and not span.low <= peak <= span.high:
                    nearest = span.low if peak < span.low else span.high
                    raise refuse(name, peak, f"between {span.low:g} and {span.high:g}; {nearest:g} would do")
        return self


@cache
def _spans(node: type[Node]) -> tuple[tuple[str, Range], ...]:
    """The traced fields of a node: a ledger holds thousands of nodes without any."""
    return tuple((name, span) for name, field in node.model_fields.items() if (span := traced_range(field)))


class Problem(NamedTuple):
    """One refused value. path: dotted place in the tree; value: what stood there; rule: what would be right."""

    path: str
    value: Any
    rule: str

    def __str__(self) -> str:
        shown = json.dumps(self.value, default=str)
        return f"{self.path or '(top)'}: {shown if len(shown) <= 80 else shown[:77] + '...'}: {self.rule}"


class ConfigError(UserError):
    """A config that cannot be used, as a list of problems."""

    def __init__(self, problems: list[Problem], source: str = ""):
        self.problems = problems
        super().__init__("\n".join(f"{source + ': ' if source else ''}{p}" for p in problems))

    @staticmethod
    def of(error: ValidationError, data: Any, node: type[Node], source: str = "") -> ConfigError:
        """What Pydantic says against plain data that should be a node."""
        return ConfigError([_problem(e, data, node) for e in error.errors(include_url=False)], source)


def refuse(path: str, value: Any, rule: str) -> PydanticCustomError:
    """The error a validator raises for a cross-field rule; `path` is relative to the node that validates."""
    return PydanticCustomError("rule", "{rule}", {"path": path, "value": value, "rule": rule})


N = TypeVar("N", bound=Node)


def validate(node: type[N], data: Any, source: str = "") -> N:
    """Build `node` from plain data.

    Raises: ConfigError that names each path, value and rule.
    """
    if problem := _not_plain(data):
        raise ConfigError([problem], source)
    try:
        return node.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise ConfigError.of(error, data, node, source) from None


def _not_plain(data: Any) -> Problem | None:
    """The first thing in `data` that no config holds. Bounded: nesting and YAML aliases may stand for any size."""
    stack: list[tuple[str, Any, int]] = [("", data, 0)]
    for seen in itertools.count():
        if not stack:
            return None
        path, value, depth = stack.pop()
        if seen > MAX_PLACES or depth > MAX_DEPTH:
            return Problem(path, "...", f"a config has at most {MAX_PLACES} places, {MAX_DEPTH} deep")
        match value:
            case dict() | list() | tuple():
                named = ((n[:40] if isinstance(n := name_of(item), str) else i, item) for i, item in enumerate(value))
                for key, item in value.items() if isinstance(value, dict) else named:
                    place = f"{path}.{key}" if path else str(key)
                    if isinstance(value, dict) and not isinstance(key, str):
                        return Problem(place, key, "a name is text")
                    stack.append((place, item, depth + 1))
            case str() if len(value) > MAX_TEXT or not _encodes(value):
                return Problem(path, value[:40], f"text is Unicode of at most {MAX_TEXT} characters, without NUL")
            case int() if value.bit_length() > 63:
                return Problem(path, f"{value.bit_length()} bits", "a whole number has at most 63 bits")
            case str() | int() | float() | None:
                pass
            case _:
                return Problem(path, value, "not plain data; text, numbers, lists and maps are")


def _encodes(text: str) -> bool:
    """Whether `text` is free of NUL, which no path can hold, and of lone surrogates, which no file can."""
    return "\0" not in text and (text.isascii() or text.encode("utf-8", "replace").decode() == text)


def _problem(error: Any, data: Any, node: type[Node]) -> Problem:
    """Translate Pydantic's location (with union tags in it) to a path of the tree that was given, and its words."""
    parts, here = [], data
    for part in error["loc"]:
        if isinstance(here, dict) and part in here:
            here = here[part]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
            part = name_of(here) or str(part)
        elif error["type"] != "missing" or part != error["loc"][-1]:
            continue  # the tag of a union, which is no place in the data
        parts.append(str(part))
    context = error.get("ctx", {})
    if error["type"] == "rule":
        return Problem(".".join([*parts, *filter(None, [context["path"]])]), context["value"], context["rule"])
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        known = context.get("expected_tags", "").replace("'number', ", "").removesuffix(", 'same'")
        rule = f"one of {known}" if known else "needed"
        return Problem(".".join([*parts, "kind"]), context.get("tag", "absent"), rule)
    value = "absent" if error["type"] == "missing" else error["input"]
    return Problem(".".join(parts), value, _rule(error, node))


_RULES = {  # what would pass, by Pydantic's name of what is wrong; its bounds go into the braces
    "missing": "needed", "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "string_type": "text", "finite_number": "a finite number", "list_type": "a list",
    "tuple_type": "a list", "dict_type": "a map", "model_type": "a map of its fields", "literal_error": "{expected}",
    "greater_than_equal": "at least {ge:g}", "greater_than": "above {gt:g}", "less_than_equal": "at most {le:g}",
    "less_than": "below {lt:g}", "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters", "string_pattern_mismatch": "text like {pattern}",
    "too_short": "at least {min_length} items", "too_long": "at most {max_length} items",
}


def _rule(error: Any, node: type[Node]) -> str:
    """What would pass in a place where Pydantic found something else."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return "needed"
    if kind == "extra_forbidden":
        known = list(dict.fromkeys(name for n in _owners(node, error["loc"]) for name in n.model_fields))
        return f"no such field; {', '.join(get_close_matches(error['loc'][-1], known, 1) or known) or 'none'} would do"
    rule = _RULES[kind].format(**context).replace("'", "") if kind in _RULES else error["msg"]
    if error["loc"][-1:] == ("number",) and kind == "float_type":  # the tag of what is no node, where a node may stand
        rule = "a number or a schedule"
    if kind in ("int_type", "int_from_float", "float_type") and (number := _number(value)) is not None:
        near = _bounded(number, node, error["loc"])
        rule += f"; {near:g}" if kind == "float_type" else f"; {round(near)}"
    if kind == "string_pattern_mismatch":
        name = re.sub(r"[^a-z0-9_]+", "_", value.lower()).strip("_")[:31]
        rule += f"; {name}" if re.search(context["pattern"], name) else ""
    return f"{rule} would do"


def _number(value: Any) -> float | None:
    """The finite number that is written in a text, or is one."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and finite(number) else None


def _bounded(number: float, node: type[Node], location: Sequence[Any]) -> float:
    """The nearest number that the field at a location takes."""
    fields = [n.model_fields[name] for name in location[-1:] for n in _owners(node, location) if name in n.model_fields]
    for bound in (m for field in fields for m in field.metadata):
        number = max(number, getattr(bound, "ge", getattr(bound, "low", number)))
        number = min(number, getattr(bound, "le", getattr(bound, "high", number)))
    return number


def _owners(node: type[Node], location: Sequence[Any]) -> list[type[Node]]:
    """The nodes that may stand where the last name of a location is looked for."""
    nodes = [node]
    for part in location[:-1]:
        fields = [n.model_fields[part].annotation for n in nodes if part in n.model_fields]
        tagged = [n for n in nodes if "kind" in n.model_fields and part in get_args(n.model_fields["kind"].annotation)]
        nodes = [inner for field in fields for inner in nodes_in(field)] if fields else tagged or nodes
    return nodes


def nodes_in(annotation: Any) -> Iterator[type[Node]]:
    """The nodes in a type."""
    if isinstance(annotation, type) and issubclass(annotation, Node):
        yield annotation
    for inner in get_args(annotation):
        yield from nodes_in(inner)


def name_of(item: Any) -> str | None:
    """The name a list item is addressed by: its `name`, else its `kind`. Plain data or a node."""
    get = item.get if isinstance(item, dict) else lambda key: getattr(item, key, None)
    return get("name") or get("kind")


def kind_of(node: type[Node]) -> str:
    """What `kind` says in a node of a type that has one."""
    return get_args(node.model_fields["kind"].annotation)[0]


def unique_names(items: tuple[Node, ...], path: str) -> None:
    """Raise where two items of a list have one name: an edit could not say which it means."""
    seen: set[str] = set()
    for item in items:
        name = name_of(item) or ""
        if name in seen:
            raise refuse(f"{path}.{name}", name, "names in a list are unique")
        seen.add(name)


def traced_range(field: FieldInfo) -> Range | None:
    """The Range of a traced field, or None for a static one."""
    return next((m for m in field.metadata if isinstance(m, Range)), None)


class Leaf(NamedTuple):
    """One number of the tree that reaches the compiled step as an argument."""

    path: str
    value: float
    range: Range


def fields(node: Node) -> Iterator[tuple[str, Any, FieldInfo]]:
    """The fields of a node, with what stands in each; of a partial one, those that are set."""
    for name, field in type(node).model_fields.items():
        if not node.sparse or name in node.model_fields_set:
            yield name, getattr(node, name), field


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Any, FieldInfo]]:
    """Every field below a node: its path, what stands there, the field. What stands above comes first."""
    for name, value, field in fields(node):
        here = f"{path}.{name}" if path else name
        yield here, value, field
        if isinstance(value, Node):
            yield from walk(value, here)
        elif isinstance(value, tuple):
            for item in value:
                if isinstance(item, Node):
                    yield from walk(item, f"{here}.{name_of(item)}")
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, Node):
                    yield from walk(item, f"{here}.{key}")


def leaves(node: Node) -> Iterator[Leaf]:
    """Every traced number below `node`, those inside schedules and expressions included.

    The peak of a schedule has the range of the field it stands in.
    """
    peaks: dict[str, Range] = {}
    for here, value, field in walk(node):
        if (span := traced_range(field)) is None:
            continue
        places = {f"{here}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {here: value}
        for place, number in places.items():
            if isinstance(number, Node):
                peaks[f"{place}.value"] = span
            elif isinstance(number, int | float):
                yield Leaf(place, float(number), peaks.get(place, span))


def dump(node: Node, valid: bool = True) -> dict[str, Any]:
    """Plain data with defaults omitted: the canonical form, which a new field with a default does not change.

    Args: valid: whether the node is known to be; Pydantic warns of places that hold what they do not take.
    """
    return json.loads(node.model_dump_json(exclude_defaults=True, warnings=valid))


def dump_full(node: Node) -> dict[str, Any]:
    """Plain data with every field present."""
    return json.loads(node.model_dump_json())


def digest(data: Any) -> str:
    """Sixteen hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finite(value: Any) -> bool:
    """Whether `value` is a finite number that a float can hold, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def overlap(a: str, b: str) -> bool:
    """Whether one path is the other or a place below it."""
    return is_under(a, b) or is_under(b, a)


def is_under(path: str, prefix: str) -> bool:
    """Whether `path` is `prefix` or a place below it."""
    return path == prefix or path.startswith(prefix + ".")
