"""What taps, tables and wires may say together: what starts nowhere, looks ahead or does nothing is found here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from jaxnano.config.base import refuse, unique_names
from jaxnano.config.depth import blocks_at
from jaxnano.config.wires import (
    EMBEDDING,
    INSIDE,
    RESERVED,
    Coefficient,
    HashIndex,
    Wire,
    acting,
    places,
    since,
    trained,
    width,
)

OWN = ("attention", "ffn")  # what a block's branches put out
SITES = ("before", "between", "after")


def check(m: Any) -> None:
    """Raise at the place of what starts nowhere, looks ahead or does not fit."""
    unique_names(m.taps, "taps")
    unique_names((*m.taps, *m.tables), "tables")
    unique_names(m.wires, "wires")
    for part, items in (("taps", m.taps), ("tables", m.tables)):
        for item in items:
            if item.name in RESERVED:
                raise refuse(f"{part}.{item.name}", item.name, f"the name means something; my_{item.name} would do")
    for table in m.tables:
        if isinstance(table.index, HashIndex) and sorted(set(table.index.of)) != list(table.index.of):
            raise refuse(f"tables.{table.name}.index.of", list(table.index.of), "rising, each once; "
                         f"{sorted(set(table.index.of))} would do")
    known = _taps(m)
    for wire in m.wires:
        _wire(m, wire)
    for place, tree in places(m) if m.wires else ():
        for wire in acting(tree, place):
            _fits(m, tree, wire, place, known)
        _shared(tree, place)
    plain = all((node.reads, node.writes) == ("stream", ("stream",)) for node in (m.attention, m.ffn))
    for block in range(m.depth if m.blocks or not plain else 0):
        _branches(m.block(block), block, known)


def streams(m: Any) -> list[str]:
    """What branches read and write, and wires go to."""
    return ["stream", *(tap.name for tap in m.taps if tap.of != "value")]


def _taps(m: Any) -> dict[str, int]:
    """Where each tap is known from."""
    known, earlier = since(m), ["stream"]
    for tap in m.taps:
        block = known[tap.name]
        if tap.after != "embedding" and len(blocks_at((tap.after,), m.depth)) > 1:
            raise refuse(f"taps.{tap.name}.after", tap.after.model_dump(exclude_none=True), "one block would do")
        there = [name for name in earlier if known.get(name, block) <= block]
        there += [] if block == EMBEDDING else [
            name for name in (*OWN, "value") if getattr(m.block(block), "attention" if name == "value" else name)]
        if tap.of not in there:
            raise refuse(f"taps.{tap.name}.of", tap.of, f"{', '.join(there)} would do there")
        earlier += [tap.name] if tap.of != "value" else []
    return known


def _wire(m: Any, wire: Wire) -> None:
    """What can be said of a wire without a place."""
    path, sources = f"wires.{wire.name}", ["self", *OWN, *(item.name for item in (*m.taps, *m.tables))]
    if wire.to not in (*INSIDE, *streams(m)):
        raise refuse(f"{path}.to", wire.to, f"{', '.join((*streams(m), *INSIDE))} would do")
    if wire.source not in (None, *sources):
        raise refuse(f"{path}.source", wire.source, f"{', '.join(sources)} would do")
    if wire.source is None and wire.keep is None:
        raise refuse(f"{path}.source", None, "a source to add or a coefficient to keep; self would do")
    if wire.to in ("embedding", "head") and wire.at != "all":
        raise refuse(f"{path}.at", "blocks", f"{wire.to} is no block's; all would do")
    blocks_at(wire.at, m.depth, f"{path}.at")
    if not (able := _sites(wire)):
        raise refuse(f"{path}.source", wire.source, f"not known yet in {wire.to}; a tap of it would do further on")
    if wire.site not in able:
        raise refuse(f"{path}.site", wire.site, f"{' or '.join(able)} would do")
    for part, coefficient in wire.parts():
        if coefficient.per == "head" and wire.to != "value":
            raise refuse(f"{path}.{part}.per", "head", "only values have heads; one or channel would do")
        if not coefficient.reads:
            raise refuse(f"{path}.{part}.reads", [], "here would do")


def _sites(wire: Wire) -> tuple[str, ...]:
    """Where in a block a wire may stand."""
    match wire.to, wire.source:
        case ("ffn", "attention") | ("embedding" | "attention" | "ffn" | "value" | "head", _) if (
                wire.source not in OWN or (wire.to, wire.source) == ("ffn", "attention")):
            return SITES[:1]
        case "branch", source:
            return {"attention": SITES[1:2], "ffn": ()}.get(source or "", SITES[:2])
        case _ if wire.to not in INSIDE:
            return {"attention": SITES[1:], "ffn": SITES[2:]}.get(wire.source or "", SITES)
    return ()


def _fits(m: Any, tree: Any, wire: Wire, place: int, known: dict[str, int]) -> None:
    """What a wire needs at one of its places is there, and is no wider than what it is added to."""
    path, wide = f"wires.{wire.name}", width(m, tree, wire, "self")
    for name in (wire.to, wire.source):
        if name in known:
            _is_known(name, f"{path}.at", place, tree, known)
    if wire.source is not None and (needs := width(m, tree, wire, "source")) > wide:
        raise refuse(f"{path}.to", wire.to, f"{wire.source} has {needs} channels and {wire.to} only {wide}")
    able = ["here", "source", *(item.name for item in (*m.taps, *m.tables))]
    for part, coefficient in wire.parts():
        for name in coefficient.reads if "z" in coefficient.trained() else ():
            if name not in able or name == "source" and wire.source is None:
                raise refuse(f"{path}.{part}.reads", name, f"{', '.join(able)} would do")
            if name in known:
                _is_known(name, f"{path}.{part}.reads", place, tree, known)
            if coefficient.channels > (most := width(m, tree, wire, name)):
                raise refuse(f"{path}.{part}.channels", coefficient.channels, f"at most the {most} of {name}")


def _is_known(name: str, path: str, place: int, tree: Any, known: dict[str, int]) -> None:
    if known[name] < place:
        return
    where = "the embedding" if place == EMBEDDING else f"block {place}"
    first, last = known[name] + 1, tree.depth - 1
    would = f"blocks {first}..{last}, or a wire to head," if first <= last else "a wire to head"
    raise refuse(path, name, f"looks ahead at {where}: {name!r} is kept after block {known[name]}; {would} would do"
                 if known[name] != EMBEDDING else f"{name!r} is kept after the embedding; a block would do")


def _shared(tree: Any, place: int) -> None:
    """Coefficients with one key are trained alike."""
    seen: dict[str, tuple[Any, ...]] = {}
    for wire in acting(tree, place):
        for part, c in wire.parts():
            alike = (c.per, c.reads, c.channels, wire.to == "value" and c.per == "channel")
            if c.key and seen.setdefault(c.key, alike) != alike:
                raise refuse(f"wires.{wire.name}.{part}.key", c.key, "per, reads and channels are those of the others "
                             "with this key")
            if not c.key and seen.setdefault(f"{wire.name}_{part}", alike) != alike:
                raise refuse(f"wires.{wire.name}.{part}.key", c.key, f"another has the key {wire.name}_{part}")


def _branches(tree: Any, block: int, known: dict[str, int]) -> None:
    """What a block's branches read and write is there."""
    for branch in OWN:
        node = getattr(tree, branch)
        for part, names in () if node is None else (("reads", (node.reads,)), ("writes", node.writes)):
            if len(set(names)) < len(names):
                raise refuse(f"{branch}.{part}", list(names), "each stream once")
            for name in names:
                if name not in streams(tree):
                    raise refuse(f"{branch}.{part}", name, f"{', '.join(streams(tree))} would do")
                if name in known:
                    _is_known(name, f"{branch}.{part}", block, tree, known)


