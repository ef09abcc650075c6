"""What a session amounts to: every number that status, report and view show, computed from its ledger alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxnano.config.base import validate
from jaxnano.config.edit import diff
from jaxnano.config.recipe import Recipe
from research.belief import INBOX, LLM, Belief, Snapshot
from research.compare import compare
from research.ledger import Event, SessionError
from research.proof import Proof, pending
from research.propose.spend import Spend
from research.state import FINAL, State, Trial
from research.text import count, effect, spread
from research.track import LossAtSeconds, StepsToTarget, TimeToTarget, Track

NORMAL_95 = 1.96  # standard deviations to either side of a Gaussian's 95 % interval


def track_of(state: State) -> Track:
    """The track as the session's first events hold it, so that files changed since then change nothing.

    Raises: SessionError if the ledger has no `session` event yet.
    """
    if "contract" not in state.session:
        raise SessionError("the ledger holds no session event yet: nothing has happened")
    track = validate(Track, state.session["contract"])
    if (base := base_id(state)) is not None:
        vars(track)["base_recipe"] = validate(Recipe, state.proposals[base]["recipe"])  # fills the cached property
    return track


def base_id(state: State) -> str | None:
    """The base's recipe id, once it is proposed."""
    return next((rid for rid, body in state.proposals.items() if body["proposal"]["lane"] == "base"), None)


