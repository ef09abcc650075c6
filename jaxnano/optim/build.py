"""From a resolved optimizer node to the functions the training step calls."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax

from jaxnano.config import optimizer as nodes
from jaxnano.model.specs import Table
from jaxnano.optim import adam, constraint, decay, kronecker, muon, readout, wrapper
from jaxnano.optim.wrapper import Updater


def build_transform(node: Any, lr: Any) -> optax.GradientTransformation:
    """One transform of a chain. node: resolved. lr: the group's learning rate, for constraints that take the step."""
    match node:
        case nodes.Sgd():
            return adam.sgd(node.momentum, node.nesterov)
        case nodes.Adam():
            return adam.adam(node.b1, node.b2, node.eps, node.bias_correction, node.nesterov)
        case nodes.Lion():
            return adam.lion(node.b1, node.b2)
        case nodes.Ademamix():
            return adam.ademamix(node.b1, node.b2, node.b3, node.alpha, node.eps)
        case nodes.Muon():
            return muon.muon(node.momentum, node.nesterov, node.orthogonalizer, node.scale)
        case nodes.Soap():
            return kronecker.soap(node.b1, node.b2, node.shampoo_beta, node.eps, node.refresh_every,
                                  node.bias_correction)
        case nodes.Normuon():
            return muon.normuon(node.b2, node.eps)
        case nodes.Decay():
            return decay.decoupled_decay(node.rate)
        case nodes.CautiousDecay():
            return decay.cautious_decay(node.rate)
        case nodes.Hyperball():
            return constraint.hyperball(lr)
    raise ValueError(f"{node!r}: no such transform")


def cost(node: Any, shape: tuple[int, ...]) -> tuple[float, int]:
    """FLOPs of one update and float32 numbers of state, for one parameter of `shape`."""
    size = math.prod(shape)
    match node:
        case nodes.Sgd() | nodes.Lion():
            return 4.0 * size, adam.momentum_state_floats(shape)
        case nodes.Adam():
            return adam.adam_flops(shape), adam.adam_state_floats(shape)
        case nodes.Ademamix():
            return 1.5 * adam.adam_flops(shape), adam.ademamix_state_floats(shape)
        case nodes.Muon():
            return muon.muon_flops(shape, node.orthogonalizer), muon.muon_state_floats(shape)
        case nodes.Soap():
            return kronecker.soap_flops(shape, node.refresh_every), kronecker.soap_state_floats(shape)
        case nodes.Normuon():
            return muon.normuon_flops(shape), muon.normuon_state_floats(shape)
        case nodes.Decay() | nodes.CautiousDecay():
            return decay.decay_flops(shape), 0
        case nodes.Hyperball():
            return constraint.hyperball_flops(shape), 0
    raise ValueError(f"{node!r}: no such transform")


def build_group(group: nodes.Group) -> optax.GradientTransformation:
    """A group's chain, ending in the step: minus the learning rate, unless a constraint takes it."""
    transforms = [build_transform(node, group.lr) for node in group.chain]
    if not isinstance(group.chain[-1], nodes.Hyperball):
        transforms.append(constraint.learning_rate(group.lr))
    return optax.chain(*transforms)


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
    chains = build_chains(cfg, table)
    if cfg.wrapper is None:
        optimizer = wrapper.from_transform(chains)
    else:
        optimizer = wrapper.ema_nesterov(chains, cfg.wrapper.gamma, cfg.wrapper.beta)
    if cfg.readout is not None:
        tail = cfg.readout
        optimizer = readout.tail_ema(optimizer, tail.start, tail.time_constant, tail.weight, progress, total_steps,
                                     exclude=unaveraged)
    return optimizer
