"""From a resolved optimizer node to the functions the training step calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

from jaxnano.config import optimizer as nodes
from jaxnano.model.specs import Table
from jaxnano.optim import adam, constraint, decay, kronecker, muon, readout, wrapper
from jaxnano.optim.priced import Priced, UpdateCost, per_entry
from jaxnano.optim.wrapper import Updater


def build_transform(node: nodes.Transform, lr: Any) -> Priced[optax.GradientTransformation]:
    """One transform of a chain, and its cost.

    Args: node: resolved, unless only the cost is asked for. lr: the group's learning rate, for what takes the step.
    """
    match node:
        case nodes.Sgd():
            return Priced(adam.sgd(node.momentum, node.nesterov), per_entry(4.0, floats=1))
        case nodes.Adam():
            moments = adam.adam(node.b1, node.b2, node.eps, node.bias_correction, node.nesterov)
            return Priced(moments, per_entry(14.0, floats=2))
        case nodes.Lion():
            return Priced(adam.lion(node.b1, node.b2), per_entry(4.0, floats=1))
        case nodes.Ademamix():
            moments = adam.ademamix(node.b1, node.b2, node.b3, node.alpha, node.eps)
            return Priced(moments, per_entry(21.0, floats=3))
        case nodes.Muon():
            return Priced(muon.muon(node.momentum, node.nesterov, node.orthogonalizer, node.scale),
                          partial(muon.muon_cost, orthogonalizer=node.orthogonalizer))
        case nodes.Soap():
            return Priced(kronecker.soap(node.b1, node.b2, node.shampoo_beta, node.eps, node.refresh_every,
                                         node.bias_correction),
                          partial(kronecker.soap_cost, refresh_every=node.refresh_every))
        case nodes.Normuon():
            return Priced(muon.normuon(node.b2, node.eps), muon.normuon_cost)
        case nodes.Decay():
            return Priced(decay.decoupled_decay(node.rate), per_entry(4.0))
        case nodes.CautiousDecay():
            return Priced(decay.cautious_decay(node.rate), per_entry(4.0))
        case nodes.Hyperball():
            return Priced(constraint.hyperball(lr), per_entry(11.0))
    raise ValueError(f"{node!r}: no such transform")


def build_group(group: nodes.Group) -> optax.GradientTransformation:
    """A group's chain, ending in the step: minus the learning rate, unless a constraint takes it."""
    transforms = [build_transform(node, group.lr).built for node in group.chain]
    if group.chain[-1].stage < nodes.CONSTRAINT:
        transforms.append(constraint.learning_rate(group.lr))
    return optax.chain(*transforms)


def build_wrapper(node: nodes.EmaNesterov | None) -> Priced[Callable[[optax.GradientTransformation], Updater]]:
    """What owns the parameters and moves them by the chains, and its cost beside theirs."""
    match node:
        case None:
            return Priced(wrapper.from_transform, per_entry(0.0))
        case nodes.EmaNesterov():
            return Priced(partial(wrapper.ema_nesterov, gamma=node.gamma, beta=node.beta), per_entry(6.0, floats=1))
    raise ValueError(f"{node!r}: no such wrapper")


def build_readout(node: nodes.TailEma | None) -> Priced[Callable[..., Updater]]:
    """What decides the evaluated parameters, given an optimizer, progress and total steps, and its cost."""
    match node:
        case None:
            return Priced(lambda optimizer, progress, total_steps: optimizer, per_entry(0.0))
        case nodes.TailEma():
            return Priced(partial(readout.tail_ema, start=node.start, time_constant=node.time_constant,
                                  weight=node.weight, exclude=unaveraged), per_entry(3.0, floats=1))
    raise ValueError(f"{node!r}: no such readout")


def members(cfg: nodes.Optimizer, table: Table) -> dict[str, list[str]]:
    """Paths of the parameters by group name; every parameter is in exactly one."""
    found: dict[str, list[str]] = {group.name: [] for group in cfg.groups}
    for path, spec in table.items():
        found[cfg.group_of(path, spec.role).name].append(path)
    return found


def build_chains(cfg: nodes.Optimizer, table: Table) -> optax.GradientTransformation:
    """All groups as one transform over {path: array}, behind the clipping of the global norm."""
    chains = {group.name: build_group(group) for group in cfg.groups}
    parts = members(cfg, table)

    def pick(tree: dict[str, jax.Array], name: str) -> dict[str, jax.Array]:
        return {path: tree[path] for path in parts[name]}

    def init(params: Any) -> dict[str, Any]:
        return {name: chain.init(pick(params, name)) for name, chain in chains.items() if parts[name]}

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        grads = updates if cfg.clip is None else decay.clip_gradients(updates, cfg.clip)
        moved: dict[str, Any] = {name: chains[name].update(pick(grads, name), state[name], pick(params, name))
                                 for name in state}
        steps = {path: step for part, _ in moved.values() for path, step in part.items()}
        return {path: steps[path] for path in grads}, {name: new for name, (_, new) in moved.items()}

    return optax.GradientTransformation(init, update)


def unaveraged(path: str) -> bool:
    """Whether the readout leaves out the parameter at a path, in what it evaluates and in what it keeps."""
    return path == "embedding/token"


def build(cfg: nodes.Optimizer, table: Table, progress: Any, total_steps: Any) -> Updater:
    """The optimizer of a resolved node at one step.

    Args: table: the parameter table. progress: 0..1. total_steps: the horizon, traced.
    Returns: functions that own the parameters (`wrapper.Optimizer`).
    """
    optimizer = build_wrapper(cfg.wrapper).built(build_chains(cfg, table))
    return build_readout(cfg.readout).built(optimizer, progress=progress, total_steps=total_steps)


def update_cost(cfg: nodes.Optimizer, table: Table) -> UpdateCost:
    """The cost of one step of all parameters, the multiplication and addition that end it included."""
    costs, own, read = [], build_wrapper(cfg.wrapper).cost, build_readout(cfg.readout).cost
    for group, paths in zip(cfg.groups, members(cfg, table).values(), strict=True):
        chain = [build_transform(node, group.lr).cost for node in group.chain]
        for path in paths:
            parts = [*chain, per_entry(2.0), own, *[read] * (not unaveraged(path))]
            costs += [part(table[path].shape) for part in parts]
    return UpdateCost(sum(c.flops for c in costs), sum(c.floats for c in costs))
