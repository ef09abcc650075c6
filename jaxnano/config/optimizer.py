"""The optimizer as data: ordered groups of parameters, each with an ordered chain of transforms."""

from __future__ import annotations

import fnmatch
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from jaxnano.config.base import Node, Range, kind_of, refuse, unique_names
from jaxnano.config.schedule import Traced

_BETA = Range(0.0, 0.99999, "decay")
_EPS = Range(1e-16, 1e-2, "log")
Role = Literal["matrix", "embedding", "head", "gain", "bias", "scalar", "gate"]
ROLES: tuple[Role, ...] = ("matrix", "embedding", "head", "gain", "bias", "scalar", "gate")


STAGES = DIRECTION, PROCESSING, DECAY, CONSTRAINT = 1, 2, 3, 4  # of a chain, in order


class _Transform(Node):
    """One of a chain. stage: where it stands. matrices_only: no vectors. after: the kind that it needs before it."""

    stage: ClassVar[int] = DIRECTION
    matrices_only: ClassVar[bool] = False
    after: ClassVar[str | None] = None


class Sgd(_Transform):
    """Gradient with heavy-ball or Nesterov momentum."""

    kind: Literal["sgd"]
    momentum: Annotated[Traced, _BETA] = 0.9
    nesterov: bool = False


class Adam(_Transform):
    """Source: Kingma & Ba 2014, arXiv:1412.6980."""

    kind: Literal["adam"]
    b1: Annotated[Traced, _BETA] = 0.9
    b2: Annotated[Traced, _BETA] = 0.95
    eps: Annotated[Traced, _EPS] = 1e-8
    bias_correction: bool = True
    nesterov: bool = False


class Lion(_Transform):
    """Sign of an interpolated momentum. Source: Chen et al. 2023, arXiv:2302.06675."""

    kind: Literal["lion"]
    b1: Annotated[Traced, _BETA] = 0.9
    b2: Annotated[Traced, _BETA] = 0.99


class Ademamix(_Transform):
    """Adam with a second, slow momentum. Source: Pagliardini et al. 2024, arXiv:2409.03137."""

    kind: Literal["ademamix"]
    b1: Annotated[Traced, _BETA] = 0.9
    b2: Annotated[Traced, _BETA] = 0.95
    b3: Annotated[Traced, _BETA] = 0.99
    alpha: Annotated[Traced, Range(0.0, 30.0)] = 2.0
    eps: Annotated[Traced, _EPS] = 1e-8


class Muon(_Transform):
    """Orthogonalised momentum, for matrices. Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon.

    orthogonalizer: Newton-Schulz quintic (5 steps), converged (12), or Polar Express (5, arXiv:2505.16932).
    scale: aspect sqrt(max(1, out/in)), spectral_rms 0.2 sqrt(max(in, out)), or none.
    """

    kind: Literal["muon"]
    matrices_only: ClassVar[bool] = True
    momentum: Annotated[Traced, _BETA] = 0.95
    nesterov: bool = True
    orthogonalizer: Literal["quintic", "converged", "polar_express"] = "quintic"
    scale: Literal["aspect", "spectral_rms", "none"] = "aspect"


class Soap(_Transform):
    """Adam in Shampoo's eigenbasis. Source: Vyas et al. 2024, arXiv:2409.11321."""

    kind: Literal["soap"]
    matrices_only: ClassVar[bool] = True
    b1: Annotated[Traced, _BETA] = 0.95
    b2: Annotated[Traced, _BETA] = 0.95
    shampoo_beta: Annotated[Traced, _BETA] = 0.95
    eps: Annotated[Traced, _EPS] = 1e-8
    refresh_every: int = Field(default=10, ge=1, le=1000)
    bias_correction: bool = True


class Normuon(_Transform):
    """Neuron-wise second moment of an orthogonalised update. Source: arXiv:2510.05491."""

    kind: Literal["normuon"]
    stage: ClassVar[int] = PROCESSING
    matrices_only: ClassVar[bool] = True
    after: ClassVar[str | None] = "muon"
    b2: Annotated[Traced, _BETA] = 0.95
    eps: Annotated[Traced, _EPS] = 1e-10


class Decay(_Transform):
    """Decoupled weight decay. Source: Loshchilov & Hutter 2017, arXiv:1711.05101."""

    kind: Literal["decay"]
    stage: ClassVar[int] = DECAY
    rate: Annotated[Traced, Range(0.0, 10.0)] = 0.1


class CautiousDecay(_Transform):
    """Decay only where the update shrinks the weight already. Source: Chen et al. 2025, arXiv:2510.12402."""

    kind: Literal["cautious_decay"]
    stage: ClassVar[int] = DECAY
    rate: Annotated[Traced, Range(0.0, 10.0)] = 0.1


