"""Taps, tables and wires at work: what blocks, embedding and features are given besides the stream."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnano.config.model import Model
from jaxnano.config.wires import EMBEDDING, INSIDE, HashIndex, Wire, acting, columns, places, since, trained, width
from jaxnano.model.linear import declare

MULTIPLIERS = (36313, 27191, 51647, 46381)  # of the tokens 0, 1, .. of a hash; the first two as in the record
Shifts = dict[str, jax.Array]


class Wires:
    """The wires of one place: their parameters, declared by its module, and the values that are known there.

    m: the resolved model of the place. known: streams, taps and tables by name, [B, L, C]. before: what shifts held
    before the first token, by name, or None for nothing; `kept` is what they hold after the last.
    """

    def __init__(self, module: nn.Module, m: Model, place: int, known: dict[str, jax.Array], before: Shifts | None):
        self.m, self.place, self.known, self.before = m, place, dict(known), before
        self.kept: Shifts = {}
        self.wires, self.shared = acting(m, place), trained(m, place)
        shapes = {name: shape for key, one in self.shared.items() for name, shape in shapes_of(key, one).items()}
        self.params = {name: declare(module, name, *shape) for name, shape in shapes.items()}

    def into(self, to: str, x_BxLxC: jax.Array, here_BxLxD: jax.Array | None = None, site: str = "before") -> jax.Array:
        """x with the wires that go there. here: what their coefficients read, x itself if None."""
        for wire in self.wires:
            if (wire.to, wire.site) == (to, site):
                x_BxLxC = self._added(wire, x_BxLxC, x_BxLxC if here_BxLxD is None else here_BxLxD)
        return x_BxLxC

    def streams(self, site: str) -> None:
        """Lets the wires to streams act."""
        for wire in self.wires:
            if wire.site == site and wire.to not in INSIDE:
                x_BxLxD = self.known[wire.to]
                self.known[wire.to] = self._added(wire, x_BxLxD, x_BxLxD)

    def join(self, branch: str, y_BxLxD: jax.Array, h_BxLxD: jax.Array, site: str) -> None:
        """Adds a branch's output to the streams that it writes; where a wire of its own goes, that does it."""
        self.known[branch] = y_BxLxD = self.into("branch", y_BxLxD, h_BxLxD, site)
        taken = {wire.to for wire in self.wires if wire.source == branch}
        for name in getattr(self.m, branch).writes:
            if name not in taken:
                self.known[name] = self.known[name] + y_BxLxD

    def taps(self) -> dict[str, jax.Array]:
        """Every stream and tap that is known after this place."""
        kept_after = since(self.m)
        for tap in self.m.taps:
            if kept_after[tap.name] == self.place:
                self.known[tap.name] = self.known[tap.of]
        names = ("stream", *(tap.name for tap in self.m.taps if tap.name in self.known))
        return {name: self.known[name] for name in names}

    def _added(self, wire: Wire, x_BxLxC: jax.Array, here_BxLxD: jax.Array) -> jax.Array:
        y_BxLxC: Any = x_BxLxC
        source = None if wire.source is None else x_BxLxC if wire.source == "self" else self.known[wire.source]
        if source is not None and wire.shift:
            source = self._shifted(wire, source)
        if wire.keep is not None:
            y_BxLxC = self._factor(wire, "keep", here_BxLxD, source) * y_BxLxC
        if source is not None:
            factor = self._factor(wire, "add", here_BxLxD, source)
            if (missing := x_BxLxC.shape[-1] - source.shape[-1]) > 0:
                source = jnp.pad(source, ((0, 0), (0, 0), (0, missing)))
            y_BxLxC = y_BxLxC + factor * source
        return y_BxLxC.astype(x_BxLxC.dtype)

    def _shifted(self, wire: Wire, x_BxLxC: jax.Array) -> jax.Array:
        """x some tokens back; nothing before the first."""
        empty = jnp.zeros((x_BxLxC.shape[0], wire.shift, x_BxLxC.shape[-1]), x_BxLxC.dtype)
        before = empty if self.before is None else self.before[wire.name].astype(x_BxLxC.dtype)
        whole_BxTxC = jnp.concatenate([before, x_BxLxC], axis=1)
        self.kept[wire.name] = whole_BxTxC[:, -wire.shift:]
        return whole_BxTxC[:, : x_BxLxC.shape[1]]

    def _factor(self, wire: Wire, part: str, here: jax.Array, source: jax.Array | None) -> Any:
        """A coefficient in float32, [1 or B, 1 or L, 1 or C]."""
        coefficient = getattr(wire, part)
        key = coefficient.key or f"{wire.name}_{part}"
        used: dict[str, Any] = {"depth": float(self.m.depth), "block": float(self.place)}
        names = coefficient.trained()
        if "c" in names:
            used["c"] = self.params[f"wire_{key}"].reshape(1, 1, -1)
        if "z" in names:
            read = [{"here": here, "source": source}.get(name, self.known.get(name)) for name in coefficient.reads]
            features_BxLxC = jnp.concatenate([x[..., : coefficient.channels] for x in read], axis=-1)  # type: ignore[index]
            weight = self.params[f"gate_{key}"].astype(features_BxLxC.dtype)
            z_BxLxN = features_BxLxC @ (weight[:, None] if weight.ndim == 1 else weight)
            used["z"] = z_BxLxN.astype(jnp.float32)
        factor = jnp.asarray(coefficient.apply(**used), jnp.float32)
        if coefficient.per == "head" and factor.ndim == 3:
            factor = jnp.repeat(factor, self.m.head_dim, axis=-1)
        return factor


