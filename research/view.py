"""The session as it runs: one plain line for each finished trial and each event of the proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from research.ledger import Event
from research.state import State


class View:
    """Shows a session while it runs. A context manager. file: where to, usually sys.stdout."""

    def __init__(self, file: TextIO):
        self.file = file
        self._seen: set[tuple[str, int]] = set()

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.flush()

    def update(self, scheduler: Any) -> None:
        """Say what has happened since the last call."""
        state: State = scheduler.state
        for trial in state.trials.values():
            for attempt in trial.attempts:
                if attempt.result is not None and (trial.key, attempt.number) not in self._seen:
                    self._seen.add((trial.key, attempt.number))
                    loss = " ".join(f"{k} {v:.4f}" for k, v in (attempt.result.get("loss") or {}).items())
                    name = state.proposals.get(trial.recipe_id, {}).get("proposal", {}).get("name", "?")
                    self._say(f"{trial.key}  {attempt.purpose}  {attempt.result['outcome']}  {loss}  {name}")
        for event in [*state.nominated, *state.sealed, *state.verifications, *state.crowned]:
            if (event.kind, event.seq) not in self._seen:
                self._seen.add((event.kind, event.seq))
                self._say(_stage(event))

    def close_with(self, scheduler: Any, session_path: Path) -> None:
        """Say how it ended."""
        self._say(f"champion: {scheduler.state.champion or 'none'}; report: {session_path / 'report.html'}")

    def _say(self, line: str) -> None:
        print(line, file=self.file, flush=True)


def _stage(event: Event) -> str:
    return f"{event.kind} {event.subject} {event.body}"
