"""What a block is made of: attention, positions, FFN and norms; and what blocks may differ in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, ValidationInfo, field_validator

from jaxnano.config.base import Node, Range
from jaxnano.config.depth import Places
from jaxnano.config.expression import Signature
from jaxnano.config.formulas import Frequency, HeadInput, Logit, Output
from jaxnano.config.partial import partial
from jaxnano.config.schedule import Traced, formula
from jaxnano.config.transforms import NAME

ACTIVATION = Signature(("x",))
Block = Annotated[int, Field(ge=0, le=255)]
Stream = Annotated[str, Field(pattern=NAME)]


class InverseSqrt(Node):
    """Scores times 1/sqrt(K)."""

    kind: Literal["inverse_sqrt"]


class ConstantScale(Node):
    """Scores times a constant; wanted with QK-norm, which bounds them."""

    kind: Literal["constant"]
    value: Annotated[Traced, Range(1e-3, 10.0, "log")] = 0.12


class OutputGate(Node):
    """Each head's output times sigmoid(w . first channels of the input), per token. Source: track 1, record 28."""

    kind: Literal["sigmoid"]
    channels: int = Field(default=12, ge=1, le=4096)


class HeadMatrix(Node):
    """X_h + sum_g M_gh X_g, M trained from 0. Source: Shazeer et al. 2020, arXiv:2003.02436 (talking heads)."""

    kind: Literal["matrix"]


class HeadVectors(Node):
    """X_h + sum_r b_hr sum_g a_gr X_g, with vectors over heads for each token: linear maps with a bias of the input's
    first channels, or of `hidden` GELU units of them; all start at 0 but a's bias, at 1, and a has unit RMS over heads.

    window: of weights of their own, whose mixture is added; 0 is attention's. Source: arXiv:2405.08553; track 1, 2026.
    """

    kind: Literal["vectors"]
    rank: int = Field(default=1, ge=1, le=8)
    channels: int = Field(default=12, ge=1, le=16384)
    hidden: int = Field(default=0, ge=0, le=4096)
    window: int = Field(default=0, ge=0, le=65536)


HeadMix = Annotated[HeadMatrix | HeadVectors, Field(discriminator="kind")]


class Attention(Node):
    """Causal multi-head attention; `kv_heads` below `heads` is grouped-query, 1 is multi-query.

    window: a query sees this many of the last positions, 0 is all. window_block: counted in blocks of so many, rounded
    up. windows: the same, tiled over the blocks. dropped: blocks without attention. key_shift: share of rotary's pairs,
    the slowest, that hold the key of the token before. interleaved: so many (n) heads side by side take turns in one
    row: head j of token t stands at n t + j, which is what windows and positions then count. mix_scores, mix_weights:
    what heads share before and after the softmax. reads, writes: streams (taps, or stream itself) that it takes its
    input from and adds its output to.
    """

    heads: int = Field(default=4, ge=1, le=256)
    kv_heads: int | None = Field(default=None, ge=1, le=256)
    head_dim: int | None = Field(default=None, ge=2, le=512)
    qk_norm: bool = False
    query: HeadInput | None = None
    key: HeadInput | None = None
    value: HeadInput | None = None
    key_shift: float = Field(default=0.0, ge=0.0, le=1.0)
    scale: Annotated[InverseSqrt | ConstantScale, Field(discriminator="kind")] = InverseSqrt(kind="inverse_sqrt")
    softcap: Annotated[Traced | None, Range(0.5, 1000.0, "log")] = None
    logit: Logit | None = None
    output: Output | None = None
    gate: OutputGate | None = None
    window: int = Field(default=0, ge=0, le=65536)
    windows: tuple[Annotated[int, Field(ge=0, le=65536)], ...] = ()
    window_block: int = Field(default=1, ge=1, le=4096)
    interleaved: int = Field(default=1, ge=1, le=16)
    mix_scores: HeadMix | None = None
    mix_weights: HeadMix | None = None
    dropped: tuple[Block, ...] = ()
    reads: Stream = "stream"
    writes: tuple[Stream, ...] = ("stream",)


class Learned(Node):
    """A trained vector per position, added to the embedding."""

    kind: Literal["learned"]


