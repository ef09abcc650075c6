"""What a chain is made of: presets, which stand for chains of their own (presets.py), and the steps that those use.

In scope of a step's formulas: g the gradient, u the direction (g at first), W the parameter, W0 what it was before this
update, lr, progress, steps (of the run, this one included), the group's params, and every name above the line; fan_in
and fan_out where there is a matrix; inputs, second moments of what a map of a block is given, in blocks as wide as the
stream. noise() is a Gaussian number for each of the parameter's, new in every update.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from jaxnano.config.base import Node, Range
from jaxnano.config.expression import Signature, canonical, draws, names
from jaxnano.config.schedule import NamedTraced, Traced, formula

BETA = Range(0.0, 0.99999, "decay")
EPS = Range(1e-16, 1e-2, "log")
FREE = Range(-1e6, 1e6, "signed")  # a number of a formula
NAME = r"^[a-z][a-z0-9_]{0,30}$"
GIVEN = ("g", "u", "W", "W0", "lr", "progress", "fan_in", "fan_out", "steps", "inputs")  # before the first step
OF_PARTNERS = ("W", "W0", "g", "u")  # of a partner's scope, as NAME_W and so on
STEP = Signature(None, reduces=True, draws=True)  # what its names are is known in the chain alone


@lru_cache(maxsize=1024)
def spelled(code: str) -> str:
    """The one spelling of a step's formula."""
    return canonical(code, {}, STEP)


class Sgd(Node):
    """Gradient with heavy-ball or Nesterov momentum, a sum: 1/(1 - momentum) times an average."""

    kind: Literal["sgd"]
    momentum: Annotated[Traced, BETA] = 0.9
    nesterov: bool = False


class Adam(Node):
    """Average over the root of the average square; nesterov is NAdam. Source: Kingma & Ba 2014, arXiv:1412.6980."""

    kind: Literal["adam"]
    b1: Annotated[Traced, BETA] = 0.9
    b2: Annotated[Traced, BETA] = 0.95
    eps: Annotated[Traced, EPS] = 1e-8
    bias_correction: bool = True
    nesterov: bool = False


class Lion(Node):
    """Sign of an interpolated momentum. Source: Chen et al. 2023, arXiv:2302.06675."""

    kind: Literal["lion"]
    b1: Annotated[Traced, BETA] = 0.9
    b2: Annotated[Traced, BETA] = 0.99


class Ademamix(Node):
    """Adam with a second, slow momentum. Source: Pagliardini et al. 2024, arXiv:2409.03137."""

    kind: Literal["ademamix"]
    b1: Annotated[Traced, BETA] = 0.9
    b2: Annotated[Traced, BETA] = 0.95
    b3: Annotated[Traced, BETA] = 0.99
    alpha: Annotated[Traced, Range(0.0, 30.0)] = 2.0
    eps: Annotated[Traced, EPS] = 1e-8


class Muon(Node):
    """Orthogonalised momentum, for matrices. Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon.

    orthogonalizer: Newton-Schulz quintic (5 steps), converged (12), or Polar Express (5, arXiv:2505.16932).
    scale: aspect sqrt(max(1, out/in)), spectral_rms 0.2 sqrt(max(in, out)) (arXiv:2502.16982), or none.
    """

    kind: Literal["muon"]
    momentum: Annotated[Traced, BETA] = 0.95
    nesterov: bool = True
    orthogonalizer: Literal["quintic", "converged", "polar_express"] = "quintic"
    scale: Literal["aspect", "spectral_rms", "none"] = "aspect"


class Soap(Node):
    """Adam in Shampoo's eigenbasis, for matrices. Source: Vyas et al. 2024, arXiv:2409.11321."""

    kind: Literal["soap"]
    b1: Annotated[Traced, BETA] = 0.95
    b2: Annotated[Traced, BETA] = 0.95
    shampoo_beta: Annotated[Traced, BETA] = 0.95
    eps: Annotated[Traced, EPS] = 1e-8
    refresh_every: int = Field(default=10, ge=1, le=1000)
    bias_correction: bool = True


class Normuon(Node):
    """Evens out the lengths of a direction's neurons by their mean square; its norm is kept. Source: arXiv:2510.05491.

    A neuron is an output where there are more of them, else an input: in an orthogonal matrix only the vectors along
    the long axis differ in length. (The paper always takes outputs, the records the long axis.)
    """

    kind: Literal["normuon"]
    b2: Annotated[Traced, BETA] = 0.95
    eps: Annotated[Traced, EPS] = 1e-10


class Decay(Node):
    """Decoupled weight decay, per step in units of lr. Source: Loshchilov & Hutter 2017, arXiv:1711.05101."""

    kind: Literal["decay"]
    rate: Annotated[Traced, Range(0.0, 10.0)] = 0.1


