"""What is asked and answered at the desk (research/desk.py): questions are checked nodes, answers plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from jaxnano.config.base import Node


class Nothing(Node):
    """No arguments."""


class Place(Node):
    """path: as in an edit; empty for the whole tree."""

    path: str = Field(default="", max_length=300)


class Which(Node):
    """Filters, all optional. recipe: an id or its beginning. sort: latest first, or best gain, lowest loss first."""

    recipe: str = Field(default="", max_length=64)
    lane: str = Field(default="", max_length=64)
    outcome: str = Field(default="", max_length=64)
    horizon: float | None = None
    sort: Literal["latest", "gain", "loss"] = "latest"
    limit: int = Field(default=20, ge=1, le=200)


class Subject(Node):
    """id: a trial's key or a recipe's id, or its beginning."""

    id: str = Field(min_length=1, max_length=100)


class Awaited(Node):
    """number: of a submission. timeout_s: seconds to wait at most."""

    number: int = Field(ge=1)
    timeout_s: float = Field(default=60.0, ge=0, le=600)


@dataclass(frozen=True)
class Rules:
    """base: the recipe that effects are measured against, without what is frozen. limits: against the base's."""

    track: str
    summary: str
    objective: dict[str, Any]
    unit: str
    epsilon: float
    horizons: list[float]
    base_steps: int
    limits: dict[str, float]
    frozen: list[str]
    base: dict[str, Any]
    how: list[str]


@dataclass(frozen=True)
class Lines:
    """Lines of text."""

    lines: list[str]


@dataclass(frozen=True)
class Row:
    """A recipe. effect, sd, interval (95 %): what is believed at the full horizon. measured: mean gain of full runs."""

    recipe_id: str
    name: str
    lane: str
    changes: list[str]
    effect: float
    sd: float
    interval: list[float]
    measured: float | None
    measured_n: int
    runs: int


@dataclass(frozen=True)
class Attempt:
    """A sealed recipe. passed: None while it is tested. review: what a person decided."""

    recipe_id: str
    name: str
    attempt: int
    passed: bool | None
    review: str | None


@dataclass(frozen=True)
class Standing:
    """Where the session stands. best: what `on: best` means; None is the base. seconds_left: of the loop's time."""

    stage: str
    running: bool
    ended: str | None
    seconds_left: float
    unit: str
    base: str
    champion: Row | None
    best: Row | None
    frontier: list[Row]
    attempts: list[Attempt]
    trials: dict[str, int]
    proposals: dict[str, int]
    refusals: dict[str, int]


@dataclass(frozen=True)
class Run:
    """A trial. loss: on the search split. gain: over the base's run on the same seed and horizon."""

    key: str
    recipe_id: str
    name: str
    lane: str
    purpose: str
    horizon: float
    seed: int
    outcome: str
    reason: str
    loss: float | None
    gain: float | None
    device_s: float | None


@dataclass(frozen=True)
class Runs:
    """found: how many there are; runs: of these, the first."""

    found: int
    runs: list[Run]


@dataclass(frozen=True)
class Verdict:
    """number: to wait for. trial: key of its first run. on: the recipe it was put on. refusals: path, value, rule.

    ms: what the answer took.
    """

    accepted: bool
    number: int
    recipe_id: str | None
    trial: str | None
    name: str
    on: str | None
    refusals: list[dict[str, Any]]
    note: str
    ms: float


@dataclass(frozen=True)
class Outcome:
    """over: whether there is nothing more to wait for. outcome: the verdict of the loop, its runs, what is believed."""

    number: int
    over: bool
    note: str
    outcome: dict[str, Any] | None
