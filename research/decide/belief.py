"""What the loop believes: a pure function of the ledger's state. The same prefix gives the same decision, always."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe, stages, structure_id
from jaxnano.cost import preflight
from research.contract.part import BASE, OUTSIDE, Part, Proposal, promises
from research.contract.track import Track
from research.contract.trial import Trial
from research.lanes.protocol import Knowledge, Known
from research.learn.features import features
from research.learn.posterior import Candidate, Fitted, Observation, Posterior
from research.ledger.kinds import Proposed, Sketch
from research.ledger.names import Names
from research.ledger.state import BROKEN, FINAL, State, TrialRecord

ELSEWHERE = 2 * 10**9  # seeds of another session begin here, and at its multiples
SEEDS = 8  # common seeds 0 .. 7 of the search


@dataclass(frozen=True)
class Arm:
    """An accepted recipe. structure: what it compiles, so many programs. flops, tokens: of a step. source: the recipe
    as plain data. base is number 0."""

    recipe_id: str
    name: str
    source: Mapping[str, Any]
    parts: tuple[Part, ...]
    candidate: Candidate
    lane: str
    structure: str
    flops: float
    tokens: float
    programs: int = 1

    @cached_property
    def recipe(self) -> Recipe:
        """What is run."""
        return validate(Recipe, self.source)


def sketched(base: Recipe, recipe: Recipe) -> Sketch:
    """What the belief needs to know of a recipe."""
    cost = preflight(recipe)
    return Sketch(features=features(base, recipe), structure=structure_id(recipe), flops=cost.flops_per_step,
                  tokens=cost.tokens_per_step,
                  programs=len({structure_id(stage.recipe) for stage in stages(recipe)}))


@dataclass
class Belief:
    """Arms and posterior of one session. Keeps what it has computed of arms; nothing else is remembered."""

    track: Track
    posterior: Posterior = field(default_factory=Posterior)
    _arms: dict[str, Arm] = field(default_factory=dict)
    _origins: dict[Part, str] = field(default_factory=dict)  # who promises a part's effect; "" is the catalogue
    _observations: dict[str, Observation] = field(default_factory=dict)  # of completed trials, by key

    def arms(self, state: State) -> list[Arm]:
        """Accepted recipes, in the order of their proposals, whatever was asked before; the base first."""
        for rid, body in state.proposals.items():
            if rid in state.accepted and rid not in self._arms:
                self._arms[rid] = self._arm(rid, body, state.sketches.get(rid), state.flat)
        arms = [self._arms[rid] for rid in state.proposals if rid in state.accepted]
        return sorted(arms, key=lambda arm: arm.lane != BASE)

    def _arm(self, rid: str, body: Proposed, told: Sketch | None, flat: bool) -> Arm:
        found, proposal = told or sketched(self.track.base_recipe, validate(Recipe, body.recipe)), body.proposal
        candidate = Candidate(found.features, {} if flat else self._promise(proposal))
        return Arm(rid, proposal.name, body.recipe, proposal.parts, candidate, proposal.lane, found.structure,
                   found.flops, found.tokens, found.programs)

    def _promise(self, proposal: Proposal) -> dict[str, float]:
        """What the parts promise together, nats, by who was the first to promise each."""
        outsider = f"{proposal.lane} {proposal.origin}" if proposal.lane in OUTSIDE else ""
        found: dict[str, float] = {}
        for part, effect in zip(proposal.parts, promises(proposal.parts), strict=True):
            origin = self._origins.setdefault(part, outsider)
            found[origin] = found.get(origin, 0.0) + effect
        return found

    def observation(self, trial: TrialRecord, arm: Arm) -> Observation:
        """What a completed trial says; kept, since every decision rests on all of them."""
        if trial.key not in self._observations:
            self._observations[trial.key] = Observation(arm.candidate.features, trial.horizon, trial.seed,
                                                        trial.loss[self.track.splits.search],
                                                        promise=arm.candidate.promise)
        return self._observations[trial.key]

    def at(self, state: State) -> Snapshot:
        """Everything that follows from one state."""
        return Snapshot(self, state, self.arms(state))


@dataclass
class Snapshot:
    """The belief at one state. Indices are into `arms`."""

    belief: Belief
    state: State
    arms: list[Arm]

    @cached_property
    def index(self) -> dict[str, int]:
        """Number of each arm by recipe id."""
        return {arm.recipe_id: i for i, arm in enumerate(self.arms)}

    @cached_property
    def names(self) -> Names:
        """What recipes are called."""
        return Names(self.state)

    @cached_property
    def by_id(self) -> dict[str, Arm]:
        """Each arm by its recipe id."""
        return {arm.recipe_id: arm for arm in self.arms}

    @property
    def track(self) -> Track:
        """What is to be got better at."""
        return self.belief.track

    def losses(self, recipe_id: str) -> dict[int, float]:
        """A recipe's losses by seed, on the search split at the full horizon."""
        return self.state.losses(recipe_id, 1.0, self.track.splits.search)

    @property
    def incumbent(self) -> str:
        """The recipe a candidate has to beat: the champion, this session's or an earlier one's, or the base."""
        return self.state.champion or self.state.session.incumbent or self.arms[0].recipe_id

    @cached_property
    def fitted(self) -> Fitted:
        """The posterior given all finished runs; of one that was ended early, only that it diverged is known.

        Those of a proof enter once its attempt is judged, by their loss on the search split.
        """
        observations, diverged = list(self.imported), []
        for trial in self.state.trials.values():
            result, arm = trial.result, self.by_id.get(trial.recipe_id)
            if arm is None or result is None or not (trial.seed < SEEDS or trial.seed in self._judged):
                continue
            if result.outcome == "completed":
                observations.append(self.belief.observation(trial, arm))
            elif result.outcome == "diverged":
                diverged.append(arm.candidate.features)
        return self.belief.posterior.fit(observations, diverged)

    @property
    def imported(self) -> Iterator[Observation]:
        """What other sessions have found. Their seeds are none of this one's: each cell has a level of its own."""
        for number, event in enumerate(self.state.imports, start=1):
            for recipe_id, horizon, seed, loss in event.body.runs:
                yield Observation(event.body.features[recipe_id], horizon, number * ELSEWHERE + seed, loss)

    @cached_property
    def _judged(self) -> set[int]:
        """Seeds of proofs that are over."""
        return {seed for event in self.state.verifications for seed in event.body.seeds}

    @cached_property
    def effects(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each arm's full-horizon effect, nats."""
        return self.fitted.effects([arm.candidate for arm in self.arms])

    @cached_property
    def p_diverge(self) -> np.ndarray:
        """Probability that a run of each arm diverges."""
        return self.fitted.divergence.probability([arm.candidate.features for arm in self.arms])

    @cached_property
    def worth(self) -> np.ndarray:
        """What each arm's effect is expected to be worth, nats: a gain counts as far as its run is likely to end."""
        mean, _ = self.effects
        return np.where(mean > 0, mean * (1.0 - self.p_diverge), mean)

    @cached_property
    def finished(self) -> Counter[str]:
        """Completed search runs by recipe id: those of the proof, on seeds of its own, are no evidence here."""
        return Counter(t.recipe_id for t in self.state.trials.values() if t.outcome == "completed" and t.seed < SEEDS)

    @cached_property
    def fallen(self) -> set[str]:
        """Recipes whose runs diverged, failed or ran out of time, and none has finished: they lead nowhere as yet."""
        bad = {t.recipe_id for t in self.state.trials.values() if t.outcome in BROKEN | {"diverged"}}
        return {recipe_id for recipe_id in bad if not self.finished[recipe_id]}

    @cached_property
    def over(self) -> dict[str, list[Trial]]:
        """Runs that are over, by recipe id; an interrupted one is not."""
        found: dict[str, list[Trial]] = {}
        for trial in self.state.trials.values():
            if trial.outcome in FINAL:
                found.setdefault(trial.recipe_id, []).append(trial.trial)
        return found

    @cached_property
    def running(self) -> list[Trial]:
        """Runs in flight."""
        return [t.trial for t in self.state.trials.values() if t.outcome == "running"]

    @cached_property
    def ran(self) -> frozenset[str]:
        """Names of the parts of all recipes of which a run is over or in flight."""
        recipes = {*self.over, *(trial.recipe_id for trial in self.running)}
        return frozenset(part.name for arm in self.arms if arm.recipe_id in recipes for part in arm.parts)

    @cached_property
    def broken(self) -> set[str]:
        """Recipes that failed or ran out of time: they are not tried again, unless a person asks."""
        return {trial.recipe_id for trial in self.state.broken()}

    @cached_property
    def best(self) -> Arm | None:
        """The candidate worth most among those of which a run has finished, if any beats the base."""
        able = [i for i, arm in enumerate(self.arms) if self.finished[arm.recipe_id] and arm.parts
                and arm.recipe_id not in self.fallen and self.worth[i] > 0]
        return self.arms[max(able, key=lambda i: self.worth[i])] if able else None

    @property
    def leader(self) -> str | None:
        """The champion, or else the candidate that leads; None where nothing is expected to beat the base."""
        return self.state.champion or (self.best.recipe_id if self.best else None)

    def view(self) -> Knowledge:
        """What proposers may know."""
        mean, sd = self.effects
        known = [Known(a.recipe_id, a.name, a.recipe, a.parts, float(m), float(s), self.finished[a.recipe_id], float(w))
                 for a, m, s, w in zip(self.arms, mean, sd, self.worth, strict=True)
                 if a.recipe_id not in self.fallen]
        known.sort(key=lambda k: -k.worth)
        return Knowledge(self.track, known, frozenset(self.state.proposals), self.ran, self.state.flat)
