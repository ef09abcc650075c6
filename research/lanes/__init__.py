"""Who proposes: one file a lane; what a lane is, protocol.py says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxnano.cli import UserError

if TYPE_CHECKING:
    from research.lanes.protocol import Proposer

NAMES = ("catalogue", "tuner", "recombine", "simplify", "invent")  # for --help, before what the lanes import


def lanes() -> dict[str, Proposer]:
    """The lanes there are, by name."""
    from research.lanes.catalogue import Catalogue
    from research.lanes.invent import Invent
    from research.lanes.recombine import Recombine
    from research.lanes.simplify import Simplify
    from research.lanes.tuner import Tuner

    return {lane.name: lane for lane in (Catalogue(), Tuner(), Recombine(), Simplify(), Invent())}


def lanes_of(names: Sequence[str], known: Mapping[str, Proposer]) -> dict[str, Proposer]:
    """The lanes asked for, by name. Raises: UserError that lists what there is."""
    for name in names:
        if name not in known:
            raise UserError(f"--lanes: {name!r}: no such lane; {', '.join(known)} would do")
    return {name: known[name] for name in names}
