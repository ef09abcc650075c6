"""What is answered at the desk (desk.py)."""

from __future__ import annotations

from typing import Any

from jaxnano.config.base import Node
from research.ledger.kinds import Refusal
from research.show.facts import Run


class Rules(Node):
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


class Lines(Node):
    """Lines of text."""

    lines: list[str]


class Row(Node):
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


class SealedRow(Node):
    """A sealed recipe. passed: None while it is tested. review: what a person decided."""

    recipe_id: str
    name: str
    attempt: int
    passed: bool | None
    review: str | None


class Standing(Node):
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


class Runs(Node):
    """found: how many there are; runs: of these, the first."""

    found: int
    runs: list[Run]


class Judged(Node):
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


class Came(Node):
    """What came of a proposal. runs: by key, as `trials` tells them. effect: [mean, sd] at the full horizon, as
    believed now; null where it was refused."""

    accepted: bool
    recipe_id: str | None
    refusals: tuple[Refusal, ...] = ()
    runs: dict[str, Run] = {}
    effect: list[float] | None = None


class Outcome(Node):
    """over: whether there is nothing more to wait for. outcome: null until then."""

    number: int
    over: bool
    note: str
    outcome: Came | None
