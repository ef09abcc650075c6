"""From a resolved optimizer node to the functions the training step calls, and to what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnano.config import optimizer as nodes
from jaxnano.config.base import ConfigError, Problem
from jaxnano.config.expression import ExpressionError, measure
from jaxnano.config.transforms import Average, Hyperball
from jaxnano.model.specs import OF_INPUTS, Table, moments_of
from jaxnano.optim.chain import Chain, Link, Params, bits_of, build_chain, costs_of
from jaxnano.optim.memory import Updater, with_memory


def build(cfg: nodes.Optimizer, table: Table, progress: Any, total_steps: Any) -> Updater:
    """The optimizer of a resolved node at one step.

    Args: table: the parameter table. progress: 0..1. total_steps: the horizon, traced.
    Returns: functions that own the parameters.
    """
    done = jnp.floor(progress * total_steps) + 1.0  # steps, this one included; progress is taken in its middle
    return with_memory(nodes.remembered(cfg), build_chains(cfg, table, progress, done), progress, total_steps, done)


def members(cfg: nodes.Optimizer, table: Table) -> dict[str, list[str]]:
    """Paths of the parameters by group name; every parameter is in exactly one."""
    found: dict[str, list[str]] = {group.name: [] for group in cfg.groups}
    for path, spec in table.items():
        found[cfg.group_of(path, spec.role).name].append(path)
    return found


def build_chains(cfg: nodes.Optimizer, table: Table, progress: Any, done: Any) -> Chain:
    """All groups as one chain over {path: array}, by their clocks, behind the clipping of the global norm.

    done: steps, this one included. The chain's update takes a fourth argument, where parameters that rest stay.
    """
    parts = {name: paths for name, paths in members(cfg, table).items() if paths}
    chains = {group.name: clocked(group, build_chain(
        group.steps, {"lr": group.lr, "progress": progress, "steps": done, **group.params},
        {path: table[path].axes for path in parts[group.name]}, links_of(group, table, parts[group.name]),
        moments_asked(group, table, parts[group.name])), progress, done)
              for group in cfg.groups if group.name in parts}

    def init(params: Params) -> dict[str, Any]:
        bits = bits_of(params)  # of all of them: a group's own may start as constants
        return {name: chains[name].init({path: params[path] for path in paths}, bits) for name, paths in parts.items()}

    def update(grads: Params, state: dict[str, Any], params: Params, rest: Params) -> tuple[Params, dict[str, Any]]:
        moments = {path: x for path, x in grads.items() if path.endswith(OF_INPUTS)}
        grads = {path: x for path, x in grads.items() if path not in moments}
        grads = (grads if cfg.clip is None else clip_gradients(grads, cfg.clip)) | moments
        moved, new = {}, {}
        for name, paths in parts.items():
            given, ahead, before = ({path: tree[path] for path in paths} for tree in (grads, params, rest))
            given |= {path + OF_INPUTS: grads[path + OF_INPUTS] for path in paths if path + OF_INPUTS in moments}
            part, new[name] = chains[name].update(given, state[name], ahead, before)
            moved |= part
        return {path: moved[path] for path in params}, new

    return Chain(init, update)


def moments_asked(group: nodes.Group, table: Table, paths: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """Shapes of the second moments of inputs that a group's chain reads, by path."""
    if not any("inputs" in step.reads for step in group.steps):
        return {}
    return {path: shape for path in paths if (shape := moments_of(path, table)) is not None}


def blanks(cfg: nodes.Optimizer, table: Table) -> Params:
    """What the model is given beside its parameters, so that the gradient holds the moments that chains read."""
    asked = [moments_asked(group, table, paths)
             for group, paths in zip(cfg.groups, members(cfg, table).values(), strict=True)]
    return {path + OF_INPUTS: jnp.zeros(shape) for shapes in asked for path, shape in shapes.items()}


def links_of(group: nodes.Group, table: Table, paths: list[str]) -> dict[str, Link]:
    """Who is whose partner in a group.

    Raises: ConfigError for a parameter without one, or whose partner has another shape.
    """
    found, members = {}, set(paths)
    for partner in group.partners:
        pairs: dict[str, str] = {}
        for path in paths:
            other = partner.of(path)
            if other not in members:
                rule = "is in no pair" if other is None else f"its partner, {other}, is not in the group"
            elif table[path].shape != table[other].shape[:: -1 if partner.transposed else 1]:
                rule = f"has shape {table[path].shape}, its partner {other} {table[other].shape}"
            else:
                pairs[path] = other
                continue
            raise ConfigError([Problem(f"optimizer.groups.{group.name}.partners.{partner.name}", path,
                                       f"{rule}; pairs of one shape, or of its transpose where transposed, would do")])
        found[partner.name] = Link(pairs, partner.transposed)
    return found


PENDING = "_gradients"  # no line of a chain can be called this


