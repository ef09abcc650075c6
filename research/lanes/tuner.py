"""The tuner lane: moves one or two traced numbers of a good candidate. Nothing it does compiles anything new."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxnano.config.base import Leaf, is_under, leaves
from research.contract.behaviour import unread
from research.contract.part import IdeaEdit, Part, Proposal, title
from research.lanes.protocol import Knowledge, Known

STEPS = (0.35, 0.7, 1.1)  # factors of e^step on logarithmic scales: 1.4, 2 and 3
WHY = "tuned: the optimum has moved"
RATES = 3.0  # how much likelier a learning rate is moved than another number


class Tuner:
    """Perturbs the candidates that lead, learning rates first."""

    name = "tuner"

    def propose(self, view: Knowledge, rng: np.random.Generator) -> Proposal | None:
        """A move of one or two numbers within their ranges; None if no try was new."""
        able = [k for k in view.known if k.runs and k.worth > -0.02][:6] or list(view.known[:1])
        for _ in range(20 if able else 0):
            weights = np.exp(-0.7 * np.arange(len(able)))
            chosen = able[rng.choice(len(able), p=weights / weights.sum())]
            part = self._move(view, chosen, rng)
            if part is None:
                continue
            parts = (*filter(None, (_less(old, part) for old in chosen.parts)), part)
            if parts := view.fresh(parts):
                told = ", ".join(f"{e.path} = {e.new:.4g}" for e in part.edits)
                return Proposal(name=title(parts), parts=parts, hypothesis=f"The optimum has moved: {told}",
                                lane=self.name, origin="tuning", parents=(chosen.recipe_id,))
        return None

    def _move(self, view: Knowledge, known: Known, rng: np.random.Generator) -> Part | None:
        fixed = (*view.track.frozen, *unread(known.recipe))
        able = [leaf for leaf in leaves(known.recipe) if not any(is_under(leaf.path, path) for path in fixed)]
        if not able:
            return None
        weight = np.array([RATES if ".lr" in leaf.path else 1.0 for leaf in able])
        count = 1 if rng.random() < 0.7 else 2
        drawn = rng.choice(len(able), size=min(count, len(able)), replace=False, p=weight / weight.sum())
        edits = [IdeaEdit(path=able[i].path, new=moved(able[i], rng)) for i in drawn]
        edits = [e for e, i in zip(edits, drawn, strict=True) if e.new != able[i].value]
        return _tuning(edits)


def _tuning(edits: Sequence[IdeaEdit]) -> Part | None:
    """The part that makes these moves, if there are any."""
    name = ", ".join(short(e.path) for e in edits)
    return Part(name=f"tune {name}", edits=tuple(edits), why=WHY) if edits else None


def _less(old: Part, new: Part) -> Part | None:
    """An earlier part without the numbers that `new` moves again; parts that are no tuning stay as they are."""
    if not old.name.startswith("tune "):
        return old
    again = {e.path for e in new.edits}
    return _tuning([e for e in old.edits if e.path not in again])


def moved(leaf: Leaf, rng: np.random.Generator) -> float:
    """Another value for a number, three significant digits, on the scale that suits its range."""
    low, high, step = leaf.range.low, leaf.range.high, rng.choice(STEPS) * rng.choice((-1.0, 1.0))
    if leaf.range.scale == "decay":  # its memory 1 / (1 - value) is what moves
        new = round(1.0 - _three((1.0 - leaf.value) * math.exp(-step)), 9)
    elif leaf.value:
        new = _three(leaf.value * math.exp(step))
    else:
        new = _three(abs(step) * min(0.1 * (high - low), 0.1))
    return min(max(new, low), high)


def _three(value: float) -> float:
    """Three significant digits: tuned numbers are read by people."""
    return float(f"{value:.3g}")


def short(path: str) -> str:
    """The last telling pieces of a path."""
    plain = ("model", "optimizer", "groups", "chain", "value")
    return ".".join([piece for piece in path.split(".") if piece not in plain][-3:])
