"""The config tree as a page for people: every place, what it takes, its default, its source, and an example.

It is made from the nodes, as `schema` is, and its examples from the ideas, so that it is never out of date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_origin

from pydantic.fields import FieldInfo

from jaxnano.config.base import Node, kind_of, traced_range
from jaxnano.config.block import ACTIVATION, FormulaActivation
from jaxnano.config.edit import plain
from jaxnano.config.expression import Signature
from jaxnano.config.formulas import Formula
from jaxnano.config.presets import expand
from jaxnano.config.recipe import Recipe
from jaxnano.config.transforms import GIVEN, PRESETS, STEP, FormulaStep
from research.contract.idea import ideas
from research.contract.schema import about, default, field_at, kinds, legend, takes

LONGEST = " " * 1000
ITEM = "[]"  # in the place of a list's item
HEAD = """# The config tree

Every place of a recipe: what may stand there, its default, where it comes from, and an example from the ideas. A
recipe is a YAML file in this shape (`configs/gpt2-tiny.yaml`); an edit names a place by its path and says what is new
there, and an item of a list is named by its `name`, or by its `kind`. What is left out has its default.

This page is printed by `python -m research.schema --page`. A new mechanism is a node in `jaxnano/config/`, a `case`
where its family is built, a row in the contract tests and an idea: the README says where. It then stands here."""


class Place(NamedTuple):
    """Where nodes of some kinds stand: the path, with ITEM for a list's items, and the field."""

    path: str
    nodes: dict[str, type[Node]]
    field: FieldInfo | None


def page() -> str:
    """The page in Markdown."""
    shown = dict(_examples())
    lines = [HEAD, "", "## What all places share", "", *(f"- {line.strip()}" for line in legend())]
    seen: dict[type[Node], str] = {}
    for place in list(_places("", {"": Recipe}, None, seen)):  # all of them first: a row refers to where a node stands
        lines += ["", *_section(place, shown, seen)]
    return "\n".join(lines) + "\n"


def _places(path: str, nodes: dict[str, type[Node]], field: FieldInfo | None, seen: dict[type[Node], str]
            ) -> Iterator[Place]:
    """The places below a path in the tree's order; a node is told where it first stands."""
    fresh = {kind: node for kind, node in nodes.items() if node not in seen}
    if fresh:
        seen |= dict.fromkeys(fresh.values(), path)
        yield Place(path, fresh, field)
    for node in fresh.values():
        for name, inner in node.model_fields.items():
            below = kinds(inner.annotation)
            if below and traced_range(inner) is None and not any(n.sparse for n in below.values()):
                here = f"{path}.{name}" if path else name
                yield from _places(here + ITEM * (get_origin(inner.annotation) is tuple), below, inner, seen)


def _section(place: Place, shown: dict[tuple[str, str], Any], seen: dict[type[Node], str]) -> Iterator[str]:
    depth = place.path.count(".") + 2
    told = "" if place.field is None else _default(place.field)
    yield f"{'#' * min(depth, 4)} {f'`{place.path}`' if place.path else 'The recipe'}"
    if told:
        yield from ("", f"Default: {told}.")
    for kind, node in place.nodes.items():
        yield ""
        sources = re.findall(r"\bSource: (.*?)\.(?=\s*$|\s*\n)", node.__doc__ or "")
        yield f"{f'**{kind}**. ' if kind else ''}{about(node)}" + "".join(f" *{source}.*" for source in sources)
        if (scope := _scope(node)) is not None:
            yield f"In scope: {scope}."
        if node in PRESETS:
            steps = ", ".join(json.dumps(plain(step)) for step in expand(node(kind=kind_of(node))))  # type: ignore[call-arg]
            yield f"Stands for `[{steps}]`."
        if rows := list(_rows(node, seen)):
            yield from ("", "| field | takes | default |", "|---|---|---|", *rows)
        if (example := shown.get((place.path, kind))) is not None:
            yield from ("", f"Example: `{json.dumps(example)}`")


def _rows(node: type[Node], seen: dict[type[Node], str]) -> Iterator[str]:
    for name, field in node.model_fields.items():
        if name == "kind":
            continue
        below = {} if traced_range(field) is not None else kinds(field.annotation)
        if any(n.sparse for n in below.values()):
            words = "the tree's own shape, with what differs alone"
        elif below:
            words = f"see `{seen.get(next(iter(below.values())), name)}`" if set(below) == {""} else ", ".join(below)
        else:
            words = takes(field)
        yield f"| `{name}` | {_cell(words)} | {_cell(_default(field))} |"


def _default(field: FieldInfo) -> str:
    """A field's default as code, or that there is none."""
    told = default(field).strip()
    return "needed" if told == "(needed)" else f"`{told.removeprefix('= ').replace('()', '{}')}`" if told else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _scope(node: type[Node]) -> str | None:
    """The names that a formula of a node sees, and what it may do with them."""
    signature: Signature | None = getattr(node, "place", None) if issubclass(node, Formula) else {
        FormulaActivation: ACTIVATION, FormulaStep: STEP._replace(names=GIVEN)}.get(node)
    if signature is None or signature.names is None:
        return None
    reductions = ", ".join(signature.reductions())
    return ", ".join(f"`{name}`" for name in signature.names) + (f"; reductions: {reductions}" if reductions else "")


def _examples() -> Iterator[tuple[tuple[str, str], Any]]:
    """The shortest value that an idea puts at each place, by path and kind."""
    found: dict[tuple[str, str], Any] = {}
    for idea in ideas().values():
        for edit in idea.edits:
            path = _with_items(edit.path)
            for here, value in _values(path, edit.new):
                key, told = (here, value.get("kind", "") if isinstance(value, dict) else ""), json.dumps(value)
                relative = re.search(r'"(times|absent)":', told)
                if isinstance(value, dict) and not relative and len(told) < len(json.dumps(found.get(key, LONGEST))):
                    found[key] = value
    yield from found.items()


def _values(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield path, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _values(f"{path}.{name}" if path else str(name), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(path + ITEM, inner)


def _with_items(path: str) -> str:
    """An edit's path with ITEM for the names of items."""
    parts, out = path.split("."), ""
    for i, part in enumerate(parts):
        if i and get_origin(field_at(".".join(parts[:i])).annotation) is tuple and not out.endswith(ITEM):
            out += ITEM
        else:
            out += f".{part}" if out else part
    return out


