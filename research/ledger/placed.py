"""Where runs were made: the place of a session, and what each run was laid over."""

from __future__ import annotations

import re
from typing import Any

from jaxnano.config.base import Node

OTHERWISE = {"V5LITEPOD": "V5E", "TPU7X": "V7X"}  # Google's names of a TPU, of which Ray takes the second


def _words(model: str) -> set[str]:
    """What a device's name is made of: NVIDIA, A100, SXM4 and 40GB, or, as Ray calls it, A100."""
    words: list[str] = re.findall(r"[A-Z0-9]+", model.upper())
    return {OTHERWISE.get(word, word) for word in words}


class Placed(Node):
    """What every run of a session has to itself. kind: of device, see research/machine/place.py. model: as its driver
    calls it. devices: in all. processes: one a host."""

    kind: str = "cpu"
    model: str = ""
    devices: int = 1
    processes: int = 1

    def __str__(self) -> str:
        return f"{self.devices} x {self.model or self.kind}" + f" in {self.processes} processes" * (self.processes > 1)

    def like(self, other: Placed) -> bool:
        """Whether results of both compare. Those of two models of CPU do: they are known to differ by less than 1e-3
        nats. Of a model's two names, its driver's and Ray's, one says more: workers refuse what only seems the same."""
        alike = (self.kind, self.devices, self.processes) == (other.kind, other.devices, other.processes)
        mine, theirs = _words(self.model), _words(other.model)
        return alike and (self.kind in ("cpu", "virtual") or mine <= theirs or theirs <= mine)


class Topology(Node):
    """What a run was laid over: the device's model, devices in so many processes, the mesh's axes, and the pieces that
    each stage's batch was taken in. Runs of different ones differ in more than their seed."""

    device: str = ""
    devices: int = 1
    processes: int = 1
    mesh: str = ""
    accumulate: tuple[int, ...] = (1,)

    @property
    def place(self) -> dict[str, Any]:
        """What all runs of a session have in common; mesh and pieces follow from the recipe."""
        return {"device": self.device, "devices": self.devices, "processes": self.processes}
