"""Optimizers that own their parameters: what is kept beside them, where gradients are taken, what is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnano.config import optimizer as nodes
from jaxnano.config.expression import evaluate, names
from jaxnano.optim.chain import Params, Scalar


class Updater(NamedTuple):
    """Pure functions over a state that holds the parameters. Built anew inside each step from that step's scalars.

    init(params) -> state; the state shares no buffer with params, so either may be donated.
    grad_params(state) -> params at which the next gradient is to be taken.
    update(grads, state) -> state.
    eval_params(state) -> params to evaluate, sample from and ship.
    """

    init: Callable[[Params], State]
    grad_params: Callable[[State], Params]
    update: Callable[[Params, State], State]
    eval_params: Callable[[State], Params]


class State(NamedTuple):
    """Trained parameters, what the chains keep, and the memories by name and path."""

    params: Params
    chains: Any
    memory: dict[str, Params]


def with_memory(cfg: nodes.Optimizer, chains: Any, progress: Scalar, total_steps: Scalar, done: Scalar) -> Updater:
    """The optimizer of chains that may keep memories, look ahead, be evaluated elsewhere and make moves.

    Args:
        cfg: resolved, wrapper and readout written out (`remembered`).
        chains: init(params), update(grads, state, params, rest) -> (params, state), of all parameters.
        progress, total_steps, done: of this step.
    """

    def init(params: Params) -> State:
        params = {path: jnp.copy(w) for path, w in params.items()}
        memory: dict[str, Params] = {}
        for m in cfg.memory:
            scopes = {path: {**_kept_for(path, memory), "W": w, "W0": w, "progress": 0.0} for path, w in params.items()
                      if m.keeps(path)}
            memory[m.name] = {path: jnp.zeros_like(params[path]) if m.keep == "sum" else
                              jnp.copy(jnp.broadcast_to(_of(m.of, scope), params[path].shape))
                              for path, scope in scopes.items()}
        return State(params, chains.init(params), memory)

    def seen(view: nodes.View | None, state: State, before: Params | None = None) -> Params:
        """The parameters as a view says; one that lacks a memory which it reads stays."""
        if view is None:
            return state.params
        needed = names(view.code, nodes.VIEW) & state.memory.keys()
        out = dict(state.params)
        for path, w in state.params.items():
            if all(path in state.memory[name] for name in needed):
                kept = {name: state.memory[name][path] for name in needed}
                scope = {**kept, "W": w, "W0": (before or state.params)[path], "progress": progress}
                out[path] = _of(view.code, scope | view.params).astype(w.dtype)
        return out

    def update(grads: Params, state: State) -> State:
        ahead = seen(cfg.gradient, state)
        before = state.params
        params, inner = chains.update(grads, state.chains, ahead, before)
        state = _kept(State(params, inner, state.memory), before, ("average", "sum"))
        for move in cfg.moves:
            moved = seen(move, state, before)
            state = state._replace(params=_where(done % move.every == 0, moved, state.params))
        return _kept(state, before, ("copy",))

    def _kept(state: State, before: Params, kinds: tuple[str, ...]) -> State:
        memory = dict(state.memory)
        for m in cfg.memory:
            if m.keep not in kinds:
                continue
            new = {}
            for path, old in memory[m.name].items():
                scope = {**_kept_for(path, memory), "W": state.params[path], "W0": before[path], "progress": progress}
                new[path] = _next(m, old, _of(m.of, scope)).astype(old.dtype)
            due = True if m.every == 1 else done % m.every == 0
            due = due if m.until is None else due & (progress < m.until)
            memory[m.name] = new if due is True else _where(due, new, memory[m.name])
        return state._replace(memory=memory)

    def _next(m: nodes.Memory, old: jax.Array, value: jax.Array) -> jax.Array:
        decay: Any = m.decay
        if m.keep == "copy":
            return jnp.broadcast_to(value, old.shape)
        if m.keep == "sum":
            return decay * old + value
        rate = 1 - decay if decay is not None else jnp.minimum(1.0, 1.0 / (m.time_constant * total_steps))
        rate = jnp.where(progress < m.start, 1.0, rate)
        return rate * value + (1 - rate) * old

    return Updater(init, lambda state: seen(cfg.gradient, state), update, lambda state: seen(cfg.evaluated, state))


def _kept_for(path: str, memory: dict[str, Params]) -> Params:
    return {name: kept[path] for name, kept in memory.items() if path in kept}


def _of(code: str, scope: Mapping[str, Any]) -> jax.Array:
    return jnp.asarray(evaluate(code, {name: scope[name] for name in names(code, nodes.VIEW)}, reduces=True))


def _where(due: Any, new: Params, old: Params) -> Params:
    return {path: jnp.where(due, w, old[path]) for path, w in new.items()}
