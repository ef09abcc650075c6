"""Small formulas as data: parsed by `ast` against a whitelist, bounded, and walked with JAX or NumPy. Never `eval`.

Numbers, names, + - * / ** and functions: elementwise ones everywhere, reductions where a place has whole tensors.
Reductions run over a tensor's last two axes, (in, out) of a linear map, or its last, the channels of a head, and keep
them with length 1.
"""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_CHARACTERS, MAX_NODES, MAX_DEPTH, MAX_EXPONENT, MAX_NUMBER = 300, 64, 16, 8.0, 1e6
DRAWN = 100.0  # operations of a Gaussian number, nearly all of them on whole numbers
STEEPEST, TINY = 1e-12, 1e-30  # roots are no steeper than here; powers and logarithms take no smaller number

ELEMENTWISE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("exp", "log", "log1p", "sqrt", "abs", "sign", "positive", "tanh", "sigmoid", "softplus", "relu",
                     "erf", "sin", "cos"), (1,)),
    **dict.fromkeys(("minimum", "maximum", "pow"), (2,)), **dict.fromkeys(("clip", "where"), (3,)),
}
REDUCTIONS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("norm", "rows", "columns", "neurons", "schatten", "mean"), (1,)),
    **dict.fromkeys(("dot", "cos"), (2,)),
}
DRAWS: dict[str, tuple[int, ...]] = {"noise": (0,)}
MATRIX_ONLY = ("rows", "columns", "neurons", "schatten")
_BINARY = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
_UNARY = {ast.USub: lambda a: -a, ast.UAdd: lambda a: a}


class ExpressionError(ValueError):
    """A formula outside the whitelist, with the column where it goes wrong."""


class Signature(NamedTuple):
    """Of a place where a formula stands: the names in scope (None: any), and whether tensors may be reduced, over how
    many of their last axes.

    draws: whether it may hold noise(), one Gaussian number for each of the tensor's.
    """

    names: tuple[str, ...] | None
    reduces: bool = False
    axes: int = 2
    draws: bool = False

    def reductions(self) -> dict[str, tuple[int, ...]]:
        """The reductions of this place; some are of matrices alone."""
        return {name: arity for name, arity in REDUCTIONS.items()
                if self.reduces and (self.axes == 2 or name not in MATRIX_ONLY)}

    def arities(self, function: str) -> tuple[int, ...]:
        """How many arguments a function may take here; empty for one that is not known."""
        return (ELEMENTWISE.get(function, ()) + self.reductions().get(function, ())
                + (DRAWS.get(function, ()) if self.draws else ()))

    def functions(self) -> list[str]:
        """The functions of this place."""
        return list(dict.fromkeys((*ELEMENTWISE, *self.reductions(), *(DRAWS if self.draws else ()))))


@lru_cache(maxsize=4096)
def parse(code: str, place: Signature) -> ast.expr:
    """Parse and check a formula.

    Args: code: for example "x * sigmoid(a * x)".
    Returns: the checked tree, for `evaluate`.
    Raises: ExpressionError with the column and the reason.
    """
    if len(code) > MAX_CHARACTERS:
        raise ExpressionError(f"column 1: {len(code)} characters; at most {MAX_CHARACTERS}")
    try:
        tree = ast.parse(code.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"column {getattr(error, 'offset', 1) or 1}: not a formula") from None
    if (size := sum(isinstance(node, ast.expr) for node in ast.walk(tree))) > MAX_NODES:
        raise ExpressionError(f"column 1: {size} operations and operands; at most {MAX_NODES}")
    _check(tree, place, depth=1)
    return tree


def canonical(code: str, params: Mapping[str, Any], place: Signature, needed: tuple[str, ...] = ()) -> str:
    """The one spelling of a formula: spaces and needless parentheses do not make another recipe.

    Args: params: its named numbers, all of which are used. needed: names of the place that it must use too.
    Raises: ExpressionError as `parse` does, and for a name that hides another or stands nowhere in the formula.
    """
    for name in params:
        if not is_free(name) or name in (place.names or ()):
            raise ExpressionError(f"parameter {name!r}: a name of its own is needed, like 'a'")
    if place.names is not None:
        place = place._replace(names=tuple(sorted({*params, *place.names})))
    text = ast.unparse(parse(code, place))
    used = names(text, place)
    if idle := sorted({*params, *needed} - used):
        raise ExpressionError(f"column 1: {', '.join(idle)} is not used")
    return text


def is_free(name: str) -> bool:
    """Whether something may be called this: a name in Python's sense that no function has."""
    return name.isidentifier() and not keyword.iskeyword(name) and name not in ELEMENTWISE | REDUCTIONS | DRAWS


@lru_cache(maxsize=4096)
def names(code: str, place: Signature) -> frozenset[str]:
    """The names that a formula reads."""
    tree = parse(code, place)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called)


@lru_cache(maxsize=4096)
def draws(code: str, place: Signature) -> bool:
    """Whether a formula holds noise."""
    return any(isinstance(node, ast.Call) and not node.args for node in ast.walk(parse(code, place)))


