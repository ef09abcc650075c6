"""Small formulas as data: parsed by `ast` against a whitelist, bounded, and walked with JAX. Never `eval`."""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

MAX_CHARACTERS, MAX_NODES, MAX_DEPTH, MAX_EXPONENT, MAX_NUMBER = 300, 64, 12, 8.0, 1e6

FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "exp": (1, lambda x: jnp.exp(jnp.minimum(x, 30.0))),  # bounded, so that no formula overflows by itself
    "log1p": (1, lambda x: jnp.log1p(jnp.maximum(x, 0.0))),
    "sqrt": (1, lambda x: jnp.sqrt(jnp.maximum(x, 1e-12))),  # the gradient at 0 stays finite
    "abs": (1, jnp.abs),
    "tanh": (1, jnp.tanh),
    "sigmoid": (1, jax.nn.sigmoid),
    "softplus": (1, jax.nn.softplus),
    "relu": (1, jax.nn.relu),
    "erf": (1, jax.lax.erf),
    "sin": (1, jnp.sin),
    "cos": (1, jnp.cos),
    "minimum": (2, jnp.minimum),
    "maximum": (2, jnp.maximum),
}
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


@lru_cache(maxsize=4096)
def parse(code: str, names: tuple[str, ...]) -> ast.expr:
    """Parse and check a formula.

    Args: code: for example "x * sigmoid(a * x)". names: the variables it may use.
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
    _check(tree, names, depth=1)
    return tree


def canonical(code: str, params: Mapping[str, Any], variable: str) -> str:
    """The one spelling of a formula: spaces and needless parentheses do not make another recipe.

    Args: params: its named numbers. variable: what it is a function of. All of them are used.
    Raises: ExpressionError as `parse` does, and for a name that hides another or stands nowhere in the formula.
    """
    for name in params:
        if not name.isidentifier() or name == variable or name in FUNCTIONS or keyword.iskeyword(name):
            raise ExpressionError(f"parameter {name!r}: a name of its own is needed, like 'a'")
    names = tuple(sorted((*params, variable)))
    text = ast.unparse(parse(code, names))
    used = {node.id for node in ast.walk(parse(text, names)) if isinstance(node, ast.Name)}
    if idle := [name for name in names if name not in used]:
        raise ExpressionError(f"column 1: {', '.join(idle)} is not used")
    return text


def evaluate(code: str, values: Mapping[str, Any]) -> Any:
    """The formula's value, elementwise, differentiable. `values`: variable name -> array or scalar."""
    return _walk(parse(code, tuple(sorted(values))), values)


def _check(node: ast.expr, names: tuple[str, ...], depth: int) -> None:
    def no(reason: str) -> ExpressionError:
        return ExpressionError(f"column {node.col_offset + 1}: {reason}")

    if depth > MAX_DEPTH:
        raise no(f"nested deeper than {MAX_DEPTH}")
    match node:
        case ast.Constant(value=bool()) | ast.Constant(value=complex() | str() | bytes() | None):
            raise no(f"{node.value!r} is not a real number")
        case ast.Constant(value=int() | float() as value):
            if not math.isfinite(value) or abs(value) > MAX_NUMBER:
                raise no(f"numbers are at most {MAX_NUMBER:g}")
        case ast.Name(id=name):
            if name not in names:
                raise no(f"unknown name {name!r}; known: {', '.join(names)}")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            if isinstance(op, ast.Pow) and not _small_integer(right):
                raise no(f"an exponent is a whole number of at most {MAX_EXPONENT:g} in size")
            _check(left, names, depth + 1)
            _check(right, names, depth + 1)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            _check(operand, names, depth + 1)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if name not in FUNCTIONS:
                raise no(f"unknown function {name!r}; known: {', '.join(FUNCTIONS)}")
            if len(args) != FUNCTIONS[name][0] or any(isinstance(a, ast.Starred) for a in args):
                raise no(f"{name} takes {FUNCTIONS[name][0]} argument(s)")
            for argument in args:
                _check(argument, names, depth + 1)
        case _:
            raise no(f"{type(node).__name__} is not allowed; numbers, names, + - * / ** and functions are")


def _small_integer(node: ast.expr) -> bool:
    sign = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(sign, ast.Constant) and isinstance(sign.value, int) and abs(sign.value) <= MAX_EXPONENT


def _walk(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):  # an array, since Python's numbers raise on 1 / 0 and grow without bound
            return jnp.asarray(float(value))  # type: ignore[arg-type]
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _walk(left, values) ** int(ast.literal_eval(right))
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_walk(left, values), _walk(right, values))
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_walk(operand, values))
        case ast.Call(func=ast.Name(id=name), args=args):
            return FUNCTIONS[name][1](*(_walk(argument, values) for argument in args))
    raise AssertionError("parse() admits nothing else")
