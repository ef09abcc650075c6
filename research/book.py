"""The loop's book: what it writes into the ledger it knows at once, and what it believes follows from that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research.belief import Belief, Snapshot
from research.session import Session
from research.state import fold
from research.track import Track


class Book:
    """A locked session's ledger, the state it folds to, and the belief at that state."""

    def __init__(self, session: Session, track: Track):
        self.session, self.track = session, track
        self.state, self.belief = fold(session.ledger.events()), Belief(track)
        self._snapshot: Snapshot | None = None

    def record(self, kind: str, subject: str, body: Mapping[str, Any]) -> None:
        """Append an event and take it into the state."""
        self.session.ledger.append(kind, subject, body)
        self.refresh()

    def refresh(self) -> None:
        """Take in events, those of other processes too."""
        before = self.state.seq
        fold(self.session.ledger.events(since=before), self.state)
        if self.state.seq != before:
            self._snapshot = None

    @property
    def snapshot(self) -> Snapshot:
        """The belief now."""
        if self._snapshot is None:
            self._snapshot = self.belief.at(self.state)
        return self._snapshot
