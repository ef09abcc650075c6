"""Which run comes next: of the arms that may still be best, the one that tells and gains most per second."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from research.contract.part import FROM, INBOX, INVENT
from research.contract.trial import Trial
from research.decide.belief import SEEDS, Arm, Snapshot
from research.decide.price import Prices
from research.learn import allocate
from research.ledger.kinds import Competitor, Decided

POOL = 40  # candidates that compete for the next run
STRONG = 2.0  # standard deviations that make up "may still be best"
EXPLORED = 0.05  # of the search's device-seconds, at least, for what nobody has said yet

Chosen = tuple[Trial, Decided]  # a run, and why it is the next one


def pool(now: Snapshot) -> list[int]:
    """The arms that compete: the base, those in flight, and those that may still be best."""
    worth, (_, sd) = now.worth, now.effects
    busy = {trial.recipe_id for trial in now.running}
    ranked = sorted(range(1, len(now.arms)), key=lambda i: -(worth[i] + STRONG * sd[i]))
    kept = [i for i in ranked if now.arms[i].recipe_id not in now.broken][:POOL]
    return [0, *dict.fromkeys([*(i for i in ranked if now.arms[i].recipe_id in busy), *kept])]


def contenders(now: Snapshot) -> int:
    """Accepted arms without a run that may well be better than the best that has run."""
    worth, (_, sd) = now.worth, now.effects
    busy = {trial.recipe_id for trial in now.running}
    tried = [rid in now.over or rid in busy for rid in (arm.recipe_id for arm in now.arms)]
    best = max((float(w) for w, ran in zip(worth, tried, strict=True) if ran), default=0.0)
    return sum(not ran and w + s > best for ran, w, s in zip(tried[1:], worth[1:], sd[1:], strict=True))


def rewards(now: Snapshot, lanes: Collection[str]) -> list[allocate.Reward]:
    """What each finished run added to the best effect so far, by lane, in the order of the ledger."""
    best, found, base = 0.0, [], now.arms[0].recipe_id
    for trial in now.state.trials.values():
        lane = now.state.proposals[trial.recipe_id].proposal.lane if trial.recipe_id in now.state.proposals else ""
        effect = now.state.gains(trial.recipe_id, base, trial.horizon, now.track.splits.search).get(trial.seed)
        if effect is not None and lane in lanes:
            device_s = (trial.result and trial.result.device_s) or 1.0
            found.append(allocate.Reward(lane, max(0.0, effect - best), device_s))
            best = max(best, effect)
    return found


def untimed(prices: Prices) -> bool:
    """Whether nobody can run yet but the base, whose steps set everybody's time."""
    return prices.snapshot.track.objective.waits_for_base and prices.base_step_s is None


def fitting(prices: Prices, worker: int, left_s: float) -> list[float]:
    """The horizons at which a run of the base fits into the time left."""
    now = prices.snapshot
    return [h for h in now.track.horizons if prices.wall_s(now.arms[0], h, worker) <= left_s]


def promised(prices: Prices, worker: int, left_s: float) -> Chosen | None:
    """The first run of the oldest proposal from the inbox that has none; at most every second search run is one.

    At the shortest horizon, where the base goes first; one that was interrupted is still owed. Before them comes
    the incumbent of an earlier session: all are measured against it.
    """
    now = prices.snapshot
    tried = {*now.over, *(trial.recipe_id for trial in now.running)}
    owed = [a for a in now.arms if a.lane in (FROM, INBOX) and a.recipe_id not in tried]
    arm = min(owed, key=lambda a: a.lane != FROM, default=None)
    horizon = min(now.track.horizons)
    kept = sum(e.body.promised for e in now.state.decisions)
    searched = sum(e.body.purpose == "search" for e in now.state.decisions)
    if arm is None or now.arms[0].recipe_id in now.broken or 2 * kept > searched:
        return None
    if prices.wall_s(arm, horizon, worker) > left_s:
        return None
    if (base := _base_first(now, worker, left_s, f"the base for {arm.name}")) or untimed(prices):
        return base
    return Trial(arm.recipe_id, horizon, 0), Decided(
        purpose="search", promised=True, worker=worker, left_s=left_s, as_of=now.state.seq,
        why=f"first run of {arm.name}, {'the incumbent' if arm.lane == FROM else 'proposed from outside'}")


