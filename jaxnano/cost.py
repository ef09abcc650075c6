"""What a recipe costs, from its parameter table alone: parameters, FLOPs, memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from jaxnano import phases, sharding
from jaxnano.config.model import Model
from jaxnano.config.recipe import Recipe, shares_of
from jaxnano.config.wires import acting, columns, places
from jaxnano.model.backend import kernel
from jaxnano.model.head import CHUNK_LOGITS
from jaxnano.model.specs import Table, parameter_count, specs
from jaxnano.optim.build import members, moments_asked, update_cost

Axes = Mapping[str, int]  # of a mesh: {"data": 4, "fsdp": 2, "tensor": 1}
ALONE: Axes = MappingProxyType(dict.fromkeys(sharding.AXES, 1))


@dataclass(frozen=True)
class Cost:
    """flops: per token, forward and backward, attention over the whole window (PaLM's convention, arXiv:2204.02311);
    the optimizer's are per step. bytes: on one device. With phases FLOPs and tokens are the mean of a run's steps,
    parameters and bytes the most of any."""

    parameters: int
    model_flops_per_token: float
    optimizer_flops_per_step: float
    tokens_per_step: float
    parameter_bytes: int
    optimizer_bytes: int
    gradient_bytes: int
    activation_bytes: int

    @property
    def flops_per_step(self) -> float:
        """Training FLOPs of one step, the optimizer's included."""
        return self.model_flops_per_token * self.tokens_per_step + self.optimizer_flops_per_step

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token, the optimizer's included."""
        return self.flops_per_step / self.tokens_per_step

    @property
    def total_bytes(self) -> int:
        """Memory of a training step."""
        return self.parameter_bytes + self.optimizer_bytes + self.gradient_bytes + self.activation_bytes


def preflight(recipe: Recipe, accumulate: int = 1, platform: str = "gpu", axes: Axes = ALONE) -> Cost:
    """The cost of a recipe, from its parameter table alone.

    Args: accumulate: pieces a batch is taken in. platform: cpu, gpu or tpu; decides dtype and attention kernel. axes:
        of the mesh, on one of whose devices bytes are counted; FLOPs are those of all.
    Raises: ConfigError for a chain that a parameter's shape does not fit, or a phase that carries what is not there.
    """
    costs = stage_costs(recipe, accumulate, platform, axes)
    if len(costs) == 1:
        return costs[0]
    shares, tokens = [share for share, _ in shares_of(recipe)], tokens_per_step(recipe)

    def mean(values: Iterable[float]) -> float:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    return replace(
        max(costs, key=lambda c: c.total_bytes), parameters=max(c.parameters for c in costs), tokens_per_step=tokens,
        model_flops_per_token=mean(c.model_flops_per_token * c.tokens_per_step for c in costs) / tokens,
        optimizer_flops_per_step=mean(c.optimizer_flops_per_step for c in costs))


def stage_costs(recipe: Recipe, accumulate: int = 1, platform: str = "gpu", axes: Axes = ALONE) -> list[Cost]:
    """The cost of each stage of a recipe, as the mean of its own steps. Args, Raises: as of `preflight`."""
    return [_cost(part.recipe, accumulate, platform, (part.start, part.end), axes) for part in phases.checked(recipe)]


def tokens_per_step(recipe: Recipe) -> float:
    """Tokens of a step, the mean over a run."""
    return sum(share * part.data.batch * part.data.length for share, part in shares_of(recipe))


def run_flops(recipe: Recipe, total_steps: int) -> float:
    """Training FLOPs of so many steps, phases beginning where they do in a run."""
    run = phases.legs(recipe, total_steps)
    spans = [(leg.first / total_steps, (leg.first + n) / total_steps, n, leg.recipe)
             for n, leg in zip(phases.lengths(run, total_steps), run, strict=True) if n]
    return sum(n * _cost(part, span=(since, until)).flops_per_step for since, until, n, part in spans)


def steps_for(recipe: Recipe, flops: float) -> int:
    """The most steps whose training FLOPs are within a budget, at least one."""
    found = max(1, int(flops / preflight(recipe).flops_per_step))
    if recipe.phases:  # which begin with a call, so the mean is only about right
        found = max(1, int(found * flops / run_flops(recipe, found)))
        while run_flops(recipe, found + 1) <= flops:
            found += 1
        while found > 1 and run_flops(recipe, found) > flops:
            found -= 1
    return found


def _cost(recipe: Recipe, accumulate: int = 1, platform: str = "gpu", span: tuple[float, float] = (0.0, 1.0),
          axes: Axes = ALONE) -> Cost:
    """Of a recipe without phases, which trains so between two shares of the run.

    Where weights lie in parts, the largest is counted once more: it is gathered to be used.
    """
    table = specs(recipe)
    update = update_cost(recipe.optimizer, table, span, partial(sharding.parts, sizes=axes))
    held = {path: math.prod(s.shape) // sharding.parts(s.axes, s.shape, axes) for path, s in table.items()}
    gathered = max(math.prod(spec.shape) for spec in table.values()) if axes["fsdp"] * axes["tensor"] > 1 else 0
    moments = _moments(recipe, table)
    return Cost(
        parameters=parameter_count(table),
        model_flops_per_token=3.0 * forward_flops_per_token(recipe, table) + 2.0 * moments,
        optimizer_flops_per_step=update.flops,
        tokens_per_step=recipe.data.batch * recipe.data.length,
        parameter_bytes=4 * (sum(held.values()) + gathered) + _seen_bytes(recipe, table, held),
        optimizer_bytes=4 * update.floats,
        gradient_bytes=4 * (sum(held.values()) + moments) * (1 if accumulate == 1 else 2),
        activation_bytes=_activation_bytes(recipe, accumulate * axes["data"] * axes["fsdp"], platform),
    )


def _moments(recipe: Recipe, table: Table) -> int:
    """Numbers of the second moments of inputs that chains read, each a sum over tokens."""
    held = members(recipe.optimizer, table)
    return sum(math.prod(shape) for group in recipe.optimizer.groups
               for shape in moments_asked(group, table, held[group.name]).values())


def _seen_bytes(recipe: Recipe, table: Table, held: Mapping[str, int]) -> int:
    """Of the weights that the model sees, where they are others than the optimizer's. held: numbers on a device."""
    seen = sum(held[path] for path, spec in table.items() if len(spec.shape) > 1)
    return 4 * seen if recipe.train.weights == "upper_half" else 0


def forward_flops_per_token(recipe: Recipe, table: Table) -> float:
    """Multiplications and additions of one token's forward pass; matrices, the head and attention count."""
    m, length = recipe.model, recipe.data.length
    matrices = sum(2.0 * math.prod(s.shape) for s in table.values() if s.role in ("matrix", "head", "gate"))
    if m.embedding.tied:
        matrices += 2.0 * m.vocab * m.width
    return matrices + sum(_attention_flops(m.block(block), length) for block in range(m.depth))


def _attention_flops(m: Model, length: int) -> float:
    """Of one token in a block: scores, weighted values, and what heads mix of them."""
    if (a := m.attention) is None:
        return 0.0
    keys, flops = m.window(length) or m.row(length), 0.0
    flops += 4.0 * keys * a.heads * m.head_dim
    for mix in (a.mix_scores, a.mix_weights):
        own = min(getattr(mix, "window", 0), length)
        if mix is not None:  # weights of their own are made anew
            flops += (own or keys) * a.heads * (2.0 * a.heads if mix.kind == "matrix" else 4.0 * mix.rank)
            flops += 4.0 * own * a.heads * m.head_dim
    return flops


def _activation_bytes(recipe: Recipe, pieces: int, platform: str) -> int:
    """What the backward pass keeps, roughly: the inputs of every matmul, norm and activation of every block.

    Args: pieces: of a batch, of which a device has one at a time; axis tensor divides none of it, to be safe.

    Scores count where no fused kernel makes them again going back. With remat one block is held, and all streams.
    """
    m, length = recipe.model, recipe.data.length
    narrow = recipe.train.dtype == "bfloat16" or (recipe.train.dtype == "auto" and platform != "cpu")
    dtype, size = (jnp.bfloat16, 2) if narrow else (jnp.float32, 4)
    apart = recipe.data.documents is not None and recipe.data.documents.mask
    blocks = [_block_values(m.block(block), length, dtype, platform, apart) for block in range(m.depth)]
    rows = sum(columns(m, table) for table in m.tables) + len(m.taps) * m.width
    wired = [2 * m.width * len(acting(tree, place)) for place, tree in places(m) if m.wires]  # source and what it meets
    kept = sum(blocks) + sum(wired)
    if recipe.train.remat:
        kept = m.depth * m.width + max(blocks) + max(wired, default=0)
    kept += rows
    tokens = recipe.data.batch * length // pieces
    logits = 4 * 3 * min(tokens * m.vocab, max(CHUNK_LOGITS, length * m.vocab))
    return tokens * (kept + 4 * m.width) * size + logits


def _block_values(m: Model, length: int, dtype: Any, platform: str, documents: bool) -> int:
    """Numbers per token that the backward pass keeps of a block. documents: whether they are kept apart."""
    norms, kept = (3 if m.norm.placement == "pre" else 5) * m.width, 0
    if (a := m.attention) is not None:
        row, plain = m.row(length), m.plain_scores(length)
        fused = kernel(platform, dtype, row, m.head_dim, plain, documents=documents) != "xla"
        scores = 0 if fused else (2 + (a.logit is not None)) * a.heads * (m.window(length) or row)
        for mix in (a.mix_scores, a.mix_weights):
            own = min(getattr(mix, "window", 0), length)
            scores += 0 if mix is None else a.heads * (3 * own if own else m.window(length) or row)
        arrays = 4 if a.qk_norm or a.query or a.key or a.value else 3
        kept += norms + (a.heads + m.kv_heads) * m.head_dim * arrays + scores
        kept += 0 if a.output is None else 2 * a.heads * m.head_dim
    if m.ffn is not None:
        arrays = 5 if m.ffn.kind == "glu" else 4 if m.ffn.activation.kind == "gelu" else 3
        kept += norms + arrays * m.ffn_width
    return kept


def least_accumulate(recipe: Recipe, room: int, platform: str, axes: Axes = ALONE) -> int | None:
    """The fewest pieces a batch must be taken in to fit into `room` bytes of each device, or None if a row is too much.

    With phases they divide every batch. axes: of the mesh, over which the batch divides.
    """
    batch = math.gcd(*(part.recipe.data.batch for part in phases.checked(recipe)))
    rows = batch // (axes["data"] * axes["fsdp"])
    divisors = (k for k in range(1, rows + 1) if rows % k == 0)
    return next((k for k in divisors if preflight(recipe, k, platform, axes).total_bytes <= room), None)
