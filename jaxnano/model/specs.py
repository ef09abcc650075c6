"""The parameter table: every parameter's shape, role and initial value, in plain Python.

Initial values, sharding, optimizer groups, counts, FLOPs and memory are all read from here; the Flax modules declare
exactly it. Nothing is traced, so the gate can ask in microseconds.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnano.config.block import HeadMatrix, HeadVectors, LayerNorm, Learned
from jaxnano.config.formulas import InitRule
from jaxnano.config.model import Model
from jaxnano.config.optimizer import Role
from jaxnano.config.recipe import Recipe
from jaxnano.config.wires import EMBEDDING, HashIndex, columns, places, trained
from jaxnano.model.wires import shapes_of


class Initial(NamedTuple):
    """kind: zeros, constant, normal, uniform, sign or identity. value: the size, or the standard deviation; mean is
    added; both may be traced. key: names the draw, the parameter's path if it has none of its own."""

    kind: str
    value: Any = 0.0
    mean: Any = 0.0
    key: str = ""


class Spec(NamedTuple):
    """One parameter. axes: a letter per dimension from the legend, which sharding reads."""

    shape: tuple[int, ...]
    role: Role
    init: Initial
    axes: str


Table = dict[str, Spec]
OF_INPUTS = "#inputs"  # after the path of a map: the second moments of what it is given
KINDS = ("zeros", "constant", "normal", "uniform", "sign", "identity")
ZEROS, ONES = Initial("zeros"), Initial("constant", 1.0)


def specs(recipe: Recipe) -> Table:
    """The parameter table of a recipe, or of a resolved one (then standard deviations are traced scalars).

    Returns: {path: Spec}, in the order of the forward pass.
    """
    table = dict(unruled(recipe.model, recipe.data.length))
    rules = recipe.model.init.rules
    return {path: _ruled(path, table, recipe.model) for path in table} if rules else table


def _ruled(path: str, table: Table, m: Model) -> Spec:
    """The parameter as its rules say. A bias has the fans of its map, another vector its size."""
    spec = table[path]
    rules = ruling(m.init.rules, path, spec.role)
    if not rules:
        return spec
    of = "head/weight" if path == "head/bias" else path.removesuffix("_bias")
    shape = table[of].shape if of in table else spec.shape
    fans = shape if len(shape) == 2 else (math.prod(shape),) * 2
    block, init = int(found[1]) if (found := re.match(r"blocks_(\d+)/", path)) else 0, spec.init
    for rule in rules:
        value = rule.size(m.depth, block, fans[0], fans[1], init.value)
        kind, mean = (init.kind, init.mean + rule.mean) if rule.draw == "same" else (rule.draw, rule.mean)
        init = Initial(kind, value, mean, f"{rule.key}/{block}" if rule.key else init.key)
    return spec._replace(init=init)


def ruling(rules: Sequence[InitRule], path: str, role: str) -> list[InitRule]:
    """The rules that say how a parameter starts: the first that matches, and on top of it what only sizes."""
    matching = [rule for rule in rules if rule.matches(path, role)]
    first = [rule for rule in matching if rule.draw != "same"][:1]
    return first + [rule for rule in matching if rule.draw == "same"]


def unruled(m: Model, length: int) -> Iterator[tuple[str, Spec]]:
    """The table's rows as they are before any rule of initial values. length: tokens of a row."""
    embedding_init = Initial(m.init.distribution, m.init.embedding_std)
    yield "embedding/token", Spec((m.vocab, m.width), "embedding", embedding_init, "VD")
    if isinstance(m.position, Learned):
        yield "embedding/position", Spec((length, m.width), "embedding", embedding_init, "LD")
    if m.embedding.norm:
        yield from _norm(m, "embedding/norm", m.width)
    for table in m.tables:
        rows = table.index.rows if isinstance(table.index, HashIndex) else m.vocab
        yield f"tables/{table.name}", Spec((rows, columns(m, table)), "embedding", embedding_init, "VD")
    for place, tree in places(m):
        yield from _wires(tree, place)
        if place not in (EMBEDDING, m.depth):
            yield from _attention(tree, place) if tree.attention is not None else ()
            yield from _ffn(tree, place) if tree.ffn is not None else ()
    yield from _norm(m, "final_norm", m.width)
    if not m.embedding.tied:
        std = m.init.head_std if m.init.head_std is not None else m.init.embedding_std
        yield "head/weight", Spec((m.width, m.vocab), "head", Initial(m.init.distribution, std), "DV")
        if m.bias:
            yield "head/bias", Spec((m.vocab,), "bias", ZEROS, "V")


def _norm(m: Model, path: str, width: int) -> Iterator[tuple[str, Spec]]:
    if m.norm.gain:
        yield f"{path}/gain", Spec((width,), "gain", ONES, "D")
    if isinstance(m.norm, LayerNorm) and m.norm.bias:
        yield f"{path}/bias", Spec((width,), "bias", ZEROS, "D")


def _wires(m: Model, place: int) -> Iterator[tuple[str, Spec]]:
    path = {EMBEDDING: "embedding", m.depth: "features"}.get(place, f"blocks_{place}")
    for key, one in trained(m, place).items():
        for name, shape in shapes_of(key, one).items():
            axes = {"one": "", "head": "H", "channel": "D"}[one.coefficient.per]
            if name.startswith("gate_"):
                yield f"{path}/{name}", Spec(shape, "gate", ZEROS, f"C{axes}")
            else:
                role = "gain" if axes == "D" else "scalar"
                yield f"{path}/{name}", Spec(shape, role, Initial("constant", one.coefficient.init), axes)


