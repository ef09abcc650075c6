"""What a recipe costs, before anything is compiled: parameters, FLOPs, memory, whether it fits.

    python -m jaxnano.preflight configs/gpt2-124m.yaml
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass
from typing import Any

from jaxnano.cli import Output, report_errors
from jaxnano.config.recipe import Recipe, load
from jaxnano.model.specs import Table, parameter_count, specs
from jaxnano.optim.build import cost, members
from jaxnano.optim.readout import tail_ema_flops, tail_ema_state_floats
from jaxnano.optim.wrapper import ema_nesterov_flops, ema_nesterov_state_floats


@dataclass(frozen=True)
class Cost:
    """flops: per token, forward and backward, attention over the whole window (PaLM's convention, arXiv:2204.02311);
    the optimizer's are per step. bytes: on one device."""

    parameters: int
    model_flops_per_token: float
    optimizer_flops_per_step: float
    tokens_per_step: int
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


def preflight(recipe: Recipe, accumulate: int = 1) -> Cost:
    """The cost of a recipe, from its parameter table alone. accumulate: pieces a batch is taken in."""
    table = specs(recipe)
    flops, state = _optimizer_cost(recipe, table)
    parameters = parameter_count(table)
    return Cost(
        parameters=parameters,
        model_flops_per_token=3.0 * forward_flops_per_token(recipe, table),
        optimizer_flops_per_step=flops,
        tokens_per_step=recipe.data.batch * recipe.data.length,
        parameter_bytes=4 * parameters,
        optimizer_bytes=4 * state,
        gradient_bytes=4 * parameters,
        activation_bytes=_activation_bytes(recipe, accumulate),
    )


def forward_flops_per_token(recipe: Recipe, table: Table) -> float:
    """Multiplications and additions of one token's forward pass; matrices, the head and attention count."""
    m, length = recipe.model, recipe.data.length
    matrices = sum(2.0 * math.prod(s.shape) for s in table.values() if s.role in ("matrix", "head", "gate"))
    if m.embedding.tied:
        matrices += 2.0 * m.vocab * m.width
    seen = sum((m.window(b, length) or length) for b in range(m.depth) if b not in m.attention.dropped)
    return matrices + 4.0 * seen * m.attention.heads * m.head_dim


def _optimizer_cost(recipe: Recipe, table: Table) -> tuple[float, int]:
    cfg, flops, state = recipe.optimizer, 0.0, 0
    groups = {group.name: group for group in cfg.groups}
    for name, paths in members(cfg, table).items():
        for path in paths:
            shape = table[path].shape
            costs = [cost(node, shape) for node in groups[name].chain]
            flops += sum(f for f, _ in costs) + 2.0 * math.prod(shape)
            state += sum(s for _, s in costs)
    for shape in (spec.shape for spec in table.values()):
        if cfg.wrapper is not None:
            flops, state = flops + ema_nesterov_flops(shape), state + ema_nesterov_state_floats(shape)
        if cfg.readout is not None:
            flops, state = flops + tail_ema_flops(shape), state + tail_ema_state_floats(shape)
    return flops, state


def _activation_bytes(recipe: Recipe, accumulate: int) -> int:
    """What the backward pass keeps, roughly: per block the norms', attention's and FFN's inputs, and the logits."""
    m, size = recipe.model, 4 if recipe.train.dtype == "float32" else 2
    tokens = recipe.data.batch * recipe.data.length // accumulate
    attention = 2 * m.width + (2 * m.attention.heads + 2 * m.kv_heads) * m.head_dim
    ffn = 2 * m.width + (3 if m.ffn.kind == "glu" else 2) * m.ffn_width
    kept = m.width if recipe.train.remat else attention + ffn
    logits = min(tokens * m.vocab, 1 << 28) * 4 * 3
    return tokens * (m.depth * kept + 4 * m.width) * size + logits


def device_bytes() -> int | None:
    """Memory of one device, where it can be known."""
    import jax
    import psutil

    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or psutil.virtual_memory().total


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser("jaxnano.preflight", description=__doc__.partition("\n")[0])
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--accumulate", type=int, default=1, help="pieces a batch is taken in")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    found = preflight(load(options.config, tuple(options.set)), options.accumulate)
    room = device_bytes()
    rows: dict[str, Any] = {**asdict(found), "flops_per_step": found.flops_per_step, "total_bytes": found.total_bytes,
                            "device_bytes": room, "fits": room is None or found.total_bytes <= room}
    Output(options.json).table("preflight", rows)
    return 0 if rows["fits"] else 1


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