def shapes_of(key: str, one: Any) -> dict[str, tuple[int, ...]]:
    """The parameters of what coefficients with one key share."""
    sizes = () if one.coefficient.per == "one" else (one.per,)
    found = {f"wire_{key}": sizes} if "c" in one.names else {}
    inputs = one.coefficient.channels * len(one.coefficient.reads)
    return found | ({f"gate_{key}": (inputs, *sizes)} if "z" in one.names else {})


class Features(nn.Module):
    """The wires to the normed features."""

    cfg: Model

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, known: dict[str, jax.Array], before: Shifts | None) -> Any:
        """Returns: the features, and what shifts keep."""
        wires = Wires(self, self.cfg, self.cfg.depth, known, before)
        return wires.into("head", x_BxLxD), wires.kept


class Tables(nn.Module):
    """The rows of every table for the tokens."""

    cfg: Model

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, positions_L: jax.Array, before: jax.Array | None, dtype: Any) -> Any:
        """before: the last tokens before these, as many as hashes look back. Returns: rows by table, and the same for
        the tokens to come."""
        back, found = looks_back(self.cfg), {}
        empty = jnp.zeros((tokens_BxL.shape[0], back), tokens_BxL.dtype)
        whole_BxT = jnp.concatenate([empty if before is None else before, tokens_BxL], axis=1)
        for table in self.cfg.tables:
            index, channels = table.index, columns(self.cfg, table)
            if not isinstance(index, HashIndex):
                rows = declare(self, table.name, self.cfg.vocab, channels)
                found[table.name] = jnp.take(rows, tokens_BxL, axis=0).astype(dtype)
                continue
            rows = declare(self, table.name, index.rows, channels)
            grams = [whole_BxT[:, back - k: back - k + tokens_BxL.shape[1]].astype(jnp.int32) for k in index.of]
            missing_L = positions_L < index.of[-1]
            found[table.name] = jnp.take(rows, hashed(grams, index.rows, missing_L), axis=0).astype(dtype)
            if index.signs:
                found[table.name] = found[table.name] * signs(grams, index.signs, channels).astype(dtype)
        return found, whole_BxT[:, tokens_BxL.shape[1]:]


def hashed(grams: list[jax.Array], rows: int, missing_L: jax.Array) -> jax.Array:
    """The row of each token, [B, L] int32. grams: int32 tokens [B, L], the nearest first.

    Products wrap and the remainder is at least 0, so that it is the same on every machine.
    """
    mixed = grams[0] * MULTIPLIERS[0]
    for gram, multiplier in zip(grams[1:], MULTIPLIERS[1:], strict=False):
        mixed = mixed ^ (gram * multiplier)
    return jnp.where(missing_L[None], rows - 1, jnp.mod(mixed, rows - 1))


def signs(grams: list[jax.Array], count: int, channels: int) -> jax.Array:
    """+-1 for each token and channel, [B, L, C] float32: a bit of a hash (the finaliser of MurmurHash3) of the number
    of the vector and of the channel, so that no table of signs has to be held."""
    picked = grams[0]
    for gram in grams[1:]:
        picked = picked ^ gram
    vector_BxL = jnp.mod(picked, count).astype(jnp.uint32)
    h = vector_BxL[..., None] * jnp.uint32(channels) + jnp.arange(channels, dtype=jnp.uint32)[None, None]
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> shift)) * jnp.uint32(factor)
    return 1.0 - 2.0 * ((h ^ (h >> 16)) & 1).astype(jnp.float32)


def looks_back(m: Model) -> int:
    """How many tokens back the tables' hashes look."""
    return max((table.index.of[-1] for table in m.tables if isinstance(table.index, HashIndex)), default=0)


def empty_shifts(m: Model, batch: int, dtype: Any) -> list[Shifts]:
    """Nothing before the first token, for the wires of every place that look back."""
    return [{wire.name: jnp.zeros((batch, wire.shift, width(m, tree, wire, "source")), dtype)
             for wire in acting(tree, place) if wire.source is not None and wire.shift} for place, tree in places(m)]


__all__ = ["EMBEDDING", "Features", "Shifts", "Tables", "Wires", "empty_shifts", "looks_back", "shapes_of"]
