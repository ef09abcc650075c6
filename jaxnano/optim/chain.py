"""A chain of steps as two pure functions over {path: array}: what it keeps, and how it moves the parameters.

Formulas are walked leaf by leaf, which the compiler fuses; orthogonalisation and factors take leaves of one shape at a
time: the program grows with the shapes and not with the layers, and devices share the work (`share`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnano.config import transforms as t
from jaxnano.config.base import name_of
from jaxnano.config.expression import DRAWN, ExpressionError, evaluate, measure, names
from jaxnano.model.specs import OF_INPUTS
from jaxnano.optim import kronecker
from jaxnano.optim.pieces import Cut, cut_of, join, joined_shape, split, split_shape
from jaxnano.optim.polar import polar_flops, polar_leaves
from jaxnano.optim.share import shared

Params = dict[str, jax.Array]
Scalar = Any  # a number, or a float32 scalar traced by jit; config nodes type both as Traced


class Moments(NamedTuple):
    """Of an average, by path: the sum of weighted values, and, where debiased, the weight it holds so far (0 to 1)."""

    total: Params
    weight: Params


class Bases(NamedTuple):
    """Of factors or triangles: updates so far, and they by path."""

    count: jax.Array
    factors: dict[str, Any]


class Chain(NamedTuple):
    """init(params, bits) -> state; update(grads, state, params) -> (params, state)."""

    init: Callable[..., dict[str, Any]]
    update: Callable[..., tuple[Params, dict[str, Any]]]


class Cost(NamedTuple):
    """Of one line for one parameter: the shape of what it writes, operations, and numbers that it keeps."""

    shape: tuple[int, ...]
    flops: float
    floats: int = 0


Scopes = dict[str, dict[str, Any]]  # by path, what each name in scope is
Shapes = Mapping[str, tuple[int, ...]]


class Line(NamedTuple):
    """A step: it writes into the scopes and returns what it keeps; what it costs; what it keeps at first."""

    run: Callable[[Scopes, Any], Any]
    cost: Callable[[Shapes], Cost]
    init: Callable[[Params, dict[str, Cost]], Any] = lambda params, costs: None


def line(step: t.Step) -> Line:
    """A step's functions, cost included, so that the one cannot drift from the other."""
    match step:
        case t.Average():
            return Line(partial(_average, step), partial(_average_cost, step), partial(_average_init, step))
        case t.FormulaStep():
            return Line(partial(_formula, step), lambda shapes: Cost(*measure(step.code, shapes)))
        case t.Factors():
            return Line(partial(_factors, step), partial(_factors_cost, step),
                        _kept(lambda w, cost: kronecker.init(w)))
        case t.Rotate():
            return Line(partial(_matrices, step, lambda f, x: kronecker.rotate(f, x, step.back)),
                        lambda shapes: _matrix(step.of, shapes, kronecker.rotation_flops))
        case t.Root():
            act = partial(kronecker.root, power=step.power, floor=step.floor, dropped=step.dropped)
            return Line(partial(_matrices, step, act),
                        lambda shapes: _matrix(step.of, shapes, lambda shape: 2.0 * kronecker.rotation_flops(shape)))
        case t.Triangles():
            return Line(partial(_triangles, step), partial(_triangles_cost, step),
                        _kept(lambda w, cost: kronecker.blank(w)))
        case t.Whiten():
            return Line(partial(_matrices, step, kronecker.whiten),
                        lambda shapes: _matrix(step.of, shapes, lambda shape: 2.0 * kronecker.rotation_flops(shape)))
        case t.Solve():
            return Line(partial(_solve, step), partial(_solve_cost, step),
                        _kept(lambda w, cost: kronecker.no_inverse(w, cost.floats)))
        case t.Polar():
            return Line(partial(_polar, step), lambda shapes: _matrix(
                step.of, shapes, lambda shape: polar_flops(shape, step.coefficients), stack=True))
        case t.TakeStep():
            return Line(_step, lambda shapes: Cost(shapes["W"], 2.0 * math.prod(shapes["W"])))
    raise ValueError(f"{step!r}: no such step")


