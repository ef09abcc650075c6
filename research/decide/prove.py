"""A candidate's way through the proof, event by event: nominated, ablated, sealed or futile, verified, crowned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from research.contract.track import OPENINGS
from research.contract.trial import Trial
from research.decide.belief import Arm
from research.decide.book import Book
from research.decide.champion import crown, install
from research.decide.intake import Intake
from research.decide.plan import Plan
from research.decide.proof import Proof, best_single, pending, proofs, under_way
from research.lanes.protocol import Known
from research.learn.anytime import alpha_for_attempt
from research.ledger.kinds import Nominated
from research.ledger.registry import Contest, Entry, Registry


class Prover:
    """Leads one candidate after another.

    Args: on_crowned: called with a champion's folder and arm once it is in its place. registry: numbers the attempts;
    None where the session may count its own, in a test.
    """

    def __init__(self, book: Book, intake: Intake, plan: Plan, on_crowned: Callable[[Path, Arm], None],
                 registry: Registry | None = None):
        self.book, self.intake, self.plan, self.on_crowned = book, intake, plan, on_crowned
        self.registry = registry
        self.opening: Trial | None = None  # whose held-out loss a crown waits for
        self._declined = 0  # rounds that ended with nothing worth a proof
        self._early: set[int] = set()  # nominations that do not end their round
        before = len(book.state.nominated) - len(book.state.futile)
        self._before = before - (self.proof() is not None)  # proofs of earlier sittings

    @property
    def round(self) -> int:
        """Number of the round under way: each ends with an attempt, or without anything worth one."""
        state = self.book.state
        early = self._early - {event.body.nomination for event in state.futile}
        return len(state.nominated) - len(state.futile) - len(early) - self._before + self._declined + 1

    def proof(self) -> Proof | None:
        """The proof under way."""
        return under_way(self.book.snapshot)

    @property
    def over(self) -> bool:
        """Whether nothing can be proven any more."""
        now = self.book.snapshot
        return self._late and self.opening is None and self.proof() is None and not pending(now)

    @property
    def _late(self) -> bool:
        return self.round > self.plan.rounds or self.plan.too_late(self.book.prices)

    def nominee(self) -> Known | None:
        """The recipe to prove next, if one is worth it and there is time."""
        now, state = self.book.snapshot, self.book.state
        proven = [now.incumbent, *(p.sealed.subject for p in pending(now) if p.sealed is not None)]
        bar = max(float(now.worth[now.index[recipe_id]]) for recipe_id in proven) + self.book.track.epsilon
        tried = {e.subject for e in (*state.nominated, *state.sealed)}
        tried |= {e.subject for e in state.reviews if state.review(e.subject) == "veto"}
        able = (k for k in now.view().known if k.runs and k.worth > bar and k.recipe_id not in tried)
        return None if self._late else next(able, None)

    def nominate(self, early: bool = False) -> Proof | None:
        """Name the recipe to prove, if there is one; None ends the session.

        Args: early: whether its round has time for more than a proof; then the round goes on afterwards.
        """
        if self._late:
            return None
        if (best := self.nominee()) is None:
            self._declined += 1  # the next round searches on
            return None
        state = self.book.state
        self._early |= {len(state.nominated) + 1} if early else set()
        self.book.record("nominated", best.recipe_id, Nominated(
            number=len(state.nominated) + 1, mean=best.mean, sd=best.sd, parts=tuple(p.name for p in best.parts)))
        proof = self.proof()
        assert proof is not None
        return self.prepare(proof)

    def prepare(self, proof: Proof) -> Proof:
        """Have the candidate's ablations judged, those that were not yet."""
        for proposal in proof.ablation.proposals():
            self.intake.consider(proposal)
        return self.proof() or proof

    def advance(self, proof: Proof) -> Proof | None:
        """Write the event that the finished stage leads to."""
        if proof.final is None:
            self.book.record("ablation", proof.recipe_id, proof.ablation.settle())
            return self.prepare(now) if (now := self.proof()) is not None else None
        if proof.sealed is None:
            futile = proof.futility(self._level).settle()
            if futile is not None:
                self.book.record("futile", proof.recipe_id, futile)
            else:
                self._seal(proof, proof.final)
        else:
            self.book.record("verification", proof.sealed.subject, proof.verify())
            self.crown()
        return self.proof()

    def kept_s(self, proof: Proof) -> float:
        """Seconds that the ablation under way leaves for what comes after it."""
        programs = 0 if proof.ablation.body.trying else proof.candidate.programs
        return self.plan.kept_s(self.book.prices, programs, proof.expected(self._level))

    @property
    def _level(self) -> float:
        """At which the next attempt would be tested."""
        return alpha_for_attempt(self._next, self.book.track.significance.alpha)

    @property
    def _contest(self) -> Contest:
        begun = self.book.state.session
        return Contest(begun.track, begun.track_hash, begun.data_hash)

    @property
    def _next(self) -> int:
        """The number that the next attempt would have."""
        return max(self._least, self.registry.next(self._contest) if self.registry else 1)

    @property
    def _least(self) -> int:
        """One more than the session's own attempts, whichever registry gave them their numbers."""
        return 1 + max((e.body.attempt for e in self.book.state.sealed), default=0)

    def _seal(self, proof: Proof, final: str) -> None:
        """Spend an attempt: the registry has it first, so that whoever dies in between has spent it all the same."""
        now, splits = self.book.snapshot, self.book.track.splits
        single = best_single(now)
        rival = single if single not in (final, now.incumbent) else None
        entry = Entry(self._least, splits.protected)
        if self.registry is not None:
            entry = self.registry.seal(self._contest, final, self.book.session.path, splits.all_protected, OPENINGS,
                                       self._least)
        self.book.record("sealed", final, proof.seal(now.incumbent, rival, entry))

    def beside(self) -> list[tuple[Trial, str]]:
        """Runs that belong beside the last champion and decide nothing, for when nothing else is left to do."""
        return proofs(self.book.snapshot)[-1].beside() if self.book.state.nominated else []

    def crown(self) -> None:
        """Crown what passed, once a person approved it where one has to, and nobody holds it, and once a worker has
        measured `opening`."""
        now, state, self.opening = self.book.snapshot, self.book.state, None
        for proof in pending(now):
            assert proof.sealed is not None and proof.shipped is not None
            review, required = state.review(proof.sealed.subject), state.session.require_review
            if review == "approve" or (review is None and not required):
                arm = now.by_id[proof.sealed.subject]
                body = crown(self.book.session, self.book.track, arm, proof.shipped.key)
                if body is None:
                    self.opening = proof.shipped
                else:
                    self.book.record("crowned", arm.recipe_id, body)
                    self.install()
                return

    def install(self) -> None:
        """Put the last crowned recipe's folder in its place, and have what people read of it written there."""
        crowned = self.book.state.crowned[-1]
        install(self.book.session, crowned.body)
        self.on_crowned(self.book.session.champion, self.book.snapshot.by_id[crowned.subject])

    def needed(self) -> set[str]:
        """Trials whose checkpoint a proof under way, or a review, still needs: a veto may be taken back."""
        kept = (self.proof(), *pending(self.book.snapshot, vetoed=True))
        return {proof.shipped.key for proof in kept if proof is not None and proof.shipped is not None}
