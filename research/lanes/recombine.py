"""The recombine lane: joins the parts of promising candidates."""

from __future__ import annotations

import numpy as np

from research.contract.part import Part, Proposal, conflict, title
from research.contract.proposal import try_build
from research.lanes.protocol import Knowledge, Known

STACK = 8  # parts in one candidate


class Recombine:
    """Crosses two or three candidates whose gains come from different mechanisms."""

    name = "recombine"

    def propose(self, view: Knowledge, rng: np.random.Generator) -> Proposal | None:
        """A few random tries, the better candidates likelier; None if each was known or did not fit."""
        able = [k for k in view.known if k.parts and k.worth > 0]
        for _ in range(20 if len(able) > 1 else 0):
            weights = np.exp(-0.35 * np.arange(len(able)))
            count = int(rng.integers(2, 4))
            drawn = rng.choice(len(able), size=min(count, len(able)), replace=False, p=weights / weights.sum())
            chosen = [able[i] for i in sorted(drawn)]
            parts = self._join(view, chosen)
            if len(parts) > max(len(k.parts) for k in chosen) and view.fresh(parts):
                told = ", ".join(f"{k.name} {k.mean:+.3f}" for k in chosen)
                return Proposal(name=title(parts), parts=parts, lane=self.name, origin="recombination",
                                hypothesis=f"Gains of different mechanisms add up: {told}",
                                parents=tuple(k.recipe_id for k in chosen))
        return None

    def _join(self, view: Knowledge, chosen: list[Known]) -> tuple[Part, ...]:
        """The parts of all, the best candidate's first; what conflicts with an earlier candidate's is left out."""
        parts: tuple[Part, ...] = ()
        recipe = view.track.base_recipe
        for known in chosen:
            others = parts
            for part in known.parts:
                clash = any(part.name == other.name or conflict(part, other) for other in others)
                if len(parts) < STACK and not clash and (joined := try_build(recipe, [part])) is not None:
                    parts, recipe = (*parts, part), joined
        return parts
