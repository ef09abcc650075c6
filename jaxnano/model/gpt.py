"""The GPT as pure functions of (parameters, tokens, resolved config)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from jaxnano.config.model import Model
from jaxnano.config.recipe import Recipe, at
from jaxnano.model import backend, head, specs
from jaxnano.model.block import Block
from jaxnano.model.documents import Row, begins
from jaxnano.model.embedding import Embedding
from jaxnano.model.linear import INPUTS
from jaxnano.model.norm import Norm
from jaxnano.model.wires import Features, Tables, empty_shifts, looks_back

Params = dict[str, jax.Array]
Cache = dict[str, Any]


class Gpt(nn.Module):
    """Declares and wires all parameters. cfg: a recipe resolved at one progress."""

    cfg: Recipe

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, cache: Cache | None) -> tuple[jax.Array, Any, Cache | None]:
        """Returns: normed features [B, L, D], the head's (weight, bias), the updated cache."""
        m, length, dtype = self.cfg.model, self.cfg.data.length, compute_dtype(self.cfg)
        start = jnp.zeros((), jnp.int32) if cache is None else cache["position"]
        positions_L = start + jnp.arange(tokens_BxL.shape[1])
        row, since_B = self._row(tokens_BxL, positions_L, cache)
        shifts: list[Any] = [None] * (m.depth + 2) if cache is None else cache["shifts"]
        tables, last = {}, None if cache is None else cache["tokens"]
        if m.tables:
            tables, last = Tables(m, name="tables")(tokens_BxL, positions_L, last, dtype)
        known, kept, table = Embedding(m, length, name="embedding")(tokens_BxL, positions_L, tables, shifts[0], dtype)
        block_class = nn.remat(Block, static_argnums=()) if self.cfg.train.remat else Block
        keys, held, scanned = [], [kept], backend.CHOICES.scan and cache is None and alike(m)
        if scanned:
            known = self._scanned(known, row, self.cfg.train.remat)
        for block in range(0 if scanned else m.depth):
            layer = block_class(m.block(block), block, length, name=f"blocks_{block}")
            before = None if cache is None else (cache["blocks"][block], shifts[block + 1])
            known, (key, kept) = layer({**tables, **known}, row, before)
            keys.append(key)
            held.append(kept)
        x = Norm(m.norm, name="final_norm")(known["stream"])
        if any(wire.to == "head" for wire in m.wires):
            x, kept = Features(m, name="features")(x, {**tables, **known}, shifts[-1])
            held.append(kept)
        if cache is not None:
            held += [{}] * (len(shifts) - len(held))
            cache = {"position": start + tokens_BxL.shape[1], "tokens": last, "blocks": keys, "shifts": held,
                     "since": since_B}
        return x, head.Head(m, name="head")(table), cache

    def _scanned(self, known: dict[str, jax.Array], row: Row, remat: bool) -> Any:
        """What goes through all blocks, which are alike, as one that is scanned over their parameters."""
        m, params = self.cfg.model, self.variables["params"]
        block = Block(m.block(0), 0, self.cfg.data.length, parent=None)

        def one(known: dict[str, jax.Array], weights: Any) -> tuple[Any, None]:
            return block.apply({"params": weights}, known, row, None)[0], None  # type: ignore[index]

        stacked = jax.tree.map(lambda *w: jnp.stack(w), *(params[f"blocks_{i}"] for i in range(m.depth)))
        return jax.lax.scan(jax.checkpoint(one) if remat else one, known, stacked)[0]

    def _row(self, tokens_BxL: jax.Array, positions_L: jax.Array, cache: Cache | None) -> tuple[Row, Any]:
        """What attention knows of the tokens' places, and where the last document began."""
        documents, separator = self.cfg.data.documents, self.cfg.data.separator
        since_B = jnp.zeros(len(tokens_BxL), jnp.int32) if cache is None else cache["since"]
        if documents is None or separator is None or not documents.mask:
            return Row(positions_L), since_B
        begins_BxL, since_B = begins(tokens_BxL, positions_L, since_B, separator, documents.most)
        return Row(positions_L, begins_BxL), since_B


