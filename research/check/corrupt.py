"""Ways in which a recipe's plain data can be wrong, each with the place that a refusal has to name."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxnano.config.base import Node, dump_full, fields, name_of, traced_range
from jaxnano.config.edit import read
from jaxnano.config.recipe import Recipe
from jaxnano.model.specs import specs
from jaxnano.optim.build import members

Pick = Callable[[Any], Any]
HOSTILE = (
    "x.__class__", "__import__('os').system('true')", "x ** 99", "x ** x", "9 ** 9 ** 9", "(lambda: x)()", "x[0]",
    "[x for x in x]", "exp", "exp(x, x)", "open(x)", "x if x else 0", "x < 1", "x + y", "1e99 * x", "'x' * 9", "x +",
    "", "x; x", "x\x00", "x and x", "(y := x)", "2j * x", "-" * 200 + "x", "(" * 250,
    "exp(" * 20 + "x" + ")" * 20, "x + " * 70 + "x", "x*" * 20_000 + "x", "\ud800", "x ** -99", "x @ x", "*x", "1.0",
)
CONSTANT = ("1.0",)
WRONG_TYPES = ({"no": "such"}, datetime.date(2026, 1, 1), {1, 2}, float("nan"), b"bytes", object)
NESTED: list[Any] = []
for _ in range(2000):
    NESTED = [NESTED]
BOMBS = (NESTED, 10**6000, "9" * 100_000, [0] * 100_000)


class Corruption(NamedTuple):
    """data: what a proposer might send. path: where it is broken, or a place above. reason: how."""

    data: Any
    path: str
    reason: str


class Place(NamedTuple):
    """A field of a node in the tree. holder: the plain dict it stands in. stable: the path if names may change."""

    path: str
    stable: str
    holder: dict[str, Any]
    name: str
    node: Node


def places(node: Node, data: dict[str, Any], path: str = "", stable: str = "") -> Iterator[Place]:
    """Every field below `node`, with the plain data that stands for it."""
    for name, value, _ in fields(node):
        here = f"{path}.{name}" if path else name
        keep = here if stable == path else stable
        yield Place(here, keep, data, name, node)
        if isinstance(value, Node):
            yield from places(value, data[name], here, keep)
        elif isinstance(value, tuple):
            for i, (item, plain) in enumerate(zip(value, data[name], strict=True)):
                if isinstance(item, Node):
                    yield from places(item, plain, f"{here}.{name_of(item) or i}", keep)


def corrupt(rng: np.random.Generator, recipe: Recipe, frozen: tuple[str, ...] = (),
            ways: tuple[Callable[..., Corruption], ...] | None = None) -> Corruption:
    """The recipe, broken in one way. frozen: paths whose change is itself a fault. ways: which; None: all there are."""

    def pick(items: Any) -> Any:
        items = list(items)
        return items[int(rng.integers(len(items)))]

    data = copy.deepcopy(dump_full(recipe))
    if ways is None and frozen and rng.random() < 1 / (len(WAYS) + 1):
        return change_frozen(data, recipe, pick, frozen)
    return pick(ways or WAYS)(data, recipe, pick)


def wrong_type(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """What no field takes: a map without meaning, a date, a set, not a number."""
    place, value = pick(places(recipe, data)), pick(WRONG_TYPES)
    place.holder[place.name] = value
    return Corruption(data, place.stable, f"wrong type {value!r}")


def out_of_range(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """A number beyond the bounds of its field."""
    bounds: list[tuple[Place, Any]] = []
    for place in places(recipe, data):
        field = type(place.node).model_fields[place.name]
        if span := traced_range(field):
            if not isinstance(place.holder[place.name], dict):
                bounds += [(place, span.low - abs(span.low) - 1.0), (place, span.high * 2 + 1.0), (place, float("inf"))]
        else:
            bounds += [(place, b.le + 1) for b in field.metadata if hasattr(b, "le")]
            bounds += [(place, b.ge - 1) for b in field.metadata if hasattr(b, "ge")]
    place, value = pick(bounds)
    place.holder[place.name] = value
    return Corruption(data, place.path, f"out of range {value!r}")


def unknown_kind(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """A choice that is none of the union's."""
    place = pick(p for p in places(recipe, data) if p.name == "kind")
    place.holder["kind"] = value = pick(("zzz", "", "Adam", 3, None, ["adam"]))
    above = place.stable.removesuffix(".kind")
    return Corruption(data, above, f"unknown kind {value!r}")


