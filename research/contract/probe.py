"""What formulas and schedules do, felt by trying them on made-up values: two spellings of one thing feel alike.

Each number of a formula is moved a little too, and what each name holds is bent. What a probe does not feel (a
threshold that nothing reaches, a guard against zero) it cannot vouch for: then the formula's text stands beside what
was felt, with names put to what they hold, and other texts are other formulas. NumPy in float64; nothing is compiled.
"""

from __future__ import annotations

import ast
import hashlib
import math
import zlib
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter

from jaxnano.config.base import Node, Range, digest, dump, finite, traced_range
from jaxnano.config.expression import Signature, parse, reckon
from jaxnano.config.schedule import Constant, FormulaSchedule, Schedule, evaluate
from research.contract.algebra import ANY, fold

MOVED, FELT = 1e-3, 4e-6  # by how much a leaf is moved, and by how much a mark has to move to feel it
SCALES = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 12.0, 27.0)  # of values, one block each
GRID = (np.arange(2048) + np.random.default_rng(1).random(2048)) / 2048  # of progress, for schedules
REACH = {"distance": lambda x: np.floor(x * x * 600), "head": lambda x: np.floor(8 * x), "heads": lambda x: 8 + 0 * x,
         "depth": lambda x: x, "progress": lambda x: x}  # what is no free number, of a uniform one
UNITS = 1.36692  # so that round values lie on no edge of rounding


def number(value: Any, span: Range | None) -> Any:
    """A number to three digits, of what it matters by: no run could tell the fourth."""
    return float(f"{1.0 - value:.3g}") if span and span.scale == "decay" else float(f"{value:.3g}") + 0.0


def _three(value: float, span: Range | None) -> float:
    """`number` as a value again."""
    return 1.0 - number(value, span) if span and span.scale == "decay" else number(value, span)


def traced(value: Any, span: Range | None) -> Any:
    """What stands in a traced field: a number, whatever schedule says it, or a name for a curve."""
    if isinstance(value, Schedule):
        return _curve(value.model_dump_json(), span)
    if isinstance(value, dict):
        return {key: traced(item, span) for key, item in value.items()}
    return number(value, span) if finite(value) else value


def along(value: Any, span: Range | None, progress: np.ndarray) -> Any:
    """A traced field's value at some progress, of a number itself."""
    if not isinstance(value, Schedule):
        return _three(value, span) if finite(value) else value
    found = np.broadcast_to(evaluate(_rounded(value, span), progress, horizons(progress.shape)), progress.shape)
    return np.clip(found, span.low, span.high) if span else found


def _rounded(schedule: Any, span: Range | None, factor: tuple[str, float] = ("", 0.0)) -> Any:
    """A schedule with its numbers to three digits. factor: a number to be moved, and by how much."""
    update: dict[str, Any] = {}
    for name, field in type(schedule).model_fields.items():
        value = getattr(schedule, name)
        if finite(value):
            value = _three(value, span if name == "value" else traced_range(field))
            update[name] = (value * (1 + factor[1]) if value else factor[1]) if factor[0] == name else value
        elif isinstance(value, dict):
            update[name] = {key: number(item, None) for key, item in value.items()}
    return schedule.model_copy(update=update)


_SCHEDULE = TypeAdapter(Annotated[Schedule, Field(discriminator="kind")])


@lru_cache(maxsize=4096)
def _read(schedule: str) -> Any:
    return _SCHEDULE.validate_json(schedule)


@lru_cache(maxsize=4096)
def _curve(text: str, span: Range | None) -> Any:
    schedule = _read(text)
    with np.errstate(all="ignore"):
        values = along(schedule, span, GRID)
        if np.ptp(values) == 0:
            return number(float(values[0]), span)
        blind: list[Any] = []
        if isinstance(schedule, FormulaSchedule):
            found = felt(schedule.code, tuple(sorted(_rounded(schedule, None).params.items())))
            told = {"progress": GRID, "horizon": horizons(GRID.shape)}
            blind += [] if all(moves(values, reckon(found.tree, {**told, **found.moved(i, GRID.shape)}))
                               for i in range(len(found.rest))) else [found.text({})]
        for name, value in schedule:
            if finite(value) and not (isinstance(schedule, Constant) and name == "floor"):
                there = np.broadcast_to(evaluate(_rounded(schedule, span, (name, MOVED)), GRID), GRID.shape)
                blind += [] if moves(values, there) else [(name, value)]
    return "curve " + digest([_coarse(values), blind])


