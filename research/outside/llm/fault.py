"""What a model's answer is, and what can go wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Answer:
    """What a model wrote, and what it cost as the provider counted it. text: untrusted."""

    text: str
    tokens_in: int
    tokens_out: int


class Fault(Exception):
    """A request without a usable answer.

    outcome: rate_limited, server_error, timeout, unreachable, refused, too_long (the question, for the model), garbage,
    wrong_schema or empty. pause_s: what the server asked to wait. answer: what it has cost all the same.
    """

    def __init__(self, outcome: str, reason: str, *, pause_s: float = 0.0, status: int = 0,
                 answer: Answer | None = None):
        super().__init__(reason)
        self.outcome, self.reason, self.pause_s, self.status, self.answer = outcome, reason, pause_s, status, answer


class Provider(Protocol):
    """One model behind one connection; used by one thread."""

    def complete(self, system: str, user: str, schema: Mapping[str, Any], max_out: int, timeout_s: float) -> Answer:
        """Send one request and read one answer, as JSON of `schema` where the provider can promise that.

        Raises: Fault.
        """
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