class Link(NamedTuple):
    """Of a partner: its path by that of who sees it, and whether it is seen as its transpose."""

    paths: Mapping[str, str]
    transposed: bool


def build_chain(steps: Sequence[t.Step], scalars: Mapping[str, Any], axes: Mapping[str, str] | None = None,
                links: Mapping[str, Link] | None = None, moments: Shapes | None = None) -> Chain:
    """The functions of a resolved chain.

    Args: scalars: lr, progress and the group's params. axes: of parameters, by path. links: of partners, by name.
        moments: shapes of those of inputs, by path.
    """
    axes, links, moments = axes or {}, links or {}, moments or {}
    lines = [(step, line(step)) for step in steps]
    draws = any(step.draws for step in steps)

    def init(params: Params, bits: jax.Array | None = None) -> dict[str, Any]:
        costs = {path: dict(costs_of(steps, w.shape, scalars, axes.get(path, ""), links, moments.get(path)))
                 for path, w in params.items()}
        kept = {step.name: one.init(params, {path: costs[path][step.name] for path in params})
                for step, one in lines if isinstance(step, t.KEEPS)}
        seed = bits_of(params) if bits is None else bits
        return {**kept, **({KEY: jax.random.key_data(jax.random.key(seed))} if draws else {})}

    def update(grads: Params, state: dict[str, Any], params: Params) -> tuple[Params, dict[str, Any]]:
        scopes = {path: {**scalars, **_fans(w.shape), "g": grads[path], "u": grads[path], "W": w, "W0": w}
                  for path, w in params.items()}
        for path in moments:
            scopes[path]["inputs"] = grads[path + OF_INPUTS]
        new = {}
        if draws:
            key, after = jax.random.split(jax.random.wrap_key_data(state[KEY]))
            new[KEY] = jax.random.key_data(after)
            for path, scope in scopes.items():
                scope["noise"] = jax.random.fold_in(key, zlib.crc32(path.encode()))
        for step, one in lines:
            _see(step, links, scopes)
            if (pieces := getattr(step, "pieces", None)) is not None:
                cuts = {path: cut_of(pieces, w.shape, axes.get(path, "")) for path, w in params.items()}
                _in_pieces(step, cuts, scopes)
            elif (kept := one.run(scopes, state.get(getattr(step, "name", "")))) is not None:
                new[step.name] = kept  # type: ignore[union-attr]
        for step in steps:
            if isinstance(step, t.Factors) and not step.ahead:
                _follow(step, steps, scopes, state, new)
        return {path: scope["W"].astype(params[path].dtype) for path, scope in scopes.items()}, new

    return Chain(init, update)


FIT = 1 << 20  # of a line's draws, the one that triangles are fitted against; its formula's are counted from 0
KEY = "_key"  # no line of a chain can be called this


def bits_of(params: Params) -> jax.Array:
    """A seed, uint32, from the bits of all parameters: those of a run follow its seed, and init is given nothing else.

    Their sum is that of whole numbers, the same in any order: on every mesh a run draws the same noise.
    """
    words = (jax.lax.bitcast_convert_type(w.astype(jnp.float32), jnp.uint32) for w in params.values())
    return sum((jnp.sum(w, dtype=jnp.uint32) for w in words), start=jnp.zeros([], jnp.uint32))


