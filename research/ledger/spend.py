"""What requests to language models have cost: a fold over the ledger's `call` events, one a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from research.ledger.events import Event
from research.ledger.kinds import Call

EXHAUSTED = "exhausted"  # the outcome of an event that is no request: the budget does not hold one more


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
    def of(calls: Iterable[Event[Call]]) -> Spend:
        """The sum of a ledger's `call` events."""
        spend = Spend()
        for event in calls:
            spend.add(event.body)
        return spend

    def add(self, call: Call) -> None:
        """Count one more call."""
        self.tokens_in += call.tokens_in
        self.tokens_out += call.tokens_out
        self.seconds += call.wall_s
        self.proposals += call.proposals
        self.passed += call.accepted
        self.outcomes[call.outcome] += 1
        self.models[call.model] += 1
        self.cost += call.cost or 0.0
        self.priced += call.cost is not None

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

