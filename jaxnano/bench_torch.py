"""The peer of `jaxnano.bench`: the same GPT-2 in PyTorch, as one would write it, with its fused attention and AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxnano.bench_shapes import Shape

VOCAB = 256


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, L, D]."""
        batch, length, width = x.shape
        split = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))


class Gpt(nn.Module):
    """GPT-2 with learned positions and a tied embedding."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.token = nn.Embedding(VOCAB, shape.width)
        self.position = nn.Parameter(0.02 * torch.randn(shape.length, shape.width))
        self.blocks = nn.Sequential(*(Block(shape.width, shape.heads) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: [B, L+1]. Returns: mean cross entropy, nats."""
        x = self.norm(self.blocks(self.token(tokens[:, :-1]) + self.position))
        return F.cross_entropy((x @ self.token.weight.T).flatten(0, 1), tokens[:, 1:].flatten())


def loop(shape: Shape, compiled: bool, threads: int) -> Any:
    """A function that trains a few steps on random tokens and returns how many. compiled: by torch.compile."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Gpt(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model
    batches = torch.randint(0, VOCAB, (10, shape.batch, shape.length + 1))

    def run() -> int:
        for batch in batches:
            loss = forward(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return len(batches)

    return run