def costs_of(steps: Sequence[t.Step], shape: tuple[int, ...], scalars: Iterable[str], axes: str = "",
             partners: Iterable[str] = (), moments: tuple[int, ...] | None = None) -> Iterator[tuple[str, Cost]]:
    """By step, in order: what each costs for a parameter of a shape and axes. partners: names of. moments: of inputs.

    Raises: ExpressionError where a step needs a matrix, or leaves u or W without the parameter's shape.
    """
    shapes: dict[str, tuple[int, ...]] = {**dict.fromkeys((*scalars, *_fans(shape)), ()),
                                          **dict.fromkeys(("g", "u", "W", "W0"), shape)}
    shapes |= {f"{name}_{one}": shape for name in partners for one in t.OF_PARTNERS}
    shapes |= {"inputs": moments} if moments else {}
    for step in steps:
        own = dict.fromkeys(getattr(step, "params", ()), ())
        try:
            if "inputs" in (fans := step.reads - shapes.keys()):
                raise ExpressionError("inputs are those of attention's and the FFN's maps; another chain for the rest")
            if fans:
                raise ExpressionError(f"{min(fans)} is of a matrix; {shape} is the shape of none")
            if (pieces := getattr(step, "pieces", None)) is not None:
                cut = cut_of(pieces, shape, axes)
                found = line(step).cost({name: split_shape(of, cut) for name, of in {**shapes, **own}.items()})
                found = found._replace(shape=joined_shape(found.shape, cut))
            else:
                found = line(step).cost({**shapes, **own})
        except ExpressionError as error:
            raise ExpressionError(f"{name_of(step)}: {error}") from None
        for name in step.writes:
            if name in ("u", "W") and found.shape != shape:
                raise ExpressionError(f"{name_of(step)}: {name} has shape {shape}, the formula's value {found.shape}")
            shapes[name] = () if name.endswith(("_decay", "_weight")) else found.shape
        yield name_of(step) or "", found


def _fans(shape: tuple[int, ...]) -> dict[str, float]:
    return {"fan_in": float(shape[-2]), "fan_out": float(shape[-1])} if len(shape) > 1 else {}


def _see(step: t.Step, links: Mapping[str, Link], scopes: Scopes) -> None:
    """Put what a line reads of partners into scope, all of it as it was before the line."""
    for name in step.reads:
        partner, _, one = name.partition("_")
        if partner in links and one in t.OF_PARTNERS:
            for path, scope in scopes.items():
                x = scopes[links[partner].paths[path]][one]
                scope[name] = x.mT if links[partner].transposed else x


def _in_pieces(step: t.Step, cuts: Mapping[str, Cut], scopes: Scopes) -> None:
    """Run a line that keeps nothing on pieces: it sees them, and their fans, in the place of the whole."""
    parts: Scopes = {}
    for path, cut in cuts.items():
        scope = scopes[path]
        part = {name: split(scope[name], cut) for name in (step.reads | {"W"}) & scope.keys()}
        parts[path] = {**part, **_fans(part["W"].shape), "noise": scope.get("noise")}
    line(step).run(parts, None)
    for path, cut in cuts.items():
        scopes[path] |= {name: join(parts[path][name], cut) for name in step.writes}


def _value(step: Any, scope: Mapping[str, Any]) -> Any:
    """What a step's formula is. Each noise() in it is another, and the same however often the line is read."""
    (code,) = (getattr(step, field) for field in step.formulas)
    values, calls = {**scope, **getattr(step, "params", {})}, count()

    def noise() -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(scope["noise"], zlib.crc32(step.name.encode())), next(calls))
        return jax.random.normal(key, scope["W"].shape, scope["W"].dtype)

    return evaluate(code, {name: values[name] for name in names(code, t.STEP)}, reduces=True, noise=noise)


def _average_init(step: t.Average, params: Params, costs: dict[str, Cost]) -> Moments:
    total = {path: jnp.zeros(costs[path].shape, w.dtype) for path, w in params.items()}
    return Moments(total, {path: jnp.zeros([], w.dtype) for path, w in params.items()} if step.debias else {})


