"""Formulas put to a shorter form: numbers reckoned, and what adds nothing or multiplies by one left out."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnano.config.expression import ELEMENTWISE, Signature, parse, reckon

ANY = Signature(None, reduces=True, draws=True)


def simplified(code: str) -> str:
    """A formula in a shorter form of the same value, where its numbers are finite."""
    return ast.unparse(fold(parse(code, ANY), {}))


def fold(node: ast.expr, numbers: Mapping[str, float]) -> ast.expr:
    """The tree of a formula with names put to numbers, and whatever those settle reckoned.

    A product with 0 is 0, whatever its shape was: who needs the shape broadcasts.
    """
    match node:
        case ast.Name(id=name):
            return ast.Constant(numbers[name]) if name in numbers else node
        case ast.UnaryOp(op=op, operand=operand):
            inner = fold(operand, numbers)
            if isinstance(op, ast.UAdd):
                return inner
            if isinstance(inner, ast.UnaryOp):
                return inner.operand
            return ast.Constant(-inner.value) if isinstance(inner, ast.Constant) else ast.UnaryOp(op, inner)  # type: ignore[operator]
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            base, power = fold(left, numbers), ast.literal_eval(right)
            short = {0: ast.Constant(1.0), 1: base}.get(power)
            return short or _reckoned(ast.BinOp(base, ast.Pow(), right))
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(fold(left, numbers), op, fold(right, numbers))
        case ast.Call(func=func, args=args):
            return _reckoned(ast.Call(func, [fold(arg, numbers) for arg in args], []))
    return node


def _binary(a: ast.expr, op: ast.operator, b: ast.expr) -> ast.expr:
    x, y = (node.value if isinstance(node, ast.Constant) else None for node in (a, b))
    match op:
        case ast.Add() if 0 in (x, y):
            return b if x == 0 else a
        case ast.Add() if isinstance(b, ast.UnaryOp):
            return _binary(a, ast.Sub(), b.operand)
        case ast.Sub() if isinstance(b, ast.UnaryOp):
            return _binary(a, ast.Add(), b.operand)
        case ast.Sub() if y == 0:
            return a
        case ast.Sub() if x == 0:
            return b.operand if isinstance(b, ast.UnaryOp) else ast.UnaryOp(ast.USub(), b)
        case ast.Sub() if ast.dump(a) == ast.dump(b):
            return ast.Constant(0.0)
        case ast.Mult() if 0 in (x, y):
            return ast.Constant(0.0)
        case ast.Mult() if 1 in (x, y):
            return b if x == 1 else a
        case ast.Div() if y == 1:
            return a
        case ast.Div() if x == 0 != y:
            return ast.Constant(0.0)
    return _reckoned(ast.BinOp(a, op, b))


def _reckoned(node: ast.BinOp | ast.Call) -> ast.expr:
    """A node of numbers alone as their value, if that is finite; noise and reductions stay."""
    parts = node.args if isinstance(node, ast.Call) else [node.left, node.right]
    fixed = bool(parts) and all(isinstance(ast_part(part), ast.Constant) for part in parts)
    if not fixed or isinstance(node, ast.Call) and (node.func.id not in ELEMENTWISE or _is_cosine(node)):  # type: ignore[attr-defined]
        return node
    with np.errstate(all="ignore"):
        value = float(reckon(node, {}))
    return ast.Constant(value) if math.isfinite(value) else node


def ast_part(node: Any) -> Any:
    """A number's node, without the sign that an exponent has for itself."""
    return node.operand if isinstance(node, ast.UnaryOp) else node


def _is_cosine(node: ast.Call) -> bool:
    return node.func.id == "cos" and len(node.args) == 2  # type: ignore[attr-defined]
