"""Which parts of a candidate earn their place: backward elimination, confirmed on paired seeds that did not pick it.
A pure fold of the ledger's `ablation` events.

First the belief is asked: parts that it is sure are worth less than epsilon are taken off together. Then each part that
stays is taken off by itself, seed by seed, until it is worth more than epsilon with probability SURE or more likely is
not. Those that are not go together, on further seeds, unless that costs more than epsilon against the best recipe so
far; then half of them are tried, those that matter least. Once some are gone what is in doubt is looked at anew, for a
part may have stood in for another, and so is what was rebuilt without them. What stays in doubt is named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from scipy import special

from jaxnano.config.recipe import recipe_id
from research.contract.part import Part, Proposal, title
from research.contract.proposal import build, without
from research.contract.trial import Trial
from research.decide.belief import Arm, Snapshot
from research.decide.futility import unused
from research.learn.compare import above, estimated, noise, same
from research.ledger.kinds import Ablated

RULE = "sequential"  # by which an event was decided; one of an earlier version has none
SURE = 0.9  # probability at which a part earns its place, or something that is tried is over
EVEN = 0.5  # at which a part is rather worth more than epsilon than not
LEAST, MOST = 2, 3  # seeds on which something goes, and seeds of one question
LEAST_EPSILON = 1e-9  # nats, where a track says that everything matters
NORMAL = 1e9  # degrees of freedom of what the belief says

Estimate = tuple[float, float]  # mean and standard deviation, nats


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

    @property
    def begun(self) -> bool:
        """Whether there is an event yet."""
        return self.recipe_id in self.snapshot.state.ablations

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
    def _best(self) -> str:
        return self.body.best or self.recipe_id

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        return {row["part"]: row for row in self.body.rows}

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that did not pick the candidate, those of the present question first."""
        nominated = [e for e in self.snapshot.state.nominated if e.subject == self.recipe_id][-1]
        return self.body.seeds or tuple(unused(self.snapshot, nominated))

    @cached_property
    def _epsilon(self) -> float:
        return max(self.snapshot.track.epsilon, LEAST_EPSILON)

    def _less(self, names: Collection[str]) -> Variant:
        base = self.snapshot.track.base_recipe
        parts = without(base, self.present.parts, names)
        left = {part.name for part in parts}
        gone = tuple(part.name for part in self.present.parts if part.name not in left)
        return Variant(recipe_id(build(base, parts)), parts, gone)

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """The present recipe less one part, by the part's name; without those that are known to earn their place.

        The most doubtful first, so that what time is left goes to them.
        """
        names = [part.name for part in self.present.parts if self._rows.get(part.name, {}).get("p", 0.0) < SURE]
        worth = {n: m for n, (m, _) in self.body.believed.items()} | {n: r["effect"] for n, r in self._rows.items()}
        names.sort(key=lambda name: worth.get(name) or 0.0)
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

    @cached_property
    def _asked(self) -> dict[str, int]:
        """By recipe that something is taken off in, on how many of the seeds it is wanted, as far as is known."""
        if self.final is not None or not self.begun:
            return {}
        if self.body.trying:
            found = {self.body.trying: self._until(self.body.trying, self._best, self._told)}
        else:
            found = {v.recipe_id: self._until(v.recipe_id, self.body.recipe_id, partial(self._settled, name))
                     for name, v in self.variants.items()}
        return {rid: n for rid, n in found.items() if rid in self.snapshot.by_id and rid not in self.snapshot.broken}

    def _until(self, less: str, full: str, enough: Callable[[Sequence[float]], bool]) -> int:
        """Seeds, one after another, until what they say is enough, or one of them says nothing, MOST at most."""
        for n in range(1, MOST):
            worth = self._worth(less, full, n)
            if len(worth) < n or enough(worth) or self._dead(less, full):
                return n
        return MOST

    def _told(self, worth: Sequence[float]) -> bool:
        """Whether it is clear that what is tried costs more than epsilon, or that it does not."""
        p = self._p(worth)
        return p >= SURE or (p <= 1 - SURE and len(worth) >= LEAST)

    def _settled(self, name: str, worth: Sequence[float]) -> bool:
        """Whether it is clear that a part earns its place, or likely enough that it does not to try without it."""
        return not EVEN <= self._p(worth, self._prior(name)) < SURE

    def wanted(self) -> list[tuple[Trial, str]]:
        """Runs of this look, in order, with their purpose; over or not."""
        full = self._best if self.body.trying else self.body.recipe_id
        wanted = {Trial(rid, 1.0, seed): "replicate" if rid == self.recipe_id else "ablate"
                  for i, seed in enumerate(self.seeds[:MOST]) for less, n in self._asked.items() if i < n
                  for rid in (full, less)}
        return list(wanted.items())

    def _worth(self, less: str, full: str, n: int = MOST) -> list[float]:
        """By seed, what the full recipe gains over the lesser, on as many of the seeds as both have run."""
        found = self.snapshot.state.gains(full, less, 1.0, self.snapshot.track.splits.search)
        return [found[seed] for seed in self.seeds[:n] if seed in found]

    def _dead(self, less: str, full: str) -> bool:
        """Whether two recipes end alike to the last digit."""
        one, other = self.snapshot.losses(less), self.snapshot.losses(full)
        there = [same(one[seed], other[seed]) for seed in self.seeds[:MOST] if seed in one and seed in other]
        return bool(there) and all(there)

    @cached_property
    def noise(self) -> tuple[float, float]:
        """Standard deviation of a paired difference, by the runs of this ablation, and its degrees of freedom."""
        full = self.body.recipe_id
        tried = [*(row["recipe_id"] for row in self.body.rows), *(v.recipe_id for v in self.variants.values()),
                 *([self.body.trying] if self.body.trying else [])]
        alike = {rid for rid in tried if self._dead(rid, full)}  # it has no noise of its own
        own = dict.fromkeys([self.snapshot.arms[0].recipe_id, self.recipe_id, full, self._best, *tried])
        sd, df = noise([self.snapshot.losses(rid) for rid in own if rid not in alike], self._epsilon)
        return 2**0.5 * sd, df

    def _prior(self, name: str) -> Estimate | None:
        """What the belief said of a part; never surer than epsilon."""
        found = self.body.believed.get(name)
        return found and (found[0], max(found[1], self._epsilon))

    def _p(self, worth: Sequence[float], prior: Estimate | None = None) -> float:
        """Probability that what is missing is worth more than epsilon."""
        sd, df = self.noise
        return above(*estimated(worth, sd, prior), self._epsilon, df)

    def _believed(self) -> dict[str, Estimate]:
        """What the belief holds each part for."""
        known = {name: self.snapshot.by_id[variant.recipe_id] for name, variant in self.variants.items()
                 if variant.recipe_id in self.snapshot.by_id}
        mean, covariance = self.snapshot.fitted.predict([arm.candidate for arm in (self.present, *known.values())])
        variance = covariance[0, 0] + covariance.diagonal()[1:] - 2 * covariance[0, 1:]
        return {name: (float(mean[0] - mean[i + 1]), float(max(variance[i], 0.0) ** 0.5))
                for i, name in enumerate(known)}

    def settle(self) -> Ablated:
        """The `ablation` event that comes next, once no wanted run is left, or no time for them."""
        if not self.begun:
            return self.planned(self._believed())
        return self._tried() if self.body.trying else self._looked()

    def planned(self, believed: Mapping[str, Estimate]) -> Ablated:
        """The first event, given what was believed: what is taken off before anything is run for it."""
        look = Ablated(recipe_id=self.recipe_id, rule=RULE, best=self.recipe_id, believed=dict(believed), more=True,
                       kept=tuple(part.name for part in self.present.parts), seeds=self.seeds,
                       untested=self._untested({}))
        doubt = [name for name, (mean, sd) in sorted(believed.items(), key=lambda item: item[1])
                 if above(mean, max(sd, self._epsilon), self._epsilon, NORMAL) <= 1 - SURE]
        return self._try(look, doubt) or look.model_copy(update={"more": bool(self.variants)})

    def _looked(self) -> Ablated:
        """Parts were taken off one by one: those that were not shown to earn their place are to go together."""
        found = {name: self._row(name, variant) for name, variant in self.variants.items()}
        rows = self._rows | {name: row for name, row in found.items() if row is not None}
        kept = tuple(part.name for part in self.present.parts)
        used = max((self._asked.get(variant.recipe_id, 0) for variant in self.variants.values()), default=0)
        look = self.body.model_copy(update={
            "rule": RULE, "kept": kept, "rows": tuple(rows[n] for n in (*kept, *self.body.removed) if n in rows),
            "untested": self._untested(rows), "reduced_effect": None, "more": False, "removing": (),
            "seeds": (*self.seeds[used:], *self.seeds[:used])})  # what goes is confirmed where it was not picked
        return self._try(look, self._doubtful(rows)) or look

    def _doubtful(self, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Parts that the present recipe was run without and that were not shown to earn their place; first those that
        are dead, then those that matter least."""
        names = [name for name in self.variants if name in rows and rows[name]["of"] == self.body.recipe_id]
        return sorted((name for name in names if rows[name]["p"] < SURE),
                      key=lambda name: (rows[name]["p"] > 0, rows[name]["effect"]))

    def _row(self, name: str, variant: Variant) -> dict[str, Any] | None:
        """What the runs without a part say of it; None where none of them can be compared."""
        worth, dead = self._worth(variant.recipe_id, full := self.body.recipe_id), self._dead(variant.recipe_id, full)
        if not worth:
            return None
        sd, df = self.noise
        mean, error = estimated(worth, sd)
        half = 0.0 if dead else float(special.stdtrit(df, 0.975)) * error
        p = 0.0 if dead else self._p(worth, self._prior(name))
        return {"part": name, "recipe_id": variant.recipe_id, "of": full, "gone": list(variant.gone), "effect": mean,
                "interval": [mean - half, mean + half], "n": len(worth), "p": p}

    def _untested(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Parts of the present recipe that were not shown to earn their place, with the reason."""
        names = [part.name for part in self.present.parts if rows.get(part.name, {}).get("p", 0.0) < SURE]
        return {name: self._why(name, rows.get(name, {})) for name in names}

    def _why(self, name: str, row: Mapping[str, Any]) -> str:
        variant = self.variants.get(name)
        if len(self.present.parts) == 1:
            return "it is the only part: the verification tests it"
        if variant is None:
            return "without it the recipe is the same"
        if row.get("of") == self.body.recipe_id and "p" in row:
            return f"not told apart: it is worth more than {self._epsilon:g} with probability {row['p']:.2f}"
        if variant.recipe_id not in self.snapshot.by_id:
            return "the gate refuses the recipe without it"
        ended = {t.seed for t in self.snapshot.over.get(variant.recipe_id, ()) if t.horizon == 1.0}
        lost = ended - self.snapshot.losses(variant.recipe_id).keys()
        return "runs without it did not finish" if lost else "no time was left to run without it"

    def _try(self, look: Ablated, names: Sequence[str]) -> Ablated | None:
        """The event that has the recipe without these parts tried, and none but these; None where there are none."""
        stays = {part.name for part in self.present.parts} - set(names)
        names = [name for name in names if not stays & set(self.variants[name].gone)]
        names = names if stays else names[:-1]  # the last one is the verification's
        trying = self._less(names).recipe_id if names else None
        update = {"trying": trying, "removing": tuple(names), "more": False}
        return look.model_copy(update=update) if names else None

    def _tried(self) -> Ablated:
        """The recipe without some parts has run, or was refused or had no time: is it as good?"""
        names, tried = self.body.removing, self.body.trying
        assert tried is not None
        worth = self._worth(tried, self._best)
        cost = sum(worth) / len(worth) if worth else None
        look = self.body.model_copy(update={"rule": RULE, "reduced_effect": cost, "trying": None, "removing": ()})
        if cost is not None and (self._dead(tried, self._best) or (len(worth) >= LEAST and self._p(worth) < EVEN)):
            return self._removed(look, names, cost)
        if not worth and tried in self.snapshot.by_id.keys() - self.snapshot.over.keys():
            return look  # there is no time
        if not self._rows.keys() & set(names):  # the belief alone had picked them
            return look.model_copy(update={"more": True})
        if len(names) > 1:
            return self._try(look, names[: len(names) // 2]) or look
        rows = {name: row | ({"held": True} if name in names else {}) for name, row in self._rows.items()}
        rest = [name for name in self._doubtful(rows) if not rows[name].get("held")]
        return self._try(look.model_copy(update={"rows": tuple(rows.values())}), rest) or look

    def _removed(self, look: Ablated, names: Sequence[str], cost: float) -> Ablated:
        variant, before = self._less(names), {part.name: part for part in self.present.parts}
        changed = {part.name for part in variant.parts if part != before.get(part.name)}  # rebuilt without them
        return look.model_copy(update={
            "recipe_id": variant.recipe_id, "removed": tuple(dict.fromkeys([*self.body.removed, *variant.gone])),
            "kept": tuple(part.name for part in variant.parts), "more": True,
            "best": variant.recipe_id if cost < 0 else self._best,
            "rows": tuple(row for row in self.body.rows if row["part"] not in changed),
            "believed": {name: found for name, found in self.body.believed.items() if name not in changed}})
