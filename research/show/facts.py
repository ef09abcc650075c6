"""What a session amounts to: every number that status, report and view show, computed from its ledger alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from jaxnano.config.base import Node, dump_full, validate
from jaxnano.config.edit import diff
from jaxnano.config.recipe import Recipe
from research.contract.part import INVENT, LLM, OUTSIDE, Proposal
from research.contract.track import Measured
from research.contract.transfer import BESIDE, PRESET, text_of
from research.contract.trial import FRESH
from research.decide.belief import Belief, Snapshot
from research.decide.book import base_id, track_of
from research.decide.price import Prices
from research.decide.proof import pending
from research.decide.transfer import Card, Line
from research.lanes.catalogue import Catalogue
from research.learn.compare import compared
from research.ledger.kinds import Result
from research.ledger.names import Names
from research.ledger.spend import Spend
from research.ledger.state import State, TrialRecord
from research.show.claim import scope

NOTHING = Proposal(name="", parts=(), hypothesis="", lane="")
NORMAL_95 = 1.96  # standard deviations to either side of a Gaussian's 95 % interval


class Run(Node):
    """A run as it is told. loss: on the search split. gain: over the base's run on the same seed and horizon.

    gain_over_parent, gain_over_leader: likewise, over the recipe it was put on and the one that leads now; null
    where these have no such run. predicted: [mean, sd] of the final loss, of a run that was found hopeless.
    effect: [mean, sd] of the recipe at the full horizon, as believed now; null for the base.
    """

    key: str
    recipe_id: str
    name: str
    lane: str
    purpose: str
    horizon: float
    seed: int
    outcome: str
    reason: str
    loss: float | None
    gain: float | None
    parent: str | None
    gain_over_parent: float | None
    leader: str | None
    gain_over_leader: float | None
    predicted: list[float | None] | None
    effect: list[float] | None
    device_s: float | None


class Facts:
    """A session's facts. base: its recipe id; None before it is proposed. Losses and effects are in nats."""

    def __init__(self, snapshot: Snapshot):
        """snapshot: the belief at the state they are about."""
        self.snapshot, self.state, self.track = snapshot, snapshot.state, snapshot.belief.track
        self.base = base_id(self.state)
        self.unit = "nats per byte" if self.state.session.bytes_per_token in (None, 1.0) else "nats per token"

    @staticmethod
    def of(state: State) -> Facts:
        """The facts of a folded ledger. Raises: SessionError if it has no `session` event yet."""
        return Facts(Belief(track_of(state)).at(state))

    @property
    def devices(self) -> int:
        """That each run is trained on."""
        place = self.state.session.place
        return place.devices if place is not None else 1

    @property
    def device_time(self) -> str:
        """Device-seconds of all runs; where each had several devices, their seconds and how many devices."""
        return f"{self.state.device_s:,.0f} " + (
            f"seconds of {self.devices} devices" if self.devices > 1 else "device-seconds")

    def proposal(self, recipe_id: str) -> Proposal:
        """What was proposed under a recipe id; nothing, without a name, if nothing was."""
        return self.state.proposals[recipe_id].proposal if recipe_id in self.state.proposals else NOTHING

    def name(self, recipe_id: str) -> str:
        """What a recipe is called: by what it adds to the one that it was put on."""
        return self.names(recipe_id)

    @property
    def names(self) -> Names:
        """What all recipes are called."""
        return self.snapshot.names

    def edits(self, recipe_id: str, over: str | None = None) -> list[dict[str, Any]]:
        """What separates a recipe from another, the base by default: {path, old, new}."""
        rival, recipe = (validate(Recipe, self.state.proposals[one].recipe) if one else self.track.base_recipe
                         for one in (over, recipe_id))
        return [{"path": e.path, "old": e.old, "new": e.new} for e in diff(rival, recipe).edits]

    def effect(self, recipe_id: str) -> tuple[float, float]:
        """Mean and standard deviation of an accepted recipe's effect at the full horizon, as believed."""
        mean, sd = (float(values[self.snapshot.index[recipe_id]]) for values in self.snapshot.effects)
        return mean, sd

    @cached_property
    def leader(self) -> str | None:
        """The champion, or else the candidate that leads; None where nothing is expected to beat the base."""
        return self.snapshot.leader

    def parent(self, recipe_id: str) -> str | None:
        """The recipe another was put on; None for the base."""
        return next(iter(self.proposal(recipe_id).parents), None if recipe_id == self.base else self.base)

    def gains(self, recipe_id: str, over: str | None = None, horizon: float = 1.0) -> dict[int, float]:
        """By seed, a rival's loss less the recipe's, on the search split: every gain that is shown comes from here.

        The rival's own luck is in them (base runs differ by 0.1 from seed to seed), so gains of two recipes compare on
        the seeds that both ran, and a mean is taken over such seeds alone.
        Args: over: the rival, the base by default. Returns: empty for the rival itself.
        """
        rival, split = over or self.base or "", self.track.splits.search
        return {} if recipe_id == rival else self.state.gains(recipe_id, rival, horizon, split)

    def gain(self, trial: TrialRecord, over: str | None = None) -> float | None:
        """A run's gain over the rival's in the same cell; None for the rival's own, and where a loss is missing."""
        return self.gains(trial.recipe_id, over, trial.horizon).get(trial.seed)

    def run(self, trial: TrialRecord) -> Run:
        """A run that has begun."""
        result, recipe_id, proposal = trial.result, trial.recipe_id, self.proposal(trial.recipe_id)
        parent = self.parent(recipe_id)
        predicted = result and (result.predicted or (result.audit and result.audit.predicted))
        return Run(key=trial.key, recipe_id=recipe_id, name=self.name(recipe_id), lane=proposal.lane,
                   purpose=trial.attempts[0].purpose, horizon=trial.horizon, seed=trial.seed, outcome=trial.outcome,
                   reason=result.reason if result else "", loss=trial.loss.get(self.track.splits.search),
                   gain=self.gain(trial), parent=parent,
                   gain_over_parent=self.gain(trial, parent) if parent else None, leader=self.leader,
                   gain_over_leader=self.gain(trial, self.leader) if self.leader else None,
                   predicted=list(predicted) if predicted else None,
                   effect=list(self.effect(recipe_id)) if self.snapshot.index.get(recipe_id) else None,
                   device_s=result.device_s if result else None)

    def losses(self, recipe_id: str, beside: str | None = None) -> dict[str, dict[int, float]]:
        """Full-horizon losses by split and seed: of the verification runs if there are any, else of all.

        beside: another recipe, whose seeds alone count on a split where both have some.
        """
        splits, found = self.track.splits, {}
        for split in splits.all_protected:
            if losses := self.state.losses(recipe_id, 1.0, split):
                found[split] = losses
        protected = {seed for losses in found.values() for seed in losses}
        search = self.state.losses(recipe_id, 1.0, splits.search)
        found[splits.search] = {seed: loss for seed, loss in search.items() if not protected or seed in protected}
        for event in self.state.crowned:
            if event.subject == recipe_id and event.body.heldout is not None:
                found[splits.heldout] = {event.body.seed or 0: event.body.heldout}
        others = self.losses(beside) if beside and beside != recipe_id else {}
        for split, losses in found.items():
            common = {seed: loss for seed, loss in losses.items() if seed in others.get(split, ())}
            found[split] = common or losses
        return {split: losses for split, losses in found.items() if losses}

    def measure(self, recipe_id: str, beside: str | None = None) -> str | None:
        """A recipe in the objective's own terms, from the losses on the search split that `losses` has, and its others
        at shorter horizons; None where that says no more."""
        split, objective = self.track.splits.search, self.track.objective
        by_horizon = {h: self.state.losses(recipe_id, h, split) for h in self.track.horizons}
        by_horizon[1.0] = self.losses(recipe_id, beside).get(split, {})
        means = {h: float(np.mean([*losses.values()])) for h, losses in by_horizon.items() if losses}
        step_s = Prices(self.snapshot).base_step_s if objective.waits_for_base else None
        per_token = self.state.session.bytes_per_token
        return objective.measure(self.track, Measured(means, per_token, step_s))

    def side(self, recipe_id: str, comparison: Mapping[str, Any] | None = None,
             beside: str | None = None) -> dict[str, Any]:
        """One side of the result: who, its losses (on seeds it shares with `beside`), and how it compares."""
        losses, test = self.losses(recipe_id, beside), comparison or {}
        return {
            "recipe_id": recipe_id,
            "name": self.name(recipe_id),
            "loss": {split: {"mean": float(np.mean(list(by.values()))), "by_seed": {str(s): v for s, v in by.items()}}
                     for split, by in losses.items()},
            "n_seeds": max((len(by) for by in losses.values()), default=0),
            **{key: test.get(key) for key in ("effect", "interval", "p_value", "p_adjusted")},
            "diff": self.edits(recipe_id),
            "measure": self.measure(recipe_id, beside),
        }

    def champion(self) -> dict[str, Any] | None:
        """The champion's side, compared with the recipe it had to beat; None if none was crowned."""
        if (recipe_id := self.state.champion) is None:
            return None
        row = next(r for r in reversed(self.verifications()) if r["recipe_id"] == recipe_id and r["passed"])
        return self.side(recipe_id, row["comparisons"]["incumbent"], row["incumbent"]) | {
            "attempt": row["attempt"], "alpha": row["alpha"], "n": len(row["seeds"]), "against": row["incumbent"],
            "split": row["split"], "rule": row["rule"], "scope": scope(row["comparisons"]["incumbent"]),
            "over_base": self.over_base(recipe_id), "parts": self.parts(recipe_id)}

    def transfer(self) -> list[Line]:
        """The champion's transfer card; no line without one."""
        return Card(self.snapshot).lines() if self.state.champion else []

    def beside(self) -> dict[str, Any] | None:
        """The champion beside the preset, on one seed and the search split, in bits per byte where these are known; why
        the preset's are not; a sample of the champion's text. None without a champion."""
        line = next((line for line in self.transfer() if line.setting == BESIDE), None)
        if line is None:
            return None
        per_token, sample = self.state.session.bytes_per_token, self.state.crowned[-1].body.sample
        champion, preset = (loss and Measured({1.0: loss}, per_token, None).bits_per_byte
                            for loss in (line.champion, line.base))
        return {"preset": PRESET, "champion": champion, "bits": preset, "why": line.why, "sample": sample}

    @property
    def text(self) -> str:
        """The text that all inference is about."""
        return text_of(self.track.base_recipe.data)

    def waiting(self) -> list[str]:
        """Recipes that passed and may still be crowned: nobody vetoed or overtook them. The largest effect first."""
        return [proof.sealed.subject for proof in pending(self.snapshot) if proof.sealed is not None]

    def said(self, recipe_id: str) -> str:
        """What a person decided last about a recipe, who, and why; empty if nobody did."""
        event = next((e for e in reversed(self.state.reviews) if e.subject == recipe_id), None)
        if event is None:
            return ""
        done = {"approve": "approved", "veto": "vetoed", "hold": "held"}[event.body.decision]
        note = f": {event.body.note}" if event.body.note else ""
        return f"{done} by {event.body.reviewer or 'somebody'}{note}"

    def over_base(self, recipe_id: str) -> dict[str, Any] | None:
        """Comparison with the base on the seeds that both ran in full: the protected split where they share any."""
        for split in (*self.track.splits.all_protected, self.track.splits.search):
            base, own = (self.state.losses(rid or "", 1.0, split) for rid in (self.base, recipe_id))
            if recipe_id != self.base and (found := compared(base, own)):
                return found | {"split": split}
        return None

    def parts(self, recipe_id: str) -> list[dict[str, Any]]:
        """The parts of a recipe, most worth first: name, source, why, edits, the ablation's row or why none."""
        ablations = [a for a in self.state.ablations.values() if a.recipe_id == recipe_id]
        rows = {row["part"]: row for ablation in ablations for row in ablation.rows}
        untested = {part: why for ablation in ablations for part, why in ablation.untested.items()}
        found = [{"name": p.name, "source": p.source, "why": p.why or self._older_why(p.name),
                  "edits": [dump_full(edit) for edit in p.edits], "ablation": rows.get(p.name),
                  "untested": untested.get(p.name)} for p in self.proposal(recipe_id).parts]
        return sorted(found, key=lambda part: -(part["ablation"] or {}).get("effect", -np.inf))

    def _older_why(self, part: str) -> str:
        """A part's reason in a ledger of 0.2, whose parts do not hold it: that of the proposal that brought it."""
        for proposal in (body.proposal for body in self.state.proposals.values()):
            alone = len(proposal.parts) == 1 or proposal.lane in (Catalogue.name, *OUTSIDE)
            if alone and proposal.parts and proposal.parts[-1].name == part:  # what it is about comes last
                return proposal.hypothesis
        return ""

    def claim(self, recipe_id: str) -> str:
        """What a recipe claims: the reasons of its parts; its proposal's hypothesis where these have none.

        An ablation, or a move of numbers, proposes a whole recipe for a reason that is about a part of it alone.
        """
        parts, proposal = [part for part in self.parts(recipe_id) if part["why"]], self.proposal(recipe_id)
        if not parts or (len(parts) == 1 and proposal.origin != "ablation"):
            return proposal.hypothesis
        return "; ".join(f"{part['name']}: {part['why']}" for part in parts)

    def verifications(self) -> list[dict[str, Any]]:
        """Every sealed attempt: what was tested, at which level, and what came out (`passed` None: not decided)."""
        spoken = {e.body.nomination: e.body for e in self.state.verifications}
        rows = []
        for event in self.state.sealed:
            seal, body = event.body, spoken.get(event.body.nomination)
            losses, comparisons = (dict(body.losses), dict(body.comparisons)) if body else ({}, {})
            split = seal.split or self.track.splits.protected
            if seal.rule and seal.best_single and body:  # run after the crown, if there was time
                beside = self.state.losses(seal.best_single, 1.0, split)
                beside = {seed: beside[seed] for seed in body.seeds if seed in beside}
                if beside and (own := self.state.losses(event.subject, 1.0, split)):
                    losses["best_single"] = {str(seed): loss for seed, loss in beside.items()}
                    comparisons["best_single"] = compared(beside, {seed: own[seed] for seed in beside if seed in own})
            rows.append({"recipe_id": event.subject, "name": self.name(event.subject), "attempt": seal.attempt,
                         "alpha": seal.alpha, "n": seal.n, "incumbent": seal.incumbent, "best_single": seal.best_single,
                         "passed": body.passed if body else None, "seeds": list(body.seeds) if body else [],
                         "rule": seal.rule, "split": split, "first": self.track.splits.protected,
                         "opened": seal.opened, "registry": seal.registry,
                         "losses": losses, "comparisons": comparisons})
        return rows

    def best_single(self) -> dict[str, Any] | None:
        """The best single catalogue idea, run beside the last sealed recipe; effect: of the sealed one over it."""
        row = next((row for row in reversed(self.verifications()) if row["best_single"]), None)
        test = row["comparisons"].get("best_single") if row else None
        return self.side(row["best_single"], test, row["recipe_id"]) if row else None

    def frontier(self, most: int = 5) -> list[dict[str, Any]]:
        """The candidates with the highest expected effect among those that completed a run; a promise is no run.

        Returns: rows with mean and sd, at the full horizon; runs; gains over the base by seed, of the search's seeds;
        over_leader: the mean gain on the seeds shared with the leader, and these seeds.
        """
        mean, sd = self.snapshot.effects if self.snapshot.arms else (np.zeros(0), np.zeros(0))
        ran = [i for i, arm in enumerate(self.snapshot.arms) if i and arm.recipe_id in self._completed]
        rows = []
        for i in sorted(ran, key=lambda i: -mean[i])[:most]:
            arm = self.snapshot.arms[i]
            gaps = self.gains(arm.recipe_id, self.leader) if self.leader else {}
            gains = {seed: gain for seed, gain in self.gains(arm.recipe_id).items() if seed < FRESH}
            rows.append({"recipe_id": arm.recipe_id, "name": self.name(arm.recipe_id), "lane": arm.lane,
                         "mean": float(mean[i]), "sd": float(sd[i]), "gains": gains,
                         "runs": len(self.snapshot.over[arm.recipe_id]),
                         "over_leader": {"mean": float(np.mean(list(gaps.values()))) if gaps else None,
                                         "seeds": list(gaps)}})
        return rows

    @property
    def front(self) -> str | None:
        """The first of the frontier, if there is one."""
        return next((row["recipe_id"] for row in self.frontier(1)), None)

    @cached_property
    def _completed(self) -> set[str]:
        """The recipes that completed a run."""
        return {trial.recipe_id for trial in self.state.trials.values() if trial.outcome == "completed"}

    def lanes(self) -> dict[str, dict[str, Any]]:
        """By lane: proposals, accepted ones, finished runs, their device-seconds, and the best expected effect.

        best_effect: [mean, sd] at the full horizon, of what completed a run: seeds are not equally kind, and the best
        gain that was measured would be the luckiest's.
        """
        rows: dict[str, dict[str, Any]] = {}
        best: dict[str, list[float]] = {}
        for arm, *effect in zip(self.snapshot.arms[1:], *(found[1:] for found in self.snapshot.effects), strict=True):
            if arm.recipe_id in self._completed:
                best[arm.lane] = max(best.get(arm.lane, [-np.inf]), list(map(float, effect)))
        for recipe_id in self.state.proposals:
            row = rows.setdefault(self.proposal(recipe_id).lane,
                                  {"proposed": 0, "accepted": 0, "runs": 0, "device_seconds": 0.0,
                                   "best_effect": best.get(self.proposal(recipe_id).lane)})
            row["proposed"] += 1
            row["accepted"] += recipe_id in self.state.accepted
        for trial, result in self.results():
            if (row := rows.get(self.proposal(trial.recipe_id).lane)) is not None:
                row["runs"] += 1
                row["device_seconds"] += result.device_s or 0.0
        return rows

    def inventions(self, most: int = 6) -> list[dict[str, Any]]:
        """What the lane of inventions found that ran, best first: formula, novelty, effect."""
        rows = [row for row in self.frontier(len(self.snapshot.arms)) if row["lane"] == INVENT]
        return [row | {"novelty": self.proposal(row["recipe_id"]).novelty, "formula": self.proposal(
            row["recipe_id"]).hypothesis} for row in rows[:most]]

    def untried(self) -> dict[str, list[str]]:
        """By family, the catalogue's ideas that ran in no recipe; nothing where its lane was not asked."""
        found = {family: [name for name in names if name not in self.snapshot.ran]
                 for family, names in self.state.session.ideas.items()}
        return {family: names for family, names in found.items() if names}

    def llm(self) -> dict[str, Any] | None:
        """Requests to language models: outcomes, tokens, cost, and both per proposal accepted; None if there were none.

        See research.ledger.spend.
        """
        accepted = self.lanes().get(LLM, {}).get("accepted", 0)
        return Spend.of(self.state.calls).as_dict(accepted) if self.state.calls else None

    def results(self) -> Iterator[tuple[TrialRecord, Result]]:
        """Every result with its trial, interrupted attempts too."""
        for trial in self.state.trials.values():
            for attempt in trial.attempts:
                if attempt.result is not None:
                    yield trial, attempt.result

    def purposes(self) -> dict[str, dict[str, int]]:
        """Number of trials by the purpose they were started for and by their outcome."""
        rows: dict[str, Counter[str]] = {}
        for trial in self.state.trials.values():
            if trial.attempts:
                rows.setdefault(trial.attempts[0].purpose, Counter())[trial.outcome] += 1
        return {purpose: dict(row) for purpose, row in rows.items()}

    def audit(self) -> list[dict[str, Any]]:
        """Runs found hopeless but finished all the same: what was predicted of them, and how they ended."""
        split = self.track.splits.search
        return [{"trial": trial.key, "final": trial.loss.get(split), "gain": self.gain(trial),
                 **dict(zip(("predicted", "sd"), result.audit.predicted, strict=True))}
                for trial, result in self.results() if result.audit and result.audit.predicted]
