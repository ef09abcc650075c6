"""Which run comes next: of all arms, the one that gains most per second; what is promised to some goes before it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from research.contract.part import FROM, INBOX, INVENT
from research.contract.trial import Trial
from research.decide.belief import SEEDS, Snapshot
from research.decide.price import Prices
from research.learn import allocate
from research.learn.allocate import Action
from research.learn.pay import Reward
from research.ledger.kinds import Competitor, Decided
from research.ledger.state import FINAL, TrialRecord

EXPLORED = 0.05  # of the search's device-seconds, at least, for what nobody has said yet

Chosen = tuple[Trial, Decided]  # a run, and why it is the next one


def contenders(now: Snapshot) -> int:
    """Accepted arms without a run that may well be better than the best that has run."""
    worth, (_, sd) = now.worth, now.effects
    busy = {trial.recipe_id for trial in now.running}
    tried = [rid in now.over or rid in busy for rid in (arm.recipe_id for arm in now.arms)]
    best = max((float(w) for w, ran in zip(worth, tried, strict=True) if ran), default=0.0)
    return sum(not ran and w + s > best for ran, w, s in zip(tried[1:], worth[1:], sd[1:], strict=True))


def rewards(now: Snapshot, lanes: Collection[str]) -> list[Reward]:
    """What each search run that is over added to the best full-horizon mean, by lane, in the order of the ledger.

    Means are what is believed now, so that no seed's luck is paid for; a recipe earns its own at its first run that was
    completed; runs that broke off are charged too.
    """
    mean, _ = now.effects
    best, seen, found = 0.0, set(), []
    for trial in now.state.trials.values():
        arm = now.by_id.get(trial.recipe_id)
        if arm is None or trial.outcome not in FINAL or trial.attempts[0].purpose != "search":
            continue
        rise = 0.0
        if trial.outcome == "completed" and trial.recipe_id not in seen:
            seen.add(trial.recipe_id)
            rise = max(0.0, float(mean[now.index[trial.recipe_id]]) - best)
            best += rise
        if arm.lane in lanes:
            found.append(Reward(arm.lane, rise, _spent_s(trial)))
    return found


def _spent_s(trial: TrialRecord) -> float:
    """Device-seconds of all attempts at a run; what the clock says of one that did not live to tell."""
    return sum((a.result.device_s if a.result else None) or (a.ended or a.started) - a.started for a in trial.attempts)


def untimed(prices: Prices) -> bool:
    """Whether nobody can run yet but the base, whose steps set everybody's time."""
    return prices.snapshot.track.objective.waits_for_base and prices.base_step_s is None


def fitting(prices: Prices, worker: int, left_s: float) -> list[float]:
    """The horizons at which a run of the base fits into the time left."""
    now = prices.snapshot
    return [h for h in now.track.horizons if prices.wall_s(now.arms[0], h, worker) <= left_s]


def promised(prices: Prices, worker: int, left_s: float) -> Chosen | None:
    """The first run of the oldest proposal from the inbox that has none; at most every second search run is one.

    At the shortest horizon and on seed 0, as the proposer was told, where the base goes first; one that was interrupted
    is still owed. Before them comes the incumbent of an earlier session: all are measured against it.
    """
    now = prices.snapshot
    tried = {*now.over, *(trial.recipe_id for trial in now.running)}
    owed = [a for a in now.arms if a.lane in (FROM, INBOX) and a.recipe_id not in tried]
    arm = min(owed, key=lambda a: a.lane != FROM, default=None)
    kept = sum(e.body.promised for e in now.state.decisions)
    searched = sum(e.body.purpose == "search" for e in now.state.decisions)
    if arm is None or 2 * kept > searched:
        return None
    whose = "the incumbent" if arm.lane == FROM else "proposed from outside"
    run = Action(now.index[arm.recipe_id], min(now.track.horizons), 0)
    return _first(prices, run, worker, left_s, f"first run of {now.names(arm.recipe_id)}, {whose}", promised=True)


def explored(prices: Prices, worker: int, left_s: float, seeds: int = SEEDS) -> Chosen | None:
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
    arm = max(new, key=lambda a: novelty[a.recipe_id])
    why = f"first run of {now.names(arm.recipe_id)}, an invention, {novelty[arm.recipe_id]:.2f} from what is known"
    run = next(allocate.open_runs([now.index[arm.recipe_id]], _taken(now), [min(now.track.horizons)], seeds))
    return _first(prices, run, worker, left_s, why)


def _first(prices: Prices, run: Action, worker: int, left_s: float, why: str, **about: Any) -> Chosen | None:
    """An arm's first run, if it fits into the time left and the base can run; the base's in its cell, where there is
    none, comes before it."""
    now = prices.snapshot
    arm = now.arms[run.candidate]
    if now.arms[0].recipe_id in now.broken or prices.wall_s(arm, run.horizon, worker) > left_s:
        return None
    if run._replace(candidate=0) not in _taken(now) or untimed(prices):
        return _base(now, worker, left_s, f"the base for {now.names(arm.recipe_id)}", run.seed)
    return Trial(arm.recipe_id, run.horizon, run.seed), Decided(
        purpose="search", worker=worker, left_s=left_s, as_of=now.state.seq, why=why, **about)


