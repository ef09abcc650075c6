"""The simplify lane: takes a part away from the best candidate, so that nothing stays that does not help."""

from __future__ import annotations

import numpy as np

from research.contract.part import Proposal, title
from research.lanes.protocol import Knowledge


class Simplify:
    """Removes one part at a time, the one that is expected to matter least first."""

    name = "simplify"

    def propose(self, view: Knowledge, rng: np.random.Generator) -> Proposal | None:
        """The best candidate less one part that was not tried without yet."""
        best = view.best
        if best is None or len(best.parts) < 2:
            return None
        for index in sorted(range(len(best.parts)), key=lambda i: best.parts[i].effect):
            parts = best.parts[:index] + best.parts[index + 1 :]
            if parts := view.fresh(parts):
                gone = best.parts[index].name
                return Proposal(name=title(parts), parts=parts, hypothesis=f"Without {gone} nothing is lost.",
                                lane=self.name, origin="ablation", parents=(best.recipe_id,))
        return None
