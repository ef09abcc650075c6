"""The invent lane: formulas and wires that nobody wrote down, grown from what ran well.

A formula is changed as a tree (a factor, a summand, a function around a part, another part, a part of another formula)
by the names and functions of its place, made shorter by algebra, and proposed if what it does is neither wild nor near
what is known there. Source: symbolic search of optimizers and activations, arXiv:1709.07417 and arXiv:2302.06675.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from jaxnano.config.base import ConfigError, digest, overlap
from jaxnano.config.edit import show
from jaxnano.config.expression import ELEMENTWISE, ExpressionError, is_free, parse
from jaxnano.config.recipe import Recipe
from jaxnano.config.transforms import FREE, FormulaStep
from jaxnano.config.wires import Coefficient
from jaxnano.model.specs import specs
from jaxnano.optim.build import update_cost
from research.contract.algebra import ANY, simplified
from research.contract.draw import Draw
from research.contract.part import INVENT, IdeaEdit, Part, Proposal, title
from research.contract.places import Place, distance, places, values
from research.contract.proposal import replaces, try_build
from research.lanes.protocol import Knowledge, Known

TRIES, PARENTS = 40, 6
NEW, WILD = 0.03, 30.0  # distance from what is known, at least; how many times larger than what stands, at most
WIRED = 0.1  # of the tries
LONGEST = 40  # operations and operands, so that what is bred from it can still be read
LETTERS = "abcdefhjkpqr"  # of numbers, as far as they are free
RARE = ("exp", "log", "log1p", "pow", "where", "noise", "sign", "positive")  # which jump, burst or need a fitting sign


class Invent:
    """Changes one formula of a parent, or adds a wire; on the leading candidates, earlier inventions likelier."""

    name = INVENT

    def propose(self, view: Knowledge, rng: np.random.Generator) -> Proposal | None:
        """A change that is new by what it does; None if no try was."""
        able = [k for k in view.known if k.worth > -0.02 and (k.runs or not k.parts)][:PARENTS]
        if not able:
            return None
        weights = np.exp(-0.5 * np.arange(len(able))) * [2.0 if _invented(k) else 1.0 for k in able]
        for _ in range(TRIES):
            parent = able[rng.choice(len(able), p=weights / weights.sum())]
            found = self._wire(view, parent, rng) if rng.random() < WIRED else self._formula(view, parent, able, rng)
            if found is None:
                continue
            new, novelty = found
            parts = (*(old for old in parent.parts if not replaces(new, old)), new)
            if view.fresh(parts) == parts and _stands(view, parts):
                return Proposal(name=title(parts), parts=parts, hypothesis=new.why, lane=self.name, origin="invention",
                                parents=(parent.recipe_id,) if parent.parts else (), novelty=round(novelty, 3))
        return None

    def _formula(self, view: Knowledge, parent: Known, able: Sequence[Known], rng: np.random.Generator
                 ) -> tuple[Part, float] | None:
        here = [p for p in _places(parent) if not any(overlap(p.path, path) for path in view.track.frozen)]
        kinds = sorted({place.node.__name__ for place in here})
        if not kinds:
            return None
        kind = kinds[rng.integers(len(kinds))]  # each kind of place alike, however many there are of it
        place = _pick([place for place in here if place.node.__name__ == kind], rng)
        others = [p for k in able for p in _places(k) if p.node is place.node and p.code != p.needed]
        before = values(place, place.code, place.params)
        grown = Grower(place, rng, [(p.code, p.params) for p in others]).grow()
        if grown is None or not _tame(after := values(place, *grown), before):
            return None
        known = {(p.code, tuple(p.params.items())): p for k in view.known for p in _places(k)
                 if (p.path, p.after, p.names) == (place.path, place.after, place.names)}
        novelty = min(distance(after, values(place, one.code, one.params)) for one in known.values())
        return (_part(place, *grown), novelty) if novelty >= NEW else None

    def _wire(self, view: Knowledge, parent: Known, rng: np.random.Generator) -> tuple[Part, float] | None:
        """Taps, tables and wires as the generator of recipes draws them."""
        fields = ("taps", "tables", "wires")
        if any(overlap(f"model.{field}", path) for field in fields for path in view.track.frozen):
            return None
        drawn, m = Draw(rng, parent.recipe.model.width, parent.recipe.model.depth), parent.recipe.model
        drawn.width, drawn.depth = m.width, m.depth
        found, mark = drawn.wires([]), f"{rng.integers(1 << 16):04x}"
        own = {item["name"] for field in fields for item in found.get(field, ())}
        edits = []
        for field in fields:
            for item in found.get(field, ()):
                new = item | {key: f"{item[key]}_{mark}" for key in ("name", "source", "to") if item.get(key) in own}
                edits.append(IdeaEdit(path=f"model.{field}.{new['name']}", new=new))
        if not edits:
            return None
        text = "; ".join(show(edit.new) for edit in edits)
        return Part(name=f"wired {mark}", edits=tuple(edits), why=f"Blocks may want what others knew: {text}"), 1.0


class _Id(str):
    """A recipe's id, with the recipe."""

    recipe: Recipe


