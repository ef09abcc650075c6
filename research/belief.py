"""What the loop believes: a pure function of the ledger's state. The same prefix gives the same decision, always."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from jaxnano import preflight
from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe, recipe_id, structure_id
from research import allocate
from research.features import features
from research.posterior import Candidate, Fitted, Observation, Posterior
from research.propose import Known, Part, View, parts_of, promises
from research.state import FINAL, State
from research.track import TimeToTarget, Track
from research.trial import Trial

POOL = 40  # candidates that compete for the next run
SEEDS = 8  # common seeds 0 .. 7 of the search
COMPILE_S, SECONDS_PER_FLOP, ON_ACCELERATOR = 8.0, 3e-12, 1e-14  # before anything was measured
IN_MEMORY, ON_DISK = 0.05, 0.4  # shares of compiling where this worker, or another one, did it before
PATIENCE_S = {"cpu": 120.0}  # at least, for the first message of a run, by backend; it tells that a run has compiled
LONG_PATIENCE_S, PATIENT = 1800.0, 4.0  # on another backend, or before anything was measured; compile times to wait
START_S = 0.3  # of a run, beside training
SLOWDOWN, FIRST_RUNS = 1.2, 4  # seconds per device-second before anything was measured; runs in which workers import
INBOX, LLM = "inbox", "llm"  # lanes of people and coding agents, and of a language model: others submit for these
FROM = "from"  # the lane of an earlier session's champion, which is this one's incumbent
STRONG = 2.0  # standard deviations that make up "may still be best"


@dataclass(frozen=True)
class Arm:
    """An accepted recipe. structure: what it compiles. flops: of a step. base is number 0."""

    recipe_id: str
    name: str
    recipe: Recipe
    parts: tuple[Part, ...]
    candidate: Candidate
    lane: str
    structure: str
    flops: float


@dataclass
class Belief:
    """Arms and posterior of one session. Keeps what it has computed of arms; nothing else is remembered."""

    track: Track
    posterior: Posterior = field(default_factory=Posterior)
    _arms: dict[str, Arm] = field(default_factory=dict)
    _origins: dict[Part, str] = field(default_factory=dict)  # who promises a part's effect; "" is the catalogue
    _steps: dict[tuple[str, float], int] = field(default_factory=dict)

    def arms(self, state: State) -> list[Arm]:
        """Accepted recipes, in the order of their proposals, whatever was asked before; the base first."""
        for rid, body in state.proposals.items():
            if rid in state.accepted and rid not in self._arms:
                self._arms[rid] = self._arm(rid, body)
        arms = [self._arms[rid] for rid in state.proposals if rid in state.accepted]
        return sorted(arms, key=lambda arm: arm.recipe_id != self.base_id)

    @cached_property
    def base_id(self) -> str:
        """Id of the track's base."""
        return recipe_id(self.track.base_recipe)

    def _arm(self, rid: str, body: dict[str, Any]) -> Arm:
        recipe, proposal = validate(Recipe, body["recipe"]), body["proposal"]
        parts = parts_of(proposal)
        candidate = Candidate(features(self.track.base_recipe, recipe), self._promise(parts, proposal))
        cost = preflight.preflight(recipe)
        return Arm(rid, proposal["name"], recipe, parts, candidate, proposal["lane"],
                   structure_id(recipe), cost.flops_per_step)

    def _promise(self, parts: tuple[Part, ...], proposal: dict[str, Any]) -> dict[str, float]:
        """What the parts promise together, nats, by who was the first to promise each."""
        outsider = f"{proposal['lane']} {proposal['origin']}" if proposal["lane"] in (INBOX, LLM) else ""
        found: dict[str, float] = {}
        for part, effect in zip(parts, promises(parts), strict=True):
            origin = self._origins.setdefault(part, outsider)
            found[origin] = found.get(origin, 0.0) + effect
        return found

    def steps(self, arm: Arm, horizon: float) -> int:
        """Steps of a run; kept, since every decision asks for all arms (counting FLOPs took half of its time)."""
        if (arm.recipe_id, horizon) not in self._steps:
            self._steps[arm.recipe_id, horizon] = self.track.steps(arm.recipe, horizon)
        return self._steps[arm.recipe_id, horizon]

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

    @property
    def incumbent(self) -> str:
        """The recipe a candidate has to beat: the champion, this session's or an earlier one's, or the base."""
        return self.state.champion or self.state.session.get("incumbent") or self.arms[0].recipe_id

    @cached_property
    def fitted(self) -> Fitted:
        """The posterior given all finished and killed runs."""
        observations, diverged = [], []
        for trial in self.state.trials.values():
            result, arm = trial.result, self._arm(trial.recipe_id)
            if arm is None or result is None or trial.seed >= SEEDS:
                continue
            common = {"features": arm.candidate.features, "horizon": trial.horizon, "seed": trial.seed,
                      "promise": arm.candidate.promise}
            match result["outcome"]:
                case "completed":
                    loss = result["loss"][self.belief.track.splits.search]
                    observations.append(Observation(loss=loss, **common))
                case "killed" if result.get("predicted"):
                    mean, sd = result["predicted"]
                    observations.append(Observation(loss=mean, noise_sd=sd, **common))
                case "diverged":
                    diverged.append(arm.candidate.features)
        return self.belief.posterior.fit(observations, diverged)

    def _arm(self, recipe_id: str) -> Arm | None:
        return self.arms[self.index[recipe_id]] if recipe_id in self.index else None

    @cached_property
    def effects(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each arm's full-horizon effect, nats."""
        mean, covariance = self.fitted.predict([arm.candidate for arm in self.arms])
        return mean, np.sqrt(np.maximum(np.diag(covariance), 0.0))

    @cached_property
    def p_diverge(self) -> np.ndarray:
        """Probability that a run of each arm diverges."""
        return self.fitted.p_diverge([arm.candidate.features for arm in self.arms])

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
        bad = {t.recipe_id for t in self.state.trials.values() if t.outcome in ("diverged", "failed", "timeout")}
        return {recipe_id for recipe_id in bad if not self.finished[recipe_id]}

    @cached_property
    def over(self) -> dict[str, list[Trial]]:
        """Runs that are over, by recipe id; an interrupted one is not."""
        found: dict[str, list[Trial]] = {}
        for trial in self.state.trials.values():
            if trial.outcome in FINAL:
                found.setdefault(trial.recipe_id, []).append(Trial(trial.recipe_id, trial.horizon, trial.seed))
        return found

    @cached_property
    def running(self) -> list[Trial]:
        """Runs in flight."""
        return [Trial(t.recipe_id, t.horizon, t.seed) for t in self.state.trials.values() if t.outcome == "running"]

    def contenders(self) -> int:
        """Accepted arms without a run that may well be better than the best that has run."""
        worth, (_, sd) = self.worth, self.effects
        busy = {trial.recipe_id for trial in self.running}
        tried = [rid in self.over or rid in busy for rid in (arm.recipe_id for arm in self.arms)]
        best = max((float(w) for w, ran in zip(worth, tried, strict=True) if ran), default=0.0)
        return sum(not ran and w + s > best for ran, w, s in zip(tried[1:], worth[1:], sd[1:], strict=True))

    def broken(self, recipe_id: str) -> bool:
        """Whether a recipe failed or ran out of time: it is not tried again."""
        return recipe_id in self._broken

    @cached_property
    def _broken(self) -> set[str]:
        return {t.recipe_id for t in self.state.trials.values() if t.outcome in ("failed", "timeout")}

    def pool(self) -> list[int]:
        """The arms that compete: the base, those in flight, and those that may still be best."""
        worth, (_, sd) = self.worth, self.effects
        busy = {trial.recipe_id for trial in self.running}
        ranked = sorted(range(1, len(self.arms)), key=lambda i: -(worth[i] + STRONG * sd[i]))
        kept = [i for i in ranked if not self.broken(self.arms[i].recipe_id)][:POOL]
        return [0, *dict.fromkeys([*(i for i in ranked if self.arms[i].recipe_id in busy), *kept])]

    def view(self) -> View:
        """What proposers may know."""
        mean, sd = self.effects
        known = [Known(a.recipe_id, a.name, a.recipe, a.parts, float(m), float(s), self.finished[a.recipe_id], float(w))
                 for a, m, s, w in zip(self.arms, mean, sd, self.worth, strict=True)
                 if a.recipe_id not in self.fallen]
        known.sort(key=lambda k: -k.worth)
        return View(self.belief.track, known, frozenset(self.state.proposals))

    def seconds(self, arm: Arm, horizon: float, worker: int) -> float:
        """Predicted device-seconds of a run, compiling included where the structure is new to the worker."""
        seen = self._compiled.get(arm.structure)
        share = 1.0 if seen is None else IN_MEMORY if worker in seen else ON_DISK  # another worker's program is on disk
        trained_s = self.budget_s(arm, horizon) or self.belief.steps(arm, horizon) * arm.flops * self._rates[0]
        return trained_s + share * self.compile_s + START_S

    def wall_s(self, arm: Arm, horizon: float, worker: int) -> float:
        """Predicted seconds until a run begun now is over: its device-seconds, as slow as this machine is."""
        return self.slowdown * self.seconds(arm, horizon, worker)

    def budget_s(self, arm: Arm, horizon: float) -> float | None:
        """Seconds a run may train for, where the track's budget is time; the base's steps set it where it is theirs."""
        track = self.belief.track
        by_base = isinstance(track.objective, TimeToTarget)
        return None if by_base and arm is self.arms[0] else track.seconds(horizon, self.base_step_s)

    @cached_property
    def base_step_s(self) -> float | None:
        """Seconds of the base's step, the median over its runs; None before the first."""
        base = self.arms[0]
        rates = [t.result["tokens_per_s"] for t in self.state.trials.values()
                 if t.recipe_id == base.recipe_id and t.loss and t.result and t.result["tokens_per_s"]]
        return base.recipe.data.batch * base.recipe.data.length / float(np.median(rates)) if rates else None

    @cached_property
    def _compiled(self) -> dict[str, set[int]]:
        """The workers whose present process was given each structure; none where only others, now gone, were."""
        found: dict[str, set[int]] = {}
        attempts = sorted((a for t in self.state.trials.values() for a in t.attempts), key=lambda a: a.seq)
        latest = {a.worker: 0 if "exit" in (a.result or {}) else a.pid for a in attempts}  # 0: it died with its run
        for trial in self.state.trials.values():
            if (arm := self._arm(trial.recipe_id)) is not None:
                found.setdefault(arm.structure, set()).update(
                    a.worker for a in trial.attempts if a.pid and a.pid == latest[a.worker])
        return found

    @property
    def compile_s(self) -> float:
        """Predicted seconds to compile a structure nobody has seen."""
        return self._rates[1]

    def first_message_s(self, arm: Arm) -> float:
        """How long a run may be silent at its start: it compiles, a deeper model for longer.

        Before a run has told how long that takes here, long: a base that is given up ends the session.
        """
        done = [t.result for t in self.state.trials.values() if t.loss and t.result]
        if not done:
            return LONG_PATIENCE_S
        deeper = max(1.0, arm.recipe.model.depth / self.arms[0].recipe.model.depth)
        least = max(PATIENCE_S.get(r.get("fingerprint", {}).get("backend", "cpu"), LONG_PATIENCE_S) for r in done)
        return max(least, PATIENT * deeper * max(r.get("compile_s") or 0.0 for r in done))

    @property
    def full_run_s(self) -> float:
        """Predicted seconds of a compiled full-horizon run; the budget is the same for all recipes."""
        track = self.belief.track
        flops = track.full_steps * track.base_cost.flops_per_step
        return (track.seconds(1.0, self.base_step_s) or flops * self._rates[0]) + START_S

    def rewards(self, lanes: Collection[str]) -> list[allocate.Reward]:
        """What each finished run added to the best effect so far, by lane, in the order of the ledger."""
        best, rewards, base = 0.0, [], self.arms[0].recipe_id
        split = self.belief.track.splits.search
        for trial in self.state.trials.values():
            lane = self.state.proposals.get(trial.recipe_id, {}).get("proposal", {}).get("lane")
            level = self.state.losses(base, trial.horizon, split).get(trial.seed)
            if trial.loss and level is not None and lane in lanes:
                effect = level - trial.loss[split]
                device_s = (trial.result or {}).get("device_s") or 1.0
                rewards.append(allocate.Reward(lane, max(0.0, effect - best), device_s))
                best = max(best, effect)
        return rewards

    @cached_property
    def _rates(self) -> tuple[float, float]:
        """Measured device-seconds per FLOP and seconds to compile, medians."""
        rates, compiles = [], []
        for trial in self.state.trials.values():
            result, arm = trial.result, self._arm(trial.recipe_id)
            if arm and result and result["outcome"] == "completed" and result.get("device_s"):
                tokens = arm.recipe.data.batch * arm.recipe.data.length
                if result["tokens_per_s"]:
                    rates.append(tokens / (result["tokens_per_s"] * arm.flops))
                compiles += [result["compile_s"]] if result["compile_s"] > 1.0 else []
        guess = ON_ACCELERATOR if self.state.session.get("accelerator") else SECONDS_PER_FLOP
        return (float(np.median(rates)) if rates else guess,
                float(np.median(compiles)) if compiles else COMPILE_S)

    @cached_property
    def slowdown(self) -> float:
        """Seconds that pass per device-second of a run, at the median: above 1 where others use the machine."""
        ratios = [t.result["wall_s"] / t.result["device_s"] for t in self.state.trials.values()
                  if t.loss and t.result and t.result.get("device_s") and t.result.get("wall_s")]
        ratios = ratios[FIRST_RUNS:]  # a worker's first run imports what it needs
        return max(1.0, float(np.median(ratios))) if ratios else SLOWDOWN

    def promised(self, worker: int, left_s: float) -> tuple[Trial, dict[str, Any]] | None:
        """The first run of the oldest proposal from the inbox that has none; at most every second search run is one.

        At the shortest horizon, where the base goes first; one that was interrupted is still owed. Before them comes
        the incumbent of an earlier session: all are measured against it. Returns: as `decide`.
        """
        tried = {*self.over, *(trial.recipe_id for trial in self.running)}
        owed = [a for a in self.arms if a.lane in (FROM, INBOX) and a.recipe_id not in tried]
        arm = min(owed, key=lambda a: a.lane != FROM, default=None)
        horizon = min(self.belief.track.horizons)
        kept = sum(bool(e.body.get("promised")) for e in self.state.decisions)
        searched = sum(e.body["purpose"] == "search" for e in self.state.decisions)
        if arm is None or self.broken(self.arms[0].recipe_id) or 2 * kept > searched:
            return None
        if self.wall_s(arm, horizon, worker) > left_s:
            return None
        if (base := self._base_first(worker, left_s, f"the base for {arm.name}")) or self.untimed:
            return base
        return Trial(arm.recipe_id, horizon, 0), {
            "purpose": "search", "promised": True, "worker": worker, "left_s": left_s, "as_of": self.state.seq,
            "why": f"first run of {arm.name}, {'the incumbent' if arm.lane == FROM else 'proposed from outside'}"}

    @property
    def untimed(self) -> bool:
        """Whether nobody can run yet but the base, whose steps set everybody's time."""
        return isinstance(self.belief.track.objective, TimeToTarget) and self.base_step_s is None

    def _base_first(self, worker: int, left_s: float, why: str) -> tuple[Trial, dict[str, Any]] | None:
        """The base's run in the first cell, unless it is over or in flight."""
        base = Trial(self.arms[0].recipe_id, min(self.belief.track.horizons), 0)
        if base in self.running or base in self.over.get(base.recipe_id, ()):
            return None
        return base, {"purpose": "base", "worker": worker, "left_s": left_s, "as_of": self.state.seq, "why": why}

    def fitting(self, worker: int, left_s: float) -> list[float]:
        """The horizons at which a run of the base fits into the time left."""
        return [h for h in self.belief.track.horizons if self.wall_s(self.arms[0], h, worker) <= left_s]

    def decide(self, seed: int, worker: int, left_s: float) -> tuple[Trial, dict[str, Any]] | None:
        """The next search run, and the body of its `decision` event; None if nothing fits into the time left.

        Args: seed: the session's. worker: who will run it. left_s: seconds until the search must be over.
        """
        track, pool = self.belief.track, self.pool()
        if self.untimed:
            return self._base_first(worker, left_s, "its steps set the time that everybody gets")
        horizons = self.fitting(worker, left_s)
        if not horizons or len(pool) < 2:
            return None
        number = {self.arms[i].recipe_id: n for n, i in enumerate(pool)}
        runs = lambda trials: [allocate.Run(number[t.recipe_id], t.horizon, t.seed) for t in trials  # noqa: E731
                               if t.recipe_id in number]
        chosen = allocate.choose(
            self.fitted, [self.arms[i].candidate for i in pool],
            history=runs(t for trials in self.over.values() for t in trials), pending=runs(self.running),
            horizons=horizons, max_seeds=SEEDS, epsilon=track.epsilon,
            cost_s=np.array([[self.seconds(self.arms[i], h, worker) for h in horizons] for i in pool]),
            limit_s=left_s / self.slowdown, names=[self.arms[i].recipe_id for i in pool],
            rng=np.random.default_rng([seed, self.state.seq]),
        )
        if chosen is None:
            return None
        arm = self.arms[pool[chosen.action.candidate]]
        trial = Trial(arm.recipe_id, chosen.action.horizon, chosen.action.seed)
        mean, sd = self.effects
        winner = self.arms[pool[chosen.winner.run.candidate]]
        at = pool[chosen.winner.run.candidate]
        scored = lambda s: {"trial": Trial(self.arms[pool[s.run.candidate]].recipe_id, *s.run[1:]).key,  # noqa: E731
                            "name": self.arms[pool[s.run.candidate]].name, "eig": s.eig,
                            "improvement": s.improvement, "cost_s": s.cost_s}
        why = f"{winner.name}: effect {mean[at]:+.3f} +- {sd[at]:.3f}"
        return trial, {"purpose": chosen.purpose, "worker": worker, "left_s": left_s, "as_of": self.state.seq,
                       "eig": chosen.winner.eig, "improvement": chosen.winner.improvement,
                       "cost_s": chosen.winner.cost_s, "score": chosen.winner.score, "why": why,
                       "winner": scored(chosen.winner), "runners_up": [scored(s) for s in chosen.runners_up]}
