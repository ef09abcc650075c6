"""From the best candidate to a record: replicate, ablate, see whether it would pass, seal, verify on fresh seeds.

A pure fold of the ledger. `wanted` lists the runs the present stage still needs; when none is left, `Ablation.settle`,
`Futility.settle`, `seal` and `verify` make the event that comes next. Candidate and incumbent run on the seal's seeds
block by block, until the test has its evidence or all seeds have run (learn/anytime.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from research.contract.trial import FRESH, Trial
from research.decide.ablation import Ablation
from research.decide.belief import Arm, Snapshot
from research.decide.futility import Futility
from research.lanes.catalogue import Catalogue
from research.learn import anytime
from research.learn.compare import alpha_of_0_2, compared
from research.ledger.events import Event
from research.ledger.kinds import Futile, Nominated, Sealed, Verified
from research.ledger.registry import Entry


@dataclass
class Proof:
    """The proof of the candidate nominated last. snapshot: the belief now. nominated: the event's body."""

    snapshot: Snapshot
    recipe_id: str
    nominated: Nominated

    @property
    def candidate(self) -> Arm:
        """The nominated arm."""
        return self.snapshot.by_id[self.recipe_id]

    @property
    def ablation(self) -> Ablation:
        """Which of its parts earn their place, as far as that is known."""
        return Ablation(self.snapshot, self.recipe_id)

    @property
    def final(self) -> str | None:
        """The recipe to seal, once the ablation is settled."""
        return self.ablation.final

    @property
    def sealed(self) -> Event[Sealed] | None:
        """The seal's event, if there is one for this nomination."""
        return next((e for e in self.snapshot.state.sealed if e.body.nomination == self.nominated.number), None)

    @property
    def verified(self) -> Event[Verified] | None:
        """The verification's event, if there is one for this nomination."""
        spoken = self.snapshot.state.verifications
        return next((e for e in spoken if e.body.nomination == self.nominated.number), None)

    @property
    def futile(self) -> Event[Futile] | None:
        """The event that spends no attempt on it, if there is one for this nomination."""
        return next((e for e in self.snapshot.state.futile if e.body.nomination == self.nominated.number), None)

    @property
    def done(self) -> bool:
        """Whether the verification spoke, or no attempt is spent: on what a person vetoed or would hardly pass, and
        where only the incumbent was left."""
        if self.verified is not None or self.sealed is not None:
            return self.verified is not None
        said = self.snapshot.state.review(self.final or self.recipe_id)
        return self.futile is not None or self.final == self.snapshot.incumbent or said == "veto"

    def futility(self, level: float = 1.0) -> Futility:
        """What speaks for an attempt at this level, once the ablation is settled."""
        event = next(e for e in self.snapshot.state.nominated if e.body.number == self.nominated.number)
        return Futility(self.snapshot, event, self.final or self.recipe_id, level)

    def expected(self, level: float) -> int:
        """Fresh seeds that a test at this level would take in half of all campaigns, were the belief right."""
        now, (sd, _) = self.snapshot, self.ablation.noise
        effect = now.worth[now.index[self.recipe_id]] - now.worth[now.index[now.incumbent]]
        return anytime.usual(round(float(effect) / sd), now.track.significance.n, level)

    def seeds(self) -> list[int]:
        """Verification seeds: they follow from the seal itself, so nobody knew them before."""
        assert self.sealed is not None
        text = f"{self.sealed.seq}:{self.sealed.time!r}:{self.sealed.subject}"
        draws = (int.from_bytes(hashlib.sha256(f"{text}:{i}".encode()).digest()[:4])
                 for i in range(self.sealed.body.n))
        return [FRESH + draw % 10**9 for draw in draws]

    @property
    def shipped(self) -> Trial | None:
        """The verification run whose checkpoint is the champion's, once there is a seal."""
        return Trial(self.sealed.subject, 1.0, self.seeds()[0]) if self.sealed is not None else None

    def contenders(self) -> dict[str, str]:
        """The arms of the sealed test, role -> id. Version 0.2 had the best single catalogue idea among them."""
        assert self.sealed is not None
        roles = {"incumbent": self.sealed.body.incumbent, "candidate": self.sealed.subject}
        single = None if self.sealed.body.rule else self.sealed.body.best_single
        return roles | ({"best_single": single} if single else {})

    def fresh(self, recipe_id: str) -> dict[int, float]:
        """A recipe's protected losses on this seal's seeds alone, in their order: an earlier attempt had others."""
        assert self.sealed is not None
        split = self.sealed.body.split or self.snapshot.track.splits.protected
        losses = self.snapshot.state.losses(recipe_id, 1.0, split)
        return {seed: losses[seed] for seed in self.seeds() if seed in losses}

    @property
    def asked(self) -> list[int]:
        """The seeds that the test needs as far as it has come: up to the next look, or to where it ended."""
        assert self.sealed is not None
        seal, seeds = self.sealed.body, self.seeds()
        old, new = self.fresh(seal.incumbent), self.fresh(self.sealed.subject)
        for n in anytime.looks(seal.n) if seal.rule else ():
            if not (old.keys() & new.keys()).issuperset(seeds[:n]):
                return seeds[:n]
            if anytime.sequential(anytime.differences(old, new, seeds[:n])[None], seal.n, seal.alpha).passed_C[0]:
                return seeds[:n]
        return seeds

    def wanted(self) -> list[tuple[Trial, str]]:
        """Runs of the present stage that are not over, in order, with their purpose."""
        if self.verified is not None:
            return []
        if self.sealed is not None:
            rivals = dict.fromkeys(self.contenders().values())
            trials = [(Trial(rid, 1.0, s), "verify") for s in self.asked for rid in rivals]
        else:
            trials = self.ablation.wanted() if self.final is None else self.futility().wanted()
        return self._missing(trials)

    def beside(self) -> list[tuple[Trial, str]]:
        """Runs of the best single catalogue idea on the champion's seeds, not over yet: they decide nothing."""
        sealed, spoken = self.sealed, self.verified
        if sealed is None or spoken is None or not sealed.body.rule or not sealed.body.best_single:
            return []
        latest = sealed.seq == self.snapshot.state.sealed[-1].seq and self.snapshot.state.champion == sealed.subject
        single = sealed.body.best_single
        return self._missing([(Trial(single, 1.0, s), "beside") for s in spoken.body.seeds] if latest else [])

    def _missing(self, trials: list[tuple[Trial, str]]) -> list[tuple[Trial, str]]:
        over = {t for trials_ in self.snapshot.over.values() for t in trials_}
        return [(t, purpose) for t, purpose in trials if t not in over]

    def seal(self, incumbent: str, best_single: str | None, entry: Entry) -> Sealed:
        """The `sealed` event, written before any fresh seed exists. entry: what the registry says of the attempt."""
        rule = self.snapshot.track.significance
        return Sealed(attempt=entry.number, alpha=anytime.alpha_for_attempt(entry.number, rule.alpha), n=rule.n,
                      incumbent=incumbent, best_single=best_single, nomination=self.nominated.number,
                      rule=anytime.NAME, split=entry.split, opened=entry.opened, registry=entry.registry)

    def seal_of_0_2(self, incumbent: str, best_single: str | None) -> Sealed:
        """What version 0.2 sealed: an attempt of this session alone, on n seeds whatever they say."""
        k, rule = len(self.snapshot.state.sealed) + 1, self.snapshot.track.significance
        return Sealed(attempt=k, alpha=alpha_of_0_2(k, rule.alpha), n=rule.n, incumbent=incumbent,
                      best_single=best_single, nomination=self.nominated.number)

    def verify(self) -> Verified:
        """The `verification` event: the sealed test on the protected split."""
        assert self.sealed is not None
        seal, seeds, track = self.sealed.body, self.asked, self.snapshot.track
        fresh = {role: self.fresh(rid) for role, rid in self.contenders().items()}
        fresh = {role: {seed: loss for seed, loss in by.items() if seed in seeds} for role, by in fresh.items()}
        if seal.rule:
            test = anytime.sealed_test(fresh["incumbent"], fresh["candidate"], seeds, seal.n, seal.alpha,
                                  track.significance.alpha)
            comparisons, passed = {"incumbent": test}, test.get("passed", False)
        else:
            comparisons = {role: compared(fresh[role], fresh["candidate"], seal.attempt)
                           for role in ("incumbent", "best_single") if role in fresh}
            test = comparisons["incumbent"]  # a run of either that diverged leaves nothing proven
            passed = test.get("n") == seal.n and test["p_value"] <= seal.alpha and test["effect"] > 0
        met = track.objective.met(fresh["candidate"].values())
        return Verified(
            attempt=seal.attempt, alpha=seal.alpha, nomination=seal.nomination, seeds=tuple(seeds),
            passed=bool(passed), comparisons=comparisons,
            losses={role: {str(seed): loss for seed, loss in by_seed.items()} for role, by_seed in fresh.items()},
            **({} if met is None else {"official": met}))