def _base(now: Snapshot, worker: int, left_s: float, why: str, seed: int = 0) -> Chosen | None:
    """The base's run at the shortest horizon, unless it is over or in flight."""
    base = Trial(now.arms[0].recipe_id, min(now.track.horizons), seed)
    if base in now.running or base in now.over.get(base.recipe_id, ()):
        return None
    return base, Decided(purpose="base", worker=worker, left_s=left_s, as_of=now.state.seq, why=why)


def _taken(now: Snapshot) -> set[Action]:
    """The runs that are over or in flight."""
    return {*_runs(now, now.running), *_runs(now, (t for trials in now.over.values() for t in trials))}


def _runs(now: Snapshot, trials: Iterable[Trial]) -> list[Action]:
    """The trials as the allocator sees them."""
    return [Action(now.index[t.recipe_id], t.horizon, t.seed) for t in trials if t.recipe_id in now.index]


def _parents(now: Snapshot) -> dict[int, list[int]]:
    """Of each arm that has some among the arms."""
    told = ((i, now.state.proposals[arm.recipe_id].proposal.parents) for i, arm in enumerate(now.arms))
    return {i: [now.index[rid] for rid in parents if rid in now.index] for i, parents in told if parents}


def decide(prices: Prices, seed: int, worker: int, left_s: float, seeds: int = SEEDS, by: allocate.By | None = None
           ) -> Chosen | None:
    """The next search run; None if nothing fits into the time left.

    Args: seed: the session's. worker: who will run it. left_s: seconds until the search must be over. seeds: common
    seeds that there are. by: what to go by, see `allocate.choose`.
    """
    now = prices.snapshot
    if untimed(prices):
        return _base(now, worker, left_s, "its steps set the time that everybody gets")
    horizons = fitting(prices, worker, left_s)
    if not horizons or len(now.arms) < 2:
        return None
    chosen = allocate.choose(
        now.fitted, [arm.candidate for arm in now.arms],
        history=_runs(now, (t for trials in now.over.values() for t in trials)), pending=_runs(now, now.running),
        horizons=horizons, max_seeds=seeds, epsilon=now.track.epsilon, parents=_parents(now),
        told=[i for i, arm in enumerate(now.arms) if arm.lane == INBOX],
        cost_s=np.array([[prices.seconds(arm, h, worker) for h in horizons] for arm in now.arms]),
        limit_s=left_s / prices.slowdown, names=[arm.recipe_id for arm in now.arms], by=by,
        barred={now.index[rid] for rid in now.broken if rid in now.index},
        fallen={now.index[rid] for rid in now.fallen if rid in now.index},
        rng=np.random.default_rng([seed, now.state.seq]),
    )
    if chosen is None:
        return None
    arm, horizon, number = now.arms[chosen.action.candidate], chosen.action.horizon, chosen.action.seed
    return Trial(arm.recipe_id, horizon, number), Decided(
        purpose=chosen.purpose, worker=worker, left_s=left_s, as_of=now.state.seq, **_reasons(now, chosen))


def matters(prices: Prices, decided: Decided) -> bool:
    """Whether a run's gain can matter: gaining so much per second until the search is over would make an epsilon.

    Less than that is less than what counts as a difference, however long the search goes on; time is better spent on
    new proposals, or on the proof.
    """
    if decided.improvement is None or not decided.cost_s or decided.left_s is None:
        return True
    rest_s = decided.left_s * prices.snapshot.state.stretches[-1].workers / prices.slowdown
    return decided.improvement * rest_s >= prices.snapshot.track.epsilon * decided.cost_s


def _reasons(now: Snapshot, chosen: allocate.Decision) -> dict[str, Any]:
    """What the winner was worth, and the runners-up, for the ledger."""
    def scored(one: allocate.Scored) -> Competitor:
        arm = now.arms[one.run.candidate]
        key = Trial(arm.recipe_id, one.run.horizon, one.run.seed).key
        return Competitor(trial=key, name=now.names(arm.recipe_id), eig=one.eig, improvement=one.improvement,
                          cost_s=one.cost_s)

    best, winner = chosen.winner, now.arms[chosen.winner.run.candidate]
    mean, sd = (float(values[chosen.winner.run.candidate]) for values in now.effects)
    return {"eig": best.eig, "improvement": best.improvement, "cost_s": best.cost_s, "score": best.score,
            "why": f"{now.names(winner.recipe_id)}: effect {mean:+.3f} +- {sd:.3f}", "winner": scored(best),
            "runners_up": tuple(scored(one) for one in chosen.runners_up)}
