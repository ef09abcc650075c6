"""Random models with formulas drawn at random in all their places: no feature may depend on a later token."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnano.config.base import ConfigError, Node, dump, dump_full, validate
from jaxnano.config.block import ACTIVATION, FormulaActivation
from jaxnano.config.expression import Signature
from jaxnano.config.formulas import Formula, InitRule
from jaxnano.config.recipe import Recipe, at, hypers
from jaxnano.model import gpt
from jaxnano.model.specs import specs
from research.check.corrupt import places
from research.contract.draw import random_recipe

BASE = validate(Recipe, {"model": {"width": 8, "depth": 1, "attention": {"heads": 2}},
                         "data": {"kind": "embedded", "length": 7, "batch": 1}})
PARAMS = ("a", "b")
DEEPEST = 4


class Judged(NamedTuple):
    """models, formulas: that were judged. blank: models that were not, as something in them is not finite. ahead: those
    of which a feature depends on a later token."""

    models: int
    formulas: int
    blank: int
    ahead: list[Recipe]


def formula(rng: np.random.Generator, place: Signature, needed: tuple[str, ...]) -> tuple[str, dict[str, float]]:
    """A formula of a place, drawn from its signature, that uses the names it must. Returns: code, params."""
    names = (*(place.names or ()), *PARAMS)

    def term(deep: int) -> str:
        if deep == 0 or rng.random() < 0.2:
            return str(rng.choice([*names, "0.5", "2"]))
        if rng.random() < 0.5:
            return f"({term(deep - 1)} {rng.choice(['+', '-', '*', '/'], p=[0.3, 0.3, 0.3, 0.1])} {term(deep - 1)})"
        function = str(rng.choice(place.functions()))
        arity = int(rng.choice(place.arities(function)))
        return f"{function}({', '.join(term(deep - 1) for _ in range(arity))})"

    code = term(DEEPEST)
    for name in needed:
        code = f"{code} + {name} * 0.5" if rng.random() < 0.5 else f"{name} * sigmoid({code})"
    return code, {name: float(f"{rng.uniform(0.1, 2.0):.3g}") for name in PARAMS if re.search(rf"\b{name}\b", code)}


def dense(rng: np.random.Generator) -> dict[str, Any]:
    """Plain data of two blocks with a formula in each place of attention, wires, and whatever else attention knows."""
    def pick(*items: Any) -> Any:
        return items[int(rng.integers(len(items)))]

    def block() -> dict[str, Any]:
        shared = pick(None, {"kind": "matrix"}, {"kind": "vectors", "channels": 8})
        turns = 1 if shared else pick(1, 2)
        attention = {"window": pick(0, 3, 5), "window_block": pick(1, 2), "interleaved": turns, "mix_scores": shared,
                     "mix_weights": pick(None, {"kind": "matrix"}) if turns == 1 else None,
                     "key_shift": pick(0.0, 0.5, 1.0), "logit": {"code": "s + 1"}, "output": {"code": "y + 1"}}
        attention |= {part: {"code": "x + 1", "gain": pick(True, False)} for part in ("query", "key", "value")}
        return {"attention": attention, "ffn": {"activation": {"kind": "expression", "code": "x + 1"}},
                "position": pick({"kind": "rotary"}, {"kind": "alibi"}, {"kind": "none"})}

    blocks = [{"name": f"block{i}", "at": [{"block": i}], "set": block()} for i in range(2)]
    add = {"code": "c * z", "channels": 4, "init": 0.5}
    wires = [{"name": "smear", "source": "self", "to": "embedding", "shift": pick(1, 2), "add": add},
             {"name": "skip", "source": "x0", "to": pick("stream", "attention", "ffn"), "shift": pick(0, 1),
              "add": add},
             {"name": "stay", "to": "stream", "keep": {**add, "per": pick("one", "channel")}}]
    change = {"depth": 2, "bias": pick(True, False), "embedding": {"tied": pick(True, False)}}
    change |= {"blocks": blocks, "taps": [{"name": "x0", "after": "embedding"}], "wires": wires}
    return dump_full(validate(Recipe, dump(BASE) | {"model": dump(BASE.model) | change}))


def models(rng: np.random.Generator) -> Iterator[tuple[Recipe, int]]:
    """Endless small models with formulas that nobody has thought of, each with how many; a third with documents.

    Two of three are `dense`, the others from the whole space.
    """
    for turn in itertools.count():
        recipe = random_recipe(rng, BASE) if turn % 3 == 2 else validate(Recipe, dense(rng))
        data, found = dump_full(recipe), 0
        for place in places(recipe, data):
            if place.name != "code" or (known := signature(place.node)) is None:
                continue
            code, params = formula(rng, *known)
            place.holder.update(code=code, params=params)
            found += 1
        if rng.random() < 0.3:
            data["data"]["documents"] = {"separator": 3, "most": int(rng.integers(2, 6))}
        try:
            recipe = validate(Recipe, data)
        except ConfigError:  # a formula that is too long, or has lost a name
            continue
        if found:
            yield recipe, found


def signature(node: Node) -> tuple[Signature, tuple[str, ...]] | None:
    """What a formula of the forward pass may say and must use, or None for another node."""
    for kind in (type(node), *getattr(type(node), "stands_for", ())):
        if issubclass(kind, FormulaActivation):
            return ACTIVATION, ("x",)
        if issubclass(kind, Formula) and not issubclass(kind, InitRule):
            return kind.place, kind.needed
    return None


def slopes(recipe: Recipe, seed: int = 0) -> np.ndarray:
    """|d features_t / d what token s brings|, [L, L], summed over channels and over all that reads tokens.

    NaN where features are not finite.
    """
    rng, length, values = np.random.default_rng(seed), recipe.data.length, hypers(recipe, 10)
    params = {path: rng.normal(0, 0.3, spec.shape).astype(np.float32) for path, spec in specs(recipe).items()}
    tables = [f"tables/{table.name}" for table in recipe.model.tables if table.index.kind == "token"]
    read = ["embedding/token", *(path for path in tables if path in params)]
    tokens_1xL = jnp.asarray(rng.permutation(8)[None, :length])  # each once, so that a row is a place
    cotangents_LxD = rng.normal(size=(length, recipe.model.width)).astype(np.float32)

    def run(params: gpt.Params, values: Any) -> Any:
        x_1xLxD, pull = jax.vjp(lambda p: gpt.features(p, tokens_1xL, at(recipe, values, jnp.float32(0.5)))[0], params)
        one_LxLxD = jnp.eye(length)[:, :, None] * cotangents_LxD[None]
        pulled = jax.vmap(lambda d: pull(d[None].astype(x_1xLxD.dtype))[0])(one_LxLxD)
        found = sum(jnp.abs(pulled[path]).sum(-1)[:, tokens_1xL[0]] for path in read)
        return found, jnp.isfinite(x_1xLxD).all()

    program = jax.jit(run).lower(params, values).compile(compiler_options={"xla_backend_optimization_level": "0"})
    found, finite = program(params, values)
    return np.where(finite, np.asarray(found), np.nan)


def judge(rng: np.random.Generator, count: int) -> Judged:
    """Models until they hold `count` formulas and their slopes are finite."""
    formulas = blank = tried = 0
    ahead: list[Recipe] = []
    for recipe, many in models(rng) if count else ():
        found = slopes(recipe)
        if not np.isfinite(found).all():  # a formula that divides by nothing says nothing
            blank += 1
            continue
        ahead += [recipe] if np.triu(found, 1).any() else []
        tried += 1
        formulas += many
        if formulas >= count:
            break
    return Judged(tried, formulas, blank, ahead)