def clocked(group: nodes.Group, chain: Chain, progress: Any, done: Any) -> Chain:
    """A chain that rests when its group does: then nothing moves but the sum of gradients. See `build_chains`."""
    frozen = [(progress >= start) & (progress < end) for start, end in group.frozen]
    still, sums = sum(frozen[1:], start=frozen[0]) if frozen else jnp.zeros([], bool), group.accumulate

    def init(params: Params, bits: Any) -> dict[str, Any]:
        return {**chain.init(params, bits), **({PENDING: jax.tree.map(jnp.zeros_like, params)} if sums else {})}

    def update(grads: Params, state: dict[str, Any], params: Params, rest: Params) -> tuple[Params, dict[str, Any]]:
        if group.every == 1 and not frozen:
            return chain.update(grads, state, params)
        due = (done % group.every == 0) & ~still
        kept = {name: value for name, value in state.items() if name != PENDING}
        grads = jax.tree.map(jnp.add, grads, state[PENDING]) if sums else grads
        # A branch, so that a step in which the group rests does not pay for its chain.
        moved, kept = jax.lax.cond(due, lambda: chain.update(grads, kept, params), lambda: (rest, kept))
        pending = jax.tree.map(lambda g: jnp.where(due | still, jnp.zeros_like(g), g), grads)
        return moved, {**kept, **({PENDING: pending} if sums else {})}

    return Chain(init, update)


def clip_gradients(grads: Params, max_norm: Any) -> Params:
    """Shrink all gradients by one factor so that their joint 2-norm is at most max_norm.

    A norm that is not finite makes every gradient NaN, so that divergence shows at once.
    """
    norm = optax.tree.norm(grads)
    factor = jnp.minimum(1.0, max_norm / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
    return jax.tree.map(lambda g: g * factor, grads)


class UpdateCost(NamedTuple):
    """Of one update: floating-point operations, and float32 values of state kept."""

    flops: float
    floats: int


def update_cost(cfg: nodes.Optimizer, table: Table, span: tuple[float, float] = (0.0, 1.0),
                parts: Callable[[str, tuple[int, ...]], int] = lambda axes, shape: 1) -> UpdateCost:
    """The cost of one step of all parameters.

    Args: span: the shares of the run between which the steps lie that this is the mean of. parts: in how many parts a
        parameter of these axes and shape lies, of which one counts; state of its shape lies as it does.
    Raises: ConfigError for a chain that a parameter's shape does not fit, with the group, the line and the parameter.
    """
    flops, floats, kept = 0.0, 0, nodes.remembered(cfg)
    found: dict[Any, UpdateCost] = {}
    for group, paths in zip(cfg.groups, members(cfg, table).values(), strict=True):
        steps = group.steps
        links_of(group, table, paths)
        asked = moments_asked(group, table, paths)
        if any(isinstance(item, Hyperball) for item in group.chain):
            _refuse_zeros(group, {path: table[path] for path in paths})
        for path in paths:
            shape, axes, moments = table[path].shape, table[path].axes, asked.get(path)
            key = (group.name, shape, axes, moments)
            if key not in found:
                found[key] = _chain_cost(group, steps, path, shape, axes, moments, span, parts(axes, shape))
            own, memory = found[key], _memory_cost(kept, path, shape)
            flops += own.flops + memory.flops
            floats += own.floats + memory.floats // parts(axes, shape)
    return UpdateCost(flops, floats)


def _refuse_zeros(group: nodes.Group, table: Table) -> None:
    """Raises: ConfigError for a matrix that starts at 0, by a rule or a deviation of 0: its norm is kept."""
    for path, spec in table.items():
        if spec.role == "matrix" and spec.init.mean == 0 and (spec.init.kind == "zeros" or spec.init.value == 0):
            rule = "it starts at 0 and keeps its norm, so it would stay; another start, or another group, would do"
            raise ConfigError([Problem(f"optimizer.groups.{group.name}.chain.hyperball", path, rule)])


def _chain_cost(group: nodes.Group, steps: Any, path: str, shape: tuple[int, ...], axes: str, moments: Any,
                span: tuple[float, float], parts: int) -> UpdateCost:
    try:
        costs = [cost for _, cost in costs_of(steps, shape, ("lr", "progress", "steps", *group.params), axes,
                                               [partner.name for partner in group.partners], moments)]
    except ExpressionError as error:
        raise ConfigError([Problem(f"optimizer.groups.{group.name}.chain", path, str(error))]) from None
    size = math.prod(shape) if group.accumulate else 0
    square = len(shape) == 2 and shape[0] == shape[1]  # of which factors have the shape too
    held = (c.floats // parts if (c.shape == shape if isinstance(step, Average) else square) else c.floats
            for step, c in zip(steps, costs, strict=True))
    return UpdateCost(group.moving(*span) * sum(c.flops for c in costs) + size, size // parts + sum(held))


def _memory_cost(cfg: nodes.Optimizer, path: str, shape: tuple[int, ...]) -> UpdateCost:
    shapes = {**dict.fromkeys(("W", "W0", *(m.name for m in cfg.memory)), shape), "progress": ()}
    views = [view for view in (cfg.gradient, *cfg.moves) if view is not None]
    flops = sum(measure(v.code, {**shapes, **dict.fromkeys(v.params, ())}).flops for v in views)
    held = [m for m in cfg.memory if m.keeps(path)]
    flops += sum(measure(m.of, shapes).flops + 3.0 * math.prod(shape) for m in held)
    return UpdateCost(flops, len(held) * math.prod(shape))
