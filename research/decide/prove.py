"""A candidate's way through the proof, event by event: nominated, ablated, sealed, verified, crowned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from research.contract.trial import Trial
from research.decide.belief import Arm
from research.decide.book import Book
from research.decide.champion import crown, install
from research.decide.intake import Intake
from research.decide.plan import Plan
from research.decide.proof import Proof, best_single, pending, under_way
from research.ledger.kinds import Nominated


class Prover:
    """Leads one candidate after another.

    Args: on_crowned: called with a champion's folder and arm once it is in its place.
    """

    def __init__(self, book: Book, intake: Intake, plan: Plan, on_crowned: Callable[[Path, Arm], None]):
        self.book, self.intake, self.plan, self.on_crowned = book, intake, plan, on_crowned
        self.opening: Trial | None = None  # whose held-out loss a crown waits for
        self._declined = 0  # rounds that ended with nothing worth a proof
        self._before = len(book.state.nominated) - (self.proof() is not None)  # nominated by earlier sittings

    @property
    def round(self) -> int:
        """Number of the round under way: each ends with a proof, or without anything worth one."""
        return len(self.book.state.nominated) - self._before + self._declined + 1

    def proof(self) -> Proof | None:
        """The proof under way."""
        return under_way(self.book.snapshot)

    def nominate(self) -> Proof | None:
        """Name the recipe to prove, if one is worth it and there is time; None ends the session."""
        if self.round > self.plan.rounds or self.plan.too_late(self.book.prices):
            return None
        now, state = self.book.snapshot, self.book.state
        proven = [now.incumbent, *(p.sealed.subject for p in pending(now) if p.sealed is not None)]
        bar = max(float(now.worth[now.index[recipe_id]]) for recipe_id in proven) + self.book.track.epsilon
        tried = {e.subject for e in (*state.nominated, *state.sealed)}
        tried |= {e.subject for e in state.reviews if state.review(e.subject) == "veto"}
        able = [k for k in now.view().known if k.runs and k.worth > bar and k.recipe_id not in tried]
        if not able:
            self._declined += 1  # the next round searches on
            return None
        best = able[0]
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
            single = best_single(self.book.snapshot)
            rival = single if single not in (proof.final, self.book.snapshot.incumbent) else None
            self.book.record("sealed", proof.final, proof.seal(self.book.snapshot.incumbent, rival))
        else:
            self.book.record("verification", proof.sealed.subject, proof.verify())
            self.crown()
        return self.proof()

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
        proofs = (self.proof(), *pending(self.book.snapshot, vetoed=True))
        return {proof.shipped.key for proof in proofs if proof is not None and proof.shipped is not None}
