"""The architecture as data: one node per mechanism, every choice a union on `kind`, every default in its node."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from jaxnano.config import wiring
from jaxnano.config.base import ConfigError, Node, Range, dump, refuse, unique_names, validate
from jaxnano.config.block import (
    Alibi,
    Attention,
    BlockDiff,
    BlockTree,
    Glu,
    LayerNorm,
    Learned,
    Mlp,
    Position,
    RmsNorm,
    Rotary,
)
from jaxnano.config.depth import blocks_at
from jaxnano.config.formulas import InitRule, Logits
from jaxnano.config.partial import overlay, pruned, settings
from jaxnano.config.schedule import Traced
from jaxnano.config.wires import Table, Tap, Wire

_STD = Range(0.0, 2.0)


class Embedding(Node):
    """tied: the head shares the table. norm: one more of the model's norms, on the embedded token."""

    tied: bool = True
    norm: bool = False


class Softcap(Node):
    """cap * tanh(z / cap), or cap * z / sqrt(z**2 + cap**2)."""

    kind: Literal["tanh", "rsqrt"]
    cap: Annotated[Traced, Range(1.0, 1000.0, "log")] = 15.0


class Target(Node):
    """A token that the logits are held against in training, `shift` ahead; 1 is the next. weight: of its cross entropy,
    summed over the positions that have one. Source: Gloeckle et al. 2024, arXiv:2404.19737; track 1, record 53.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")
    shift: int = Field(ge=1, le=16)
    weight: Annotated[Traced, Range(0.0, 10.0)] = 1.0


class Head(Node):
    """z_loss: weight of logsumexp(logits)**2 in training. targets: what training predicts, the next token if none are
    named; losses that are told are of the next token. Source: Chowdhery et al. 2022, arXiv:2204.02311.
    """

    softcap: Softcap | None = None
    logits: Logits | None = None
    z_loss: Annotated[Traced | None, Range(0.0, 0.1, "log")] = None
    targets: tuple[Target, ...] = ()

    @model_validator(mode="after")
    def _once_each(self) -> Head:
        unique_names(self.targets, "targets")
        for i, target in enumerate(self.targets):
            if target.shift in [other.shift for other in self.targets[:i]]:
                raise refuse(f"targets.{target.name}.shift", target.shift, "each token once; its weight may be larger")
        return self


class Init(Node):
    """Initial values. std: of matrices, absolute or (fan_in) times 1/sqrt(inputs). A role's own std overrides it.

    zero_projections: attention's and FFN's outputs start at 0. depth_scaled: they start 1/sqrt(2N) smaller. rules come
    before all of this.
    """

    distribution: Literal["normal", "uniform"] = "normal"
    unit: Literal["absolute", "fan_in"] = "absolute"
    std: Annotated[float, _STD] = 0.02
    embedding_std: Annotated[float, _STD] = 0.02
    head_std: Annotated[float | None, _STD] = None
    attention_std: Annotated[float | None, _STD] = None
    ffn_std: Annotated[float | None, _STD] = None
    zero_projections: bool = False
    depth_scaled: bool = True
    rules: tuple[InitRule, ...] = ()


class Model(Node):
    """A decoder-only transformer. bias: in every linear map of the blocks and in an untied head.

    Attention, FFN, norm, position and bias are the blocks' prototype; blocks: what some of them have otherwise.
    """

    vocab: int = Field(default=256, ge=2, le=1_000_000)
    width: int = Field(default=64, ge=4, le=16384)
    depth: int = Field(default=3, ge=1, le=128)
    bias: bool = False
    attention: Attention = Attention()
    position: Position = Learned(kind="learned")
    ffn: Annotated[Mlp | Glu, Field(discriminator="kind")] = Mlp(kind="mlp")
    norm: Annotated[LayerNorm | RmsNorm, Field(discriminator="kind")] = LayerNorm(kind="layernorm")
    embedding: Embedding = Embedding()
    head: Head = Head()
    init: Init = Init()
    blocks: tuple[BlockDiff, ...] = ()
    taps: tuple[Tap, ...] = ()
    tables: tuple[Table, ...] = ()
    wires: tuple[Wire, ...] = ()

    @field_validator("blocks")
    @classmethod
    def _shortest(cls, blocks: tuple[BlockDiff, ...], info: ValidationInfo) -> tuple[BlockDiff, ...]:
        """Without what changes nothing: it would be another name for the same model."""
        for diff in blocks if "depth" in info.data else ():
            blocks_at(diff.at, info.data["depth"], f"{diff.name}.at")
        found, standing = [], SimpleNamespace(**info.data)
        for diff in blocks:
            others = frozenset(path for before in found for path in settings(before.set))
            if (change := pruned(diff.set, standing, others)) is not None:
                found.append(diff.model_copy(update={"set": change}))
        return tuple(found)

    def block(self, block: int) -> Model:
        """The model as one block has it: attention or ffn is None where there is none, and `window` is the block's."""
        a = self.attention
        update: dict[str, Any] = {}
        if block in a.dropped:
            update["attention"] = None
        elif a.windows:
            update["attention"] = a.model_copy(update={"window": a.windows[block % len(a.windows)], "windows": ()})
        if block in self.ffn.dropped:
            update["ffn"] = None
        for diff in self.blocks:
            if block in blocks_at(diff.at, self.depth):
                tree = self.model_copy(update=update)
                update |= {name: getattr(overlay(tree, diff.set), name) for name in diff.set.as_set()}
        return self.model_copy(update=update | {"blocks": ()}) if update else self

    @property
    def kv_heads(self) -> int:
        """Key/value heads G; multi-head unless set."""
        return self.attention.kv_heads or self.attention.heads

    @property
    def head_dim(self) -> int:
        """Channels of a head K; width / heads unless set."""
        return self.attention.head_dim or self.width // self.attention.heads

    @property
    def ffn_width(self) -> int:
        """Hidden channels F."""
        return max(1, round(self.ffn.ratio * self.width))

    def plain_scores(self, length: int) -> bool:
        """Whether attention's scores are scaled products alone, as its kernels want them."""
        a = self.attention
        rounded = a.window_block > 1 and self.window(length) is not None
        mixed = a.mix_scores is not None or a.mix_weights is not None and not getattr(a.mix_weights, "window", 0)
        return a.softcap is None and a.logit is None and not isinstance(self.position, Alibi) and not rounded | mixed

    def row(self, length: int) -> int:
        """Of a block's model: positions of attention's rows."""
        return length * self.attention.interleaved

    def window(self, length: int) -> int | None:
        """Of a block's model: positions of its rows that a query sees at most, or None for all."""
        reach = -(-self.attention.window // self.attention.window_block) * self.attention.window_block
        return reach if 0 < reach < self.row(length) else None

    @model_validator(mode="after")
    def _fits(self) -> Model:
        a = self.attention
        if a.head_dim is None and self.width % a.heads:
            near = [h for h in range(1, self.width + 1) if self.width % h == 0]
            would = ", ".join(map(str, sorted(near, key=lambda h: abs(h - a.heads))[:3]))
            raise refuse("attention.heads", a.heads, f"width {self.width} is not divisible by {a.heads} heads; "
                         f"{would} would do")
        if a.heads % self.kv_heads:
            would = ", ".join(str(g) for g in range(1, a.heads + 1) if a.heads % g == 0)
            raise refuse("attention.kv_heads", a.kv_heads, f"divides {a.heads} heads; {would} would do")
        self._shared_rows()
        if a.logit is not None and a.softcap is not None:
            raise refuse("attention.softcap", dump(a)["softcap"], "attention.logit takes its place; null would do, and "
                         "a cap of c in the formula is c * tanh(s / c)")
        if self.head.logits is not None and self.head.softcap is not None:
            raise refuse("head.softcap", dump(self.head.softcap), "head.logits takes its place; null would do, and a "
                         "cap of c in the formula is c * tanh(z / c)")
        if isinstance(self.position, Rotary) and self.head_dim % 2:
            raise refuse("attention.head_dim", self.head_dim, "even, since rotary turns pairs of channels")
        unique_names(self.init.rules, "init.rules")
        for name in ("attention", "ffn"):
            path, blocks = f"{name}.dropped", getattr(self, name).dropped
            if len(set(blocks)) < len(blocks):
                raise refuse(path, list(blocks), "each block at most once")
            if blocks and max(blocks) >= self.depth:
                raise refuse(path, list(blocks), f"blocks are 0..{self.depth - 1}")
        if a.window and a.windows:
            raise refuse("attention.window", a.window, "windows says it already, block by block; 0 would do")
        unique_names(self.blocks, "blocks")
        self._trees()
        for name in ("gate", "mix_scores", "mix_weights"):
            if (channels := getattr(getattr(a, name), "channels", 0)) > self.width:
                raise refuse(f"attention.{name}.channels", channels, f"at most the width, {self.width}")
        wiring.check(self)
        return self

    def _shared_rows(self) -> None:
        a = self.attention
        if a.heads % a.interleaved or self.kv_heads % a.interleaved:
            would = [n for n in range(1, 17) if a.heads % n == 0 and self.kv_heads % n == 0]
            raise refuse("attention.interleaved", a.interleaved, f"divides {a.heads} heads and {self.kv_heads} heads "
                         f"of keys; {', '.join(map(str, would))} would do")
        for name in ("mix_scores", "mix_weights"):
            if (mix := getattr(a, name)) is not None and (a.interleaved > 1 or a.heads == 1):
                why = "one head has nothing" if a.heads == 1 else "heads that take turns in a row have nothing"
                raise refuse(f"attention.{name}", mix.kind, f"{why} to share; null would do")
        if getattr(a.mix_scores, "window", 0):
            raise refuse("attention.mix_scores.window", getattr(a.mix_scores, "window", 0),
                         "weights alone have a window of their own; 0 would do")

    def _trees(self) -> None:
        """Raise a rule's error, at the place of the diff that is to blame, for a block's model that is none."""
        for diff in self.blocks:
            if getattr(diff.set.position, "kind", None) == "learned":
                raise refuse(f"blocks.{diff.name}.set.position", "learned", "it is added to the embedding, so blocks "
                             "have none of their own; rotary, alibi or none would do")
        trees, known = [self.block(i) for i in range(self.depth)], set()
        for i, tree in enumerate(trees if self.blocks else ()):
            told = [diff for diff in self.blocks if i in blocks_at(diff.at, self.depth)]
            here = (*(diff.name for diff in told), i in self.attention.dropped, i in self.ffn.dropped)
            if not told or here in known:
                continue
            known.add(here)
            parts = {name: getattr(tree, name) for name in BlockTree.model_fields}
            for name in ("attention", "ffn"):  # whose streams are the whole model's
                if (part := parts.pop(name)) is not None:
                    parts[name] = part.model_copy(update={"reads": "stream", "writes": ("stream",)})
            try:
                validate(Model, {"width": self.width, "depth": self.depth, **{
                    name: dump(part) if isinstance(part, Node) else part for name, part in parts.items()}})
            except ConfigError as error:
                problem = error.problems[0]
                there = (d for d in reversed(told) if any(
                    f"{problem.path}.".startswith(f"{path}.") for path in settings(d.set)))
                blamed = next(there, told[-1]).name
                raise refuse(f"blocks.{blamed}.set.{problem.path}", problem.value, problem.rule) from None
