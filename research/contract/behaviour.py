"""What of a recipe matters: which places nothing reads, and a name that recipes share which train alike.

An edit of a place that nothing reads is dead: it costs runs, and whatever they say of it is luck. The gate refuses it
with the reason; a lane's proposal loses it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, get_args

import numpy as np

from jaxnano.config.base import Node, Range, digest, dump, finite, is_under, traced_range, walk
from jaxnano.config.block import Activation, Alibi, BlockTree, FormulaActivation, Gelu, Learned, Rotary
from jaxnano.config.depth import blocks_at
from jaxnano.config.expression import evaluate
from jaxnano.config.model import Injection, Model
from jaxnano.config.optimizer import Group
from jaxnano.config.partial import settings
from jaxnano.config.recipe import Recipe, shipped
from jaxnano.config.schedule import Constant, Schedule
from jaxnano.model.specs import specs
from jaxnano.optim.build import members
from research.text import listed

SHOWN = 3  # paths of parameters that a reason names


def unread(recipe: Recipe) -> dict[str, str]:
    """The places of a recipe that nothing reads, each with the reason: whatever stands there, it trains alike."""
    return dict(_unread(recipe))


def _unread(recipe: Recipe) -> Iterator[tuple[str, str]]:
    m, init, taken = recipe.model, recipe.model.init, _taken(recipe)
    for name, reason in taken.items():
        yield from ((f"optimizer.groups.{name}.{field}", reason) for field in ("lr", "chain"))
    yield from _overridden(m)
    attends, feeds = ([b for b in range(m.depth) if getattr(m.block(b), name)] for name in ("attention", "ffn"))
    yield from _ruled_out(recipe)
    if not attends:
        why = "no block has attention, see model.attention.dropped and model.blocks"
        yield from ((f"model.attention.{f}", why) for f in type(m.attention).model_fields if f != "dropped")
        yield from ((path, why) for path in ("model.residual.branch", "model.init.attention_std"))
        if isinstance(m.position, Rotary | Alibi):
            yield "model.position", why
    if not feeds:
        why = "no block has an FFN, see model.ffn.dropped and model.blocks"
        yield from ((f"model.ffn.{f}", why) for f in type(m.ffn).model_fields if f not in ("kind", "dropped"))
        yield "model.init.ffn_std", why
    if (not attends or init.attention_std is not None) and (not feeds or init.ffn_std is not None):
        yield "model.init.std", "every matrix has a standard deviation of its own"
    if init.zero_projections:
        yield "model.init.depth_scaled", "projections start at 0, see model.init.zero_projections"
    if m.embedding.tied:
        yield "model.init.head_std", "the head is the token table, see model.embedding.tied"
    sources = {wire.source for wire in m.residual.injections if wire.before}
    for save in m.residual.saves:
        if save.name not in sources:
            yield f"model.residual.saves.{save.name}", "no injection adds it anywhere"
    for wire in m.residual.injections:
        if not wire.before:
            yield f"model.residual.injections.{wire.name}", "it is added before no block"
    wrapper, readout = recipe.optimizer.wrapper, recipe.optimizer.readout
    if wrapper is not None and wrapper.beta == 0:
        yield "optimizer.wrapper.gamma", "a look-ahead of 0 steps, see optimizer.wrapper.beta"
    if readout is not None and readout.weight == 0:
        yield from ((f"optimizer.readout.{f}", "an average of weight 0, see optimizer.readout.weight")
                    for f in ("start", "time_constant"))
    for path, schedule, field in walk(recipe):
        if isinstance(schedule, Constant) and traced_range(field):
            yield f"{path}.floor", "a constant schedule has no decay that a floor would end"


def _ruled_out(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Rules of initial values that no parameter is left for, and what rules leave nothing of."""
    init = recipe.model.init
    if not init.rules:
        return
    table, left = specs(recipe), list(init.rules)
    for path, spec in table.items():
        first = next((rule for rule in init.rules if rule.matches(path, spec.role)), None)
        left = [rule for rule in left if rule is not first]
    yield from ((f"model.init.rules.{rule.name}", "no parameter has its paths or roles, or earlier rules take them")
                for rule in left)
    for name, field in type(init).model_fields.items():
        if name != "rules":
            value, options = getattr(init, name), get_args(field.annotation)
            other: Any = 0.1 if isinstance(value, bool | str) else (value or 0.0) + 0.1
            if isinstance(value, bool | str):
                other = not value if isinstance(value, bool) else next(o for o in options if o != value)
            model = recipe.model.model_copy(update={"init": init.model_copy(update={name: other})})
            if specs(recipe.model_copy(update={"model": model})) == table:
                yield f"model.init.{name}", "whatever it speaks of has a rule, see model.init.rules"