def _check(node: ast.expr, place: Signature, depth: int) -> None:
    def no(reason: str) -> ExpressionError:
        return ExpressionError(f"column {node.col_offset + 1}: {reason}")

    def unknown(what: str, name: str, known: list[str]) -> ExpressionError:
        near = "".join(f"; {other} would do" for other in get_close_matches(name, known, 1))
        return no(f"unknown {what} {name!r}; known: {', '.join(known)}{near}")

    if depth > MAX_DEPTH:
        raise no(f"nested deeper than {MAX_DEPTH}")
    match node:
        case ast.Constant(value=bool()) | ast.Constant(value=complex() | str() | bytes() | None):
            raise no(f"{node.value!r} is not a real number")
        case ast.Constant(value=int() | float() as value):
            if not math.isfinite(value) or abs(value) > MAX_NUMBER:
                raise no(f"numbers are at most {MAX_NUMBER:g}")
        case ast.Name(id=name):
            if name not in (place.names or (name,)):
                raise unknown("name", name, list(place.names or ()))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            if isinstance(op, ast.Pow) and not _small_integer(right):
                raise no(f"an exponent is a whole number of at most {MAX_EXPONENT:g} in size; pow(x, p) takes any")
            _check(left, place, depth + 1)
            _check(right, place, depth + 1)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            _check(operand, place, depth + 1)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if not (arities := place.arities(name)):
                raise unknown("function", name, place.functions())
            if len(args) not in arities or any(isinstance(a, ast.Starred) for a in args):
                raise no(f"{name} takes {' or '.join(map(str, arities))} argument(s)")
            for argument in args:
                _check(argument, place, depth + 1)
        case _:
            raise no(f"{type(node).__name__} is not allowed; numbers, names, + - * / ** and functions are")


def _small_integer(node: ast.expr) -> bool:
    sign = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(sign, ast.Constant) and isinstance(sign.value, int) and abs(sign.value) <= MAX_EXPONENT


def evaluate(code: str, values: Mapping[str, Any], reduces: bool = False, axes: int = 2,
             noise: Callable[[], Any] | None = None) -> Any:
    """The formula's value, differentiable. values: name -> array or number; NumPy's alone are reckoned by NumPy.

    noise: what draws, where the place does.
    """
    return reckon(parse(code, Signature(tuple(sorted(values)), reduces, axes, noise is not None)), values, axes, noise)


def reckon(tree: ast.expr, values: Mapping[str, Any], axes: int = 2, noise: Callable[[], Any] | None = None) -> Any:
    """The value of a checked tree, see `evaluate`."""
    plain = all(isinstance(value, np.ndarray | np.generic | int | float) for value in values.values())
    plain = plain and (noise is None or getattr(noise, "plain", False))
    functions = _numpy(axes) if plain else _jax(axes)
    return _walk(tree, values, np if plain else jnp, functions if noise is None else {**functions, "noise": noise})


def _walk(node: ast.expr, values: Mapping[str, Any], xp: Any, functions: Mapping[str, Callable[..., Any]]) -> Any:
    match node:
        case ast.Constant(value=value):  # an array, since Python's numbers raise on 1 / 0 and grow without bound
            return xp.asarray(float(value))  # type: ignore[arg-type]
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _walk(left, values, xp, functions) ** int(ast.literal_eval(right))
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_walk(left, values, xp, functions), _walk(right, values, xp, functions))
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_walk(operand, values, xp, functions))
        case ast.Call(func=ast.Name(id=name), args=args):
            return functions[_key(name, args)](*(_walk(argument, values, xp, functions) for argument in args))
    raise AssertionError("parse() admits nothing else")


def _key(name: str, args: list[ast.expr]) -> str:
    """`cos` of one argument is the elementwise one, of two the reduction."""
    return "cosine" if name == "cos" and len(args) == 2 else name


def _functions(xp: Any, reduced: int, root: Callable[[Any], Any]) -> dict[str, Callable[..., Any]]:
    """What NumPy and JAX say in the same words. reduced: how many of the last axes reductions run over."""

    def total(x: Any, axes: tuple[int, ...] | None = None) -> Any:
        return xp.sum(x, axis=tuple(range(-min(reduced, xp.ndim(x)), 0)) if axes is None else axes, keepdims=True)

    def norm(x: Any, axes: tuple[int, ...] | None = None) -> Any:
        return root(total(x * x, axes))

    def schatten(x: Any) -> Any:
        x = x.mT if x.shape[-2] > x.shape[-1] else x
        return root(norm(x @ x.mT))

    def cosine(a: Any, b: Any) -> Any:
        return total(a * b) / xp.maximum(norm(a) * norm(b), TINY)

    return {
        "exp": lambda x: xp.exp(xp.minimum(x, 30.0)),  # bounded, so that no formula overflows by itself
        "log": lambda x: xp.log(xp.maximum(x, TINY)), "log1p": lambda x: xp.log1p(xp.maximum(x, 0.0)),
        "abs": xp.abs, "sign": xp.sign, "positive": lambda x: xp.where(x > 0, xp.ones_like(x), xp.zeros_like(x)),
        "tanh": xp.tanh, "sin": xp.sin, "cos": xp.cos, "minimum": xp.minimum, "maximum": xp.maximum,
        "relu": lambda x: xp.maximum(x, 0.0), "clip": lambda x, low, high: xp.minimum(xp.maximum(x, low), high),
        "where": lambda x, positive, other: xp.where(x > 0, positive, other),
        "norm": norm, "rows": lambda x: norm(x, (-2,)), "columns": lambda x: norm(x, (-1,)),
        "neurons": lambda x: norm(x, (-2,) if x.shape[-1] >= x.shape[-2] else (-1,)),
        "schatten": schatten, "dot": lambda a, b: total(a * b), "cosine": cosine,
        "mean": lambda x: total(x) / max(1, math.prod(xp.shape(x)[-reduced:])),
    }


