"""What a group's chain does, felt by running it a few steps on made-up gradients, see probe.py.

Factors stand for fixed turns here: that their formula, decay and pace agree is text, and whatever reads them sees the
same matrices. Two chains that move made-up parameters alike from the same values move all parameters alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np

from jaxnano.config import transforms as t
from jaxnano.config.base import digest, traced_range
from jaxnano.config.expression import reckon
from jaxnano.config.optimizer import Group
from jaxnano.optim.pieces import Cut, join, split
from jaxnano.optim.polar import polar
from research.contract.probe import GRID, MOVED, Felt, along, bend, felt, marks, moves, shown, traced

STEPS = 3  # of a trial
ROUNDED = 1e-12  # of a parameter: what is less is no move
SIZES = ((1.0, 0.05), (1e-4, 1.0), (30.0, 3.0), (0.0, 0.5), (1e-8, 10.0), (1e-13, 1e-3))  # of g, 0 is any; of W
MATRICES, VECTORS = ((4, 6), (6, 4)), ((1, 7),)
LR, PARAMS = (traced_range(Group.model_fields[name]) for name in ("lr", "params"))
PROGRESS = np.random.default_rng(7).choice(GRID, (STEPS, len(SIZES)))
TURNS = np.array([1.0, 2.0, 7.0, 40.0, 300.0, 5000.0]) + np.arange(STEPS)[:, None]  # steps of a run, a case each
Scope = dict[str, Any]


class _Text(str):
    """A group's chain as text, which is what tells it apart, with the group."""

    group: Group


def chain(group: Group, matrices: bool, vectors: bool) -> Any:
    """A name for what a group's chain does to its parameters. matrices, vectors: which of them it has."""
    text = _Text(group.model_dump_json(include={"lr", "params", "partners", "chain"}, exclude_defaults=True))
    text.group = group
    return _chain(text, matrices, vectors)


@lru_cache(maxsize=1024)
def _chain(text: _Text, matrices: bool, vectors: bool) -> Any:
    group = text.group
    if len(group.partners) > 1 or any("inputs" in step.reads for step in group.steps):
        return [text, matrices]  # which is not tried
    trials = [Trial(group, shape, moved=not i) for i, shape in enumerate(MATRICES * matrices + VECTORS * vectors)]
    with np.errstate(all="ignore"):
        seen = [trial.run(STEPS - bool(i)) for i, trial in enumerate(trials)]
        first = trials[0]
        blind = {first.owner[i] for i in range(len(first.rest)) if not moves(seen[0][0], seen[0][1 + i])}
        told = first.told(blind)
    used = {name for step in group.steps for name in step.reads}
    numbers = [value for name, value in group.params.items() if name in used]
    numbers += [value for step in group.steps for value in getattr(step, "params", {}).values()]
    curves = [str(traced(value, PARAMS)) for value in numbers]
    curves += [str(traced(getattr(step, "decay", None), t.BETA)) for step in group.steps]
    linked = [(partner.pairs, partner.transposed) for partner in group.partners]
    return digest([[shown(one[0]) for one in seen], traced(group.lr, LR), linked,
                   sorted(c for c in curves if c.startswith("curve")), told])


def stuck(group: Group, matrices: bool, vectors: bool) -> bool:
    """Whether a chain leaves a parameter at 0 that starts there, whatever its gradients: it would never be trained."""
    text = _Text(group.model_dump_json(include={"lr", "params", "partners", "chain"}, exclude_defaults=True))
    text.group = group
    return _stuck(text, matrices, vectors)


@lru_cache(maxsize=1024)
def _stuck(text: _Text, matrices: bool, vectors: bool) -> bool:
    with np.errstate(all="ignore"):
        return not any(np.any(Trial(text.group, shape, moved=False, start=0.0).run(STEPS))
                       for shape in MATRICES[:1] * matrices + VECTORS * vectors)