def _average(step: t.Average, scopes: Scopes, old: Moments) -> Moments:
    new = Moments({}, {})
    for path, scope in scopes.items():
        decay = _decay(step, scope)
        gain = 1.0 if step.sum else 1 - decay
        before, now = old.total[path], decay * old.total[path] + gain * _value(step, scope)
        new.total[path] = now
        if step.debias:
            held = old.weight[path]
            scope[f"{step.name}_weight"] = new.weight[path] = weight = decay * held + gain
            before, now = before / jnp.where(held > 0, held, 1.0), now / weight
        scope |= {step.name: now, f"{step.name}_old": before, f"{step.name}_decay": decay}
    return new


def _average_cost(step: t.Average, shapes: Shapes) -> Cost:
    shape, flops = measure(step.of, shapes)
    size = math.prod(shape)
    return Cost(shape, flops + (4.0 if step.debias else 3.0) * size, size + step.debias)


def _formula(step: t.FormulaStep, scopes: Scopes, _: None) -> None:
    for scope in scopes.values():
        scope[step.into] = _value(step, scope)


def _kept(one: Callable[[jax.Array, Cost], Any]) -> Callable[[Params, dict[str, Cost]], Bases]:
    """How a line begins that keeps `one` for each parameter."""
    return lambda params, costs: Bases(jnp.zeros([], jnp.int32), {p: one(w, costs[p]) for p, w in params.items()})


def _factors(step: t.Factors, scopes: Scopes, old: Bases) -> Bases:
    """The bases of before this update are in scope, and follow at its end, see `_follow`; those ahead follow now."""
    new = _advanced(step, scopes, old, {path: () for path in scopes})[0] if step.ahead else old
    for path, scope in scopes.items():
        scope[step.name] = new.factors[path]
    return new


def _factors_cost(step: t.Factors, shapes: Shapes) -> Cost:
    shape, flops, _ = _matrix(step.of, shapes, lambda shape: kronecker.advance_flops(shape, step.every))
    return Cost(shape, flops, sum(2 * size * size + size for size in shape))


