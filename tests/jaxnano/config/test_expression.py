"""Formulas: what is refused, with column and reason, at once; what is accepted has a value and one spelling."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnano.config.expression import (
    ELEMENTWISE,
    REDUCTIONS,
    ExpressionError,
    Signature,
    canonical,
    evaluate,
    measure,
    parse,
)
from jaxnano.config.recipe import recipe_id
from tests.jaxnano.recipes import model

X, AX = Signature(("x",)), Signature(("a", "x"))


@pytest.mark.parametrize(("code", "message"), [
    ("x.__class__", "column 1: Attribute is not allowed"),
    ("1 + x.real", "column 5: Attribute is not allowed"),
    ("__import__('os')", "column 1: unknown function '__import__'"),
    ("exec('1')", "unknown function 'exec'"),
    ("exp(x)(x)", "Call is not allowed"),
    ("exp", "unknown name 'exp'"),
    ("exp()", "exp takes 1 argument(s)"),
    ("exp(x, x)", "exp takes 1 argument(s)"),
    ("exp(*x)", "exp takes 1 argument(s)"),
    ("exp(x=1)", "Call is not allowed"),
    ("lambda: x", "Lambda is not allowed"),
    ("[x for x in x]", "ListComp is not allowed"),
    ("{x}", "Set is not allowed"),
    ("x[0]", "Subscript is not allowed"),
    ("x if x else x", "IfExp is not allowed"),
    ("x < 1", "Compare is not allowed"),
    ("x and x", "BoolOp is not allowed"),
    ("not x", "UnaryOp is not allowed"),
    ("~x", "UnaryOp is not allowed"),
    ("x @ x", "BinOp is not allowed"),
    ("x % 2", "BinOp is not allowed"),
    ("x << 2", "BinOp is not allowed"),
    ("(x := 2)", "NamedExpr is not allowed"),
    ("f'{x}'", "JoinedStr is not allowed"),
    ("'text'", "'text' is not a real number"),
    ("True * x", "True is not a real number"),
    ("None", "None is not a real number"),
    ("2j * x", "2j is not a real number"),
    ("...", "Constant is not allowed"),
    ("x + y", "column 5: unknown name 'y'; known: a, x"),
    ("sigmod(x)", "column 1: unknown function 'sigmod'"),
    ("sigmod(x)", "; sigmoid would do"),
    ("norm(x)", "unknown function 'norm'"),
    ("cos(x, x)", "cos takes 1 argument(s)"),
    ("x ** 9", "an exponent is a whole number of at most 8"),
    ("x ** 2.5", "an exponent is a whole number"),
    ("x ** x", "an exponent is a whole number"),
    ("x ** ~2", "UnaryOp is not allowed"),
    ("x ** True", "True is not a real number"),
    ("2 ** 10 ** 10", "an exponent is a whole number"),
    ("1e7", "numbers are at most 1e+06"),
    ("1e999", "numbers are at most 1e+06"),
    ("9" * 250, "numbers are at most 1e+06"),
    ("x +", "not a formula"),
    ("x; x", "not a formula"),
    ("x = 2", "not a formula"),
    ("import os", "not a formula"),
    ("", "not a formula"),
    ("x\x00", "not a formula"),
    ("x + " * 100 + "x", "401 characters; at most 300"),
    ("x+" * 120 + "x", "241 operations and operands; at most 64"),
    ("(" * 140 + "x" + ")" * 140, None),
    ("(" * 290, "not a formula"),
    ("-" * 60 + "x", "nested deeper than 16"),
    ("-" * 290 + "x", "operations and operands; at most 64"),
    ("exp(" * 17 + "x" + ")" * 17, "nested deeper than 16"),
])
def test_hostile_formulas(code: str, message: str | None) -> None:
    if message is None:
        parse(code, AX)
    else:
        with pytest.raises(ExpressionError) as caught:
            parse(code, AX)
        assert message in str(caught.value) and str(caught.value).startswith("column ")
        assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="xa0123456789.+-*/()e, _[]{}'\"\\:;=<>\n~^%@&|!abc", max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        spelled = canonical(text, {"a": 1.0}, X, ("x",))
    except ExpressionError as error:
        assert "\n" not in str(error)
    else:
        assert canonical(spelled, {"a": 1.0}, X, ("x",)) == spelled


@pytest.mark.parametrize(("code", "expected"), [
    ("1 / 0 * x", math.inf),
    ("0 ** -1 * x", math.inf),
    ("((((((9 ** 8) ** 8) ** 8) ** 8) ** 8) ** 8) * x", math.inf),
    ("relu(1) + erf(1 - 1) * x", 1.0),
    ("minimum(x, 3) - maximum(x, 3)", -1.0),
    ("-x ** 2", -4.0),
    ("2 ** -2 * x", 0.5),
    ("log1p(-5) + sqrt(-4) * x", 0.0),
    ("exp(1000 * x) / exp(30)", 1.0),
])
def test_values(code: str, expected: float) -> None:
    assert float(jax.jit(lambda x: evaluate(code, {"x": x}))(jnp.float32(2.0))) == pytest.approx(expected, abs=3e-6)


def by_hand(name: str, *args: float) -> float:
    known = {"relu": lambda x: max(x, 0), "sigmoid": lambda x: 1 / (1 + math.exp(-x)), "abs": abs, "minimum": min,
             "maximum": max, "softplus": lambda x: math.log1p(math.exp(x)), "sign": lambda x: math.copysign(1, x),
             "positive": lambda x: float(x > 0), "clip": lambda x, low, high: min(max(x, low), high),
             "where": lambda x, a, b: a if x > 0 else b}
    return (known.get(name) or getattr(math, name))(*args)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_function_is_the_one_of_its_name_and_has_a_slope(name: str) -> None:
    """By JAX and by NumPy alike."""
    args = [0.3, 0.7, 0.9][:ELEMENTWISE[name][0]]
    code = f"{name}({', '.join(['x', *map(str, args[1:])])})"
    for x in (jnp.float32(0.3), np.float64(0.3)):
        assert float(evaluate(code, {"x": x})) == pytest.approx(by_hand(name, *args), rel=1e-5)
    for x in (0.3, 0.0, -0.5):
        assert np.isfinite(jax.grad(lambda x: evaluate(code, {"x": x}))(jnp.float32(x)))


@pytest.mark.parametrize("code", ["sqrt(x)", "pow(x, 0.5)", "pow(x, 1.5)", "log(x)"])
def test_roots_are_exact_where_they_are_small_and_their_slopes_are_finite(code: str) -> None:
    x = jnp.float32(1e-16)
    expected = {"sqrt(x)": 1e-8, "pow(x, 0.5)": 1e-8, "pow(x, 1.5)": 1e-24, "log(x)": math.log(1e-16)}[code]
    assert float(evaluate(code, {"x": x})) == pytest.approx(expected, rel=1e-5)
    slope = jax.grad(lambda x: evaluate(code, {"x": x}))
    for small in (1e-16, 0.0, -1.0):
        assert np.isfinite(slope(jnp.float32(small)))
    assert float(jax.grad(lambda p: evaluate("pow(x, p)", {"x": 2.0, "p": p}))(jnp.float32(3))) == pytest.approx(
        8 * math.log(2), rel=1e-5)


def test_reductions_keep_their_axes_and_the_measure_tells_their_shapes() -> None:
    """Of (in, out): rows is a norm per output, columns per input, neurons along the longer axis."""
    x, y = np.random.default_rng(0).normal(size=(2, 3, 5))
    expected = {"norm(x)": np.linalg.norm(x, keepdims=True), "rows(x)": np.linalg.norm(x, axis=0, keepdims=True),
                "columns(x)": np.linalg.norm(x, axis=1, keepdims=True), "mean(x)": np.mean(x, keepdims=True),
                "neurons(x)": np.linalg.norm(x, axis=0, keepdims=True), "dot(x, y)": np.sum(x * y, keepdims=True),
                "schatten(x)": np.sum(np.linalg.svd(x)[1] ** 4, keepdims=True)[None] ** 0.25,
                "cos(x, y)": np.sum(x * y, keepdims=True) / np.linalg.norm(x) / np.linalg.norm(y)}
    assert {code.partition("(")[0] for code in expected} == REDUCTIONS.keys()
    for code, value in expected.items():
        values = {"x": x, "y": y}
        np.testing.assert_allclose(evaluate(code, values, reduces=True), value, rtol=1e-12)
        in_jax = evaluate(code, {name: jnp.asarray(v, jnp.float32) for name, v in values.items()}, reduces=True)
        np.testing.assert_allclose(in_jax, value, rtol=1e-5)
        assert measure(code, {"x": (3, 5), "y": (3, 5)}).shape == value.shape
    assert measure("x * rows(x) + 1", {"x": (3, 5)}) == ((3, 5), 30 + 15 + 15)
    assert evaluate("neurons(x)", {"x": x.T}, reduces=True).shape == (5, 1)
    for code, value in {"norm(x)": np.linalg.norm(x, axis=1, keepdims=True), "mean(x)": x.mean(1, keepdims=True),
                        "dot(x, y)": (x * y).sum(1, keepdims=True)}.items():  # over the last axis alone
        np.testing.assert_allclose(evaluate(code, {"x": x, "y": y}, reduces=True, axes=1), value, rtol=1e-12)
    slope = jax.grad(lambda x: evaluate("norm(x)", {"x": x}, reduces=True, axes=1).sum())
    assert np.isfinite(slope(jnp.zeros((2, 3)))).all()
    with pytest.raises(ExpressionError, match="column 5: schatten is of a matrix"):
        measure("x * schatten(x)", {"x": (3,)})


def test_activations_stay_in_their_own_dtype() -> None:
    assert evaluate("x * 2 + 1 / 3", {"x": jnp.ones(3, jnp.bfloat16)}).dtype == jnp.bfloat16


def test_two_spellings_are_one_recipe() -> None:
    def activated(code: str, a: float = 1.0) -> str:
        return recipe_id(model(ffn__activation={"kind": "expression", "code": code, "params": {"a": a}}))

    assert activated("x*sigmoid(a*x)") == activated("  (x) * sigmoid( (a * x) )")
    assert activated("x*1e-3*a") == activated("x * .001 * a")
    assert activated("x * a") != activated("x * a", 2.0) != activated("x + a", 2.0)


@pytest.mark.parametrize(("code", "params", "message"), [
    ("x", {"a": 1.0}, "a is not used"),
    ("a", {"a": 1.0}, "x is not used"),
    ("x", {"x": 1.0}, "parameter 'x'"),
    ("x * exp", {"exp": 1.0}, "parameter 'exp'"),
    ("x", {"a.b": 1.0}, "parameter 'a.b'"),
    ("x", {"": 1.0}, "parameter ''"),
    ("x", {"lambda": 1.0}, "parameter 'lambda'"),
])
def test_parameters_have_names_of_their_own_and_are_used(code: str, params: dict, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        canonical(code, params, X, ("x",))