@dataclass
class Facts:
    """A session's facts. snapshot: the belief at the state they are about. Losses and effects are in nats."""

    snapshot: Snapshot

    @staticmethod
    def of(state: State) -> Facts:
        """The facts of a folded ledger. Raises: SessionError if it has no `session` event yet."""
        return Facts(Belief(track_of(state)).at(state))

    @property
    def state(self) -> State:
        """The folded ledger."""
        return self.snapshot.state

    @property
    def track(self) -> Track:
        """The contract."""
        return self.snapshot.belief.track

    @property
    def base(self) -> str | None:
        """The base's recipe id; None before it is proposed."""
        return base_id(self.state)

    @property
    def unit(self) -> str:
        """What losses are measured in."""
        return "nats per byte" if self.state.session.get("bytes_per_token", 1.0) == 1.0 else "nats per token"

    def proposal(self, recipe_id: str) -> dict[str, Any]:
        """What was proposed under a recipe id: name, parts, hypothesis, lane ...; empty if nothing was."""
        return self.state.proposals.get(recipe_id, {}).get("proposal", {})

    def name(self, recipe_id: str) -> str:
        """A recipe's name, or its id where it has none."""
        return self.proposal(recipe_id).get("name") or recipe_id

    def edits(self, recipe_id: str) -> list[dict[str, Any]]:
        """What separates a recipe from the base: {path, old, new}."""
        recipe = validate(Recipe, self.state.proposals[recipe_id]["recipe"])
        return [{"path": e.path, "old": e.old, "new": e.new} for e in diff(self.track.base_recipe, recipe).edits]

    def gain(self, trial: Trial) -> float | None:
        """Loss of the base's run in the same cell less this run's, on the search split.

        None for the base itself, and where either loss is missing.
        """
        split = self.track.splits.search
        level = self.state.losses(self.base or "", trial.horizon, split).get(trial.seed)
        loss = trial.loss.get(split)
        return None if trial.recipe_id == self.base or level is None or loss is None else level - loss

    def gains(self, recipe_id: str) -> dict[str, float]:
        """Gains of a recipe's completed full-horizon runs, by trial key."""
        full = (t for t in self.state.trials.values() if t.recipe_id == recipe_id and t.horizon == 1.0)
        return {t.key: gain for t in full if (gain := self.gain(t)) is not None}

    def losses(self, recipe_id: str) -> dict[str, dict[int, float]]:
        """Full-horizon losses by split and seed: of the verification runs if there are any, else of all."""
        splits = self.track.splits
        protected = self.state.losses(recipe_id, 1.0, splits.protected)
        search = self.state.losses(recipe_id, 1.0, splits.search)
        search = {seed: loss for seed, loss in search.items() if not protected or seed in protected}
        found = {splits.protected: protected, splits.search: search}
        for event in self.state.crowned:
            if event.subject == recipe_id and event.body.get("heldout") is not None:
                found[splits.heldout] = {event.body["seed"]: event.body["heldout"]}
        return {split: losses for split, losses in found.items() if losses}

    def measure(self, recipe_id: str) -> str | None:
        """A recipe in the objective's own terms, from its losses on the search split; None where that says no more."""
        split, objective, full = self.track.splits.search, self.track.objective, self.track.full_steps
        by_horizon = {h: list(self.state.losses(recipe_id, h, split).values()) for h in self.track.horizons}
        means = {h: float(np.mean(losses)) for h, losses in by_horizon.items() if losses}
        match objective:
            case LossAtSeconds(seconds=seconds) if 1.0 in means and self.state.session.get("bytes_per_token"):
                bits = means[1.0] / np.log(2) / self.state.session["bytes_per_token"]
                return f"{bits:.4f} bits per byte after {seconds:g} s"
            case StepsToTarget() if share := objective.reached(means):
                return f"loss {objective.target:g} after about {share * full:,.0f} steps"
            case TimeToTarget() if (share := objective.reached(means)) and (step_s := self.snapshot.base_step_s):
                return f"loss {objective.target:g} after about {share * full * step_s:,.0f} s"
        return None

    def side(self, recipe_id: str, comparison: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One side of the result: who, its losses, and how it compares."""
        losses, test = self.losses(recipe_id), comparison or {}
        return {
            "recipe_id": recipe_id,
            "name": self.name(recipe_id),
            "loss": {split: {"mean": float(np.mean(list(by.values()))), "by_seed": {str(s): v for s, v in by.items()}}
                     for split, by in losses.items()},
            "n_seeds": max((len(by) for by in losses.values()), default=0),
            **{key: test.get(key) for key in ("effect", "interval", "p_value", "p_adjusted")},
            "diff": self.edits(recipe_id),
            "measure": self.measure(recipe_id),
        }

    def champion(self) -> dict[str, Any] | None:
        """The champion's side, compared with the recipe it had to beat; None if none was crowned."""
        if (recipe_id := self.state.champion) is None:
            return None
        event = next(e for e in reversed(self.state.verifications) if e.subject == recipe_id and e.body["passed"])
        incumbent = self.seal(event)["incumbent"]
        side = self.side(recipe_id, event.body["comparisons"]["incumbent"])
        body = {"attempt": event.body["attempt"], "alpha": event.body["alpha"], "n": len(event.body["seeds"]),
                "against": incumbent}
        return side | body | {"over_base": self.over_base(recipe_id), "parts": self.parts(recipe_id)}

    def waiting(self) -> list[str]:
        """Recipes that passed and may still be crowned: nobody vetoed or overtook them. The largest effect first."""
        return [proof.sealed.subject for proof in pending(self.snapshot) if proof.sealed is not None]

    def said(self, recipe_id: str) -> str:
        """What a person decided last about a recipe, who, and why; empty if nobody did."""
        event = next((e for e in reversed(self.state.reviews) if e.subject == recipe_id), None)
        if event is None:
            return ""
        done = {"approve": "approved", "veto": "vetoed", "hold": "held"}[event.body["decision"]]
        note = f": {event.body['note']}" if event.body.get("note") else ""
        return f"{done} by {event.body.get('reviewer') or 'somebody'}{note}"

    def seal(self, verification: Event) -> dict[str, Any]:
        """The seal that a verification opened."""
        number = verification.body["nomination"]
        return next(e.body for e in self.state.sealed if e.body["nomination"] == number)

    def over_base(self, recipe_id: str) -> dict[str, Any] | None:
        """Comparison with the base on the seeds that both ran in full: the protected split where they share any."""
        for split in (self.track.splits.protected, self.track.splits.search):
            base, own = (self.state.losses(rid or "", 1.0, split) for rid in (self.base, recipe_id))
            if recipe_id != self.base and len(base.keys() & own.keys()) > 1:
                return compare(base, own).as_dict() | {"split": split}
        return None

    def parts(self, recipe_id: str) -> list[dict[str, Any]]:
        """The parts of a recipe: name, source, why, edits, and the ablation's row where it was ablated."""
        rows: dict[str, Any] = {}
        for ablation in self.state.ablations.values():
            rows.update({row["part"]: row for row in ablation["rows"] if ablation["recipe_id"] == recipe_id})
        return [{"name": p["name"], "source": p["source"], "why": p.get("why") or self._older_why(p["name"]),
                 "edits": p["edits"], "ablation": rows.get(p["name"])}
                for p in self.proposal(recipe_id).get("parts", ())]

    def _older_why(self, part: str) -> str:
        """A part's reason in a ledger of 0.2, whose parts do not hold it: that of the proposal that brought it."""
        for proposal in (body["proposal"] for body in self.state.proposals.values()):
            alone = len(proposal["parts"]) == 1 or proposal["lane"] in ("catalogue", INBOX, LLM)
            if alone and proposal["parts"] and proposal["parts"][-1]["name"] == part:  # what it is about comes last
                return proposal["hypothesis"]
        return ""

    def claim(self, recipe_id: str) -> str:
        """What a recipe claims: the reasons of its parts; its proposal's hypothesis where these have none.

        An ablation, or a move of numbers, proposes a whole recipe for a reason that is about a part of it alone.
        """
        parts = [part for part in self.parts(recipe_id) if part["why"]]
        if len(parts) < 2:
            return parts[0]["why"] if parts else self.proposal(recipe_id).get("hypothesis", "")
        return "; ".join(f"{part['name']}: {part['why']}" for part in parts)

    def verifications(self) -> list[dict[str, Any]]:
        """Every sealed attempt: what was tested, at which level, and what came out (`passed` None: not decided)."""
        spoken = {e.body["nomination"]: e.body for e in self.state.verifications}
        rows = []
        for number, event in enumerate(self.state.sealed, start=1):
            body = spoken.get(event.body["nomination"], {})
            rows.append({"recipe_id": event.subject, "name": self.name(event.subject), "attempt": number,
                         "alpha": event.body["alpha"], "n": event.body["n"], "incumbent": event.body["incumbent"],
                         "best_single": event.body.get("best_single"), "passed": body.get("passed"),
                         "seeds": body.get("seeds", []), "losses": body.get("losses", {}),
                         "comparisons": body.get("comparisons", {})})
        return rows

    def best_single(self) -> dict[str, Any] | None:
        """The best single catalogue idea, run beside the last sealed recipe; effect: of the sealed one over it."""
        row = next((row for row in reversed(self.verifications()) if row["best_single"]), None)
        return self.side(row["best_single"], row["comparisons"].get("best_single")) if row else None

    def frontier(self, most: int = 5) -> list[dict[str, Any]]:
        """The candidates with the highest expected effect among those that ran: mean, sd, measured gains, runs."""
        mean, sd = self.snapshot.effects if self.snapshot.arms else (np.zeros(0), np.zeros(0))
        ran = [i for i, arm in enumerate(self.snapshot.arms) if i and arm.recipe_id in self.snapshot.over]
        rows = []
        for i in sorted(ran, key=lambda i: -mean[i])[:most]:
            arm = self.snapshot.arms[i]
            gains = list(self.gains(arm.recipe_id).values())
            rows.append({"recipe_id": arm.recipe_id, "name": arm.name, "lane": arm.lane, "mean": float(mean[i]),
                         "sd": float(sd[i]), "runs": len(self.snapshot.over[arm.recipe_id]),
                         "measured": float(np.mean(gains)) if gains else None, "measured_n": len(gains)})
        return rows

    def lanes(self) -> dict[str, dict[str, Any]]:
        """By lane: proposals, accepted ones, finished runs, their device-seconds, and the best measured gain."""
        rows: dict[str, dict[str, Any]] = {}
        for recipe_id in self.state.proposals:
            row = rows.setdefault(self.proposal(recipe_id)["lane"],
                                  {"proposed": 0, "accepted": 0, "runs": 0, "device_seconds": 0.0, "best_gain": None})
            row["proposed"] += 1
            row["accepted"] += recipe_id in self.state.accepted
        for trial, result in self.results():
            if (row := rows.get(self.proposal(trial.recipe_id).get("lane", ""))) is not None:
                row["runs"] += 1
                row["device_seconds"] += result.get("device_s") or 0.0
                if (gain := self.gain(trial)) is not None:
                    row["best_gain"] = max(gain, row["best_gain"] if row["best_gain"] is not None else gain)
        return rows

    def llm(self) -> dict[str, Any] | None:
        """Requests to language models: outcomes, tokens, cost, and both per proposal accepted; None if there were none.

        See research.propose.spend.
        """
        accepted = self.lanes().get(LLM, {}).get("accepted", 0)
        return Spend.of(self.state.calls).as_dict(accepted) if self.state.calls else None

    def results(self) -> Iterator[tuple[Trial, dict[str, Any]]]:
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
                 **dict(zip(("predicted", "sd"), result["audit"]["predicted"], strict=True))}
                for trial, result in self.results() if result.get("audit")]

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        state, shares = self.state, self.state.shares()
        counts = {name: state.verdicts[name] for name in ("accepted", "refused")}
        return {
            "track": self.track.name,
            "unit": self.unit,
            "ended": state.end["reason"] if state.end else None,
            "verdict": dict(zip(("kind", "text"), verdict(self), strict=True)),
            "trials": state.counts(),
            "purposes": self.purposes(),
            "base": self.side(self.base) if self.base else None,
            "champion": self.champion(),
            "best_single": self.best_single(),
            "verifications": self.verifications(),
            "frontier": self.frontier(),
            "device_seconds": state.device_s,
            "wall_seconds": state.wall_s,
            "idle_fraction": shares["idle"],
            **{f"{name}_share": shares[name] for name in ("compile", "replicate", "kill", "verification")},
            "decisions": len(state.decisions),
            "proposals": counts | {"refusals": dict(state.refusals.most_common())},
            "lanes": self.lanes(),
            "llm": self.llm(),
            "audit": self.audit(),
        }


