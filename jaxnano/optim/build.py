"""From a resolved optimizer node to the functions the training step calls, and to what they cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnano.config import optimizer as nodes
from jaxnano.config.base import ConfigError, Problem
from jaxnano.config.expression import ExpressionError, measure
from jaxnano.model.specs import Table
from jaxnano.optim.chain import Chain, Params, build_chain, costs_of
from jaxnano.optim.memory import Updater, with_memory


def build(cfg: nodes.Optimizer, table: Table, progress: Any, total_steps: Any) -> Updater:
    """The optimizer of a resolved node at one step.

    Args: table: the parameter table. progress: 0..1. total_steps: the horizon, traced.
    Returns: functions that own the parameters.
    """
    return with_memory(nodes.remembered(cfg), build_chains(cfg, table, progress), progress, total_steps)


def members(cfg: nodes.Optimizer, table: Table) -> dict[str, list[str]]:
    """Paths of the parameters by group name; every parameter is in exactly one."""
    found: dict[str, list[str]] = {group.name: [] for group in cfg.groups}
    for path, spec in table.items():
        found[cfg.group_of(path, spec.role).name].append(path)
    return found


def build_chains(cfg: nodes.Optimizer, table: Table, progress: Any) -> Chain:
    """All groups as one chain over {path: array}, behind the clipping of the global norm."""
    parts = {name: paths for name, paths in members(cfg, table).items() if paths}
    chains = {group.name: build_chain(group.steps, {"lr": group.lr, "progress": progress, **group.params})
              for group in cfg.groups if group.name in parts}

    def init(params: Params) -> dict[str, Any]:
        return {name: chains[name].init({path: params[path] for path in paths}) for name, paths in parts.items()}

    def update(grads: Params, state: dict[str, Any], params: Params) -> tuple[Params, dict[str, Any]]:
        grads = grads if cfg.clip is None else clip_gradients(grads, cfg.clip)
        moved, new = {}, {}
        for name, paths in parts.items():
            part, new[name] = chains[name].update({path: grads[path] for path in paths}, state[name],
                                                  {path: params[path] for path in paths})
            moved |= part
        return {path: moved[path] for path in params}, new

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


def update_cost(cfg: nodes.Optimizer, table: Table) -> UpdateCost:
    """The cost of one step of all parameters.

    Raises: ConfigError for a chain that a parameter's shape does not fit, with the group, the line and the parameter.
    """
    flops, floats, kept = 0.0, 0, nodes.remembered(cfg)
    found: dict[tuple[str, tuple[int, ...]], UpdateCost] = {}
    for group, paths in zip(cfg.groups, members(cfg, table).values(), strict=True):
        steps = group.steps
        for path in paths:
            shape = table[path].shape
            if (group.name, shape) not in found:
                found[group.name, shape] = _chain_cost(group, steps, path, shape)
            own, memory = found[group.name, shape], _memory_cost(kept, path, shape)
            flops, floats = flops + own.flops + memory.flops, floats + own.floats + memory.floats
    return UpdateCost(flops, floats)


def _chain_cost(group: nodes.Group, steps: Any, path: str, shape: tuple[int, ...]) -> UpdateCost:
    try:
        costs = [cost for _, cost in costs_of(steps, shape, ("lr", "progress", *group.params))]
    except ExpressionError as error:
        raise ConfigError([Problem(f"optimizer.groups.{group.name}.chain", path, str(error))]) from None
    return UpdateCost(sum(c.flops for c in costs), sum(c.floats for c in costs))


def _memory_cost(cfg: nodes.Optimizer, path: str, shape: tuple[int, ...]) -> UpdateCost:
    shapes = {**dict.fromkeys(("W", "W0", *(m.name for m in cfg.memory)), shape), "progress": ()}
    views = [view for view in (cfg.gradient, *cfg.moves) if view is not None]
    flops = sum(measure(v.code, {**shapes, **dict.fromkeys(v.params, ())}).flops for v in views)
    held = [m for m in cfg.memory if m.keeps(path)]
    size = len(held) and measure("W + 0", shapes).flops
    flops += sum(measure(m.of, shapes).flops + 3.0 * size for m in held)
    return UpdateCost(flops, int(len(held) * size))
