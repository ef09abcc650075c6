"""What a model may answer, and how its text becomes proposals: bounded, parsed as data, never run."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxnano.config.base import ConfigError, Problem, finite, validate
from research.contract.schema import Standing, field_at, kinds
from research.outside.inbox import Ask
from research.outside.llm.fault import Fault
from research.text import one_line

MOST = 8  # proposals an answer
MAX_TEXT = 256 * 1024  # characters of an answer that are looked at
_START = re.compile(r'[^\[{]*(\{\s*"proposals"\s*:\s*)?\[\s*')
_BETWEEN = re.compile(r"\s*,?\s*")


def _text(about: str) -> dict[str, Any]:
    return {"type": "string", "description": about}


def _object(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": MOST}


def short(most: int, places: Sequence[Standing]) -> dict[str, Any]:
    """The schema of an answer to a short page: edits of the places that it names. most: proposals.

    A small model writes on and on where it may, so that text is bounded and what is to be done comes first.
    """
    alike: dict[str, list[Standing]] = {}
    for place in places:
        alike.setdefault(json.dumps(place.value), []).append(place)
    edits = [_object(path={"type": "string", "enum": [place.path for place in found]}, value=found[0].value)
             for found in alike.values()]
    found = _object(proposals=_list(_object(
        edits=_list({"anyOf": edits}),
        name={"type": "string", "maxLength": 40},
        why={"type": "string", "minLength": 1, "maxLength": 200},
        expected_effect={"type": "number"})))
    found["properties"]["proposals"]["maxItems"] = most
    return found


# Objects, arrays, text, numbers: what Gemini and OpenAI's strict mode both take.
SCHEMA = _object(proposals=_list(_object(
    name=_text("two to five words"),
    on=_text("best, base, or a recipe's id"),
    edits=_list(_object(
        path=_text("dotted path in the tree"),
        value=_text('what to put there, written as JSON: 0.5, "rsqrt", {"kind": "rotary"}'),
        before=_text("name of the neighbour that a list's new item goes before, or empty"),
        after=_text("name of the neighbour that a list's new item goes after, or empty"))),
    hypothesis=_text("what will happen, one sentence"),
    expected_effect={"type": "number", "description": "nats of loss gained, positive = better"},
    why=_text("the mechanism, one or two sentences"),
    source=_text("paper or record, or empty"))))


def shown(text: str, hide: Callable[[Any], Any]) -> str:
    """An answer for people to read, laid out where it is JSON, without secrets however they are escaped in it."""
    try:
        return json.dumps(hide(_json(_unfenced(hide(text)))), indent=1)
    except (ValueError, RecursionError):
        return hide(text)


@dataclass
class Draft:
    """One proposal of an answer. data: as it was written. ask: None if it is not even one; then problems say why."""

    data: dict[str, Any]
    ask: Ask | None
    problems: list[Problem] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the model called it."""
        return _line(self.data.get("name"), 80)


def read(text: str, places: Mapping[str, str], hide: Callable[[Any], Any] = lambda data: data) -> list[Draft]:
    """The proposals in an answer, at most MOST of them.

    Args: places: what `on` stood for when the question was asked (`best`: a recipe's id). hide: takes secrets out.
    Raises: Fault (garbage, wrong_schema, empty) if there is nothing to judge.
    """
    if len(text) > MAX_TEXT:
        raise Fault("garbage", f"an answer of {len(text):,} characters; {MAX_TEXT:,} are read")
    text = hide(text)  # before it is cut: half a key is not found any more
    try:
        data = hide(_json(_unfenced(text)))  # and again, for what was escaped in it
    except (ValueError, RecursionError) as error:
        if not (data := hide(_whole(text))):
            raise Fault("garbage", f"not JSON ({str(error)[:80]}): {text[:80]}") from None
    found = data.get("proposals") if isinstance(data, dict) else data
    if not isinstance(found, list) or any(not isinstance(item, dict) for item in found[:MOST]):
        raise Fault("wrong_schema", f"not a list of proposals: {text[:120]}")
    if not found:
        raise Fault("empty", "an answer without proposals")
    return [_draft(item, places, hide) for item in found[:MOST]]


def _draft(data: dict[str, Any], places: Mapping[str, str], hide: Callable[[Any], Any]) -> Draft:
    """Prose is cut to its bounds; everything else is as the model wrote it, or refused."""
    effect, on = data.get("expected_effect", 0.0), data.get("on") or "best"
    edits = data.get("edits")
    ask = {
        "name": _line(data.get("name"), 80),
        "why": _line(" ".join(str(data[name]) for name in ("hypothesis", "why") if data.get(name)), 2000),
        "source": _line(data.get("source"), 300),
        "effect": min(max(float(effect), -10.0), 10.0) if finite(effect) else 0.0,
        "on": places.get(on, on) if isinstance(on, str) else on,
        "edits": _once([hide(_edit(edit)) for edit in edits]) if isinstance(edits, list) else edits,
    }
    try:
        return Draft(data, validate(Ask, ask))
    except (ConfigError, RecursionError) as error:
        return Draft(data, None, getattr(error, "problems", [Problem("edits", "...", "nested too deep")]))


def _edit(edit: Any) -> Any:
    if not isinstance(edit, dict):
        return edit
    new = {"path": edit.get("path"), "new": _node(edit.get("path"), _value(edit.get("value")))}
    return new | {name: edit[name] for name in ("before", "after") if edit.get(name)}


def _once(edits: list[Any]) -> list[Any]:
    """The edits without those that say the same again."""
    return [edit for i, edit in enumerate(edits) if edit not in edits[:i]]


def _node(path: Any, value: Any) -> Any:
    """The name of a kind alone, as models write it, is the node of that kind."""
    with contextlib.suppress(ConfigError):
        if isinstance(path, str) and isinstance(value, str) and value in kinds(field_at(path).annotation):
            return {"kind": value}
    return value


def _value(value: Any) -> Any:
    """The JSON in a string; text that is none stands for itself, and a value that is no text too."""
    try:
        return _json(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _whole(text: str) -> list[Any]:
    """The proposals that stand whole in an answer that broke off, or went on after its end."""
    found: list[Any] = []
    at = _START.match(text)
    with contextlib.suppress(ValueError, RecursionError):
        while at and len(found) < MOST:
            item, end = _DECODER.raw_decode(text, at.end())
            found.append(item)
            at = _BETWEEN.match(text, end)
    return found


def _no(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no, strict=False)


def _json(text: str) -> Any:
    """What JSON says, line breaks in its strings allowed: some servers' grammars let them through."""
    return json.loads(text, parse_constant=_no, strict=False)


def _unfenced(text: str) -> str:
    """The text without the code fence that models without a JSON mode put around it."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        return text[3:-3].removeprefix("json")
    return text


def _line(value: Any, most: int) -> str:
    return one_line(value, most) if isinstance(value, str) else ""