def _overridden(m: Model) -> Iterator[tuple[str, str]]:
    """What no block sees: a later diff says otherwise in each, or it has no such branch."""
    told = [(diff.name, set(blocks_at(diff.at, m.depth)), settings(diff.set)) for diff in m.blocks]
    having = {name: {b for b in range(m.depth) if getattr(m.block(b), name)} for name in ("attention", "ffn")}
    for i, (name, blocks, paths) in enumerate(told):
        for path, value in paths.items():
            later = [b for _, b, other in told[i + 1 :] if any(is_under(path, place) for place in other)]
            seen = blocks.difference(*later)
            if value is not None and (branch := path.partition(".")[0]) in having:
                seen &= having[branch]
            if not seen:
                yield f"model.blocks.{name}.set.{path}", "none of its blocks sees it, see the diffs after it"
    for path in {path for *_, paths in told for path in paths if path.startswith(("attention.", "ffn."))}:
        blocks = [b for _, b, paths in told if any(is_under(path, place) for place in paths)]
        if not having[path.partition(".")[0]].difference(*blocks):
            yield f"model.{path}", "every block has its own, see model.blocks"


def _taken(recipe: Recipe) -> dict[str, str]:
    """Groups without a parameter, each with who holds those that it names."""
    table, groups = specs(recipe), recipe.optimizer.groups
    held, found = members(recipe.optimizer, table), {}
    for group in groups:
        if held[group.name]:
            continue
        rivals = {}
        for path, spec in table.items():
            if group.matches(path, spec.role):
                rivals.setdefault(recipe.optimizer.group_of(path, spec.role).name, []).append(path)
        found[group.name] = f"group {group.name!r} holds no parameter: " + ("; ".join(
            f"{listed(paths, SHOWN)} {'are' if len(paths) > 1 else 'is'} in group {name!r}, which stands before it"
            for name, paths in rivals.items()) or "the model has none of its roles or paths")
    return found


def needless(recipe: Recipe) -> dict[str, str]:
    """Groups without a parameter, each with the reason, that may go as the groups left still cover all roles."""
    found, gone, left = _taken(recipe), {}, list(recipe.optimizer.groups)
    for group in reversed(recipe.optimizer.groups) if found else ():
        others = [other for other in left if other is not group]
        if group.name in found and set(group.roles) <= {role for other in others for role in other.roles}:
            gone[group.name], left = found[group.name], others
    return gone


def pruned(recipe: Recipe) -> Recipe:
    """The recipe without the groups that earlier ones leave nothing: two techniques may empty a third's group."""
    if len(recipe.optimizer.groups) < 2 or not (gone := needless(recipe)):
        return recipe
    groups = tuple(group for group in recipe.optimizer.groups if group.name not in gone)
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"groups": groups})})


def idle(recipe: Recipe, paths: Iterable[str]) -> dict[str, str]:
    """The paths among these whose edits change nothing of how the recipe trains, each with the reason."""
    places, gone = unread(recipe), {f"optimizer.groups.{name}": why for name, why in needless(recipe).items()}
    found = {path: gone.get(path) or next((why for place, why in places.items() if is_under(path, place)), None)
             for path in paths}
    inside = {place: why for place, why in places.items()  # of a diff over blocks that is put there whole
              if place.startswith("model.blocks.") and any(is_under(place, path) for path in found)}
    return {path: why for path, why in (found | inside).items() if why}