def _follow(step: t.Factors, steps: Sequence[t.Step], scopes: Scopes, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Take this update's value into the factors. A matrix whose bases were of nothing has not moved, nor its averages.

    What lives in the bases is put in their new order.
    """
    averages = [s for s in steps if isinstance(s, t.Average)]
    live_in = [s.name for s in averages if s.basis == step.name]
    bases: Bases = old[step.name]
    for path, scope in scopes.items():
        knows = kronecker.known(bases.factors[path])
        scope["W"] = jnp.where(knows, scope["W"], scope["W0"])
        for average in averages:
            for now, was in zip(new[average.name], old[average.name], strict=True):
                if path in now:
                    now[path] = jnp.where(knows if now[path].ndim else knows[0, 0], now[path], was[path])
    new[step.name], moved = _advanced(step, scopes, bases, {
        path: tuple(new[name].total[path] for name in live_in) for path in scopes})
    for path, riders in moved.items():
        for name, rider in zip(live_in, riders, strict=True):
            new[name].total[path] = rider


def _advanced(step: t.Factors, scopes: Scopes, old: Bases, riders: Mapping[str, tuple[jax.Array, ...]]
              ) -> tuple[Bases, dict[str, tuple[jax.Array, ...]]]:
    """The factors with this update's value, and what lives in their bases, in the new order of these."""
    refresh, factors, moved = (old.count > 0) & (old.count % step.every == 0), {}, {}
    for paths in _by_shape(scopes):
        x, f, riding = _stack([(_value(step, scopes[path]), old.factors[path], riders[path]) for path in paths])
        f, riding = shared(lambda s, decay, due: kronecker.advance(s[0], s[1], decay, due, s[2]), (f, x, riding),
                           _decay(step, scopes[paths[0]]), refresh)
        for i, path in enumerate(paths):
            factors[path], moved[path] = jax.tree.map(lambda leaf, i=i: leaf[i], (f, riding))
    return Bases(old.count + 1, factors), moved


def _triangles(step: t.Triangles, scopes: Scopes, old: Bases) -> Bases:
    """Triangles fitted to this update's value too, in scope of the lines below."""
    name, found = zlib.crc32(step.name.encode()), {}
    for paths in _by_shape(scopes):
        keys = [jax.random.fold_in(jax.random.fold_in(scopes[path]["noise"], name), FIT) for path in paths]
        x, v, f = _stack([(value := _value(step, scopes[path]), jax.random.normal(key, value.shape, value.dtype),
                           old.factors[path]) for path, key in zip(paths, keys, strict=True)])
        f = shared(lambda stacks, *when: kronecker.fit(*stacks, *when), (f, x, v), step.rate, old.count == 0)
        found |= {path: jax.tree.map(lambda leaf, i=i: leaf[i], f) for i, path in enumerate(paths)}
    for path in scopes:
        scopes[path][step.name] = found[path]
    return Bases(old.count + 1, found)


def _triangles_cost(step: t.Triangles, shapes: Shapes) -> Cost:
    shape, flops, _ = _matrix(step.of, shapes, kronecker.fit_flops)
    return Cost(shape, flops + DRAWN * math.prod(shape), sum(size * size for size in shape))


def _decay(step: t.Average | t.Factors, scope: Mapping[str, Any]) -> Any:
    return scope[step.decay] if isinstance(step.decay, str) else step.decay


def _by_shape(scopes: Scopes) -> Iterable[list[str]]:
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, scope in scopes.items():
        groups.setdefault(scope["W"].shape, []).append(path)
    return groups.values()


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _solve(step: t.Solve, scopes: Scopes, old: Bases) -> Bases:
    """x by inverses of moments, which are taken anew every so many updates."""
    moments = {path: scope[step.by] for path, scope in scopes.items()}
    found = kronecker.inverses(moments, old.factors, old.count % step.every == 0, step.damping)
    for path, scope in scopes.items():
        scope[step.into] = kronecker.blockwise(found[path], _value(step, scope))
    return Bases(old.count + 1, found)


def _solve_cost(step: t.Solve, shapes: Shapes) -> Cost:
    if len(shape := shapes[step.by]) != 3 or shape[0] * shape[1] != shapes["W"][0]:
        raise ExpressionError(f"{step.by} has shape {shape}; an average of inputs would do")
    found = _matrix(step.of, shapes, lambda x: 2.0 * math.prod(shape) * (x[1] + shape[1] / step.every))
    return found._replace(floats=math.prod(shape))


def _matrices(step: t.Rotate | t.Root | t.Whiten, act: Callable[..., jax.Array], scopes: Scopes, _: None) -> None:
    """Act on a formula's value with the factors of all leaves, one shape at a time."""
    for paths in _by_shape(scopes):
        f, x = _stack([(scopes[path][step.by], _value(step, scopes[path])) for path in paths])
        for path, u in zip(paths, shared(lambda stacks: act(*stacks), (f, x)), strict=True):
            scopes[path][step.into] = u


def _matrix(code: str, shapes: Shapes, flops: Callable[[tuple[int, ...]], float], stack: bool = False) -> Cost:
    """The cost of what acts on a matrix. stack: or on a stack of them."""
    shape, before = measure(code, shapes)
    if len(shape) < 2 or len(shape) > 2 and not stack or 1 in shape[-2:] and shape != shapes["W"]:
        raise ExpressionError(f"a matrix is needed, and {code} has shape {shape}; another chain for such parameters")
    return Cost(shape, before + flops(shape))


def _polar(step: t.Polar, scopes: Scopes, _: None) -> None:
    values = {path: _value(step, scope) for path, scope in scopes.items()}
    for path, u in polar_leaves(values, step.coefficients, step.prenorm, step.weights).items():
        scopes[path][step.into] = u


def _step(scopes: Scopes, _: None) -> None:
    for scope in scopes.values():
        scope["W"] = scope["W"] - scope["lr"] * scope["u"]