def verdict(facts: Facts) -> tuple[str, str]:
    """How the session came out, in a sentence or two. kind: proven, verified, refuted, none, open or empty."""
    state, where = facts.state, stage(facts.snapshot)
    if not state.trials:
        return "empty", "Nothing has run yet."
    proven, waiting = _proven(facts), _verified(facts)
    kind, found = proven or waiting or _refuted(facts) or ("none", "")
    found += f" {waiting[1]}" if proven and waiting else ""
    if state.end is None:
        return (kind if found else "open"), f"Not ended yet: {where}. {found}".strip()
    if found:
        return kind, found
    if state.nominated:
        why = f"{where}; {state.end['reason']}"
        return "none", f"No improvement proven: the session ended before the proof did ({why})."
    best = facts.frontier(1)
    if best and best[0]["mean"] > facts.track.epsilon:
        gain = spread(best[0]["mean"], best[0]["sd"])
        return "none", ("No improvement proven: the session ended before anything was tested on fresh seeds; "
                        f"{best[0]['name']} leads, expected to gain {gain} {facts.unit}.")
    counts = state.counts()
    lost = counts.pop("interrupted", 0)
    runs = count(sum(counts.values()), "run") + (f" ({lost} more interrupted)" if lost else "")
    if not sum(counts.values()):
        return "none", f"Nothing found out: {count(lost, 'run')} interrupted, none finished ({state.end['reason']})."
    return "none", (f"No improvement found: after {runs} no candidate is expected to gain more than "
                    f"{facts.track.epsilon:g} {facts.unit}.")


