"""Values carried past blocks: taps keep them by name, tables look tokens up, wires add either where it is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag

from jaxnano.config import expression
from jaxnano.config.base import Node, Range
from jaxnano.config.depth import DepthPlace, Places, blocks_at
from jaxnano.config.expression import Signature
from jaxnano.config.formulas import Formula
from jaxnano.config.transforms import NAME

EMBEDDING = -1  # the place before block 0; the place after the last block is the depth
INSIDE = ("embedding", "attention", "ffn", "value", "branch", "head")  # where wires go that is no stream
RESERVED = (*INSIDE, "stream", "self", "here", "source")
Name = Annotated[str, Field(pattern=NAME)]


class Tap(Node):
    """Keeps a value by name. of: stream, an earlier tap, the output of attention or ffn, or attention's value as
    projected. A tap is a stream too, which wires and `writes` may add to.
    """

    name: Name
    after: Annotated[
        Annotated[Literal["embedding"], Tag("embedding")] | Annotated[DepthPlace, Tag("place")],
        Discriminator(lambda value: "embedding" if isinstance(value, str) else "place"),
    ] = "embedding"
    of: Name = "stream"


class TokenIndex(Node):
    """The token's row."""

    kind: Literal["token"]


class HashIndex(Node):
    """Row (36313 t0 xor 27191 t1 ..) mod (rows - 1) of the tokens that many back, or the last row where one is missing.

    signs: rows are multiplied by one of so many fixed vectors of +-1, that of (t0 xor t1 ..) mod signs; 0 for none.
    Source: track 1, 2026-01-19_BigramHashEmbedding and 2026-05-20_BigramsSignTrick.
    """

    kind: Literal["hash"]
    of: tuple[Annotated[int, Field(ge=0, le=15)], ...] = Field(default=(0, 1), min_length=1, max_length=4)
    rows: int = Field(ge=2, le=1 << 28)
    signs: int = Field(default=0, ge=0, le=1 << 16)


class Table(Node):
    """Rows looked up by token, as wide as what they are added to, or its first `channels`."""

    name: Name
    index: Annotated[TokenIndex | HashIndex, Field(discriminator="kind")] = TokenIndex(kind="token")
    channels: int | None = Field(default=None, ge=1, le=16384)


class Coefficient(Formula):
    """A formula in c, trained from init, and z = w . first channels of each that it reads; w is 0 at first.

    per: one c and z, or one for each value head or channel. reads: here (what the wire goes to, or the normed input of
    the branch it goes into), source, taps, tables. key: coefficients of one place with one key share c and w, and the
    first has their init.
    """

    place = Signature(("c", "z", "depth", "block"))
    code: str = "c"
    init: Annotated[float, Range(-10.0, 10.0)] = 0.0
    per: Literal["one", "head", "channel"] = "one"
    reads: tuple[Name, ...] = ("here",)
    channels: int = Field(default=12, ge=1, le=4096)
    key: str | None = Field(default=None, pattern=NAME)

    def trained(self) -> set[str]:
        """Which of c and z the formula has."""
        return {"c", "z"} & expression.names(self.code, self.place._replace(names=None))


class Wire(Node):
    """x <- keep x + add source at the blocks `at`.

    to: stream, a tap, embedding (raw), attention or ffn (what its maps read), value, branch (its output), head (normed
    features). source: self (x), a tap or table, or the block's own attention or ffn output, which the wire then joins
    to that stream in place of plain addition. site: before attention, between it and ffn, after ffn; of a branch,
    before is attention's. shift: tokens back.
    """

    name: Name
    source: Name | None = None
    to: Name = "stream"
    at: Annotated[Places, Discriminator(lambda value: "all" if isinstance(value, str) else "places")] = "all"
    site: Literal["before", "between", "after"] = "before"
    shift: int = Field(default=0, ge=0, le=255)
    keep: Coefficient | None = None
    add: Coefficient = Coefficient()

    def parts(self) -> Iterator[tuple[str, Coefficient]]:
        """Its coefficients that count."""
        if self.keep is not None:
            yield "keep", self.keep
        if self.source is not None:
            yield "add", self.add

    @property
    def branch(self) -> str | None:
        """The branch that a block must have for the wire to be there."""
        if self.to == "branch":
            return "attention" if self.site == "before" else "ffn"
        return {"value": "attention"}.get(self.to, self.to) if self.to in ("attention", "ffn", "value") else None


class Trained(NamedTuple):
    """What coefficients of one place share. coefficient: the first. names: of c and z, those that are used. per: how
    many of each.
    """

    coefficient: Coefficient
    names: set[str]
    per: int


def places(m: Any) -> Iterator[tuple[int, Any]]:
    """The places of wires, each with the model there."""
    yield EMBEDDING, m
    for block in range(m.depth):
        yield block, m.block(block)
    yield m.depth, m


def acting(tree: Any, place: int) -> list[Wire]:
    """The wires of a place. tree: the model there."""
    if place in (EMBEDDING, tree.depth):
        return [wire for wire in tree.wires if wire.to == ("embedding" if place == EMBEDDING else "head")]
    return [wire for wire in tree.wires if wire.to not in ("embedding", "head") and all(
        getattr(tree, name) is not None for name in (wire.branch, wire.source) if name in ("attention", "ffn")
    ) and place in blocks_at(wire.at, tree.depth)]


def trained(tree: Any, place: int) -> dict[str, Trained]:
    """What is trained for the wires of a place, by key."""
    found: dict[str, Trained] = {}
    for wire in acting(tree, place):
        for part, coefficient in wire.parts():
            key = coefficient.key or f"{wire.name}_{part}"
            per = {"one": 1, "channel": values(tree) if wire.to == "value" else tree.width}
            one = found.setdefault(key, Trained(coefficient, set(), per.get(coefficient.per) or tree.kv_heads))
            one.names.update(coefficient.trained())
    return found


def since(m: Any) -> dict[str, int]:
    """The place after which each tap is known, by name."""
    return {tap.name: EMBEDDING if tap.after == "embedding" else
            blocks_at((tap.after,), m.depth, f"taps.{tap.name}.after")[0] for tap in m.taps}


def values(tree: Any) -> int:
    """Channels of the values of a block."""
    return tree.kv_heads * tree.head_dim


def width(m: Any, tree: Any, wire: Wire, name: str) -> int:
    """Channels of something that a wire adds or reads at a place. tree: the model there; m: the whole."""
    if name == "source":
        return width(m, tree, wire, wire.source or "self")
    if name == "self":
        return values(tree) if wire.to == "value" else tree.width
    if table := next((table for table in m.tables if table.name == name), None):
        return columns(m, table)
    if any(tap.name == name and tap.of == "value" for tap in m.taps):
        return values(m.block(since(m)[name]))
    return tree.width


def columns(m: Any, table: Table) -> int:
    """Channels of a table."""
    to_values = any(wire.source == table.name and wire.to == "value" for wire in m.wires)
    return table.channels or (values(m) if to_values else m.width)