class Trial:
    """A chain on parameters of one shape. moved: whether each leaf is also moved, in a variant of its own; variant 0 is
    as it stands. start: a factor of the first values. rest: what the leaves' factors are unmoved; owner: whose line."""

    def __init__(self, group: Group, shape: tuple[int, int], moved: bool, start: float = 1.0):
        self.group, self.steps, self.moved, self.start = group, group.steps, moved, start
        self.shapes = [shape, *(shape[:: -1 if one.transposed else 1] for one in group.partners)]
        self.formulas: dict[int, tuple[Felt, int]] = {}
        self.rest: list[float] = []
        self.before: dict[int, Scope] = {}
        self.after: Scope = {}
        self.owner: list[int] = []
        fixed = {name: along(value, PARAMS, GRID) for name, value in group.params.items() if _fixed(value)}
        for k, step in enumerate(self.steps):
            own = {name: along(v, PARAMS, GRID) for name, v in getattr(step, "params", {}).items() if _fixed(v)}
            rest: tuple[float, ...] = ()
            for field in step.formulas:
                one = felt(getattr(step, field), tuple(sorted((fixed | own).items())))
                self.formulas[k], rest = (one, len(self.rest)), one.rest
            rest += (1.0,) * isinstance(step, t.Average)  # its decay
            self.rest += rest
            self.owner += [k] * len(rest)

    def run(self, steps: int) -> np.ndarray:
        """Marks of all moves of all parameters, a row for each variant."""
        rows, kept = [], [{} for _ in self.shapes]
        places = [self.start * _start(i, shape) for i, shape in enumerate(self.shapes)]
        for now in range(steps):
            scopes = [self._scope(i, W, now) for i, W in enumerate(places)]
            for k, step in enumerate(self.steps):
                self._see(scopes)
                self.before[k] = dict(scopes[0])
                for i, scope in enumerate(scopes):
                    self._line(k, step, scope, kept[i], [now, i])
            self.after = scopes[0]
            for i, scope in enumerate(scopes):
                moved = scope["W"] - places[i]
                moved = np.where(np.abs(moved) < ROUNDED * np.abs(places[i]), 0.0, moved)
                shape = (1 + len(self.rest) * self.moved, len(SIZES), *self.shapes[i])
                rows.append(marks(np.broadcast_to(moved, shape), 2))
                places[i] = scope["W"]
        return np.concatenate(rows, axis=-1).reshape(len(rows[0]), -1)

    def told(self, blind: set[int]) -> list[Any]:
        """Text of what a run did not feel: lines with a blind leaf, their names put to what they held; the factors."""
        return [found for k, step in enumerate(self.steps) if (found := self._line_told(k, step, k in blind))]

    def _line_told(self, k: int, step: Any, blind: bool) -> Any:
        static = isinstance(step, t.Factors | t.Rotate | t.Root | t.Triangles | t.Whiten | t.Solve)
        pieces, basis = getattr(step, "pieces", None), getattr(step, "basis", None)
        if not (blind or static or pieces or basis):
            return None
        held = _Held(self.after if isinstance(step, t.Factors) and not step.ahead else self.before[k], self.shapes[0])
        found: list[Any] = [pieces and [pieces.axis, pieces.count], basis and held[basis]]
        if blind or static:
            decay = getattr(step, "decay", None)
            rest = {name: traced(value, traced_range(type(step).model_fields[name])) for name, value in step
                    if name not in ("name", "of", "into", "code", "params", "decay", "by", "basis", "pieces")}
            found += [self.formulas[k][0].text(held), rest, (by := getattr(step, "by", None)) and held[by],
                      held[decay] if isinstance(decay, str) else traced(decay, t.BETA)]
        return found

    def _scope(self, i: int, W: Any, now: int) -> Scope:
        """What a parameter's lines see at first."""
        at, g = PROGRESS[now][:, None, None], _gradient(i, self.shapes[i], now)
        params = {name: along(value, PARAMS, at) for name, value in self.group.params.items()}
        fans = dict(zip(("fan_in", "fan_out"), self.shapes[i], strict=True))
        clock = {"lr": along(self.group.lr, LR, at), "progress": at, "steps": TURNS[now][:, None, None]}
        clock["inputs"] = _inputs(i, self.shapes[i][0], now)
        return {**params, **fans, **clock, "g": g, "u": g, "W": W, "W0": W}

    def _see(self, scopes: list[Scope]) -> None:
        for one in self.group.partners:
            seen = [{name: scope[name] for name in t.OF_PARTNERS} for scope in reversed(scopes)]
            for scope, theirs in zip(scopes, seen, strict=True):
                scope |= {f"{one.name}_{name}": np.swapaxes(x, -1, -2) if one.transposed else x
                          for name, x in theirs.items()}

    def _line(self, k: int, step: t.Step, scope: Scope, kept: Scope, seed: list[int]) -> None:
        match step:
            case t.Average():
                self._average(k, step, scope, kept, seed)
            case t.FormulaStep() | t.Polar():
                self._maybe_in_pieces(k, step, scope, seed)
            case t.Factors() | t.Triangles():
                before = sum(isinstance(other, t.Factors | t.Triangles) for other in self.steps[:k])
                scope[step.name] = _turns(before, seed[1], scope["W"].shape[-2:])
            case t.Rotate():
                left, right, *_ = scope[step.by]
                left, right = (left, right.T) if step.back else (left.T, right)
                scope[step.into] = left @ self._value(k, scope, seed) @ right
            case t.Root() | t.Whiten():
                left, right, *sizes, _ = scope[step.by]
                power = getattr(step, "power", 1.0)
                power = float(traced(power, None)) if _fixed(power) else -0.3
                left, right = ((turn * size**power) @ turn.T for turn, size in zip((left, right), sizes, strict=True))
                scope[step.into] = left @ self._value(k, scope, seed) @ right
            case t.Solve():
                scope[step.into] = _turns(0, seed[1], scope["W"].shape[-2:])[0] @ self._value(k, scope, seed)
            case t.TakeStep():
                scope["W"] = scope["W"] - scope["lr"] * scope["u"]
            case _:
                raise ValueError(f"{step!r}: no such step")

    def _factor(self, i: int, shape: tuple[int, int] = (1, 1), cut: Cut | None = None) -> Any:
        """A leaf's factor in each variant; shape: of what it holds."""
        if not self.moved:
            return self.rest[i]
        found = np.full((1 + len(self.rest), 1, *shape), self.rest[i])
        found[i + 1] = self.rest[i] + MOVED if shape == (1, 1) else bend(shape)
        return found if cut is None else split(found, cut)

    def _value(self, k: int, scope: Scope, seed: list[int], cut: Cut | None = None) -> Any:
        (one, first), step = self.formulas[k], self.steps[k]
        axes = 3 if cut is None else 4
        own = {name: along(v, PARAMS, PROGRESS[seed[0]].reshape(-1, *[1] * (axes - 1)))
               for name, v in getattr(step, "params", {}).items() if not _fixed(v)}
        values, tree = {name: own[name] if name in own else scope[name] for name in one.names}, one.short
        if self.moved:
            shape = self.shapes[seed[1]]
            values |= {f"_{j}": self._factor(first + j, shape if bent else (1, 1), cut)
                       for j, bent in enumerate(one.bent)}
            tree = one.tree
        if not step.draws:
            return reckon(tree, values)
        calls, drawing = count(), sum(other.draws for other in self.steps[:k])

        def noise() -> np.ndarray:
            return np.random.default_rng([*seed, drawing, next(calls)]).standard_normal(scope["W"].shape[-axes:])

        noise.plain = True  # type: ignore[attr-defined]
        return reckon(tree, values, noise=noise)

    def _average(self, k: int, step: t.Average, scope: Scope, kept: Scope, seed: list[int]) -> None:
        decay = scope[step.decay] if isinstance(step.decay, str) else along(step.decay, t.BETA, scope["progress"])
        first = self.formulas[k][1] + len(self.formulas[k][0].rest)
        decay = 1.0 - (1.0 - decay) * self._factor(first)
        gain = 1.0 if step.sum else 1.0 - decay
        old, held = kept.get(step.name, (0.0, 0.0))
        now, weight = decay * old + gain * self._value(k, scope, seed), decay * held + gain
        kept[step.name] = now, weight
        if step.debias:
            scope[f"{step.name}_weight"] = weight
            old, now = old / np.where(held > 0, held, 1.0), now / weight
        scope |= {step.name: now, f"{step.name}_old": np.asarray(old), f"{step.name}_decay": decay}

    def _maybe_in_pieces(self, k: int, step: t.FormulaStep | t.Polar, scope: Scope, seed: list[int]) -> None:
        def act(scope: Scope, cut: Cut | None) -> Any:
            value = self._value(k, scope, seed, cut)
            if isinstance(step, t.Polar):
                value = polar(np.broadcast_to(value, np.broadcast_shapes(np.shape(value), scope["W"].shape)),
                              step.coefficients, step.prenorm, step.weights)
            return value

        if step.pieces is None:
            scope[step.into] = act(scope, None)
            return
        shape: tuple[int, int] = scope["W"].shape[-2:]
        axis = {"in": -2, "out": -1, "heads": -1 if shape[1] > shape[0] else -2}[step.pieces.axis]
        cut = Cut(axis, shape[axis], 2)
        part = {name: split(x, cut) if isinstance(x, np.ndarray) else x for name, x in scope.items()}
        part |= dict(zip(("fan_in", "fan_out"), part["W"].shape[-2:], strict=True))
        value = act(part, cut)
        scope[step.into] = join(value, cut) if isinstance(value, np.ndarray) else value


