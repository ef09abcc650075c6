"""A reader's book: what is written into the ledger it knows at once, and what it believes follows from that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe
from research.contract.part import BASE
from research.contract.track import Track
from research.decide.belief import Belief, Snapshot
from research.decide.price import Prices
from research.ledger.events import Event
from research.ledger.kinds import Body
from research.ledger.session import Session
from research.ledger.state import State, fold

Seen = Callable[[Iterable[Event[Any]]], Iterable[Event[Any]]]


class Book:
    """A session's ledger, the state it folds to, and the belief at that state.

    Args: seen: what of the events the reader may see; the loop sees all.
    """

    def __init__(self, session: Session, track: Track, seen: Seen = iter):
        self.session, self.track, self.seen = session, track, seen
        self.state, self.belief = State(), Belief(track)
        self._prices: Prices | None = None
        self.refresh()

    def record(self, kind: str, subject: str, body: Body | Mapping[str, Any]) -> None:
        """Append an event and take it into the state."""
        self.session.ledger.append(kind, subject, body)
        self.refresh()

    def refresh(self) -> None:
        """Take in events, those of other processes too."""
        before = self.state.seq
        fold(self.seen(self.session.ledger.events(since=before)), self.state)
        if self.state.seq != before:
            self._prices = None

    @property
    def snapshot(self) -> Snapshot:
        """The belief now."""
        return self.prices.snapshot

    @property
    def prices(self) -> Prices:
        """What runs cost now."""
        if self._prices is None:
            self._prices = Prices(self.belief.at(self.state))
        return self._prices


def track_of(state: State) -> Track:
    """The track as the session's first events hold it, so that files changed since then change nothing.

    Raises: SessionError if the ledger has no `session` event yet.
    """
    track = validate(Track, state.session.contract)
    if (base := base_id(state)) is not None:
        vars(track)["base_recipe"] = validate(Recipe, state.proposals[base].recipe)  # fills the cached property
    return track


def base_id(state: State) -> str | None:
    """The base's recipe id, once it is proposed."""
    return next((rid for rid, body in state.proposals.items() if body.proposal.lane == BASE), None)