@lru_cache(maxsize=4096)
def _places_of(recipe_id: _Id) -> tuple[Place, ...]:
    return tuple(places(recipe_id.recipe))


def _places(known: Known) -> tuple[Place, ...]:
    key = _Id(known.recipe_id)
    key.recipe = known.recipe
    return _places_of(key)


def _invented(known: Known) -> bool:
    return bool(known.parts) and known.parts[-1].name.startswith("invented ")


def _pick(items: Sequence[Any], rng: np.random.Generator) -> Any:
    return items[int(rng.integers(len(items)))]


def _tame(after: np.ndarray, before: np.ndarray) -> bool:
    """Whether a formula is finite, depends on something, and grows no worse than many times what it replaces."""
    if not np.isfinite(after).all() or np.abs(after).max() > FREE.high or np.ptp(after) < 1e-9:
        return False
    size = lambda x: np.sqrt((x * x).mean(-1))  # noqa: E731
    ratio = size(after) / np.maximum(size(before), 1e-9)
    return bool((ratio < WILD).all() and (ratio[2:5] > 1 / WILD).all())  # the sizes that are met most


def _stands(view: Knowledge, parts: Sequence[Part]) -> bool:
    """Whether the parts build a recipe whose chains fit its parameters."""
    recipe = try_build(view.track.base_recipe, parts)
    try:
        return recipe is not None and bool(update_cost(recipe.optimizer, specs(recipe)))
    except ConfigError:
        return False


def _part(place: Place, code: str, params: Mapping[str, float]) -> Part:
    """The part that puts a formula at its place."""
    mark, where = digest([code, dict(params)])[:4], place.path.split(".")
    new: dict[str, Any] = {"code": code, "params": dict(params)}
    if "kind" in place.node.model_fields and place.node is not FormulaStep:
        new = {"kind": "expression"} | new
    path = place.path
    if place.node is FormulaStep:
        name = f"invented_{mark}" if place.after else where[-1]
        path, new = ".".join([*where[:-1], name]), {"name": name} | new
    edits = (IdeaEdit(path=path, new=new, after=place.after),)
    if place.node is Coefficient:  # which is more than its formula
        told = {name: value for name, value in new.items() if value != getattr(place, name)}
        edits = tuple(IdeaEdit(path=f"{path}.{name}", new=value) for name, value in told.items())
    short = ".".join(piece for piece in where if piece not in ("model", "optimizer", "groups", "chain", "invented"))
    numbers = ", ".join(f"{name} = {value:.3g}" for name, value in params.items())
    return Part(name=f"invented {short} {mark}", edits=edits, why=f"{code}{' with ' + numbers if numbers else ''} in "
                f"the place of {place.code}")