def live(m: Any) -> set[str]:
    """The taps and tables that something reads which reaches the features."""
    found: set[str] = set()
    if not (items := {item.name for item in (*m.taps, *m.tables)}):
        return found
    there = [*places(m)]
    here = [wire for place, tree in there for wire in acting(tree, place)]
    direct = {node.reads for _, tree in there[1:-1] for node in (tree.attention, tree.ffn) if node is not None}
    while True:
        more = direct | {tap.of for tap in m.taps if tap.name in found}
        for wire in here:
            if wire.to in (*INSIDE, "stream", *found):
                more |= {wire.source or "", *(name for _, c in wire.parts() if "z" in c.trained() for name in c.reads)}
        if (more := more & items) <= found:
            return found
        found |= more


def idle(m: Any) -> Iterator[tuple[str, str]]:
    """Places of taps, tables and wires that nothing reads, each with the reason."""
    if not (m.taps or m.tables or m.wires):
        return
    alive, firsts, used = live(m), set(), set()
    for place, tree in places(m):
        used |= {wire.name for wire in acting(tree, place)}
        firsts |= {id(one.coefficient) for one in trained(tree, place).values()}
    for part, items in (("taps", m.taps), ("tables", m.tables)):
        yield from ((f"{part}.{item.name}", "nothing that counts reads it") for item in items if item.name not in alive)
    for wire in m.wires:
        path = f"wires.{wire.name}"
        if wire.name not in used:
            yield path, "no block of its places has the branch that it goes to or comes from"
            continue
        if wire.to not in (*INSIDE, "stream", *alive):
            yield path, f"nothing reads {wire.to}"
            continue
        if wire.source is None:
            yield from ((f"{path}.{name}", "it has no source") for name in ("add", "shift"))
        for part, coefficient in wire.parts():
            yield from ((f"{path}.{part}.{name}", "its formula has no " + " and no ".join(sorted(needs)))
                        for name, needs in NEEDS.items() if not needs & coefficient.trained())
            if id(coefficient) not in firsts:
                yield f"{path}.{part}.init", f"the first coefficient with key {coefficient.key} has it"


