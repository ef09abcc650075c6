"""The recombine lane: joins the parts of promising candidates."""

from __future__ import annotations

import numpy as np

from research.propose import Known, Part, Proposal, View, try_build

STACK = 8  # parts in one candidate


class Recombine:
    """Crosses two candidates, or stacks the most promising ideas of different mechanisms."""

    name = "recombine"

    def propose(self, view: View, rng: np.random.Generator) -> Proposal | None:
        """A few random tries, the better candidates likelier; None if each was known or did not fit."""
        able = [k for k in view.known if k.parts and k.mean > 0]
        for _ in range(20 if len(able) > 1 else 0):
            weights = np.exp(-0.35 * np.arange(len(able)))
            count = int(rng.integers(2, 4))
            drawn = rng.choice(len(able), size=min(count, len(able)), replace=False, p=weights / weights.sum())
            chosen = [able[i] for i in sorted(drawn)]
            parts = self._join(view, chosen)
            if len(parts) > max(len(k.parts) for k in chosen) and view.fresh(parts):
                names = " + ".join(part.name for part in parts)
                return Proposal(names, parts, "Gains of different mechanisms add up: " + ", ".join(
                    f"{k.name} {k.mean:+.3f}" for k in chosen), self.name, "recombination",
                    tuple(k.recipe_id for k in chosen))
        return None

    def _join(self, view: View, chosen: list[Known]) -> tuple[Part, ...]:
        """The parts of all, the best candidate's first; one that does not fit with those before is left out."""
        parts: tuple[Part, ...] = ()
        for part in (part for known in chosen for part in known.parts):
            clash = any(part.name == p.name or _touch(part, p) for p in parts)
            if len(parts) < STACK and not clash and try_build(view.track.base_recipe, (*parts, part)) is not None:
                parts = (*parts, part)
        return parts


def _touch(a: Part, b: Part) -> bool:
    """Whether the two write the same place: then the later would undo the earlier."""
    return bool({e["path"] for e in a.edits} & {e["path"] for e in b.edits})