def unknown_field(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """A field that the node does not have."""
    place = pick(places(recipe, data))
    place.holder["surprise"] = 1
    return Corruption(data, ".".join([*place.path.split(".")[:-1], "surprise"]), "unknown field")


def missing(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """A required field that is not there."""
    place = pick(p for p in places(recipe, data) if type(p.node).model_fields[p.name].is_required())
    del place.holder[place.name]
    return Corruption(data, place.stable.removesuffix(f".{place.name}"), f"missing {place.name}")


def wiring(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """A wire that looks ahead, loops, starts nowhere or ends behind the last block."""
    model, depth = data["model"], recipe.model.depth
    after, wire, rule = pick((
        ({"block": -1}, {"source": "late"}, "looks ahead"), ({"block": 0}, {"source": "late"}, "loop"),
        ({"block": -1}, {"to": "late", "source": "self"}, "too early"),
        ("embedding", {"source": "nowhere"}, "no source"),
        ("embedding", {"source": "late", "at": [{"block": depth}]}, "behind the end"),
        ({"block": depth}, {"source": "late"}, "kept behind the end"), ("embedding", {"source": "ffn"}, "own output"),
        ("embedding", {"source": "late", "shift": -1}, "next token"), ("embedding", {"source": "late", "site": "end"},
                                                                       "no site"),
        ("embedding", {"source": "late", "add": {"reads": ["late", "target"], "code": "z"}}, "reads nothing"),
    ))
    for name in ("attention", "ffn"):  # whatever was drawn
        model[name] |= {"reads": "stream", "writes": ["stream"]}
    model["blocks"], model["tables"] = [], []
    model["taps"], model["wires"] = [{"name": "late", "after": after}], [{"name": "wire", "at": [{"block": 0}]} | wire]
    return Corruption(data, f"model.{'taps.late' if rule == 'kept behind the end' else 'wires.wire'}", rule)


def hostile(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """A formula outside the whitelist, in the place of one that is there, as an activation, or as a schedule."""
    there = [place for place in places(recipe, data) if place.name == "code" and place.holder["code"] is not None]
    code = pick(HOSTILE)
    if there and pick((True, False)):
        place = pick(there)
        place.holder["code"] = code if code not in CONSTANT else "x.__class__"  # which some places take
        return Corruption(data, place.path.removesuffix(".code"), f"formula {code[:20]!r}")
    formula: dict[str, Any] = {"kind": "expression", "code": code}
    if pick((True, False)):
        data["model"]["ffn"]["activation"] = formula
        return Corruption(data, "model.ffn.activation.code", f"formula {code[:20]!r}")
    formula["code"] = code.replace("x", "progress") if pick((True, False)) else code
    data["optimizer"]["clip"] = formula
    return Corruption(data, "optimizer.clip.code", f"formula {code[:20]!r}")


def twice(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """Two items of one name."""
    groups = data["optimizer"]["groups"]
    if pick((True, False)):
        groups.append(copy.deepcopy(pick(groups)))
        return Corruption(data, "optimizer.groups", "name twice")
    group = pick(groups)
    group["chain"].append(copy.deepcopy(group["chain"][0]))
    return Corruption(data, f"optimizer.groups.{group['name']}.chain", "transform twice")


def chain(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """A chain in the wrong order, with two directions or a line that nothing reads, or of matrices for vectors."""
    group, table = data["optimizer"]["groups"][-1], specs(recipe)
    kinds = [["decay", "adam"], ["adam", "lion"], ["hyperball", "muon"], ["hyperball", "decay"],
             ["adam", "step", "hyperball"], ["adam", "step", "cautious_decay"]]
    if any(len(table[path].shape) == 1 for path in members(recipe.optimizer, table)[group["name"]]):
        kinds += [["adam", "normuon"], ["muon"], ["soap"]]
    group["chain"] = [{"kind": kind} for kind in pick(kinds)]
    return Corruption(data, f"optimizer.groups.{group['name']}", f"chain {group['chain']}")


def bomb(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """Nesting without end, a number or text of any size, a list of a hundred thousand."""
    place, value = pick(places(recipe, data)), pick(BOMBS)
    place.holder[place.name] = value
    return Corruption(data, place.stable, f"bomb, {type(value).__name__}")


def shapes(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """Heads that do not divide the width, key heads that do not divide the heads, gates wider than the stream."""
    attention, width = data["model"]["attention"], recipe.model.width
    if pick((True, False)):
        attention |= {"heads": 7 if width % 7 else 11, "head_dim": None, "kv_heads": None}
        return Corruption(data, "model.attention.heads", "indivisible heads")
    if pick((True, False)):
        attention["kv_heads"] = attention["heads"] + 1
        return Corruption(data, "model.attention.kv_heads", "indivisible key heads")
    data["model"]["wires"] = [{"name": "smear", "source": "self", "to": "embedding", "shift": 1,
                               "add": {"code": "c * sigmoid(z)", "channels": width + 1}}]
    return Corruption(data, "model.wires.smear.add.channels", "gate wider than the stream")


def uncovered(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """A role that no group takes."""
    groups = data["optimizer"]["groups"]
    role = pick(role for group in groups for role in group["roles"])
    for group in groups:
        group["roles"] = [other for other in group["roles"] if other != role]
    return Corruption(data, "optimizer.groups", f"uncovered {role}")


def top(data: Any, recipe: Recipe, pick: Pick) -> Corruption:
    """Something that is no recipe at all."""
    return Corruption(pick(([], "model", 3, None, {"modle": {}}, {3: 4}, [data], {"model": None})), "", "no recipe")


def change_frozen(data: Any, recipe: Recipe, pick: Pick, frozen: tuple[str, ...]) -> Corruption:
    """A valid change of what the track holds still."""
    numbers = [p for p in places(recipe, data) if any(f"{p.path}.".startswith(f"{f}.") for f in frozen)
               and type(read(recipe, p.path)) in (int, bool)]
    place = pick(numbers)
    value = place.holder[place.name]
    place.holder[place.name] = not value if isinstance(value, bool) else 2 * value or 1  # what divided it still does
    return Corruption(data, place.path, "frozen path")


WAYS = (wrong_type, out_of_range, unknown_kind, unknown_field, missing, wiring, hostile, twice, chain, bomb, shapes,
        uncovered, top)
