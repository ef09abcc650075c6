"""Candidates as a reviewer weighs them: what each changes and why, the evidence, what it costs, how it travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxnano.cost import preflight, tokens_per_step
from research.learn.compare import compared
from research.show.facts import NORMAL_95, Facts

FRONTIER = 5  # candidates that ran, beside those that were nominated


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
    gains = {h: found for h in sorted(facts.track.horizons) if (found := facts.gains(recipe_id, horizon=h))}
    reviews = [e.body.written() for e in facts.state.reviews if e.subject == recipe_id]
    proofs = [row for row in facts.verifications() if row["recipe_id"] == recipe_id]
    return CandidateRow(
        recipe_id, facts.name(recipe_id), status(facts, recipe_id), proposal.lane, proposal.origin,
        facts.claim(recipe_id), facts.parts(recipe_id), facts.edits(recipe_id), *facts.effect(recipe_id), search,
        proofs, _cost(facts, recipe_id), _cost(facts, facts.base or recipe_id), gains,
        _trend(gains, facts.track.epsilon), reviews)


def status(facts: Facts, recipe_id: str) -> str:
    """Where a recipe stands, and what a person said of it."""
    said = facts.said(recipe_id)
    passed = {row["recipe_id"]: row["passed"] for row in facts.verifications()}
    if recipe_id == facts.state.champion:
        stands = "champion"
    elif recipe_id in {e.subject for e in facts.state.crowned}:
        stands = "champion once, beaten since"
    elif passed.get(recipe_id) and recipe_id not in facts.waiting() and not said.startswith("veto"):
        stands = "verified against a recipe that is no longer the incumbent"
    elif passed.get(recipe_id):
        stands = "verified" if said else "verified, awaiting review"
    elif recipe_id in passed:
        stands = "being verified" if passed[recipe_id] is None else "tested on fresh seeds and failed"
    else:
        stands = "nominated" if recipe_id in {e.subject for e in facts.state.nominated} else "searched"
    return f"{stands}, {said}" if said else stands


def _cost(facts: Facts, recipe_id: str) -> Spent:
    arm = facts.snapshot.by_id[recipe_id]
    step = tokens_per_step(arm.recipe)
    spent = [(t.result.steps or 0) * step / t.result.tokens_per_s for t in facts.state.trials.values()
             if t.recipe_id == recipe_id and t.loss and t.horizon == 1.0 and t.result and t.result.tokens_per_s]
    return Spent(preflight(arm.recipe).parameters, arm.flops, float(np.mean(spent)) if spent else None)


def _trend(gains: dict[float, dict[int, float]], epsilon: float) -> str:
    """How the gain at the longest horizon compares with that at the shortest, on the seeds of both."""
    if len(gains) < 2:
        return ""
    first, *_, last = gains.values()
    changes = np.asarray([last[seed] - first[seed] for seed in first.keys() & last.keys()])
    if len(changes) < 2:
        return ""
    change, noise = changes.mean(), np.sqrt(changes.var(ddof=1) / len(changes))
    return "steady" if abs(change) < max(epsilon, NORMAL_95 * noise) else "grows" if change > 0 else "shrinks"
