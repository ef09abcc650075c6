"""The key of a run."""

from __future__ import annotations

from typing import NamedTuple


class Trial(NamedTuple):
    """(recipe, horizon, seed): never completed twice."""

    recipe_id: str
    horizon: float
    seed: int

    @property
    def key(self) -> str:
        """Its name in the ledger and on disk."""
        return f"{self.recipe_id}-{self.horizon:g}-{self.seed}"

    @classmethod
    def of(cls, key: str) -> Trial:
        """The trial of a key."""
        recipe_id, horizon, seed = key.rsplit("-", 2)
        return cls(recipe_id, float(horizon), int(seed))

    @property
    def cell(self) -> str:
        """Horizon and seed, of a fresh one its end alone."""
        return f"{self.horizon:g}/" + (str(self.seed) if self.seed < FRESH else f"…{self.seed % 10_000:04d}")


PROOF = ("verify", "beside")  # purposes of runs on fresh seeds, which alone are evaluated on the protected split
APART = ("held-out", "transfer")  # purposes of jobs that are no trial: nothing that is decided rests on them
FRESH = 1_000_000  # verification seeds are above this, search seeds below
