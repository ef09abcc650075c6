"""One block: its branches, and the streams that they read and write."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jaxnano.config.model import Model
from jaxnano.model.attention import Attention, KeyValue
from jaxnano.model.documents import Row
from jaxnano.model.ffn import Ffn
from jaxnano.model.norm import Norm
from jaxnano.model.wires import Shifts, Wires

Kept = tuple[KeyValue | None, Shifts]


class Block(nn.Module):
    """An attention branch and an FFN branch, either of which may be absent, and the wires of this place.

    cfg: the resolved model of this block.
    """

    cfg: Model
    block: int
    length: int

    @nn.compact
    def __call__(self, known: dict[str, jax.Array], row: Row, cache: Kept | None) -> tuple[Any, Kept]:
        """Args: known: streams, taps and tables, [B, L, C]. row: where the tokens stand. cache: earlier keys and
        values, and what shifts held.

        Returns: streams and taps after the block, and the block's updated cache.
        """
        m, keys = self.cfg, None if cache is None else cache[0]
        wires = Wires(self, m, self.block, known, None if cache is None else cache[1])
        wires.streams("before")
        if m.attention is not None:
            h_BxLxD = Norm(m.norm, name="attention_norm")(wires.known[m.attention.reads])
            branch = Attention(m, self.block, self.length, name="attention")
            y_BxLxD, keys = branch(h_BxLxD, wires, row, keys)
            wires.join("attention", self._after(y_BxLxD, "attention"), h_BxLxD, "before")
        wires.streams("between")
        if m.ffn is not None:
            h_BxLxD = Norm(m.norm, name="ffn_norm")(wires.known[m.ffn.reads])
            y_BxLxD = Ffn(m, name="ffn")(wires.into("ffn", h_BxLxD))
            wires.join("ffn", self._after(y_BxLxD, "ffn"), h_BxLxD, "between")
        wires.streams("after")
        return wires.taps(), (keys, wires.kept)

    def _after(self, y: jax.Array, name: str) -> jax.Array:
        """A branch's output after its sandwich norm."""
        return Norm(self.cfg.norm, name=f"{name}_post_norm")(y) if self.cfg.norm.placement == "sandwich" else y