def _matrix(m: Model, path: str, shape: tuple[int, int], axes: str, own_std: Any, projection: bool = False) -> Any:
    """Rows of one linear map and its bias; a projection back to the stream may start smaller, or at zero."""
    std = m.init.std if own_std is None else own_std
    if m.init.unit == "fan_in":
        std = std / math.sqrt(shape[0])
    if projection and m.init.depth_scaled:
        std = std / math.sqrt(2 * m.depth)
    init = ZEROS if projection and m.init.zero_projections else Initial(m.init.distribution, std)
    yield path, Spec(shape, "matrix", init, axes)
    if m.bias:
        yield f"{path}_bias", Spec((shape[1],), "bias", ZEROS, axes[1])


def _attention(m: Model, block: int) -> Iterator[tuple[str, Spec]]:
    path, std = f"blocks_{block}/attention", m.init.attention_std
    queries, keys = m.attention.heads * m.head_dim, m.kv_heads * m.head_dim
    yield from _norm(m, f"blocks_{block}/attention_norm", m.width)
    yield from _matrix(m, f"{path}/q", (m.width, queries), "DH", std)
    yield from _matrix(m, f"{path}/k", (m.width, keys), "DH", std)
    yield from _matrix(m, f"{path}/v", (m.width, keys), "DH", std)
    for name, part in zip("qkv", (m.attention.query, m.attention.key, m.attention.value), strict=True):
        if part is not None and part.gain:
            yield f"{path}/{name}_gain", Spec((m.head_dim,), "gain", ONES, "K")
    if m.attention.gate:
        yield f"{path}/output_gate", Spec((m.attention.gate.channels, m.attention.heads), "gate", ZEROS, "CH")
    for name in ("mix_scores", "mix_weights"):
        yield from _mix(m, f"{path}/{name}", getattr(m.attention, name))
    yield from _matrix(m, f"{path}/o", (queries, m.width), "HD", std, projection=True)
    yield from _branch(m, block, "attention")


def _mix(m: Model, path: str, cfg: Any) -> Iterator[tuple[str, Spec]]:
    """What heads share: a matrix over them, or maps to two vectors over them."""
    heads = m.attention.heads
    if isinstance(cfg, HeadMatrix):
        yield path, Spec((heads, heads), "gate", ZEROS, "CC")
    if isinstance(cfg, HeadVectors):
        inputs = cfg.hidden or cfg.channels
        if cfg.hidden:
            size = Initial(m.init.distribution, 1.0 / math.sqrt(cfg.channels))
            yield f"{path}_hidden", Spec((cfg.channels, cfg.hidden), "gate", size, "CC")
        for part, start in (("from", ONES), ("to", ZEROS)):
            yield f"{path}_{part}", Spec((inputs, heads * cfg.rank), "gate", ZEROS, "CC")
            yield f"{path}_{part}_bias", Spec((heads * cfg.rank,), "gate", start, "C")


def _ffn(m: Model, block: int) -> Iterator[tuple[str, Spec]]:
    path, std = f"blocks_{block}/ffn", m.init.ffn_std
    yield from _norm(m, f"blocks_{block}/ffn_norm", m.width)
    if m.ffn.kind == "glu":
        yield from _matrix(m, f"{path}/gate", (m.width, m.ffn_width), "DF", std)
    yield from _matrix(m, f"{path}/up", (m.width, m.ffn_width), "DF", std)
    yield from _matrix(m, f"{path}/down", (m.ffn_width, m.width), "FD", std, projection=True)
    yield from _branch(m, block, "ffn")


def _branch(m: Model, block: int, name: str) -> Iterator[tuple[str, Spec]]:
    """What follows a branch: its sandwich norm."""
    if m.norm.placement == "sandwich":
        yield from _norm(m, f"blocks_{block}/{name}_post_norm", m.width)


def moments_of(path: str, table: Table) -> tuple[int, int, int] | None:
    """The shape of the second moments of a map's inputs, in blocks as wide as the stream; None for what is no map."""
    if not re.fullmatch(r"blocks_\d+/(attention/[qkvo]|ffn/(up|gate|down))", path):
        return None
    inputs, width = table[path].shape[0], table["embedding/token"].shape[1]
    size = width if inputs % width == 0 else inputs
    return inputs // size, size, size


def parameter_count(table: Table) -> int:
    """Trained numbers in all."""
    return sum(math.prod(spec.shape) for spec in table.values())


def initialize(key: jax.Array, table: Table) -> dict[str, jax.Array]:
    """Float32 parameters {path: array}. Each draws from a key named by its path: recipes share all they can."""
    names = {path: (spec.init.key or path).encode() for path, spec in table.items()}
    return {path: _draw(jax.random.fold_in(key, zlib.crc32(names[path])), spec) for path, spec in table.items()}


def _draw(key: jax.Array, spec: Spec) -> jax.Array:
    shape, unit = spec.shape, None
    match spec.init.kind:
        case "zeros":
            return jnp.zeros(shape, jnp.float32)
        case "constant":
            unit = jnp.ones(shape, jnp.float32)
        case "normal":
            unit = jax.random.normal(key, shape)
        case "uniform":  # of the same standard deviation
            unit = jax.random.uniform(key, shape, minval=-math.sqrt(3), maxval=math.sqrt(3))
        case "sign":
            unit = jax.random.rademacher(key, shape, jnp.float32)
        case "identity":
            unit = jnp.eye(*shape) if len(shape) == 2 else jnp.ones(shape, jnp.float32)
    if unit is None:
        raise ValueError(f"{spec.init.kind}: no such initial value; {', '.join(KINDS)} would do")
    return unit * spec.init.value + spec.init.mean