class Grower:
    """Changes the formula of a place. others: formulas of such places elsewhere, with their numbers."""

    def __init__(self, place: Place, rng: np.random.Generator, others: Sequence[tuple[str, Mapping[str, float]]] = ()):
        self.place, self.rng, self.others = place, rng, others
        functions = [(name, arity) for name in place.signature.functions() for arity in place.signature.arities(name)]
        self.functions = [one for one in functions if one[0] not in RARE or rng.random() < 0.3]

    def grow(self) -> tuple[str, dict[str, float]] | None:
        """A changed formula, with its numbers; None for one that its place does not take."""
        tree = self._inlined(self.place.code, self.place.params)
        if self.place.needed == "progress" and isinstance(tree, ast.BinOp) and isinstance(tree.left, ast.Constant):
            tree = tree.right  # the peak is put back in the end
        for _ in range(int(self.rng.integers(1, 3))):
            tree = self._changed(tree)
        try:
            code, params = self._lifted(simplified(ast.unparse(tree)))
            if self.place.needed == "progress":
                code, params = self._as_schedule(code, params)
            names = (*self.place.names, "fan_in", "fan_out", *params)
            parts = [*ast.walk(parse(code, self.place.signature._replace(names=names)))]
        except ExpressionError:
            return None
        reads = {part.id for part in parts if isinstance(part, ast.Name)}
        short = sum(isinstance(part, ast.expr) for part in parts) <= LONGEST
        return (code, params) if short and self.place.needed in reads and code != self.place.needed else None

    def _inlined(self, code: str, params: Mapping[str, float]) -> ast.expr:
        """A formula's tree with its numbers in it."""
        return _replaced(parse(code, ANY), lambda node: ast.Constant(float(params[node.id]))
                         if isinstance(node, ast.Name) and node.id in params else None)

    def _changed(self, tree: ast.expr) -> ast.expr:
        """One change at a random part."""
        parts = list(_parts(tree))
        spot = _pick(parts, self.rng)
        kinds = ["factor", "summand", "around", "other", "cross", "number"]
        kind = self.rng.choice(kinds, p=[0.3, 0.25, 0.15, 0.1, 0.1, 0.1])
        if kind == "number":
            numbers = [part for part in parts if isinstance(part, ast.Constant) and part.value not in (0, 1)]
            if numbers:
                spot = _pick(numbers, self.rng)
                return self._put(tree, spot, ast.Constant(_three(spot.value * math.exp(self.rng.normal(0, 0.5)))))
            kind = "factor"
        if kind == "factor":
            more = ast.BinOp(ast.Constant(1), ast.Add(), self._times(self._bounded()))
            return self._put(tree, spot, ast.BinOp(spot, ast.Mult(), more))
        if kind == "summand":
            return self._put(tree, spot, ast.BinOp(spot, ast.Add(), self._times(self._random(2))))
        if kind == "around":
            return self._put(tree, spot, self._around(spot))
        if kind == "cross" and self.others:
            other = self._inlined(*_pick(self.others, self.rng))
            fits = [part for part in _parts(other) if self._fits(part)]
            return self._put(tree, spot, _pick(fits, self.rng)) if fits else tree
        return self._put(tree, spot, self._random(2))

    def _put(self, tree: ast.expr, spot: ast.expr, new: ast.expr) -> ast.expr:
        return _replaced(tree, lambda node: new if node is spot else None)

    def _fits(self, part: ast.expr) -> bool:
        return all(node.id in self.place.names for node in ast.walk(part)
                   if isinstance(node, ast.Name) and is_free(node.id))

    def _times(self, node: ast.expr) -> ast.expr:
        return ast.BinOp(self._number(), ast.Mult(), node)

    def _number(self) -> ast.expr:
        return ast.Constant(_three(math.exp(self.rng.normal(-0.7, 0.8)) * self.rng.choice([1, 1, -1])))

    def _bounded(self) -> ast.expr:
        """A part between -1 and 1."""
        name = self.rng.choice(["tanh", "sigmoid", "erf", "sin"])
        return ast.Call(ast.Name(str(name)), [self._random(1)], [])

    def _random(self, depth: int) -> ast.expr:
        """A small formula."""
        if depth == 0 or self.rng.random() < 0.3:
            return self._number() if self.rng.random() < 0.15 else ast.Name(str(_pick(self.place.names, self.rng)))
        if self.rng.random() < 0.5:
            op = _pick([ast.Add, ast.Sub, ast.Mult, ast.Mult], self.rng)
            return ast.BinOp(self._random(depth - 1), op(), self._random(depth - 1))
        return self._around(self._random(depth - 1))

    def _around(self, part: ast.expr) -> ast.expr:
        """A function of a part, or the part over what is positive."""
        if self.rng.random() < 0.2:
            size = ast.Call(ast.Name("abs"), [self._times(self._random(1))], [])
            return ast.BinOp(part, ast.Div(), ast.BinOp(ast.Constant(1), ast.Add(), size))
        name, arity = _pick(self.functions, self.rng)
        rest = [self._random(1) for _ in range(arity - 1)]
        return ast.Call(ast.Name(name), [part, *rest][:arity], [])

    def _lifted(self, code: str) -> tuple[str, dict[str, float]]:
        """A formula with its numbers as params, so that they can be tuned, and those."""
        taken = {*self.place.names, *self.place.signature.functions(), "fan_in", "fan_out", *ELEMENTWISE}
        free, params = [letter for letter in LETTERS if letter not in taken], {}

        def lift(node: ast.expr) -> ast.expr | None:
            number = node.operand if isinstance(node, ast.UnaryOp) else node
            if not isinstance(number, ast.Constant) or number.value in (0, 1, 2) or len(params) == len(free):
                return None
            name = free[len(params)]
            params[name] = _three(number.value if number is node else -number.value)  # type: ignore[operator]
            return ast.Name(name)

        return ast.unparse(_replaced(parse(code, ANY), lift)), params

    def _as_schedule(self, code: str, params: dict[str, float]) -> tuple[str, dict[str, float]]:
        """A shape of progress put to the peak of what stood there.

        Raises: ExpressionError for one that is nothing, or below it.
        """
        shape = values(self.place, code, params)
        most = float(np.abs(shape).max()) if np.isfinite(shape).all() else 0.0
        if most < 1e-3 or shape.min() < -1e-6 * most:
            raise ExpressionError("no schedule")
        return ast.unparse(parse(f"peak * ({code})", ANY)), params | {"peak": _three(self.place.size / most)}


def _parts(tree: ast.expr) -> Iterator[ast.expr]:
    """The parts of a tree that stand for values: exponents and what functions are called do not."""
    yield tree
    match tree:
        case ast.BinOp(left=left, op=op, right=right):
            yield from _parts(left)
            yield from () if isinstance(op, ast.Pow) else _parts(right)
        case ast.UnaryOp(operand=operand):
            yield from _parts(operand)
        case ast.Call(args=args):
            for arg in args:
                yield from _parts(arg)


def _replaced(tree: ast.expr, new: Callable[[ast.expr], ast.expr | None]) -> ast.expr:
    """A tree with the parts put to others for which there is one."""
    if (other := new(tree)) is not None:
        return other
    match tree:
        case ast.BinOp(left=left, op=op, right=right):
            return ast.BinOp(_replaced(left, new), op, right if isinstance(op, ast.Pow) else _replaced(right, new))
        case ast.UnaryOp(op=op, operand=operand):
            return ast.UnaryOp(op, _replaced(operand, new))
        case ast.Call(func=func, args=args):
            return ast.Call(func, [_replaced(arg, new) for arg in args], [])
    return tree


def _three(value: float) -> float:
    return min(max(float(f"{value:.3g}"), FREE.low), FREE.high)

