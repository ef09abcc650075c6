"""What of a recipe matters: which places nothing reads, and a name that recipes share which train alike.

An edit of a place that nothing reads is dead: it costs runs, and whatever they say of it is luck. The gate refuses it
with the reason; a lane's proposal loses it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, get_args

from jaxnano.config import wires, wiring
from jaxnano.config.base import Node, digest, dump, is_under, traced_range, walk
from jaxnano.config.block import ACTIVATION, Activation, Alibi, BlockTree, FormulaActivation, Gelu, Learned, Rotary
from jaxnano.config.depth import blocks_at
from jaxnano.config.expression import names
from jaxnano.config.formulas import ANY, Formula, Logit, Logits
from jaxnano.config.model import Model, Target
from jaxnano.config.optimizer import VIEW, Memory, Move, Optimizer, View, remembered
from jaxnano.config.partial import settings
from jaxnano.config.recipe import Recipe, shipped, stages, trained
from jaxnano.config.schedule import Constant
from jaxnano.config.transforms import FREE
from jaxnano.model.specs import Table, ruling, specs, unruled
from jaxnano.optim.build import members
from jaxnano.phases import seam
from research.contract import chains, probe
from research.contract.places import CURVES, EXACT_GELU
from research.contract.probe import traced
from research.text import listed

SHOWN = 3  # paths of parameters that a reason names


def unread(recipe: Recipe) -> dict[str, str]:
    """The places of a recipe that nothing reads, each with the reason: whatever stands there, it trains alike."""
    if not recipe.phases:
        return dict(_unread(recipe))
    parts = stages(recipe)
    told = [list(settings(phase.set)) for phase in recipe.phases]
    places = [dict(_unread(part.recipe)) for part in parts]
    begin = [bool(specs(after.recipe).keys() - seam(before, after).keys())
             for before, after in zip(parts, parts[1:], strict=False)]

    def why(path: str, first: int) -> str:
        """Why nothing reads what a stage puts at a path, as long as no later one does; empty if something does."""
        reason = ""
        for stage in range(first, len(parts)):
            if stage > first and any(is_under(path, place) for place in told[stage - 1]):
                return reason or "a later phase says otherwise"
            found = next((why for place, why in places[stage].items() if is_under(path, place)), "")
            if stage and not found and is_under(path, "model.init"):
                found = "" if begin[stage - 1] else "no parameter begins in it"
            if not found:
                return ""
            reason = reason or found
        return reason

    found = {path: why(path, 0) for path in places[0]}
    found |= {f"phases.{phase.name}.set.{path}": why(path, i + 1)
              for i, phase in enumerate(recipe.phases) for path in told[i]}
    return {path: reason for path, reason in found.items() if reason}


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
        yield "model.init.attention_std", why
        if isinstance(m.position, Rotary | Alibi):
            yield "model.position", why
    if all(m.block(block).window(recipe.data.length) is None for block in attends):
        yield "model.attention.window_block", "no block has a window"
    documents = recipe.data.documents
    if documents is not None and (documents.most or 0) >= recipe.data.length:
        yield "data.documents.most", "no row is longer, see data.length"
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
    yield from ((f"model.{path}", why) for path, why in wiring.idle(m))
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
    table, left, open_to = dict(unruled(recipe.model, recipe.data.length)), list(init.rules), set()
    for path, spec in table.items():
        used = ruling(init.rules, path, spec.role)
        left = [rule for rule in left if rule not in used]
        if all(rule.draw == "same" or "std" in names(rule.code, ANY) for rule in used):
            open_to.add(path)  # what stands without rules is seen
    yield from ((f"model.init.rules.{rule.name}", "no parameter has its paths or roles, or earlier rules take them")
                for rule in left)
    for name, field in type(init).model_fields.items():
        if name != "rules":
            value, options = getattr(init, name), get_args(field.annotation)
            other: Any = 0.1 if isinstance(value, bool | str) else (value or 0.0) + 0.1
            if isinstance(value, bool | str):
                other = not value if isinstance(value, bool) else next(o for o in options if o != value)
            moved = recipe.model.model_copy(update={"init": init.model_copy(update={name: other})})
            if all(spec == table[path] for path, spec in unruled(moved, recipe.data.length) if path in open_to):
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
    """Groups without a parameter, in no phase, each with who holds those that it names."""
    first, *later = (_taken_at(part.recipe) for part in stages(recipe))
    named = {path for phase in recipe.phases for path in settings(phase.set)}
    return {name: why for name, why in first.items() if all(name in taken for taken in later)
            and not any(is_under(path, f"optimizer.groups.{name}") for path in named)}


def _taken_at(recipe: Recipe) -> dict[str, str]:
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


def stuck(recipe: Recipe) -> dict[str, list[str]]:
    """Parameters that start at 0 and stay there, by the group whose chain keeps them: a pinned norm, a pure factor."""
    table, found = specs(recipe), {}
    for group, paths in zip(recipe.optimizer.groups, members(recipe.optimizer, table).values(), strict=True):
        inits = {path: table[path].init for path in paths}
        still = [path for path, init in inits.items() if init.mean == 0 and (init.kind == "zeros" or init.value == 0)]
        ranks = {len(table[path].shape) > 1 for path in still}
        if still and chains.stuck(group, True in ranks, False in ranks):
            found[group.name] = still
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
    inside = {place: why for place, why in places.items()  # of a diff that is put there whole
              if place.startswith(("model.blocks.", "phases.")) and any(is_under(place, path) for path in found)}
    return {path: why for path, why in (found | inside).items() if why}


def behaviour(recipe: Recipe) -> str:
    """A name shared by recipes that train alike: what has no effect is put to one spelling before hashing.

    Numbers that agree to three digits are one: no run could tell them apart. Groups are what they do to each parameter;
    formulas, schedules and chains what they do to made-up values (probe.py, chains.py). A phase that does as the one
    before is none.
    """
    if not recipe.phases:
        return digest(_does(recipe))
    parts, told = stages(recipe), []
    for before, part in zip((None, *parts), parts, strict=False):
        does: dict[str, Any] = _does(part.recipe.model_copy(update={"evaluation": None}))
        origin, init = seam(before, part) if before else {}, does.pop("init")
        init = {path: value for path, value in init.items() if path not in origin}
        moved = sorted((path, *source) for path, source in origin.items() if path != source.path)
        if not told or init or moved or does != told[-1][1]:
            told.append((traced(part.start, None), does, init, moved))
    if len(told) == 1:
        return behaviour(parts[0].recipe.model_copy(update={"evaluation": recipe.evaluation}))
    return digest([told, _blocks(trained(recipe))[1]])


def _does(recipe: Recipe) -> dict[str, Any]:
    """What a recipe without phases does, as plain data."""
    counting = recipe.model_copy(update={"model": wiring.counting(recipe.model)})
    alike = recipe.model_copy(update={"model": wiring.renamed(counting.model)})
    m, places, table = alike.model, unread(recipe), specs(counting)
    optimizer, called = recipe.optimizer, dict(zip(table, specs(alike) if m.wires else table, strict=True))
    data = {
        "model": _spelled(m, "model", [*places, "model.init", *(f"model.{name}" for name in BlockTree.model_fields)]),
        "blocks": _blocks(alike),
        "outside": [_spelled(m.norm), _spelled(m.position) if isinstance(m.position, Learned) else None,
                    m.bias and not m.embedding.tied], "data": _data(recipe), "train": dump(recipe.train),
        "logits": _capped(m.head.softcap and SOFTCAPS[m.head.softcap.kind], m.head.softcap and m.head.softcap.cap,
                          m.head.logits), "targets": _targets(m),
        "init": {called[path]: [traced(part, None) for part in spec.init] for path, spec in table.items()},
        "clip": traced(optimizer.clip, traced_range(type(optimizer).model_fields["clip"])),
        "chains": {called[path]: does for path, does in _chains(optimizer, table).items()}, **_views(optimizer),
    }
    at = {wire.name: [place for place, tree in wires.places(m) if wire in wires.acting(tree, place)]
          for wire in m.wires}
    data["wires"] = [[tap.name, tap.of, place] for tap, place in zip(m.taps, wires.since(m).values(), strict=True)]
    data["wires"] += [[*map(_spelled, m.tables)], [[_spelled(wire), at[wire.name]] for wire in m.wires]]
    return data


SOFTCAPS = {"tanh": "cap * tanh(z / cap)", "rsqrt": "cap * z / sqrt(z * z + cap ** 2)"}
SPELLED = ("window", "windows", "window_block", "kv_heads", "head_dim", "dropped", "ratio", "taps", "tables", "wires",
           "at", "activation", "blocks", "softcap", "logit", "logits", "targets")  # by `behaviour` and `_block`


def _blocks(recipe: Recipe) -> list[list[str]]:
    """What each block does, trained and evaluated."""
    told: dict[int, str] = {}
    trees = [[tree.block(block) for block in range(tree.depth)] for tree in (recipe.model, shipped(recipe).model)]
    for tree in (tree for blocks in trees for tree in blocks):
        told[id(tree)] = told.get(id(tree)) or digest(_block(tree, recipe.data.length))
    return [[told[id(tree)] for tree in blocks] for blocks in trees]


def _block(m: Model, length: int) -> list[Any]:
    """What a block does."""
    attention = m.attention and [_spelled(m.attention), _windows(m, length), m.kv_heads, m.head_dim,
                                 _capped("cap * tanh(s / cap)", m.attention.softcap, m.attention.logit),
                                 _spelled(m.position) if isinstance(m.position, Rotary | Alibi) else None]
    return [attention, m.ffn and [_spelled(m.ffn), m.ffn_width, _curve(m.ffn.activation)], _spelled(m.norm), m.bias]


def _windows(m: Model, length: int) -> list[int | None]:
    """What a query sees, how that is counted, and what it sees for weights of their own."""
    a, window = m.attention, m.window(length)
    block, own = a.window_block if window is not None else 1, getattr(a.mix_weights, "window", 0)
    alike = block == 1 and own and min(own, m.row(length)) == (window or m.row(length))
    return [window, block, 0 if alike else own]


def _targets(m: Model) -> list[Any]:
    """What training predicts: how far ahead, and with which weight; nothing, if all of them are 0."""
    span = traced_range(Target.model_fields["weight"])
    told = [(target.shift, target.weight) for target in m.head.targets] or [(1, 1.0)]
    return sorted((shift, traced(weight, span)) for shift, weight in told if weight != 0)


def _data(recipe: Recipe) -> dict[str, Any]:
    """The data, and of documents what they come to."""
    data, told = dump(recipe.data), recipe.data.documents
    if told is not None:
        most = told.most if told.most is not None and told.most < recipe.data.length else None
        data["documents"] = [told.mask, most, told.align, recipe.data.separator]
    return data


def _capped(code: str | None, cap: Any, own: Formula | None) -> Any:
    """What logits become by a cap, or by a formula of their own."""
    if own is not None:
        return probe.formula(own.code, own.params, type(own).place, FREE)
    place = Logit.place if code and "s /" in code else Logits.place
    return None if code is None or cap is None else probe.formula(code, {"cap": cap}, place, FREE)


def _chains(optimizer: Optimizer, table: Table) -> dict[str, Any]:
    """What its group does to each parameter."""
    held, told = members(optimizer, table), {}
    for group in optimizer.groups:
        ranks = {len(table[path].shape) > 1 for path in held[group.name]}
        if ranks:
            does = chains.chain(group, True in ranks, False in ranks)
            told[group.name] = digest([group.every, group.accumulate, group.frozen, does])
    names = {path: name for name, paths in held.items() for path in paths}
    return {path: told[names[path]] for path in table}


def _views(optimizer: Optimizer) -> dict[str, Any]:
    """Where gradients are taken, what is evaluated and how parameters are moved; memories are what they keep."""
    kept, names = remembered(optimizer), {}

    def view(node: View | Move | None) -> Any:
        told = None if node is None else probe.formula(node.code, node.params, VIEW, FREE, names)
        return None if told == ["is", "W"] else told

    for memory in kept.memory:
        paced = [traced(getattr(memory, name), traced_range(Memory.model_fields[name]))
                 for name in ("decay", "start", "time_constant", "until")]
        rest = {name: getattr(memory, name) for name in ("keep", "every", "paths", "without")}
        names[memory.name] = "m" + digest([probe.formula(memory.of, {}, VIEW, FREE, names), paced, rest])
    return {"gradient": view(kept.gradient), "evaluated": view(kept.evaluated),
            "moves": [[view(move), move.every] for move in kept.moves]}


def _curve(activation: Activation) -> Any:
    """What an activation does."""
    code, params = CURVES.get(activation.kind, EXACT_GELU), {}
    if isinstance(activation, FormulaActivation):
        code, params = activation.code, activation.params
    elif isinstance(activation, Gelu) and not activation.approximate:
        code = EXACT_GELU
    return probe.formula(code, params, ACTIVATION, None)


def _spelled(node: Node, path: str = "", places: Collection[str] = ()) -> list[tuple[str, Any]]:
    """What stands below a node, less what is not read and what `behaviour` spells itself."""
    found: list[tuple[str, Any]] = []
    done = [*places]
    for here, value, field in walk(node, path):
        if any(is_under(here, place) for place in done):
            continue
        if (span := traced_range(field)) or here.rpartition(".")[2] in SPELLED:
            done.append(here)
            found += [(here, traced(value, span))] if span and here.rpartition(".")[2] not in SPELLED else []
        elif isinstance(value, Formula):
            done.append(here)
            found.append((here, probe.node(value, FREE, type(value).place)))
        elif not any(isinstance(item, Node) for item in (value if isinstance(value, tuple) else (value,))):
            found.append((here, value))
    return found