def alike(m: Model) -> bool:
    """Whether all blocks are surely alike and know nothing of their place, so that one can stand for all."""
    a, ffn = m.attention, m.ffn
    return not (m.blocks or m.wires or m.tables or m.taps or a is None or ffn is None or a.windows or a.dropped
                or ffn.dropped or a.logit)


def compute_dtype(cfg: Recipe) -> Any:
    """The activations' dtype: bfloat16 where the recipe or, under `auto`, the device says so."""
    if cfg.train.dtype == "auto":
        return jnp.bfloat16 if backend.platform() in ("gpu", "tpu") else jnp.float32
    return jnp.dtype(cfg.train.dtype)


def init(key: jax.Array, recipe: Recipe, hypers: Mapping[str, Any]) -> Params:
    """Float32 parameters {path: array}; pure, so that it vmaps over keys and hypers."""
    return specs.initialize(key, specs.specs(at(recipe, hypers, 0.0)))


def features(params: Params, tokens_BxL: jax.Array, cfg: Recipe, cache: Cache | None = None) -> Any:
    """Args: params: {path: array}, and blanks of watched maps (optim/build.py). tokens_BxL: int. cfg: a resolved recipe
        (`at`). cache: from `empty_cache`.

    Returns: features [B, L, D], the head's (weight [D, V], bias), the updated cache.
    """
    end = specs.OF_INPUTS
    blanks = {path.removesuffix(end): blank for path, blank in params.items() if path.endswith(end)}
    variables = {"params": unflatten_dict({p: w for p, w in params.items() if not p.endswith(end)}, sep="/")}
    if blanks:
        variables[INPUTS] = unflatten_dict(blanks, sep="/")
    return Gpt(cfg).apply(variables, tokens_BxL, cache)


def logits(params: Params, tokens_BxL: jax.Array, cfg: Recipe, cache: Cache | None = None) -> Any:
    """Logits [B, L, V] in float32, and the updated cache."""
    x_BxLxD, (weight, bias), cache = features(params, tokens_BxL, cfg, cache)
    return head.logits(x_BxLxD, weight, bias, cfg.model), cache


def loss(params: Params, batch_BxM: jax.Array, cfg: Recipe) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What training minimises on tokens [B, L+1], and metrics: `loss` is the next token's cross entropy, in nats."""
    tokens_BxL, targets_BxL = batch_BxM[:, :-1].astype(jnp.int32), batch_BxM[:, 1:].astype(jnp.int32)
    x_BxLxD, (weight, bias), _ = features(params, tokens_BxL, cfg)
    dtype, z_loss = jnp.dtype(cfg.train.loss_dtype), cfg.model.head.z_loss
    nats, aim, square = head.token_losses(x_BxLxD, targets_BxL, weight, bias, cfg.model, dtype)
    return aim + (0.0 if z_loss is None else z_loss * square), {"loss": nats}


def empty_cache(recipe: Recipe, batch: int, length: int) -> Cache:
    """Room for `length` positions of keys and values per block, none filled, and for what wires look back on."""
    m, dtype = recipe.model, compute_dtype(recipe)
    trees = [m.block(block) for block in range(m.depth)]
    shapes = [tree.attention and (batch, tree.row(length), tree.kv_heads // tree.attention.interleaved, tree.head_dim)
              for tree in trees]
    blocks = [shape and (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for shape in shapes]
    return {"position": jnp.zeros((), jnp.int32), "tokens": jnp.zeros((batch, looks_back(m)), jnp.int32),
            "blocks": blocks, "shifts": empty_shifts(m, batch, dtype), "since": jnp.zeros(batch, jnp.int32)}
