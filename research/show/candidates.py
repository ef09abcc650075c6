"""Candidates as a reviewer weighs them: what each changes and why, the evidence, what it costs, how it travels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxnano.cost import preflight, tokens_per_step
from research.learn.compare import compared
from research.show.facts import NORMAL_95, Facts

FRONTIER = 5  # candidates that ran, beside those that were nominated
IN_FULL = {"once champion": "champion once, beaten since", "refuted": "tested on fresh seeds and failed",
           "refused": "refused by the gate"}


@dataclass(frozen=True)
class Spent:
    """Of a recipe. device_s: of training in full, the mean over runs, compiling not counted; None without a run."""

    parameters: int
    flops_per_step: float
    device_s: float | None


@dataclass(frozen=True)
class CandidateRow:
    """status: in words. effect, sd: believed at the full horizon. search: compared with the base on common seeds.

    hypothesis: the reasons of its parts. parts: name, why, source, and the ablation's row. proofs: sealed attempts.
    gains: over the base, by horizon and seed. trend: `grows`, `shrinks`, `steady` (less than matters, or than noise),
    on the seeds of both the shortest and the longest horizon; empty where these are fewer than two.
    """

    recipe_id: str
    name: str
    status: str
    lane: str
    origin: str
    hypothesis: str
    parts: list[dict[str, Any]]
    edits: list[dict[str, Any]]
    effect: float
    sd: float
    search: dict[str, Any] | None
    proofs: list[dict[str, Any]]
    cost: Spent
    base_cost: Spent
    gains: dict[float, dict[int, float]]
    trend: str
    reviews: list[dict[str, Any]]


def candidates(facts: Facts) -> list[CandidateRow]:
    """Those verified, sealed or nominated, latest first, then those that lead the search."""
    state = facts.state
    proven = [e.subject for e in reversed((*state.nominated, *state.sealed))]
    ranked = sorted(set(proven), key=lambda rid: (rid not in facts.waiting(), proven.index(rid)))
    leading = [row["recipe_id"] for row in facts.frontier(FRONTIER)]
    return [candidate(facts, recipe_id) for recipe_id in dict.fromkeys([*ranked, *leading])]


def candidate(facts: Facts, recipe_id: str) -> CandidateRow:
    """One of them: an accepted recipe."""
    proposal = facts.proposal(recipe_id)
    base, own = (facts.state.losses(rid or "", 1.0, facts.track.splits.search) for rid in (facts.base, recipe_id))
    search = compared(base, own) or None
    reviews = [e.body.written() for e in facts.state.reviews if e.subject == recipe_id]
    proofs = [row for row in facts.verifications() if row["recipe_id"] == recipe_id]
    return CandidateRow(
        recipe_id, facts.name(recipe_id), status(facts, recipe_id), proposal.lane, proposal.origin,
        facts.claim(recipe_id), facts.parts(recipe_id), facts.edits(recipe_id), *facts.effect(recipe_id), search,
        proofs, _cost(facts, recipe_id), _cost(facts, facts.base or recipe_id),
        gains(facts, recipe_id), trend(facts, recipe_id), reviews)


def words(facts: Facts) -> dict[str, str]:
    """Where each recipe stands, in a word; `status` says it in full."""
    state, outcomes = facts.state, defaultdict[str, set[str]](set)
    for trial in state.trials.values():
        outcomes[trial.recipe_id].add(trial.outcome)
    ran = {"completed": "searched"} | {outcome: outcome for outcome in ("running", "diverged", "failed", "timeout")}
    found = {recipe_id: next((word for outcome, word in ran.items() if outcome in outcomes[recipe_id]), "not run yet")
             if recipe_id in state.accepted else "refused" for recipe_id in state.proposals}
    found |= dict.fromkeys((event.subject for event in state.nominated), "nominated")
    found |= {row["recipe_id"]: {True: "proven", False: "refuted", None: "being verified"}[row["passed"]]
              for row in facts.verifications()}
    found |= dict.fromkeys((event.subject for event in state.crowned), "once champion")
    return found | {rid: word for rid, word in ((state.champion, "champion"), (facts.base, "base")) if rid}


def status(facts: Facts, recipe_id: str) -> str:
    """Where a recipe stands, and what a person said of it."""
    word, said = words(facts)[recipe_id], facts.said(recipe_id)
    stands = IN_FULL.get(word, word)
    if word == "proven":
        beaten = recipe_id not in facts.waiting() and not said.startswith("veto")
        stands = "verified against a recipe that is no longer the incumbent" if beaten else \
            "verified" if said else "verified, awaiting review"
    return f"{stands}, {said}" if said else stands


def gains(facts: Facts, recipe_id: str) -> dict[float, dict[int, float]]:
    """Over the base, by horizon and seed."""
    return {h: found for h in sorted(facts.track.horizons) if (found := facts.gains(recipe_id, horizon=h))}


def _cost(facts: Facts, recipe_id: str) -> Spent:
    arm = facts.snapshot.by_id[recipe_id]
    step = tokens_per_step(arm.recipe)
    spent = [(t.result.steps or 0) * step / t.result.tokens_per_s for t in facts.state.trials.values()
             if t.recipe_id == recipe_id and t.loss and t.horizon == 1.0 and t.result and t.result.tokens_per_s]
    return Spent(preflight(arm.recipe).parameters, arm.flops, float(np.mean(spent)) if spent else None)


def trend(facts: Facts, recipe_id: str) -> str:
    """How the gain at the longest horizon compares with that at the shortest, on the seeds of both."""
    if len(found := gains(facts, recipe_id)) < 2:
        return ""
    first, *_, last = found.values()
    changes = np.asarray([last[seed] - first[seed] for seed in first.keys() & last.keys()])
    if len(changes) < 2:
        return ""
    change, noise = changes.mean(), np.sqrt(changes.var(ddof=1) / len(changes))
    steady = abs(change) < max(facts.track.epsilon, NORMAL_95 * noise)
    return "steady" if steady else "grows" if change > 0 else "shrinks"
