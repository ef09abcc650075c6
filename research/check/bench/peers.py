"""What others would do with the same runs: plain rules, and Optuna's pruners and sampler by Optuna's own code.

All of them go through the candidates on one seed after another, and stand behind the candidate whose full runs are best
on average, each less the level of its seed (how far what ran on the first one too lies from there); before the first,
behind the best of the longest.
"""

from __future__ import annotations

import importlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxnano.cli import UserError
from research.check.bench.problems import Problem
from research.learn.allocate import Action

BEST = 8  # of one-epoch-then-best-k
LADDER = (1, 3, 8)  # seeds of the 1-3-8 ladder, as many as there are: of all, a quarter, and a sixteenth
SHRINK = 4  # from one of its rungs to the next

Steps = Iterator[tuple[float, int]]


class Board:
    """Runs so far. Makes them, too."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.losses: dict[float, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))  # by h, seed

    def make(self, candidate: int, horizon: float, seed: int) -> tuple[float | None, tuple[float, int]]:
        """Make a run. Returns: its loss, None if it diverged, and what a policy yields."""
        run = Action(candidate, horizon, seed)
        loss = self.problem.loss(run)
        if loss is not None:
            self.losses[horizon][seed][candidate] = loss
        return loss, (self.problem.price(run), self.best)

    @property
    def ranking(self) -> list[int]:
        """Candidates by their full runs, or by the longest that there are; the best first."""
        if not self.losses:
            return [0]
        told: dict[int, list[float]] = defaultdict(list)
        by_seed = list(self.losses[max(self.losses)].values())
        for found in by_seed:
            common = found.keys() & by_seed[0].keys()
            level = float(np.mean([found[candidate] - by_seed[0][candidate] for candidate in common] or [0.0]))
            for candidate, loss in found.items():
                told[candidate].append(loss - level)
        return sorted(told, key=lambda candidate: float(np.mean(told[candidate])))

    @property
    def best(self) -> int:
        """What to stand behind."""
        return self.ranking[0]


def random(problem: Problem, rng: np.random.Generator) -> Steps:
    """Full runs in a random order."""
    board = Board(problem)
    for seed in range(problem.seeds):
        for candidate in rng.permutation(len(problem.candidates)).tolist():
            yield board.make(candidate, 1.0, seed)[1]


def best_k(problem: Problem, rng: np.random.Generator) -> Steps:
    """A run at the shortest horizon for all, then the best BEST in full, seed by seed."""
    board, shortest = Board(problem), min(problem.horizons)
    for candidate in rng.permutation(len(problem.candidates)).tolist():
        yield board.make(candidate, shortest, 0)[1]
    chosen = board.ranking[:BEST]
    for seed in range(problem.seeds):
        for candidate in chosen:
            yield board.make(candidate, 1.0, seed)[1]


def ladder(problem: Problem, rng: np.random.Generator) -> Steps:
    """Full runs: one seed for all, three for the better of them, eight (or all that there are) for the best."""
    board, able, done = Board(problem), rng.permutation(len(problem.candidates)).tolist(), 0
    for count in LADDER:
        for seed in range(done, min(count, problem.seeds)):
            for candidate in able:
                yield board.make(candidate, 1.0, seed)[1]
        done = count
        able = [c for c in board.ranking if c in set(able)][: max(1, len(able) // SHRINK)]


def optuna() -> Any:
    """The library. Raises: UserError where it is not installed."""
    try:
        found = importlib.import_module("optuna")
    except ImportError:
        raise UserError('--policies: Optuna is not installed; pip install "jaxnano[peers]" would do') from None
    found.logging.set_verbosity(found.logging.ERROR)
    warnings.filterwarnings("ignore", category=found.exceptions.ExperimentalWarning)
    return found


def pruned(problem: Problem, rng: np.random.Generator, pruner: str, eta: int) -> Steps:
    """Optuna's ASHA or Hyperband over candidates in a random order, a study a seed; a step is the shortest horizon."""
    library, board, steps = optuna(), Board(problem), _steps(problem)
    most = max(steps.values())
    for seed in range(problem.seeds):
        made = (library.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=eta) if pruner == "asha" else
                library.pruners.HyperbandPruner(min_resource=1, max_resource=most, reduction_factor=eta))
        study = library.create_study(pruner=made, sampler=library.samplers.RandomSampler(int(rng.integers(1 << 31))),
                                     study_name=str(rng.integers(1 << 31)))
        for candidate in rng.permutation(len(problem.candidates)).tolist():
            trial, state = study.ask(), library.trial.TrialState
            for horizon in _rungs(steps, eta):
                loss, said = board.make(candidate, horizon, seed)
                yield said
                if loss is None:
                    study.tell(trial, state=state.FAIL)
                    break
                trial.report(loss, steps[horizon])
                if horizon < 1.0 and trial.should_prune():
                    study.tell(trial, state=state.PRUNED)
                    break
                if horizon == 1.0:
                    study.tell(trial, loss)