def _coarse(values: np.ndarray) -> str:
    """A curve to a millionth of its size, as a name."""
    values = values * UNITS
    size = 10.0 ** math.floor(math.log10(max(float(np.abs(values).max()), 1e-300)))
    whole = np.rint(np.nan_to_num(values / size * 1e6, nan=2e7, posinf=3e7, neginf=-3e7)).astype("<i4")
    return f"{size:.0e} {hashlib.sha256(whole.tobytes()).hexdigest()[:16]}"


def moves(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether marks differ by more than rounding."""
    alike = (a == b) | np.isnan(a) & np.isnan(b) | (np.abs(a - b) <= FELT * np.abs(a))
    return not np.all(alike)


class Felt(NamedTuple):
    """A formula whose leaves can be moved. short: its tree; tree: the same with a factor _0, _1 ... to each leaf, or a
    summand of a zero; rest: what those are where nothing is moved; bent: which leaves hold names; names: all read."""

    short: ast.expr
    tree: ast.expr
    rest: tuple[float, ...]
    bent: tuple[bool, ...]
    names: frozenset[str]

    def moved(self, i: int | None, shape: tuple[int, ...]) -> dict[str, Any]:
        """Values of the factors with one of them moved. shape: of what a name holds."""
        found: dict[str, Any] = {f"_{j}": rest for j, rest in enumerate(self.rest)}
        if i is not None:
            found[f"_{i}"] = bend(shape) if self.bent[i] else self.rest[i] + MOVED
        return found

    def text(self, held: Mapping[str, Any]) -> str:
        """The formula's text, its names put to what they hold, in the order of the alphabet where order is nothing."""
        return _ordered(self.short, held)


def _ordered(node: ast.expr, held: Mapping[str, Any]) -> str:
    match node:
        case ast.Name(id=name):
            return str(held.get(name, name))
        case ast.BinOp(left=left, op=op, right=right):
            parts = [_ordered(left, held), _ordered(right, held)]
            parts = sorted(parts) if isinstance(op, ast.Add | ast.Mult) else parts
            return f"({f' {type(op).__name__} '.join(parts)})"
        case ast.UnaryOp(op=op, operand=operand):
            return f"{type(op).__name__} {_ordered(operand, held)}"
        case ast.Call(func=func, args=args):
            parts, name = [_ordered(arg, held) for arg in args], ast.unparse(func)
            return f"{name}({', '.join(sorted(parts) if name in ('minimum', 'maximum', 'dot') else parts)})"
    return repr(float(ast.literal_eval(node)))


@lru_cache(maxsize=4096)
def felt(code: str, numbers: tuple[tuple[str, float], ...]) -> Felt:
    """A formula with these numbers put in and reckoned."""
    short, rest, bent = fold(parse(code, ANY), dict(numbers)), [], []

    def loose(node: ast.expr) -> ast.expr:
        match node:
            case ast.Name() | ast.Constant() | ast.Call(args=[]):
                zero = isinstance(node, ast.Constant) and node.value == 0
                rest.append(0.0 if zero else 1.0)
                bent.append(not isinstance(node, ast.Constant))
                return ast.BinOp(node, ast.Add() if zero else ast.Mult(), ast.Name(f"_{len(rest) - 1}"))
            case ast.BinOp(left=left, op=ast.Pow() as op, right=right):
                return ast.BinOp(loose(left), op, right)
            case ast.BinOp(left=left, op=op, right=right):
                return ast.BinOp(loose(left), op, loose(right))
            case ast.UnaryOp(op=op, operand=operand):
                return ast.UnaryOp(op, loose(operand))
            case ast.Call(func=func, args=args):
                return ast.Call(func, [loose(arg) for arg in args], [])
        raise AssertionError("parse() admits nothing else")

    tree, called = loose(short), {node.func for node in ast.walk(short) if isinstance(node, ast.Call)}
    names = (node.id for node in ast.walk(short) if isinstance(node, ast.Name) and node not in called)
    return Felt(short, tree, tuple(rest), tuple(bent), frozenset(names))


@lru_cache(maxsize=64)
def horizons(shape: tuple[int, ...]) -> np.ndarray:
    """Steps of runs, another for each place."""
    return np.random.default_rng([5, *shape]).uniform(100.0, 1e4, shape)


@lru_cache(maxsize=64)
def bend(shape: tuple[int, ...]) -> np.ndarray:
    """Factors of either sign that bend what a name holds."""
    return np.random.default_rng([3, *shape]).normal(0.3, 1.0, shape)


def marks(values: Any, lead: int) -> np.ndarray:
    """A value as two numbers for each place of its first axes: sums with random weights of all that stands behind."""
    flat = np.reshape(values, (*np.shape(values)[:lead], -1))
    return flat @ _weights(flat.shape[-1])


@lru_cache(maxsize=64)
def _weights(size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal((size, 2)) * UNITS


def shown(found: Iterable[float]) -> list[str]:
    """Marks as text, to seven digits."""
    return [f"{value + 0.0:.6e}" for value in found]


def formula(code: str, params: Mapping[str, Any], place: Signature, span: Range | None,
            names: Mapping[str, str] | None = None) -> Any:
    """A name for what a formula does at its place; None for one that leaves a name alone as it is.

    Args: params: its traced numbers. span: their range. names: what else is in scope, by name what tells it apart.
    """
    plain = [(name, value.model_dump_json() if isinstance(value, Schedule) else _three(value, span))
             for name, value in sorted(params.items())]
    return _formula(code, tuple(plain), place, span, tuple(sorted((names or {}).items())))


@lru_cache(maxsize=4096)
def _formula(code: str, params: tuple[tuple[str, Any], ...], place: Signature, span: Range | None,
             names: tuple[tuple[str, str], ...]) -> Any:
    fixed = {name: value for name, value in params if not isinstance(value, str)}
    curves = {name: value for name, value in params if isinstance(value, str)}
    found, told = felt(code, tuple(sorted(fixed.items()))), dict(names)
    if isinstance(found.short, ast.Name) and found.short.id not in curves:
        return ["is", told.get(found.short.id, found.short.id)]
    rests = ((64,),) if not place.reduces else ((8, 8),) if place.axes == 1 else ((4, 6), (6, 4))
    seen, blind = [], set(range(len(found.rest)))
    with np.errstate(all="ignore"):
        for rest in rests:
            scope = {name: made_up(told.get(name, name), rest, place) for name in found.names - curves.keys()}
            progress = made_up("progress", rest, place)
            scope |= {name: along(_read(value), span, progress) for name, value in curves.items()}
            before = _marked(found, scope, rest, place, None)
            blind -= {i for i in blind if moves(before, _marked(found, scope, rest, place, i))}
            seen += shown(before.ravel())
    held = told | {name: _curve(value, span) for name, value in curves.items()}
    told_curves = sorted(str(_curve(value, span)) for name, value in curves.items() if name in found.names)
    return digest([seen, found.text(held) if blind else "", told_curves])


def _marked(found: Felt, scope: Mapping[str, Any], rest: tuple[int, ...], place: Signature, i: int | None
            ) -> np.ndarray:
    value = reckon(found.tree, {**scope, **found.moved(i, rest)}, place.axes)
    return marks(np.broadcast_to(value, (len(SCALES), *rest)), 1)


@lru_cache(maxsize=512)
def made_up(key: str, rest: tuple[int, ...], place: Signature) -> np.ndarray:
    """Made-up values of a name, [block, ...]: a number for each point, or where tensors are reduced a tensor."""
    rng = np.random.default_rng([zlib.crc32(key.encode()), *rest])
    share = key.endswith(("_decay", "_weight"))
    if key in REACH or share:
        shape = rest if not place.reduces else (rest[0], 1) if place.axes == 1 else (1, 1)
        drawn = rng.random((len(SCALES), *shape))
        return drawn if share else REACH[key](drawn)
    scale = np.reshape(SCALES, (-1, *[1] * len(rest)))
    return rng.standard_normal((len(SCALES), *rest)) * scale


def node(value: Node, span: Range | None, place: Signature, apart: Collection[str] = ()) -> list[Any]:
    """A formula's node: what the formula does, and its other fields less those `apart`."""
    told = formula(value.code, value.params, place, span)  # type: ignore[attr-defined]
    rest = {name: item for name, item in dump(value).items() if name not in ("code", "params", *apart)}
    return [told, rest]