NEEDS = {"init": {"c"}, "reads": {"z"}, "channels": {"z"}, "per": {"c", "z"}, "key": {"c", "z"}}


def counting(m: Any) -> Any:
    """The model with only what counts of taps, tables and wires; what of a wire does not count has its default."""
    if not (m.taps or m.tables or m.wires):
        return m
    alive, dead, wires = live(m), {path for path, _ in idle(m)}, []
    for wire in (wire for wire in m.wires if f"wires.{wire.name}" not in dead):
        parts: dict[str, Any] = {} if wire.source else {"add": Coefficient(), "shift": 0}
        for part, c in wire.parts():
            plain = [name for name in NEEDS if f"wires.{wire.name}.{part}.{name}" in dead]
            parts[part] = c.model_copy(update={name: Coefficient.model_fields[name].default for name in plain})
        wires.append(wire.model_copy(update=parts))
    return m.model_copy(update={"wires": tuple(wires), **{
        part: tuple(item for item in getattr(m, part) if item.name in alive) for part in ("taps", "tables")}})


def renamed(m: Any) -> Any:
    """The model with its taps, tables and wires called by what they are, so that their names tell nothing."""
    called: dict[str, str] = {}
    for tap, place in zip(m.taps, since(m).values(), strict=True):
        _call(called, tap.name, f"{called.get(tap.of, tap.of)}_{100 * (place + 1) // m.depth}")
    for table in m.tables:
        _call(called, table.name, "_".join(["table", table.index.kind, *map(str, getattr(table.index, "of", ()))]))
    name = lambda old: called.get(old, old)  # noqa: E731
    wires, own, keys = [], {}, {}
    for wire in m.wires:
        _call(own, wire.name, f"{wire.site}_{name(wire.to)}_{name(wire.source or 'keep')}")
        parts = {part: c.model_copy(update={"reads": tuple(map(name, c.reads)), "key":
                                            c.key and keys.setdefault(c.key, f"key{len(keys)}")})
                 for part, c in wire.parts()}
        wires.append(wire.model_copy(update={
            "name": own[wire.name], "to": name(wire.to), "source": name(wire.source), **parts}))

    def branches(tree: Any) -> Any:
        """A model or a diff over blocks with the streams of its branches renamed."""
        found = {}
        for branch, node in ((branch, getattr(tree, branch)) for branch in OWN if getattr(tree, branch) is not None):
            told = {"reads": node.reads and name(node.reads), "writes": node.writes and (*map(name, node.writes),)}
            found[branch] = node.model_copy(update={part: new for part, new in told.items() if new is not None})
        return found

    taps = tuple(tap.model_copy(update={"name": name(tap.name), "of": name(tap.of)}) for tap in m.taps)
    tables = tuple(table.model_copy(update={"name": name(table.name)}) for table in m.tables)
    blocks = tuple(diff.model_copy(update={"set": diff.set.model_copy(update=branches(diff.set))}) for diff in m.blocks)
    return m.model_copy(update={"wires": tuple(wires), "taps": taps, "tables": tables, "blocks": blocks, **branches(m)})


def _call(called: dict[str, str], name: str, what: str) -> None:
    """By the first of what, what__1, what__2 ... that nothing has."""
    taken = {*called.values()}
    called[name] = next(new for n in count() if (new := f"{what}__{n}" if n else what) not in taken)
