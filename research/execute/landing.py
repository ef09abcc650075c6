"""The loop's side of a job that runs elsewhere: its folder, filled by what the job's messages bring."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxnano.curves import Curves
from research.execute import Job
from research.execute.node import LOG, Chunk
from research.ledger.session import write_result
from research.text import clean


class Landing:
    """A job's folder on the loop's side, filled as its messages come."""

    def __init__(self, job: Job, tensorboard: bool) -> None:
        """Begin the folder's curves anew; nothing else in it changes before `finish`."""
        self.job, self._folder, self._stage = job, Path(job["dir"]), Path(job["dir"]) / "incoming"
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._stage, ignore_errors=True)
        about = {heading: clean(text) for heading, text in job.get("about", {}).items()}
        self.curves = Curves(self._folder, tensorboard=tensorboard, about=about)

    def add(self, chunk: Chunk) -> None:
        """Take in a piece of a file."""
        path = self._stage / chunk.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(chunk.data)

    def finish(self, result: Mapping[str, Any] | None) -> dict[str, Any]:
        """Put the files that have come into place, then the result, if there is one; returns it as written."""
        if self._stage.exists():
            for item in self._stage.iterdir():
                _put(item, self._folder / item.name)
        if result is not None:
            self.curves.final(result.get("steps"), result.get("loss") or {})
        self.drop()
        return write_result(self._folder, self.job["attempt"], result, self.job["id"]) if result is not None else {}

    def drop(self) -> None:
        """End it without the files that have come."""
        self.curves.close()
        shutil.rmtree(self._stage, ignore_errors=True)


def _put(item: Path, target: Path) -> None:
    """A file or folder in its place; a log is added to the attempts' before."""
    if item.name == LOG:
        with open(target, "ab") as log:
            log.write(item.read_bytes())
        return
    if target.is_dir():
        shutil.rmtree(target)
    item.replace(target)
