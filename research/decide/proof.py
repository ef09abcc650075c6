"""From the best candidate to a record: replicate, ablate, seal, verify on fresh seeds. A pure fold of the ledger.

`wanted` lists the runs the present stage still needs; when none is left, `Ablation.settle`, `seal` and `verify` make
the event that comes next.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from research.contract.trial import FRESH, Trial
from research.decide.ablation import Ablation
from research.decide.belief import Arm, Snapshot
from research.lanes.catalogue import Catalogue
from research.learn.compare import alpha_for_attempt, compared
from research.ledger.events import Event
from research.ledger.kinds import Nominated, Sealed, Verified


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
    def done(self) -> bool:
        """Whether the verification spoke, or before the seal only the incumbent was left, or a person vetoed it."""
        if self.verified is not None or self.sealed is not None:
            return self.verified is not None
        said = self.snapshot.state.review(self.final or self.recipe_id)
        return self.final == self.snapshot.incumbent or said == "veto"

    def seeds(self) -> list[int]:
        """Verification seeds: they follow from the seal itself, so nobody knew them before."""
        assert self.sealed is not None
        text = f"{self.sealed.seq}:{self.sealed.time!r}:{self.sealed.subject}"
        draws = (int.from_bytes(hashlib.sha256(f"{text}:{i}".encode()).digest()[:4])
                 for i in range(self.snapshot.track.significance.n))
        return [FRESH + draw % 10**9 for draw in draws]

    @property
    def shipped(self) -> Trial | None:
        """The verification run whose checkpoint is the champion's, once there is a seal."""
        return Trial(self.sealed.subject, 1.0, self.seeds()[0]) if self.sealed is not None else None

    def contenders(self) -> dict[str, str]:
        """What the sealed recipe is run beside: the incumbent, and the best single catalogue idea: role -> id."""
        assert self.sealed is not None
        roles = {"incumbent": self.sealed.body.incumbent, "candidate": self.sealed.subject}
        single = self.sealed.body.best_single
        return roles | ({"best_single": single} if single else {})

    def wanted(self) -> list[tuple[Trial, str]]:
        """Runs of the present stage that are not over, in order, with their purpose."""
        if self.verified is not None:
            return []
        if self.sealed is not None:
            rivals = dict.fromkeys(self.contenders().values())
            trials = [(Trial(rid, 1.0, s), "verify") for s in self.seeds() for rid in rivals]
        else:
            trials = self.ablation.wanted()
        over = {t for trials_ in self.snapshot.over.values() for t in trials_}
        return [(t, purpose) for t, purpose in trials if t not in over]

    def seal(self, incumbent: str, best_single: str | None) -> Sealed:
        """The `sealed` event of attempt k, written before any fresh seed exists."""
        k, rule = len(self.snapshot.state.sealed) + 1, self.snapshot.track.significance
        return Sealed(attempt=k, alpha=alpha_for_attempt(k, rule.alpha), n=rule.n, incumbent=incumbent,
                      best_single=best_single, nomination=self.nominated.number)

    def verify(self) -> Verified:
        """The `verification` event: the sealed test on the protected split, and what else is worth knowing."""
        assert self.sealed is not None
        seal, seeds, track = self.sealed.body, self.seeds(), self.snapshot.track
        fresh = {}  # on this seal's seeds alone: an earlier attempt may have run a recipe on others
        for role, rid in self.contenders().items():
            losses = self.snapshot.state.losses(rid, 1.0, track.splits.protected)
            fresh[role] = {seed: loss for seed, loss in losses.items() if seed in seeds}
        comparisons = {role: compared(fresh[role], fresh["candidate"], seal.attempt)
                       for role in ("incumbent", "best_single") if role in fresh}
        met, test = track.objective.met(fresh["candidate"].values()), comparisons["incumbent"]
        complete = test.get("n") == seal.n  # a run of either that diverged leaves nothing proven
        return Verified(
            attempt=seal.attempt, alpha=seal.alpha, nomination=seal.nomination, seeds=tuple(seeds),
            passed=bool(complete and test["p_value"] <= seal.alpha and test["effect"] > 0), comparisons=comparisons,
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