def proofs(snapshot: Snapshot) -> list[Proof]:
    """Those of all nominations, the latest last."""
    return [Proof(snapshot, event.subject, event.body) for event in snapshot.state.nominated]


def under_way(snapshot: Snapshot) -> Proof | None:
    """The latest, unless it is done."""
    return next((proof for proof in proofs(snapshot)[-1:] if not proof.done), None)


def pending(snapshot: Snapshot, vetoed: bool = False) -> list[Proof]:
    """Proofs that passed but crowned nobody yet, largest effect first.

    What they beat is still the incumbent, and no person vetoed them; with `vetoed`, those too: the last word counts.
    """
    found = []
    for proof in proofs(snapshot):
        sealed, spoken = proof.sealed, proof.verified
        beaten = sealed is not None and sealed.body.incumbent == snapshot.incumbent
        if spoken and spoken.body.passed and beaten and (vetoed or snapshot.state.review(spoken.subject) != "veto"):
            test = spoken.body.comparisons.get("incumbent", {})  # outsiders do not see it
            found.append((test.get("effect", 0.0), spoken.seq, proof))
    return [proof for _, _, proof in sorted(found, reverse=True, key=lambda row: row[:2])]


def best_single(snapshot: Snapshot) -> str | None:
    """The catalogue idea that does best alone: of those that finished a run at the full horizon, else of any."""
    singles = [a.recipe_id for a in snapshot.arms if a.lane == Catalogue.name and len(a.parts) == 1
               and snapshot.finished[a.recipe_id] and a.recipe_id not in snapshot.broken]
    full = [rid for rid in singles if snapshot.losses(rid)]
    return max(full or singles, key=lambda rid: snapshot.worth[snapshot.index[rid]], default=None)
