"""A session's runs in an experiment tracker: each run that ends, its recipe as the group and its seed as the job.

wandb and trackio (local, free) share one interface, `init`, `log` and `finish`, and that is all that is used of them.
It happens in a thread, from the ledger: a tracker that is slow, away or broken holds up nothing. Losses are of the
search split; those of the proof stay in the session.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import json
import os
import sys
import threading
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from jaxnano.cli import UserError
from jaxnano.curves import METRICS
from research.contract.track import Track
from research.ledger.events import Event
from research.ledger.names import Names
from research.ledger.session import Session
from research.ledger.state import fold
from research.text import clean

PERIOD_S, PATIENCE_S = 1.0, 60.0  # between two looks at the ledger; for what is left at the end


def require(name: str | None) -> None:
    """Raises: UserError if the tracker is asked for and not installed."""
    if name is not None and importlib.util.find_spec(name) is None:
        raise UserError(f"--tracker: {name}: not installed; pip install {name} would do")


class Tracker:
    """Follows a session from the event `since` on. A context manager.

    Args: module: wandb, trackio, or another with their `init`.
    """

    def __init__(self, module: Any, path: Path, track: Track, since: int, project: str = ""):
        self.module, self.path, self.track, self.since = module, path, track, since
        self.project = project or f"jaxnano-{track.name}"
        self._over, self._thread = threading.Event(), threading.Thread(target=self._follow, daemon=True)

    @classmethod
    def of(cls, name: str, path: Path, track: Track, since: int, project: str = "") -> Tracker:
        """The tracker of a name."""
        os.environ.setdefault("WANDB_SILENT", "true")  # the terminal is the session's
        importlib.import_module("matplotlib.figure")  # trackio asks for it, and two threads may not import it at once
        return cls(importlib.import_module(name), path, track, since, project)

    def __enter__(self) -> Tracker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE_S)

    def _follow(self) -> None:
        try:
            with Session.open(self.path) as session:
                state, over = fold(session.ledger.events()), False
                while not over:
                    over = self._over.wait(PERIOD_S)
                    events = session.ledger.events(since=self.since)
                    fold(events, state)
                    names = Names(state)
                    for event in events:
                        self.since = event.seq
                        if event.kind == "result":
                            with redirect_stdout(io.StringIO()):  # where the session's own display does not go
                                self._send(session, names, state, event)
        except Exception as error:  # whatever a tracker raises: the session goes on without it
            print(clean(f"tracker: {type(error).__name__}: {error}; the session goes on without it"), file=sys.stderr)

    def _send(self, session: Session, names: Names, state: Any, event: Event[Any]) -> None:
        """One run, whole."""
        trial, body = state.trials[event.subject], event.body
        proposal = state.proposals[trial.recipe_id]
        told = {"project": self.project, "group": names(trial.recipe_id), "name": event.subject,
                "job_type": f"seed {trial.seed}", "reinit": "create_new",
                "config": {"recipe": proposal.recipe, "recipe_id": trial.recipe_id, "seed": trial.seed,
                           "horizon": trial.horizon, "purpose": trial.attempts[-1].purpose,
                           "lane": proposal.proposal.lane, "why": proposal.proposal.hypothesis,
                           "outcome": body.outcome}}
        takes = inspect.signature(self.module.init).parameters
        run = self.module.init(**{name: value for name, value in told.items() if name in takes})
        file = session.trials / event.subject / METRICS
        last = 0
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            row = json.loads(line)
            last = int(row.get("step") or last + 1)
            run.log({name: value for name, value in row.items() if name != "step" and value is not None}, step=last)
        if (loss := body.loss.get(self.track.splits.search)) is not None:
            run.log({"final_loss": loss}, step=last + 1)
        run.finish()