class Rotary(Node):
    """Channel pairs rotated by position. Source: Su et al. 2021, arXiv:2104.09864.

    fraction: share of the pairs that turn; the rest is stationary. spacing: `exclusive` base**(-2i/K), or
    `inclusive`, whose slowest pair turns at exactly 1/base (modded-nanogpt).
    """

    kind: Literal["rotary"]
    base: Annotated[Traced, Range(10.0, 1e7, "log")] = 10000.0
    fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    spacing: Literal["exclusive", "inclusive"] = "exclusive"
    frequency: Frequency | None = None


class Alibi(Node):
    """Scores minus slope * distance, slopes 2**(-reach * (h+1)/H). Source: Press et al. 2021, arXiv:2108.12409."""

    kind: Literal["alibi"]
    reach: Annotated[Traced, Range(0.5, 32.0)] = 8.0


class NoPosition(Node):
    """No position signal: the causal mask alone tells order."""

    kind: Literal["none"]


class Gelu(Node):
    """x * Phi(x), by tanh or exactly. Source: Hendrycks & Gimpel 2016, arXiv:1606.08415."""

    kind: Literal["gelu"]
    approximate: bool = True


class ReluSquared(Node):
    """max(x, 0)**2. Source: So et al. 2021, arXiv:2109.08668."""

    kind: Literal["relu2"]


class Silu(Node):
    """x * sigmoid(x)."""

    kind: Literal["silu"]


class FormulaActivation(Node):
    """An activation as an expression in x and named parameters."""

    kind: Literal["expression"]
    params: Annotated[dict[str, float], Range(-100.0, 100.0)] = Field(default_factory=dict)
    code: str

    @field_validator("code")
    @classmethod
    def _canonical(cls, code: str, info: ValidationInfo) -> str:
        return formula(code, info, ACTIVATION, ("x",))


Activation = Annotated[Gelu | ReluSquared | Silu | FormulaActivation, Field(discriminator="kind")]


class Mlp(Node):
    """down(activation(up(x)))."""

    kind: Literal["mlp"]
    ratio: float = Field(default=4.0, ge=0.125, le=16.0)
    activation: Activation = Gelu(kind="gelu")
    dropped: tuple[Block, ...] = ()
    reads: Stream = "stream"
    writes: tuple[Stream, ...] = ("stream",)


class Glu(Node):
    """down(activation(gate(x)) * up(x)): SwiGLU with silu, GEGLU with gelu. Source: Shazeer 2020, arXiv:2002.05202."""

    kind: Literal["glu"]
    ratio: float = Field(default=8 / 3, ge=0.125, le=16.0)
    activation: Activation = Silu(kind="silu")
    dropped: tuple[Block, ...] = ()
    reads: Stream = "stream"
    writes: tuple[Stream, ...] = ("stream",)


class LayerNorm(Node):
    """Zero mean, unit variance. placement: before each branch, or before and after it (sandwich)."""

    kind: Literal["layernorm"]
    gain: bool = True
    bias: bool = True
    placement: Literal["pre", "sandwich"] = "pre"
    eps: Annotated[Traced, Range(1e-12, 1e-2, "log")] = 1e-5


class RmsNorm(Node):
    """Unit root mean square. Source: Zhang & Sennrich 2019, arXiv:1910.07467."""

    kind: Literal["rmsnorm"]
    gain: bool = True
    placement: Literal["pre", "sandwich"] = "pre"
    eps: Annotated[Traced, Range(1e-12, 1e-2, "log")] = 1e-6


Position = Annotated[Learned | Rotary | Alibi | NoPosition, Field(discriminator="kind")]


class BlockTree(Node):
    """What blocks may differ in; null takes a branch away."""

    attention: Attention | None
    ffn: Annotated[Mlp | Glu, Field(discriminator="kind")] | None
    norm: Annotated[LayerNorm | RmsNorm, Field(discriminator="kind")]
    position: Position
    bias: bool


class BlockDiff(Node):
    """What some blocks have otherwise. Of several diffs the later win."""

    name: str = Field(pattern=NAME)
    at: Annotated[Places, Discriminator(lambda value: "all" if isinstance(value, str) else "places")] = "all"
    set: partial(BlockTree)  # type: ignore[valid-type]
