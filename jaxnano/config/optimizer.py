"""The optimizer as data: ordered groups of parameters, each with an ordered chain of transforms."""

from __future__ import annotations

import fnmatch
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from jaxnano.config import expression, presets
from jaxnano.config.base import Node, Range, refuse, unique_names
from jaxnano.config.formulas import Formula
from jaxnano.config.schedule import Traced, formula
from jaxnano.config.transforms import BETA, FREE, NAME, STEP, Adam, Decay, Step, Transform

Role = Literal["matrix", "embedding", "head", "gain", "bias", "scalar", "gate"]
VIEW = STEP._replace(draws=False)  # of memories, views and moves
ROLES: tuple[Role, ...] = ("matrix", "embedding", "head", "gain", "bias", "scalar", "gate")


class Partner(Node):
    """Another parameter of the group in the scope of each, as NAME_W, NAME_W0, NAME_g and NAME_u.

    pairs: ends of paths, [attention/v, attention/o]; each sees the other. transposed: as its transpose.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9]{0,15}$")
    pairs: Annotated[tuple[tuple[str, str], ...], Field(min_length=1)]
    transposed: bool = False

    def of(self, path: str) -> str | None:
        """The path of a parameter's partner; None for one that has none."""
        for pair in self.pairs:
            for own, other in (pair, pair[::-1]):
                if f"/{path}".endswith(f"/{own}"):
                    return path.removesuffix(own) + other
        return None


class Group(Node):
    """Parameters that share a chain. A parameter belongs to the first group whose role or path pattern it matches.

    every: it moves, moments too, in each so many-th step alone. accumulate: with the sum of the gradients since it last
    did. frozen: shares of the run, [from, to], in which it does not move and its gradients are dropped.
    """

    name: str = Field(pattern=NAME)
    roles: tuple[Role, ...] = ()
    paths: tuple[str, ...] = ()
    lr: Annotated[Traced, Range(0.0, 10.0, "log")]
    every: int = Field(default=1, ge=1, le=1000)
    accumulate: bool = False
    frozen: tuple[tuple[float, float], ...] = ()
    partners: tuple[Partner, ...] = ()
    params: Annotated[dict[str, Traced], FREE] = Field(default_factory=dict)
    chain: tuple[Transform, ...]

    @field_validator("chain")
    @classmethod
    def _shortest(cls, chain: tuple[Transform, ...]) -> tuple[Any, ...]:
        return presets.contract(chain)

    @model_validator(mode="after")
    def _linked(self) -> Group:
        unique_names(self.chain, "chain")
        unique_names(self.partners, "partners")
        presets.check(self.chain, self.params, [partner.name for partner in self.partners])
        return self

    @model_validator(mode="after")
    def _clocked(self) -> Group:
        if self.accumulate and self.every == 1:
            raise refuse("accumulate", True, "with every: 1 no step is left out; every: 2 would do")
        if self.accumulate and any("inputs" in step.reads for step in self.steps):
            raise refuse("accumulate", True, "inputs are those of one step; false would do")
        ends = [end for span in self.frozen for end in span]
        if ends != sorted(set(ends)) or not all(0 <= end <= 1 for end in ends) or self.moving() <= 0:
            raise refuse("frozen", self.frozen, "shares of the run, each span after the one before and apart from it, "
                         "and not the whole run; [[0.0, 0.1]] would do")
        return self

    def moving(self, since: float = 0.0, until: float = 1.0) -> float:
        """The share of the steps in which the group moves, of the whole run's or of those in a part of it."""
        frozen = sum(max(0.0, min(end, until) - max(start, since)) for start, end in self.frozen)
        return (1.0 - frozen / (until - since)) / self.every

    @property
    def steps(self) -> list[Step]:
        """The chain with its presets expanded."""
        return presets.steps_of(self.chain)

    def matches(self, path: str, role: str) -> bool:
        """Whether the parameter at `path` ("blocks_0/ffn/up") with `role` belongs here."""
        return role in self.roles or any(fnmatch.fnmatchcase(path, pattern) for pattern in self.paths)


class Memory(Node):
    """Something kept for every parameter: a running average of a formula, a copy of its value, or a decaying sum.

    of: a formula of W, of W0 before this step (and this step's look-ahead), and progress. An average has a decay, or a
    time constant as a share of the run; until progress reaches `start` it is the value itself. It begins as the value
    at the first parameters. every: steps from one update to the next. until: progress from which it stays as it is.
    paths, without: the parameters it is kept for.
    """

    name: str = Field(pattern=NAME)
    of: str = "W"
    keep: Literal["average", "copy", "sum"] = "average"
    decay: Annotated[Traced | None, BETA] = None
    start: Annotated[Traced, Range(0.0, 0.99)] = 0.0
    time_constant: Annotated[Traced | None, Range(0.001, 1.0, "log")] = None
    every: int = Field(default=1, ge=1, le=100_000)
    until: Annotated[Traced | None, Range(0.0, 1.0)] = None
    paths: tuple[str, ...] = ("*",)
    without: tuple[str, ...] = ()

    @field_validator("of")
    @classmethod
    def _canonical(cls, code: str, info: ValidationInfo) -> str:
        return formula(code, info, VIEW)

    @model_validator(mode="after")
    def _paced(self) -> Memory:
        decays, paced = self.decay is not None, self.time_constant is not None
        fits, rule = {"average": (decays != paced, "a decay or a time_constant"),
                      "sum": (decays and not paced, "a decay"),
                      "copy": (not decays and not paced, "neither decay nor time_constant")}[self.keep]
        if not fits:
            raise refuse("decay", self.decay, f"{self.keep} takes {rule}")
        return self

    def keeps(self, path: str) -> bool:
        """Whether it is kept for the parameter at a path."""
        return any(fnmatch.fnmatchcase(path, p) for p in self.paths) and not any(
            fnmatch.fnmatchcase(path, p) for p in self.without)