def behaviour(recipe: Recipe) -> str:
    """A name shared by recipes that train alike: what has no effect is put to one spelling before hashing.

    Numbers that agree to three digits are one: no run could tell them apart. Groups are what they do to each parameter.
    """
    m, length, places = recipe.model, recipe.data.length, unread(recipe)
    wires = [wire for wire in m.residual.injections if isinstance(wire, Injection) and wire.before]
    optimizer, table = recipe.optimizer, specs(recipe)
    chains = {group.name: digest(_chain(group)) for group in optimizer.groups}
    data = {
        "model": _spelled(m, "model", [*places, "model.init", *(f"model.{name}" for name in BlockTree.model_fields)]),
        "blocks": [[_block(tree.block(block), length) for block in range(m.depth)]
                   for tree in (m, shipped(recipe).model)],
        "outside": [_spelled(m.norm), _spelled(m.position) if isinstance(m.position, Learned) else None,
                    m.bias and not m.embedding.tied], "data": dump(recipe.data), "train": dump(recipe.train),
        "init": {path: [_number(part, None) for part in spec.init] for path, spec in table.items()},
        "clip": _number(optimizer.clip, traced_range(type(optimizer).model_fields["clip"])),
        "chains": {path: chains[optimizer.group_of(path, spec.role).name] for path, spec in table.items()},
    }
    for name, off in (("wrapper", "beta"), ("readout", "weight")):
        node = getattr(optimizer, name)
        if node is not None and getattr(node, off) != 0:
            data[name] = _spelled(node, f"optimizer.{name}", places)
    for name in ("gradient", "evaluated"):
        data[name] = _spelled(node) if (node := getattr(optimizer, name)) is not None else None
    data["kept"] = [[_spelled(item) for item in items] for items in (optimizer.memory, optimizer.moves)]
    data["wires"] = [sorted((s.name, s.after) for s in m.residual.saves if s.name in {w.source for w in wires}),
                     [[_spelled(wire), sorted(wire.before)] for wire in wires]]
    return digest(data)


GRID = np.linspace(-5.0, 5.0, 41) + 0.0123456789  # where an activation is probed: off the places where it may bend
CURVES = {"gelu": "x / 2 * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x ** 3)))", "silu": "x * sigmoid(x)",
          "relu2": "relu(x) ** 2"}  # what those with a name are
EXACT_GELU = "x / 2 * (1 + erf(0.7071067811865476 * x))"
SPELLED = ("window", "windows", "kv_heads", "head_dim", "dropped", "ratio", "saves", "injections", "before",
           "activation", "blocks")  # by `behaviour` and `_block`


def _block(m: Model, length: int) -> list[Any]:
    """What a block does."""
    attention = m.attention and [_spelled(m.attention), m.window(length), m.kv_heads, m.head_dim,
                                 _spelled(m.position) if isinstance(m.position, Rotary | Alibi) else None]
    return [attention, m.ffn and [_spelled(m.ffn), m.ffn_width, _curve(m.ffn.activation)], _spelled(m.norm), m.bias]


def _chain(group: Group) -> list[Any]:
    """What a group does to a parameter: a decay of 0 is none."""
    rate = _number(group.lr, traced_range(Group.model_fields["lr"]))
    params = _number(group.params, traced_range(Group.model_fields["params"]))
    clock = [group.every, group.accumulate, group.frozen]
    clock += [_spelled(partner) for partner in group.partners]
    return [rate, params, clock, [_spelled(t) for t in group.chain if getattr(t, "rate", None) != 0]]


def _curve(activation: Activation) -> list[float]:
    """What an activation does on a grid: two spellings of one function are one."""
    code, params = CURVES.get(activation.kind, EXACT_GELU), {}
    if isinstance(activation, FormulaActivation):
        code, params = activation.code, {name: _number(value, None) for name, value in activation.params.items()}
    elif isinstance(activation, Gelu) and not activation.approximate:
        code = EXACT_GELU
    with np.errstate(all="ignore"):  # a formula that divides by zero is told by its run
        values = np.broadcast_to(evaluate(code, {**params, "x": GRID}), GRID.shape)
    return [float(f"{value:.5g}") + 0.0 for value in values]


def _spelled(node: Node, path: str = "", places: Collection[str] = ()) -> list[tuple[str, Any]]:
    """What stands below a node, less what is not read and what `behaviour` spells itself."""
    found: list[tuple[str, Any]] = []
    done = [*places]
    for here, value, field in walk(node, path):
        if any(is_under(here, place) for place in done):
            continue
        if (span := traced_range(field)) or here.rpartition(".")[2] in SPELLED:
            done.append(here)
            found += [(here, _number(value, span))] if span else []
        elif not any(isinstance(item, Node) for item in (value if isinstance(value, tuple) else (value,))):
            found.append((here, value))
    return found


def _number(value: Any, span: Range | None) -> Any:
    """A traced field's value to three digits; a constant schedule without a warm-up is its number."""
    if isinstance(value, Constant) and value.warmup == 0:
        value = value.value
    if isinstance(value, Schedule):
        known = type(value).model_fields
        return {name: _number(getattr(value, name), span if name == "value" else traced_range(known[name]))
                for name in known if not (isinstance(value, Constant) and name == "floor")}
    if isinstance(value, dict):
        return {key: _number(item, span) for key, item in value.items()}
    if not finite(value):
        return value
    return float(f"{1.0 - value:.3g}") if span and span.scale == "decay" else float(f"{value:.3g}") + 0.0