def promoted(problem: Problem, rng: np.random.Generator, eta: int) -> Steps:
    """Asynchronous successive halving as its authors have it (arXiv:1810.05934): a candidate waits at its rung and is
    promoted once it is in the best 1/eta there, be it long after; Optuna's decides at once and for good."""
    board, rungs = Board(problem), _rungs(_steps(problem), eta)
    for seed in range(problem.seeds):
        results: list[dict[int, float]] = [{} for _ in rungs]
        order = rng.permutation(len(problem.candidates)).tolist()
        while True:
            best = [sorted(rung, key=rung.__getitem__)[: len(rung) // eta] for rung in results]
            ready = ((c, level) for level in range(len(rungs) - 1, 0, -1) for c in best[level - 1]
                     if c not in results[level] and results[level - 1][c] < np.inf)
            candidate, level = next(ready, None) or (order.pop() if order else None, 0)
            if candidate is None:
                break
            loss, said = board.make(candidate, rungs[level], seed)
            results[level][candidate] = np.inf if loss is None else loss
            yield said


def _steps(problem: Problem) -> dict[float, int]:
    """The horizons, in the shortest."""
    return {horizon: round(horizon / min(problem.horizons)) for horizon in sorted(problem.horizons)}


def _rungs(steps: dict[float, int], eta: int) -> list[float]:
    """The horizons that a pruner of this factor looks at: for each of its resources the next that there is."""
    most = max(steps.values())
    wanted = [eta**k for k in range(most.bit_length()) if eta**k < most] + [most]
    return sorted({min(h for h, step in steps.items() if step >= resource) for resource in wanted})


def tpe(problem: Problem, rng: np.random.Generator) -> Steps:
    """Optuna's TPE over what the candidates are made of: of what it asks for, the nearest that has not run, in full."""
    library, board = optuna(), Board(problem)
    space, params = _space(library, problem)
    places = np.array([[_place(space[name], row[name]) for name in space] for row in params])
    for seed in range(problem.seeds):
        study = library.create_study(sampler=library.samplers.TPESampler(seed=int(rng.integers(1 << 31))))
        left = list(range(len(problem.candidates)))
        while left:
            trial = study.ask(space)
            asked = np.array([_place(space[name], trial.params[name]) for name in space])
            categorical = np.array([hasattr(d, "choices") for d in space.values()], bool)
            gap = np.where(categorical, places[left] != asked, np.abs(places[left] - asked))
            candidate = left.pop(int(np.argmin(gap.sum(1) + 1e-9 * rng.random(len(left)))))
            loss, said = board.make(candidate, 1.0, seed)
            yield said
            study.tell(trial, state=library.trial.TrialState.FAIL)  # what it asked for is not what was run
            if loss is not None:
                study.add_trial(library.trial.create_trial(params=params[candidate], distributions=space, value=loss))


def _space(library: Any, problem: Problem) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Distributions of the features that two candidates have, or of one each, and every candidate's values."""
    told = [candidate.features for candidate in problem.candidates]
    counts = Counter(name for features in told for name in features)
    names = sorted(name for name in counts if counts[name] > 1) or sorted(counts)
    space: dict[str, Any] = {}
    for name in names:
        values: Sequence[Any] = [features.get(name, 0.0) for features in told]
        if all(isinstance(value, float) for value in values):
            space[name] = library.distributions.FloatDistribution(min(values), max(values))
        else:
            space[name] = library.distributions.CategoricalDistribution(sorted({str(value) for value in values}))
    rows = [{name: (str if hasattr(space[name], "choices") else float)(features.get(name, 0.0)) for name in space}
            for features in told]
    return space, rows


def _place(distribution: Any, value: Any) -> float:
    """A value on a scale from 0 to 1, or the number of a choice."""
    if hasattr(distribution, "choices"):
        return float(distribution.choices.index(value))
    width = distribution.high - distribution.low
    return (value - distribution.low) / width if width else 0.0
