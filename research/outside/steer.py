"""What a person asks of a loop that runs: an event of the ledger, which it obeys within a second."""

from __future__ import annotations

import getpass
from pathlib import Path

from jaxnano.cli import UserError
from research.ledger.kinds import Asked
from research.ledger.session import Session
from research.ledger.state import State, fold


def ask(path: Path, want: str, value: float = 0.0) -> State:
    """Ask it. Returns: the state with it. Raises: UserError where no loop runs, or it has not so many workers."""
    with Session.open(path) as session:
        state = fold(session.ledger.events())
        if state.end is not None or not session.ledger.held():
            raise UserError(f"{path}: no loop runs there; python -m research.loop --resume --session {path} goes on "
                            "with it, for --minutes more if asked")
        workers = state.stretches[-1].workers
        if want == "workers" and not 1 <= value <= workers:
            raise UserError(f"--workers: {value:g}: 1 to {workers} would do, as many as the loop has begun with")
        session.ledger.append("ask", "", Asked(want=want, value=value, by=getpass.getuser()))
        return fold(session.ledger.events(since=state.seq), state)
