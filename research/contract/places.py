"""Where formulas stand in a recipe, or may stand, and how far what two of them do lies apart.

Places are found by their types, so a new one is here by itself.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_origin

import numpy as np

from jaxnano.config import expression, presets
from jaxnano.config.base import Node, fields, finite, name_of, nodes_in
from jaxnano.config.block import ACTIVATION, FormulaActivation
from jaxnano.config.expression import ExpressionError, Signature
from jaxnano.config.formulas import Formula
from jaxnano.config.optimizer import Group, View
from jaxnano.config.recipe import Recipe
from jaxnano.config.schedule import PLACE, Constant, FormulaSchedule, Schedule
from jaxnano.config.transforms import GIVEN, STEP, FormulaStep, TakeStep
from jaxnano.config.wires import Coefficient
from research.contract.probe import along, made_up

CURVES = {"gelu": "x / 2 * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x ** 3)))", "silu": "x * sigmoid(x)",
          "relu2": "relu(x) ** 2"}  # what those with a name are
EXACT_GELU = "x / 2 * (1 + erf(0.7071067811865476 * x))"
RATES = ("lr",)  # numbers that may become schedules where they are none


class Place(NamedTuple):
    """Where a formula may stand. node: what holds it there; names: in scope; needed: the name that it changes.

    code, params: what stands there now, as a formula. size: of a schedule, its peak. after: of a line that is not there
    yet, the one before it.
    """

    path: str
    node: type[Node]
    signature: Signature
    names: tuple[str, ...]
    needed: str
    code: str
    params: Mapping[str, float]
    size: float = 1.0
    after: str | None = None


def places(recipe: Recipe) -> Iterator[Place]:
    """The places of a recipe."""
    yield from _below(recipe, "")


def _below(node: Node, path: str) -> Iterator[Place]:
    for name, value, field in fields(node):
        here, kinds = f"{path}.{name}" if path else name, []
        if get_origin(field.annotation) is not tuple:
            kinds = [kind for kind in nodes_in(field.annotation) if "code" in kind.model_fields]
        for kind in kinds:
            if (found := _place(here, name, kind, value)) is not None:
                yield found
        for item in value if isinstance(value, tuple) else ():
            if isinstance(item, Formula) and item.place.names is not None:
                yield _formula_place(f"{here}.{name_of(item)}", type(item), item)
        items = value if isinstance(value, tuple) else (value,)
        if isinstance(node, Group) and name == "chain":
            yield from _lines(node, here)
            continue
        for item in items:
            if isinstance(item, Node) and not isinstance(item, Schedule | Formula):
                yield from _below(item, here if item is value else f"{here}.{name_of(item)}")


def _place(path: str, name: str, kind: type[Node], value: Any) -> Place | None:
    """The place of a field that takes this kind of formula."""
    if kind is FormulaActivation:
        code = value.code if isinstance(value, kind) else CURVES[value.kind]
        return Place(path, kind, ACTIVATION, ("x",), "x", code, _numbers(value))
    if kind is FormulaSchedule:
        if not isinstance(value, Schedule) and not (finite(value) and name in RATES):
            return None
        code, size = _shape(value)
        return Place(path, kind, PLACE, ("progress",), "progress", code, _numbers(value), size)
    if kind is Coefficient and value is None:
        return None  # to keep nothing of a stream is no place to begin
    if issubclass(kind, Formula) and kind.place.names and not issubclass(kind, View):
        return _formula_place(path, kind, value)
    return None


def _formula_place(path: str, kind: type[Formula], value: Any) -> Place:
    names = tuple(kind.place.names or ())
    needed = kind.needed[0] if kind.needed else names[0]
    stands = isinstance(value, kind)
    return Place(path, kind, kind.place, names, needed, value.code if stands else needed, _numbers(value))


def _numbers(value: Any) -> dict[str, float]:
    """A formula's numbers, of a schedule its peak."""
    found = {name: getattr(item, "value", item) for name, item in getattr(value, "params", {}).items()}
    return {name: float(item) for name, item in found.items() if finite(item)}