def _proven(facts: Facts) -> tuple[str, str] | None:
    champion = facts.champion()
    if champion is None:
        return None
    return "proven", f"Improvement proven: {_tested(facts, champion)}."


def _tested(facts: Facts, side: Mapping[str, Any]) -> str:
    """What the test of a recipe that passed has found."""
    low, high = side["interval"]
    against = "the base" if side["against"] == facts.base else facts.name(side["against"])
    return (f"{side['name']} lowers the loss by {side['effect']:.3f} {facts.unit} against {against} (95 % interval "
            f"{low:.3f} to {high:.3f}; p = {side['p_value']:.2g}, below the sealed {side['alpha']:.2g} of attempt "
            f"{side['attempt']}; {count(side['n'], 'fresh seed')})")


def _verified(facts: Facts) -> tuple[str, str] | None:
    """What passed against the incumbent and was not crowned, and at whose word."""
    waiting = facts.waiting()
    rows = [row for row in facts.verifications() if row["passed"] and row["incumbent"] == facts.snapshot.incumbent]
    if not rows:
        return None
    row = next((row for row in rows if waiting and row["recipe_id"] == waiting[0]), rows[-1])
    side = row | row["comparisons"]["incumbent"] | {"against": row["incumbent"]}
    return "verified", f"Verified, {facts.said(row['recipe_id']) or 'awaiting review'}: {_tested(facts, side)}."