class Hyperball(_Transform):
    """Steps of a fixed angle that keep each matrix's Frobenius norm; needs non-zero initial values."""

    kind: Literal["hyperball"]
    stage: ClassVar[int] = CONSTRAINT
    matrices_only: ClassVar[bool] = True


Transform = Annotated[
    Sgd | Adam | Lion | Ademamix | Muon | Soap | Normuon | Decay | CautiousDecay | Hyperball,
    Field(discriminator="kind"),
]
TRANSFORMS: tuple[type[_Transform], ...] = get_args(get_args(Transform)[0])


class Group(Node):
    """Parameters that share a chain. A parameter belongs to the first group whose role or path pattern it matches."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")
    roles: tuple[Role, ...] = ()
    paths: tuple[str, ...] = ()
    lr: Annotated[Traced, Range(0.0, 10.0, "log")]
    chain: tuple[Transform, ...]

    def matches(self, path: str, role: str) -> bool:
        """Whether the parameter at `path` ("blocks_0/ffn/up") with `role` belongs here."""
        return role in self.roles or any(fnmatch.fnmatchcase(path, pattern) for pattern in self.paths)

    @model_validator(mode="after")
    def _ordered(self) -> Group:
        unique_names(self.chain, "chain")
        kinds, stages = [t.kind for t in self.chain], [t.stage for t in self.chain]
        if stages != sorted(stages):
            raise refuse("chain", kinds, "direction, then post-processing, then decay, then constraint; "
                         f"{[t.kind for t in sorted(self.chain, key=lambda t: t.stage)]} would do")
        if stages.count(DIRECTION) != 1:
            known = [kind_of(t) for t in TRANSFORMS if t.stage == DIRECTION]
            raise refuse("chain", kinds, f"exactly one direction: {', '.join(known)}")
        if missing := [f"{t.kind} post-processes {t.after}" for t in self.chain if t.after and t.after not in kinds]:
            raise refuse("chain", kinds, missing[0])
        if stages.count(DECAY) > 1:
            raise refuse("chain", kinds, "one kind of decay")
        if DECAY in stages and CONSTRAINT in stages:
            raise refuse("chain", kinds, "hyperball keeps the norm, so there is nothing to decay; remove the decay")
        for transform in self.chain:
            if transform.matrices_only and (self.paths or set(self.roles) - {"matrix", "embedding", "head"}):
                raise refuse("roles", list(self.roles),
                             f"{transform.kind} is for matrices: roles matrix, embedding, head alone")
        return self


class EmaNesterov(Node):
    """Gradient taken beta * EMA of the displacement ahead. Source: modded-nanogpt track 3, results 39-46."""

    kind: Literal["ema_nesterov"]
    gamma: Annotated[Traced, _BETA] = 0.95
    beta: Annotated[Traced, Range(0.0, 0.95)] = 0.3


class TailEma(Node):
    """Evaluate (1 - weight) * W + weight * EMA of W over the tail. Source: track 3, results 45-46.

    start: progress where the average begins. time_constant: its memory as a share of the run.
    """

    kind: Literal["tail_ema"]
    start: Annotated[Traced, Range(0.0, 0.99)] = 0.7
    time_constant: Annotated[Traced, Range(0.001, 1.0, "log")] = 0.05
    weight: Annotated[Traced, Range(0.0, 1.0)] = 0.6


def adamw(lr: float = 1e-3) -> tuple[Group, ...]:
    """The default: AdamW with decay on matrices and tables, none on gains, biases and scalars."""
    adam = Adam(kind="adam")
    return (
        Group(name="matrices", roles=("matrix", "embedding", "head"), lr=lr, chain=(adam, Decay(kind="decay"))),
        Group(name="rest", roles=("gain", "bias", "scalar", "gate"), lr=lr, chain=(adam,)),
    )


class Optimizer(Node):
    """clip: global gradient norm, or none. wrapper and readout act on all parameters."""

    clip: Annotated[Traced | None, Range(1e-3, 1e3, "log")] = 1.0
    groups: tuple[Group, ...] = Field(default_factory=adamw)
    wrapper: EmaNesterov | None = None
    readout: TailEma | None = None

    @model_validator(mode="after")
    def _covers(self) -> Optimizer:
        unique_names(self.groups, "groups")
        covered = {role for group in self.groups for role in group.roles}
        if missing := [role for role in ROLES if role not in covered]:
            raise refuse("groups", [g.name for g in self.groups], f"no group takes the role(s) {', '.join(missing)}")
        return self

    def group_of(self, path: str, role: str) -> Group:
        """The group a parameter belongs to: the first that matches."""
        return next(group for group in self.groups if group.matches(path, role))
