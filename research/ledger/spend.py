"""What requests to language models have cost: a fold over the ledger's `call` events, one a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jaxnano.config.base import finite
from research.ledger.events import Event

EXHAUSTED = "exhausted"  # the outcome of an event that is no request: the budget does not hold one more
MOST, SHOWN = 1e15, 80  # of a number, so that sums stay finite; characters of a name: anybody may append a call


@dataclass
class Spend:
    """Tokens as the providers counted them; cost in USD, of the calls made under a known price.

    seconds: spent waiting for answers. proposals: read in answers, of which `passed` passed the proposer's own gate.
    """

    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    priced: int = 0
    seconds: float = 0.0
    proposals: int = 0
    passed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(calls: Iterable[Event]) -> Spend:
        """The sum of a ledger's `call` events; fields that are no numbers count as 0: anybody may append a call."""
        spend = Spend()
        for event in calls:
            spend.add(event.body)
        return spend

    def add(self, body: dict[str, Any]) -> None:
        """Count one more call."""
        self.tokens_in += int(_number(body, "tokens_in"))
        self.tokens_out += int(_number(body, "tokens_out"))
        self.seconds += _number(body, "wall_s")
        self.proposals += int(_number(body, "proposals"))
        self.passed += int(_number(body, "accepted"))
        self.outcomes[str(body.get("outcome"))[:SHOWN]] += 1
        self.models[str(body.get("model"))[:SHOWN]] += 1
        self.cost += _number(body, "cost")
        self.priced += finite(body.get("cost"))

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.tokens_in + self.tokens_out

    @property
    def requests(self) -> int:
        """How many were sent."""
        return self.outcomes.total() - self.outcomes[EXHAUSTED]

    def as_dict(self, accepted: int) -> dict[str, Any]:
        """Plain data. accepted: recipes of this lane that the loop's gate let pass. cost: None without a price."""
        cost = self.cost if self.priced else None
        per = lambda total: total / accepted if accepted and total is not None else None  # noqa: E731
        return {"requests": self.requests, "outcomes": dict(self.outcomes.most_common()), "models": list(self.models),
                "tokens_in": self.tokens_in, "tokens_out": self.tokens_out, "cost": cost, "seconds": self.seconds,
                "proposals": self.proposals, "accepted": accepted, "tokens_per_accepted": per(self.tokens),
                "cost_per_accepted": per(cost)}


def _number(body: dict[str, Any], name: str) -> float:
    value: Any = body.get(name)
    return min(max(0.0, value), MOST) if finite(value) else 0.0