def explored(prices: Prices, worker: int, left_s: float) -> Chosen | None:
    """The first run of the most novel invention that has none, at the shortest horizon, while inventions have had less
    than their share: nothing is known that would speak for them, so that by gains alone they would hardly be tried."""
    now = prices.snapshot
    seconds: dict[bool, float] = {False: 0.0, True: 0.0}
    for trial in now.state.trials.values():
        arm = now.by_id.get(trial.recipe_id)
        seconds[arm is not None and arm.lane == INVENT] += (trial.result and trial.result.device_s) or 0.0
    tried = {*now.over, *(trial.recipe_id for trial in now.running)}
    new = [a for a in now.arms if a.lane == INVENT and a.recipe_id not in tried]
    busy = any(now.by_id[t.recipe_id].lane == INVENT for t in now.running if t.recipe_id in now.by_id)
    if not new or busy or untimed(prices) or seconds[True] >= EXPLORED * sum(seconds.values()):
        return None
    novelty = {a.recipe_id: now.state.proposals[a.recipe_id].proposal.novelty or 0.0 for a in new}
    arm, horizon = max(new, key=lambda a: novelty[a.recipe_id]), min(now.track.horizons)
    if now.arms[0].recipe_id in now.broken or prices.wall_s(arm, horizon, worker) > left_s:
        return None
    return _base_first(now, worker, left_s, f"the base for {arm.name}") or (Trial(arm.recipe_id, horizon, 0), Decided(
        purpose="search", worker=worker, left_s=left_s, as_of=now.state.seq,
        why=f"first run of {arm.name}, an invention, {novelty[arm.recipe_id]:.2f} from what is known"))


def _base_first(now: Snapshot, worker: int, left_s: float, why: str) -> Chosen | None:
    """The base's run in the first cell, unless it is over or in flight."""
    base = Trial(now.arms[0].recipe_id, min(now.track.horizons), 0)
    if base in now.running or base in now.over.get(base.recipe_id, ()):
        return None
    return base, Decided(purpose="base", worker=worker, left_s=left_s, as_of=now.state.seq, why=why)


def decide(prices: Prices, seed: int, worker: int, left_s: float, seeds: int = SEEDS) -> Chosen | None:
    """The next search run; None if nothing fits into the time left.

    Args: seed: the session's. worker: who will run it. left_s: seconds until the search must be over. seeds: common
    seeds that there are.
    """
    now = prices.snapshot
    if untimed(prices):
        return _base_first(now, worker, left_s, "its steps set the time that everybody gets")
    arms, horizons = [now.arms[i] for i in pool(now)], fitting(prices, worker, left_s)
    if not horizons or len(arms) < 2:
        return None
    number = {arm.recipe_id: n for n, arm in enumerate(arms)}

    def runs(trials: Iterable[Trial]) -> list[allocate.Action]:
        return [allocate.Action(number[t.recipe_id], t.horizon, t.seed) for t in trials if t.recipe_id in number]

    chosen = allocate.choose(
        now.fitted, [arm.candidate for arm in arms],
        history=runs(t for trials in now.over.values() for t in trials), pending=runs(now.running),
        horizons=horizons, max_seeds=seeds, epsilon=now.track.epsilon,
        cost_s=np.array([[prices.seconds(arm, h, worker) for h in horizons] for arm in arms]),
        limit_s=left_s / prices.slowdown, names=[arm.recipe_id for arm in arms],
        rng=np.random.default_rng([seed, now.state.seq]),
    )
    if chosen is None:
        return None
    trial = Trial(arms[chosen.action.candidate].recipe_id, chosen.action.horizon, chosen.action.seed)
    return trial, Decided(purpose=chosen.purpose, worker=worker, left_s=left_s, as_of=now.state.seq,
                          **_reasons(now, arms, chosen))


def _reasons(now: Snapshot, arms: list[Arm], chosen: allocate.Decision) -> dict[str, Any]:
    """What the winner was worth, and the runners-up, for the ledger."""
    def scored(one: allocate.Scored) -> Competitor:
        arm = arms[one.run.candidate]
        key = Trial(arm.recipe_id, one.run.horizon, one.run.seed).key
        return Competitor(trial=key, name=arm.name, eig=one.eig, improvement=one.improvement, cost_s=one.cost_s)

    best, winner = chosen.winner, arms[chosen.winner.run.candidate]
    mean, sd = (float(values[now.index[winner.recipe_id]]) for values in now.effects)
    return {"eig": best.eig, "improvement": best.improvement, "cost_s": best.cost_s, "score": best.score,
            "why": f"{winner.name}: effect {mean:+.3f} +- {sd:.3f}", "winner": scored(best),
            "runners_up": tuple(scored(one) for one in chosen.runners_up)}