class CautiousDecay(Node):
    """Decay only where the direction shrinks the weight already. Source: Chen et al. 2025, arXiv:2510.12402.

    A coordinate without a direction (the embedding of a token that was not seen) keeps its value.
    """

    kind: Literal["cautious_decay"]
    rate: Annotated[Traced, Range(0.0, 10.0)] = 0.1


class Hyperball(Node):
    """Takes the step, of a fixed angle (lr, about radians), and keeps each norm; initial values must not be zero.

    Source: "Fantastic Pretraining Optimizers 2.1: Hyperball"; modded-nanogpt track 3, 20260430_muonh.
    """

    kind: Literal["hyperball"]


PRESETS = (Sgd, Adam, Lion, Ademamix, Muon, Soap, Normuon, Decay, CautiousDecay, Hyperball)


class Pieces(Node):
    """Equal pieces of each matrix along an axis, each seen by itself."""

    axis: Literal["out", "in", "heads"] = "out"
    count: int = Field(ge=2, le=1024)


class _Step(Node):
    """formulas: its fields that hold one."""

    formulas: ClassVar[tuple[str, ...]] = ("of",)

    @property
    def reads(self) -> set[str]:
        """The names it takes from the lines above."""
        used = {name for field in self.formulas for name in names(getattr(self, field), STEP)}
        used |= {name for field in ("decay", "by", "basis") if isinstance(name := getattr(self, field, None), str)}
        return used - set(getattr(self, "params", ()))

    @property
    def draws(self) -> bool:
        """Whether it needs random numbers."""
        return any(draws(getattr(self, field), STEP) for field in self.formulas)

    @property
    def writes(self) -> tuple[str, ...]:
        """The names it leaves to the lines below."""
        return (getattr(self, "into", None) or self.name,)  # type: ignore[attr-defined]

    @field_validator("of", "code", check_fields=False)
    @classmethod
    def _canonical(cls, code: str, info: ValidationInfo) -> str:
        return formula(code, info, STEP)


class Average(_Step):
    """A running average of a formula: name, name_old (before this update), name_decay; name_weight where debiased.

    It starts at zero. debias: divide by the weight it holds, 1 - decay^t for a constant decay. sum: decay * old + new,
    without the factor 1 - decay. decay: a number, or the name of one. basis: the factors whose basis it lives in.
    """

    kind: Literal["average"]
    name: str = Field(pattern=NAME)
    of: str = "g"
    decay: Annotated[NamedTraced, BETA]
    debias: bool = False
    sum: bool = False
    basis: str | None = None

    @property
    def writes(self) -> tuple[str, ...]:
        ends = ("", "_old", "_decay", *(["_weight"] if self.debias else []))
        return tuple(self.name + end for end in ends)


class FormulaStep(_Step):
    """A formula into u, W or a name of its own; params are its numbers."""

    formulas: ClassVar[tuple[str, ...]] = ("code",)
    kind: Literal["formula"] = "formula"
    name: str = Field(pattern=NAME)
    params: Annotated[dict[str, Traced], FREE] = Field(default_factory=dict)
    code: str
    into: str = Field(default="u", pattern=rf"^W$|{NAME}")
    pieces: Pieces | None = None


class Factors(_Step):
    """Kronecker factors: averages of x x^T and x^T x of a matrix, and bases that follow their eigenvectors.

    A matrix takes its bases from its first x that is not zero and does not move in that step, so that none is measured
    in its own basis. Afterwards, at the end of a step, they follow by a power iteration and QR every `every` steps.
    ahead: they take x in before the lines below read them instead, and a matrix moves from its first on.
    """

    kind: Literal["factors"]
    name: str = Field(pattern=NAME)
    of: str = "g"
    decay: Annotated[NamedTraced, BETA] = 0.95
    every: int = Field(default=10, ge=1, le=1000)
    ahead: bool = False


class Rotate(_Step):
    """Into the bases of `by`, or back out of them."""

    kind: Literal["rotate"]
    name: str = Field(pattern=NAME)
    by: str
    of: str = "u"
    into: str = Field(default="u", pattern=NAME)
    back: bool = False


class Root(_Step):
    """L^power x R^power with the factors of `by`. Source: Gupta et al. 2018, arXiv:1802.09568 (Shampoo).

    floor: eigenvalues below this share of the largest count as it; dropped: as zero (a pseudo-inverse).
    """

    kind: Literal["root"]
    name: str = Field(pattern=NAME)
    by: str
    of: str = "u"
    into: str = Field(default="u", pattern=NAME)
    power: Annotated[Traced, Range(-1.0, 1.0)] = -0.25
    floor: Annotated[Traced, Range(1e-12, 1.0, "log")] = 1e-6
    dropped: bool = False