class View(Formula):
    """Other values of the parameters: a formula of W, memories and progress. One that lacks a memory stays as it is."""

    place = VIEW


class Move(View):
    """Every so many steps the parameters go where a formula says, from W, W0 and the memories."""

    name: str = Field(pattern=NAME)
    every: int = Field(ge=1, le=100_000)


class EmaNesterov(Node):
    """Gradient taken beta * EMA of the displacement ahead. Source: modded-nanogpt track 3, results 39-46."""

    kind: Literal["ema_nesterov"]
    gamma: Annotated[Traced, BETA] = 0.95
    beta: Annotated[Traced, Range(0.0, 0.95)] = 0.3


class TailEma(Node):
    """Evaluate (1 - weight) * W + weight * EMA of W over the tail. Source: track 3, results 45-46.

    start: progress where the average begins. time_constant: its memory as a share of the run.
    """

    kind: Literal["tail_ema"]
    start: Annotated[Traced, Range(0.0, 0.99)] = 0.7
    time_constant: Annotated[Traced, Range(0.001, 1.0, "log")] = 0.05
    weight: Annotated[Traced, Range(0.0, 1.0)] = 0.6


@cache  # whoever leaves defaults out of what it writes asks for them every time
def adamw(lr: float = 1e-3) -> tuple[Group, ...]:
    """The default: AdamW with decay on matrices and tables, none on gains, biases and scalars."""
    adam = Adam(kind="adam")
    return (
        Group(name="matrices", roles=("matrix", "embedding", "head"), lr=lr, chain=(adam, Decay(kind="decay"))),
        Group(name="rest", roles=("gain", "bias", "scalar", "gate"), lr=lr, chain=(adam,)),
    )


class Optimizer(Node):
    """clip: global gradient norm, or none. wrapper and readout are presets of a memory and a view.

    gradient: where gradients are taken, and the step starts. evaluated: what is evaluated and shipped. Averages and
    sums are updated first after a step, then moves are made, then copies taken.
    """

    clip: Annotated[Traced | None, Range(1e-3, 1e3, "log")] = 1.0
    groups: tuple[Group, ...] = Field(default_factory=adamw)
    wrapper: EmaNesterov | None = None
    readout: TailEma | None = None
    memory: tuple[Memory, ...] = ()
    gradient: View | None = None
    evaluated: View | None = None
    moves: tuple[Move, ...] = ()

    @model_validator(mode="after")
    def _covers(self) -> Optimizer:
        unique_names(self.groups, "groups")
        covered = {role for group in self.groups for role in group.roles}
        if missing := [role for role in ROLES if role not in covered]:
            raise refuse("groups", [g.name for g in self.groups], f"no group takes the role(s) {', '.join(missing)}")
        return self

    @model_validator(mode="after")
    def _remembers(self) -> Optimizer:
        for preset, place in (("wrapper", "gradient"), ("readout", "evaluated")):
            if getattr(self, preset) is not None and getattr(self, place) is not None:
                raise refuse(place, getattr(self, place).code, f"{preset} says it already; without it would do")
        kept = remembered(self)
        unique_names(kept.memory, "memory")
        unique_names(self.moves, "moves")
        unread = names = {memory.name for memory in kept.memory}
        views = [("gradient", kept.gradient, {"W"}), ("evaluated", kept.evaluated, {"W"}),
                 *((f"moves.{move.name}", move, {"W", "W0"}) for move in self.moves)]
        for place, view, scope in views:
            if view is None:
                continue
            used = expression.names(view.code, VIEW) - set(view.params)
            if missing := sorted(used - names - scope - {"progress"}):
                known = sorted({*names, *scope, "progress"})
                raise refuse(f"{place}.code", missing[0], f"no such memory; known: {', '.join(known)}")
            unread = unread - used
        for i, memory in enumerate(self.memory):
            used, above = expression.names(memory.of, VIEW), {m.name for m in self.memory[:i]}
            if missing := sorted(used - {"W", "W0", "progress"} - above):
                raise refuse(f"memory.{memory.name}.of", missing[0], "known: W, W0, progress and the memories above it")
            if short := [m.name for m in self.memory[:i] if m.name in used and
                         (m.paths, m.without) != (memory.paths, memory.without)]:
                raise refuse(f"memory.{memory.name}.of", short[0], "it is kept for other parameters; the same paths "
                             "would do")
            unread = unread - used
        if unread:
            raise refuse(f"memory.{min(unread)}", min(unread), "no view, move or other memory reads it")
        return self

    def group_of(self, path: str, role: str) -> Group:
        """The group a parameter belongs to: the first that matches."""
        return next(group for group in self.groups if group.matches(path, role))


def remembered(cfg: Optimizer) -> Optimizer:
    """The optimizer with wrapper and readout as the memories and views that they stand for."""
    memory, gradient, evaluated = cfg.memory, cfg.gradient, cfg.evaluated
    if (node := cfg.wrapper) is not None:
        memory = (*memory, Memory.model_construct(name="drift", of="W - W0", decay=node.gamma))
        gradient = View.model_construct(code="W + beta * drift", params={"beta": node.beta})
    if (node := cfg.readout) is not None:
        memory = (*memory, Memory.model_construct(
            name="tail", start=node.start, time_constant=node.time_constant, without=("embedding/token",)))
        evaluated = View.model_construct(code="(1 - weight) * W + weight * tail", params={"weight": node.weight})
    return cfg.model_copy(update={"memory": memory, "gradient": gradient, "evaluated": evaluated, "wrapper": None,
                                  "readout": None})