@cache
def _jax(axes: int) -> dict[str, Callable[..., Any]]:
    return _functions(jnp, axes, _sqrt) | {
        "sqrt": _sqrt, "pow": _pow, "sigmoid": jax.nn.sigmoid, "softplus": jax.nn.softplus, "relu": jax.nn.relu,
        "erf": jax.lax.erf,
    }


@cache
def _numpy(axes: int) -> dict[str, Callable[..., Any]]:
    from scipy import special  # read by who probes formulas, not by who trains

    return _functions(np, axes, np.sqrt) | {
        "sqrt": lambda x: np.sqrt(np.maximum(x, 0.0)), "pow": lambda x, p: np.maximum(x, TINY) ** p,
        "sigmoid": special.expit, "softplus": lambda x: np.logaddexp(x, 0.0), "erf": special.erf,
    }


@jax.custom_jvp
def _sqrt(x: Any) -> Any:
    """The root, 0 below 0; its slope at 0 stays finite."""
    return jnp.sqrt(jnp.maximum(x, 0.0))


@_sqrt.defjvp
def _sqrt_slope(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return _sqrt(x), jnp.where(x > 0, 0.5 / jnp.sqrt(jnp.maximum(x, STEEPEST)), 0.0) * dx


@jax.custom_jvp
def _pow(x: Any, p: Any) -> Any:
    """x to a real power, where x is at least TINY; its slope at 0 stays finite."""
    return jnp.maximum(x, TINY) ** p


@_pow.defjvp
def _pow_slope(primals: Any, tangents: Any) -> Any:
    (x, p), (dx, dp) = primals, tangents
    value = _pow(x, p)
    slope = jnp.where(x > 0, p * jnp.maximum(x, STEEPEST) ** (p - 1.0), 0.0)
    return value, slope * dx + value * jnp.log(jnp.maximum(x, TINY)) * dp


class Measure(NamedTuple):
    """Of a formula's value: its shape, and the operations that make it."""

    shape: tuple[int, ...]
    flops: float


def measure(code: str, shapes: Mapping[str, tuple[int, ...]], reduces: bool = True) -> Measure:
    """Shape and cost of a formula from the shapes of its names; noise has that of W.

    Raises: ExpressionError where a reduction needs a matrix and there is none.
    """
    return _measure(parse(code, Signature(tuple(sorted(shapes)), reduces, draws=True)), shapes)


def _measure(node: ast.expr, shapes: Mapping[str, tuple[int, ...]]) -> Measure:
    match node:
        case ast.Name(id=name):
            return Measure(shapes[name], 0.0)
        case ast.Call(args=[]):
            return Measure(shapes["W"], DRAWN * math.prod(shapes["W"]))
        case ast.BinOp(left=left, right=right):
            parts, reduction = [left, right], None
        case ast.UnaryOp(operand=operand):
            parts, reduction = [operand], None
        case ast.Call(func=ast.Name(id=name), args=args):
            parts, reduction = args, _key(name, args) if _key(name, args) in (*REDUCTIONS, "cosine") else None
            reduction = None if reduction == "cos" else reduction
        case _:
            return Measure((), 0.0)
    found = [_measure(part, shapes) for part in parts]
    shape, flops = np.broadcast_shapes(*(m.shape for m in found)), sum(m.flops for m in found)
    if reduction is None:
        return Measure(shape, flops + math.prod(shape))
    if reduction in MATRIX_ONLY and len(shape) < 2:
        raise ExpressionError(f"column {node.col_offset + 1}: {reduction} is of a matrix; {shape} is the shape of none")
    over = {"rows": (-2,), "columns": (-1,)}.get(reduction, tuple(range(-min(2, len(shape)), 0)))
    if reduction == "neurons":
        over = (-2,) if shape[-1] >= shape[-2] else (-1,)
    short = min(shape[-2:]) if reduction == "schatten" else 1
    kept = tuple(1 if axis - len(shape) in over else size for axis, size in enumerate(shape))
    return Measure(kept, flops + 2.0 * math.prod(shape) * short * (3 if reduction == "cosine" else 1))