class Solve(_Step):
    """(C + (damping * mean of its diagonal + 1e-8) I)^-1 x: a matrix x by an average C of `inputs`, block by block.

    The inverse is taken anew every so many updates. Source: arXiv:2604.01472; track 3, 20260505_newton_muon.
    """

    kind: Literal["solve"]
    name: str = Field(pattern=NAME)
    by: str
    of: str = "u"
    into: str = Field(default="u", pattern=NAME)
    damping: Annotated[Traced, Range(1e-3, 10.0, "log")] = 0.2
    every: int = Field(default=64, ge=1, le=1000)


class Triangles(_Step):
    """Triangular Kronecker factors Q, R that whiten a matrix x: each step fits them to this x. `whiten` reads them.

    Source: Li 2024, arXiv:2402.04553 (PSGD); modded-nanogpt track 3, 20260527_psgd.
    """

    kind: Literal["triangles"]
    name: str = Field(pattern=NAME)
    of: str = "g"
    rate: Annotated[Traced, Range(0.0, 1.0)] = 1.0

    @property
    def draws(self) -> bool:
        """They are fitted against Gaussian numbers."""
        return True


class Whiten(_Step):
    """Q^T Q x R^T R with the triangles of `by`."""

    kind: Literal["whiten"]
    name: str = Field(pattern=NAME)
    by: str
    of: str = "u"
    into: str = Field(default="u", pattern=NAME)


class Polar(_Step):
    """Pushes all singular values of a matrix towards 1 by odd polynomials, and keeps its singular vectors.

    coefficients: a named list, or (a, b, c) a step of x <- a x + (b A + c A A) x with A = x x^T. prenorm: what x is
    divided by first. weights: of the iterates, the first before any step; the result is their sum, if given.
    """

    kind: Literal["polar"]
    name: str = Field(default="polar", pattern=NAME)
    of: str = "u"
    into: str = Field(default="u", pattern=NAME)
    coefficients: Annotated[
        Annotated[Literal["quintic", "converged", "polar_express"], Tag("name")]
        | Annotated[tuple[tuple[float, float, float], ...], Field(min_length=1, max_length=24), Tag("list")],
        Discriminator(lambda value: "name" if isinstance(value, str) else "list"),
    ] = "quintic"
    prenorm: Literal["frobenius", "schatten"] = "frobenius"
    weights: Annotated[tuple[float, ...], Field(max_length=25)] = ()
    pieces: Pieces | None = None


class TakeStep(_Step):
    """W <- W - lr u. A chain without one, and without a formula into W, takes it after the last line that writes u."""

    formulas: ClassVar[tuple[str, ...]] = ()
    kind: Literal["step"]

    @property
    def reads(self) -> set[str]:
        return {"u", "W", "lr"}

    @property
    def writes(self) -> tuple[str, ...]:
        return ("W",)


STEPS = (Average, FormulaStep, Factors, Rotate, Root, Triangles, Whiten, Solve, Polar, TakeStep)
Step = Average | FormulaStep | Factors | Rotate | Root | Triangles | Whiten | Solve | Polar | TakeStep
KEEPS = (Average, Factors, Triangles, Solve)  # lines that keep something from step to step


def _tag(value: Any) -> str | None:
    return value.get("kind", "formula") if isinstance(value, dict) else getattr(value, "kind", None)


Transform = Annotated[
    Annotated[Sgd, Tag("sgd")] | Annotated[Adam, Tag("adam")] | Annotated[Lion, Tag("lion")]
    | Annotated[Ademamix, Tag("ademamix")] | Annotated[Muon, Tag("muon")] | Annotated[Soap, Tag("soap")]
    | Annotated[Normuon, Tag("normuon")] | Annotated[Decay, Tag("decay")]
    | Annotated[CautiousDecay, Tag("cautious_decay")] | Annotated[Hyperball, Tag("hyperball")]
    | Annotated[Average, Tag("average")] | Annotated[FormulaStep, Tag("formula")] | Annotated[Factors, Tag("factors")]
    | Annotated[Rotate, Tag("rotate")] | Annotated[Root, Tag("root")] | Annotated[Triangles, Tag("triangles")]
    | Annotated[Whiten, Tag("whiten")] | Annotated[Solve, Tag("solve")] | Annotated[Polar, Tag("polar")]
    | Annotated[TakeStep, Tag("step")],
    Discriminator(_tag),
]
TRANSFORMS: tuple[type[Node], ...] = (*PRESETS, *STEPS)
