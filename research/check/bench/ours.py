"""The project's own allocation as a policy: on a table what a session's loop would do, elsewhere its posterior and its
allocator, which know nothing of recipes.

A policy yields, after each run, its price and the candidate that it would stand behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from research.check.bench.problems import Problem, Recorded
from research.contract.trial import Trial
from research.decide.belief import Arm, Belief, Snapshot
from research.decide.choose import decide, explored
from research.decide.price import Prices
from research.learn.allocate import Action, By, Scored, choose, recommend
from research.learn.posterior import Candidate, Observation, Posterior
from research.ledger.events import Event
from research.ledger.kinds import Body, Decided, Judgement, Result, Started
from research.ledger.state import State

GOAL = 0.005  # nats from the best: what does not matter, here and to who judges

Steps = Iterator[tuple[float, int]]
Change = Callable[[Arm], Arm]


def as_it_is(arm: Arm) -> Arm:
    """No ablation."""
    return arm


def flat(arm: Arm) -> Arm:
    """An arm of which nobody has promised anything."""
    return replace(arm, candidate=Candidate(arm.candidate.features))


def apart(arm: Arm) -> Arm:
    """An arm that has nothing in common with any other."""
    features = {arm.recipe_id: "itself"} if arm.candidate.features else {}
    return replace(arm, candidate=Candidate(features, arm.candidate.promise))


def eig(run: Scored) -> float:
    """What a run tells of the best value, in the place of what it is expected to gain."""
    return run.eig


def both(run: Scored) -> float:
    """The geometric mean of what a run tells and gains."""
    return math.sqrt(run.eig * run.improvement)


def ours(problem: Problem, rng: np.random.Generator, change: Change = as_it_is, full: bool = False,
         by: By | None = None) -> Steps:
    """The loop's allocation. change: of each arm, to leave something out. full: at the full horizon alone. by: what to
    go by in the place of the gain."""
    if isinstance(problem, Recorded):
        return Sitting(problem, change, full, by).run(int(rng.integers(1 << 31)))
    return _plain(problem, rng, change is apart, (1.0,) if full else problem.horizons, by)


class Sitting:
    """A session on a table, without its ledger: events go straight into the state."""

    def __init__(self, problem: Recorded, change: Change, full: bool, by: By | None = None):
        table, self.problem, self.by = problem.table, problem, by
        track = table.track.model_copy(update={"horizons": (1.0,)} if full else {})
        self.arms = [change(arm) for arm in problem.arms]
        self.index = {arm.recipe_id: i for i, arm in enumerate(self.arms)}
        self.belief = Belief(track, _arms={arm.recipe_id: arm for arm in self.arms})
        self.state = State()
        self.tell("session", "", table.header.session)
        for row in problem.rows:
            self.tell("proposal", table.recipes[row].id, table.recipes[row].proposed)
            self.tell("verdict", table.recipes[row].id, Judgement(accepted=True))

    def tell(self, kind: str, subject: str, body: Body) -> None:
        """The next event."""
        number = self.state.seq + 1
        self.state.apply(Event(number, float(number), kind, subject, body))

    @property
    def snapshot(self) -> Snapshot:
        """The belief now."""
        return self.belief.at(self.state)

    def run(self, seed: int) -> Steps:
        """Until every run was asked for. seed: the session's."""
        now = self.snapshot
        while True:
            prices = Prices(now)
            seeds = self.problem.seeds
            found = explored(prices, 0, math.inf, seeds) or decide(prices, seed, 0, math.inf, seeds, self.by)
            if found is None:
                return
            price = self.make(*found)
            now = self.snapshot
            yield price, self.index[now.leader] if now.leader else 0

    def make(self, trial: Trial, decided: Decided) -> float:
        """Make a run and take its result in. Returns: its price."""
        run = Action(self.index[trial.recipe_id], trial.horizon, trial.seed)
        recorded, compiled = self.problem.run(run), self.problem.compiling_s(run)
        losses = {self.problem.table.header.split: recorded.loss} if recorded.outcome == "completed" else {}
        seconds = recorded.steady_s + compiled
        self.tell("decision", trial.key, decided)
        self.tell("attempt", trial.key, Started(attempt=1, worker=0, pid=1, purpose=decided.purpose,
                                                steps=recorded.steps, **trial._asdict()))
        self.tell("result", trial.key, Result(
            attempt=1, outcome=recorded.outcome, loss=losses, curve=recorded.curve, steps=recorded.steps,
            device_s=seconds, wall_s=seconds, compile_s=compiled, tokens_per_s=recorded.tokens_per_s))
        return self.problem.price(run)


def _plain(problem: Problem, rng: np.random.Generator, alone: bool, horizons: tuple[float, ...],
           by: By | None) -> Steps:
    """Posterior and allocator. alone: each candidate has nothing in common with any other."""
    posterior, history, observations = Posterior(), [], []
    fallen: list[int] = []  # a number for each run that diverged
    candidates = [Candidate({str(i): "itself"} if i and alone else candidate.features)
                  for i, candidate in enumerate(problem.candidates)]
    fitted, finished = posterior.fit(observations), [0]
    while True:
        costs = np.array([[problem.expected(Action(i, h, 0)) for h in horizons] for i in range(len(candidates))])
        decision = choose(fitted, candidates, history=history, pending=[], horizons=horizons, cost_s=costs,
                          max_seeds=problem.seeds, epsilon=GOAL / 2, rng=rng, by=by, fallen={*fallen})
        if decision is None:
            return
        run = decision.action
        history.append(run)
        features, loss = candidates[run.candidate].features, problem.loss(run)
        if loss is None:
            fallen.append(run.candidate)
        else:
            observations.append(Observation(features, run.horizon, run.seed, loss))
            finished.append(run.candidate)
        fitted = posterior.fit(observations, [candidates[i].features for i in fallen])
        able = [i for i in dict.fromkeys(finished) if i not in fallen]
        yield problem.price(run), able[recommend(fitted, [candidates[i] for i in able])] if able else 0
