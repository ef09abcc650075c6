"""Which parts of a candidate earn their place: each is run without, what does not matter goes, the rest is looked at
again. A pure fold of the ledger's `ablation` events.

A look runs the present recipe less each part, on common seeds. A part goes with what cannot stand without it. Where
several seem to go, the recipe without all of them is tried; if that loses, without half of them, those that mattered
least first. Once some are gone the rest is looked at anew, for a part may have stood in for another, but for those that
were clearly worth more. Parts that were not tested are named, with the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxnano.config.recipe import recipe_id
from research.contract.part import Part, Proposal, title
from research.contract.proposal import build, without
from research.contract.trial import Trial
from research.decide.belief import Arm, Snapshot
from research.learn.compare import compared, holm
from research.ledger.kinds import Ablated

REPLICATES = 3  # common seeds a candidate and its ablations are compared on
LEAST = 2  # of them, for a verdict: the first is what the candidate was picked by
CLEAR = 5.0  # epsilons a part may be worth before its other seeds, and later looks, are spared


@dataclass(frozen=True)
class Variant:
    """The present recipe less a part. gone: names of the part and of those that cannot stand without it."""

    recipe_id: str
    parts: tuple[Part, ...]
    gone: tuple[str, ...]


@dataclass
class Ablation:
    """The ablation of the candidate `recipe_id`, as far as the ledger has it. snapshot: the belief now."""

    snapshot: Snapshot
    recipe_id: str

    @cached_property
    def body(self) -> Ablated:
        """The last `ablation` event's body; before the first, as if it had removed nothing yet."""
        return self.snapshot.state.ablations.get(self.recipe_id) or Ablated(recipe_id=self.recipe_id, more=True)

    @property
    def final(self) -> str | None:
        """The recipe to seal, once nothing more is to be tried."""
        return None if self.body.trying or self.body.more else self.body.recipe_id

    @property
    def present(self) -> Arm:
        """The smallest recipe that is as good as the candidate, so far."""
        return self.snapshot.by_id[self.body.recipe_id]

    @property
    def _epsilon(self) -> float:
        return self.snapshot.track.epsilon

    def _less(self, names: Collection[str]) -> Variant:
        base = self.snapshot.track.base_recipe
        parts = without(base, self.present.parts, names)
        left = {part.name for part in parts}
        gone = tuple(part.name for part in self.present.parts if part.name not in left)
        return Variant(recipe_id(build(base, parts)), parts, gone)

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """The present recipe less one part, by the part's name; without those whose worth is clear already.

        The most doubtful first, so that what time is left goes to them.
        """
        worth = {row["part"]: row["effect"] or 0.0 for row in self.body.rows}
        names = [part.name for part in self.present.parts if worth.get(part.name, 0.0) <= CLEAR * self._epsilon]
        names.sort(key=lambda name: worth.get(name, 0.0))
        found = {name: self._less([name]) for name in names} if len(self.present.parts) > 1 else {}
        return {name: variant for name, variant in found.items() if variant.recipe_id != self.present.recipe_id}

    def proposals(self) -> Iterator[Proposal]:
        """Recipes to run that the ledger does not know yet; they must be accepted before they can."""
        if self.final is not None:
            return
        named = [(f"{name} earns its place", variant) for name, variant in self.variants.items()]
        if self.body.trying:
            named = [(f"without {', '.join(self.body.removing)} nothing is lost", self._less(self.body.removing))]
        for why, variant in named:
            if variant.recipe_id not in self.snapshot.state.proposals:
                yield Proposal(name=title(variant.parts), parts=variant.parts, hypothesis=why, lane="ablation",
                               origin="ablation", parents=(self.present.recipe_id,))

    def wanted(self) -> list[tuple[Trial, str]]:
        """Runs of this look, in order, with their purpose; over or not."""
        ids = {self.snapshot.arms[0].recipe_id: "replicate", self.recipe_id: "replicate"}
        ids |= {self.present.recipe_id: ids.get(self.present.recipe_id, "ablate")}
        tried = [self.body.trying] if self.body.trying else [v.recipe_id for v in self.variants.values()]
        for recipe in tried if self.final is None else ():
            if recipe in self.snapshot.by_id and recipe not in self.snapshot.broken:
                ids.setdefault(recipe, "ablate")
        return [(Trial(rid, 1.0, s), purpose) for s in range(REPLICATES) for rid, purpose in ids.items()
                if purpose == "replicate" or not self._clear(rid)]

    def _clear(self, variant: str) -> bool:
        """Whether the runs so far show that a variant misses what matters: more of them would tell nothing."""
        gap, n = gain(self.snapshot, self.present.recipe_id, variant)
        return n >= LEAST and gap is not None and gap > CLEAR * self._epsilon

    def settle(self) -> Ablated:
        """The `ablation` event that comes next, once no wanted run is left, or no time for them."""
        if self.body.trying:
            return self._tried()
        rows = {row["part"]: row for row in self.body.rows}
        small = []
        for name, variant in self.variants.items():
            effect, n = gain(self.snapshot, self.present.recipe_id, variant.recipe_id)
            if n < LEAST or effect is None:
                continue
            rows[name] = {"part": name, "recipe_id": variant.recipe_id, "of": self.present.recipe_id,
                          "gone": list(variant.gone), "effect": effect} | compared(
                              self.snapshot.losses(variant.recipe_id), self.snapshot.losses(self.present.recipe_id))
            small += [name] if effect < self._epsilon else []
        kept = tuple(part.name for part in self.present.parts)
        told = [rows[name] for name in (*kept, *self.body.removed) if name in rows]
        untested = {name: self._why_not(name) for name in kept
                    if name not in rows or (rows[name].get("of", self.recipe_id) != self.present.recipe_id
                                            and (rows[name]["effect"] or 0.0) < self._epsilon)}
        look = Ablated(recipe_id=self.present.recipe_id, rows=_adjusted(told), kept=kept, removed=self.body.removed,
                       untested=untested)
        return self._try(look, sorted(small, key=lambda name: rows[name]["effect"]))

    def _why_not(self, name: str) -> str:
        """Why a part has not been run without."""
        if len(self.present.parts) == 1:
            return "it is the only part: the verification tests it"
        variant = self.variants.get(name)
        if variant is None:
            return "without it the recipe is the same"
        if variant.recipe_id not in self.snapshot.by_id:
            return "the gate refuses the recipe without it"
        over = [t for t in self.snapshot.over.get(variant.recipe_id, ()) if t.horizon == 1.0]
        return "runs without it did not finish" if len(over) >= LEAST else "no time was left to run without it"

    def _try(self, look: Ablated, names: Sequence[str]) -> Ablated:
        """The event that has a recipe without these parts tried, takes it if it has run, or ends the ablation."""
        trying = self._less(names).recipe_id if len(names) > 1 else None
        look = look.model_copy(update={"trying": trying, "removing": tuple(names), "more": False})
        return self._removed(look, names) if len(names) == 1 else look

    def _removed(self, look: Ablated, names: Sequence[str]) -> Ablated:
        variant = self._less(names)
        gone = tuple(dict.fromkeys([*self.body.removed, *variant.gone]))
        kept = tuple(part.name for part in variant.parts)
        return look.model_copy(update={"recipe_id": variant.recipe_id, "removed": gone, "kept": kept, "trying": None,
                                       "more": True})

    def _tried(self) -> Ablated:
        """The recipe without several parts has run, or was refused or had no time: is it as good?"""
        names, tried = self.body.removing, self.body.trying
        assert tried is not None
        lost, n = gain(self.snapshot, self.present.recipe_id, tried)
        look = self.body.model_copy(update={"reduced_effect": lost})
        as_good = n >= LEAST and lost is not None and lost <= self._epsilon
        return self._removed(look, names) if as_good else self._try(look, names[: len(names) // 2])


def _adjusted(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The rows, p-values adjusted for their number."""
    levels = iter(holm([row["p_value"] for row in rows if "p_value" in row]))
    return tuple(row | {"p_adjusted": next(levels)} if "p_value" in row else row for row in rows)


def gain(snapshot: Snapshot, recipe_id: str, over: str) -> tuple[float | None, int]:
    """What a recipe gains over another in full search runs, nats, the mean over common seeds, and their number."""
    gains = snapshot.state.gains(recipe_id, over, split=snapshot.track.splits.search)
    return (float(np.mean(list(gains.values()))) if gains else None), len(gains)