def _shape(value: Any) -> tuple[str, float]:
    """A schedule as a formula of progress, and its peak."""
    if finite(value):
        return f"{value:.6g} + 0 * progress", float(value)
    if isinstance(value, FormulaSchedule):
        peak = float(np.abs(along(value, None, np.linspace(0, 1, 101))).max())
        return value.code, peak
    after = f"clip((progress - {value.warmup:.4g}) / {1 - value.warmup:.4g}, 0, 1)" if value.warmup else "progress"
    code = {"constant": "1 + 0 * progress", "linear": f"1 - {after}", "cosine": f"(1 + cos(3.1416 * {after})) / 2",
            "trapezoid": f"minimum(1, (1 - progress) / {getattr(value, 'cooldown', 1):.4g})",
            "power_cool": f"minimum(1, pow((1 - progress) / {getattr(value, 'cooldown', 1):.4g}, "
                          f"{getattr(value, 'power', 1):.4g}))"}[value.kind]
    if value.floor and not isinstance(value, Constant):
        code = f"{value.floor:.4g} + {1 - value.floor:.4g} * ({code})"
    code = f"minimum(1, progress / {value.warmup:.4g}) * ({code})" if value.warmup else code
    return f"{value.value:.6g} * ({code})", float(value.value)


def _lines(group: Group, path: str) -> Iterator[Place]:
    """The lines of a chain that are formulas, and where another may come: after each that leaves u as a direction."""
    known: dict[str, None] = dict.fromkeys((*GIVEN[:3], *GIVEN[4:6], *(f"{p.name}_{one}" for p in group.partners
                                                                       for one in ("W", "g", "u"))))
    for item in group.chain:
        here, steps = f"{path}.{name_of(item)}", presets.expand(item)
        if isinstance(item, FormulaStep):
            numbers = _numbers(item)
            if numbers.keys() == item.params.keys():
                names = {**known, **dict.fromkeys(sorted(item.reads))}
                yield Place(here, FormulaStep, STEP, tuple(names), _first(item.code, known), item.code, numbers)
        if any(isinstance(step, TakeStep) or "W" in step.writes for step in steps):
            return
        known |= dict.fromkeys(name for step in steps for name in step.writes if isinstance(step, FormulaStep)
                               or name == getattr(step, "name", ""))
        if "u" in steps[-1].writes:
            yield Place(f"{path}.invented", FormulaStep, STEP, tuple(known), "u", "u", {}, after=name_of(item))


def _first(code: str, known: Mapping[str, None]) -> str:
    return next((name for name in ("u", *known) if name in expression.names(code, STEP)), "u")


def values(place: Place, code: str, params: Mapping[str, float]) -> np.ndarray:
    """What a formula does on made-up values, one row for each size of them; not finite where it is nothing there."""
    rest = (64,) if not place.signature.reduces else (8, 8) if place.signature.axes == 1 else (6, 8)
    tree = expression.parse(code, place.signature._replace(names=None))
    scope = {node.id: made_up(node.id, rest, place.signature) for node in ast.walk(tree) if isinstance(node, ast.Name)
             and node.id not in params}
    scope |= {"fan_in": np.float64(6.0), "fan_out": np.float64(8.0)}
    noise = lambda: made_up("noise", rest, place.signature)  # noqa: E731
    noise.plain = True  # type: ignore[attr-defined]
    known, shape = {**scope, **params}, (len(made_up("x", rest, place.signature)), *rest)
    try:
        expression.measure(code, {"W": shape} | {name: np.shape(value) for name, value in known.items()})
    except ExpressionError:  # a norm of what has no rows
        return np.full((shape[0], math.prod(rest)), np.nan)
    with np.errstate(all="ignore"):
        found = expression.reckon(tree, known, place.signature.axes, noise if place.signature.draws else None)
        return np.broadcast_to(found, shape).reshape(shape[0], -1)


def profile(place: Place, code: str, params: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """A formula's shape along the name that it changes, all others at a half: where, and its values."""
    x = np.linspace(0, 1, 161) if place.needed == "progress" else np.linspace(-4, 4, 161)
    at = x.reshape(-1, *[1] * (place.signature.axes if place.signature.reduces else 0))
    half = {name: np.float64(0.5) for name in (*place.names, "fan_in", "fan_out")}
    noise = lambda: np.float64(0.5)  # noqa: E731
    noise.plain = True  # type: ignore[attr-defined]
    tree = expression.parse(code, place.signature._replace(names=None))
    with np.errstate(all="ignore"):
        found = expression.reckon(tree, {**half, place.needed: at, **params}, place.signature.axes,
                                  noise if place.signature.draws else None)
    return x, np.broadcast_to(found, at.shape).ravel()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """How far apart what two formulas do is, 0 to 1: the mean over sizes of |a - b| / (|a| + |b|)."""
    size = lambda x: np.sqrt((x * x).mean(-1))  # noqa: E731
    return float(np.mean(size(a - b) / np.maximum(size(a) + size(b), 1e-30)))