class _Held(Mapping[str, Any]):
    """What names hold, as names that a formula's text can have."""

    def __init__(self, scope: Scope, shape: tuple[int, int]):
        self.scope, self.shape = scope, (len(SIZES), *shape)

    def __getitem__(self, name: str) -> str:
        value = self.scope[name]
        if isinstance(value, tuple):
            return f"turns{value[-1]}"
        value = value[0] if np.ndim(value) > 3 else value  # as it stands
        return "h" + digest(shown(marks(np.broadcast_to(value, self.shape), 1).ravel()))

    def __iter__(self) -> Any:
        return iter(self.scope)

    def __len__(self) -> int:
        return len(self.scope)


def _fixed(value: Any) -> bool:
    return isinstance(value, int | float)


@lru_cache(maxsize=64)
def _start(i: int, shape: tuple[int, int]) -> np.ndarray:
    size = np.array([of_w for _, of_w in SIZES])[:, None, None]
    return np.random.default_rng([11, i]).standard_normal((len(SIZES), *shape)) * size


@lru_cache(maxsize=64)
def _gradient(i: int, shape: tuple[int, int], now: int) -> np.ndarray:
    rng = np.random.default_rng([13, i, now])
    found = rng.standard_normal((len(SIZES), *shape)) * np.array([of_g for of_g, _ in SIZES])[:, None, None]
    any_size = [of_g == 0 for of_g, _ in SIZES]
    found[any_size] = rng.choice([-1, 1], shape) * 10.0 ** rng.uniform(-18, 2, shape)
    found[1] *= np.random.default_rng(i).random(shape) < 0.5  # a token that is never seen has no gradient
    return found


@lru_cache(maxsize=64)
def _inputs(i: int, size: int, now: int) -> np.ndarray:
    x = np.random.default_rng([19, i, now]).standard_normal((len(SIZES), 9, size))
    return x.mT @ x / 9


@lru_cache(maxsize=64)
def _turns(k: int, i: int, shape: tuple[int, int]) -> tuple[Any, ...]:
    """Stand for the bases of factors, their eigenvalues, and which factors they are."""
    rng = np.random.default_rng([17, k, i])
    turns = [np.linalg.qr(rng.standard_normal((size, size)))[0] for size in shape]
    return (*turns, *(rng.uniform(0.5, 2.0, size) for size in shape), k)