def _refuted(facts: Facts) -> tuple[str, str] | None:
    failed = [row for row in facts.verifications() if row["passed"] is False]
    if not failed:
        return None
    test, asked = failed[-1]["comparisons"].get("incumbent") or {}, failed[-1]["n"]
    n = test.get("n", 0)
    found = f"both runs finished on {n} of {count(asked, 'sealed seed')}, and all are needed" if n < asked else ""
    if test and not found:
        found = f"effect {effect(test['effect'])} {facts.unit}, p = {test['p_value']:.2g}, on {count(n, 'seed')}; " \
                f"the sealed alpha was {failed[-1]['alpha']:.2g}"
    return "refuted", f"No improvement proven: {failed[-1]['name']} was tested on fresh seeds and failed ({found})."


def stage(snapshot: Snapshot) -> str:
    """What the session is at: searching, or a stage of the proof with its counts."""
    state = snapshot.state
    proof = Proof(snapshot, state.nominated[-1].subject, state.nominated[-1].body) if state.nominated else None
    if proof is None or proof.done:
        names = [snapshot.arms[snapshot.index[p.sealed.subject]].name for p in pending(snapshot) if p.sealed]
        return f"searching; verified and not crowned: {', '.join(names)}" if names else "searching"
    nominee, seal = proof.recipe_id, proof.sealed
    started = seal.seq if seal else state.nominated[-1].seq
    purposes = ("verify",) if seal else ("replicate", "ablate")
    runs = [a for a in state.attempts() if a.seq > started and a.purpose in purposes]
    done = sum((a.result or {}).get("outcome") in FINAL for a in runs)
    if seal:
        roles = {seal.subject, seal.body["incumbent"], seal.body.get("best_single")} - {None}
        return f"attempt {seal.body['attempt']} sealed at alpha {seal.body['alpha']:.2g}: verifying, " \
               f"{done} of {len(roles) * seal.body['n']} runs done"
    what = "trying without barnacles" if nominee in state.ablations else "replicating and ablating"
    return f"{what}, {count(done, 'run')} done"
