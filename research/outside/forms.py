"""What is asked and answered at the desk (desk.py): questions are checked nodes, answers plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from jaxnano.config.base import PATH, Node


class Nothing(Node):
    """No arguments."""


class Where(Node):
    """path: as in an edit; empty for the whole tree."""

    path: str = Field(default="", max_length=300, description="dotted: model.position, optimizer.groups.matrices.lr",
                      json_schema_extra={"pattern": f"^$|{PATH}"})


class Which(Node):
    """Filters, all optional. recipe: an id or its beginning. lane, horizon, seed: of those that there are.

    sort: latest first; best effect of the recipe, as it is believed, first; or best gain over the base, or lowest loss,
    first in each cell (horizon and seed), the longest horizon first: those of different cells do not compare.
    """

    recipe: str = Field(default="", max_length=64)
    lane: str = Field(default="", max_length=64)
    outcome: Literal["", "completed", "killed", "diverged", "failed", "timeout", "interrupted", "running"] = ""
    horizon: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0)
    sort: Literal["latest", "effect", "gain", "loss"] = "latest"
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
    """A recipe. effect, sd, interval (95 %): what is believed at the full horizon; this is what recipes compare by.

    gains: of full runs over the base, by seed. over_leader: {mean, seeds}, over the leader on the seeds both ran.
    """

    recipe_id: str
    name: str
    lane: str
    changes: list[str]
    effect: float
    sd: float
    interval: list[float]
    gains: dict[str, float]
    over_leader: dict[str, Any]
    runs: int


@dataclass(frozen=True)
class SealedRow:
    """A sealed recipe. passed: None while it is tested. review: what a person decided."""

    recipe_id: str
    name: str
    attempt: int
    passed: bool | None
    review: str | None


@dataclass(frozen=True)
class Standing:
    """Where the session stands. stage: `ended` once no loop works on it. ended: how it did.

    best: what `on: best` means; None is the base. seconds_left: of the loop's time.
    """

    stage: str
    running: bool
    ended: str | None
    seconds_left: float
    unit: str
    base: str
    champion: Row | None
    best: Row | None
    frontier: list[Row]
    attempts: list[SealedRow]
    trials: dict[str, int]
    proposals: dict[str, int]
    refusals: dict[str, int]


@dataclass(frozen=True)
class RunRow:
    """A trial. loss: on the search split. gain: over the base's run on the same seed and horizon.

    gain_over_parent, gain_over_leader: likewise, over the recipe it was put on and the one that leads now; null
    where these have no such run. predicted: [mean, sd] of the final loss, of a run that was found hopeless.
    effect: [mean, sd] of the recipe at the full horizon, as believed now; null for the base.
    """

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
    parent: str | None
    gain_over_parent: float | None
    leader: str | None
    gain_over_leader: float | None
    predicted: list[float] | None
    effect: list[float] | None
    device_s: float | None


@dataclass(frozen=True)
class Runs:
    """found: how many there are; runs: of these, the first."""

    found: int
    runs: list[RunRow]


@dataclass(frozen=True)
class Judged:
    """number: to wait for. trial: key of its first run. on: the recipe it was put on. refusals: path, value, rule.

    notes: what an accepted proposal does and may not mean, as a number that replaces a schedule. ms: what it took.
    """

    accepted: bool
    number: int
    recipe_id: str | None
    trial: str | None
    name: str
    on: str | None
    refusals: list[dict[str, Any]]
    notes: list[str]
    note: str
    ms: float


@dataclass(frozen=True)
class Outcome:
    """over: whether there is nothing more to wait for. outcome: null until then; accepted, recipe_id, refusals, effect
    ([mean, sd] at the full horizon, as believed now), and runs: by key, as `trials` tells them.
    """

    number: int
    over: bool
    note: str
    outcome: dict[str, Any] | None
