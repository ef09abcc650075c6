"""What a person asks of a loop that runs: an event of the ledger, which it obeys within a second."""

from __future__ import annotations

import getpass
from pathlib import Path

from jaxnano.cli import UserError
from research.decide.belief import Belief
from research.decide.book import track_of
from research.decide.plan import resuming
from research.ledger.kinds import Asked
from research.ledger.session import Session
from research.ledger.state import State, fold
from research.text import beginning, count, listed, the_one


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


def retry(path: Path, text: str = "") -> str:
    """Have what failed run once more, before what else the search would run; now, or when the loop goes on.

    Args: text: how a trial's key or a recipe's id begins; all that failed without one.
    Returns: what will run. Raises: UserError if nothing of it failed: what diverged has shown what it does.
    """
    with Session.open(path) as session:
        state = fold(session.ledger.events())
        named = text and the_one(repr(text), beginning(text, state.proposals) or beginning(text, state.trials),
                                 "no trial or recipe of this session begins with it")
        keys = [trial.key for trial in state.broken(named)]
        if not keys:
            raise UserError(f"--retry: {named or path}: no run of it has failed or run out of time; what diverged "
                            "would do so again")
        session.ledger.append("ask", named, Asked(want="retry", by=getpass.getuser()))
        told = f"{count(len(keys), 'run')} will be tried again: {listed(keys, 4)}"
        if state.end is None and session.ledger.held():
            return told
        now = Belief(track_of(state)).at(fold(session.ledger.events(since=state.seq), state))
        return f"{told}; no loop runs there: {resuming(now, path)}"
