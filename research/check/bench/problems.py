"""What campaigns are about: a table of real runs, made-up worlds, and curves that others recorded.

A problem has candidates, number 0 the base, and answers for a run with its loss and its price. What policies may know
is all that a `Problem` offers but `value`, which judges them.
"""

from __future__ import annotations

import json
import math
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxnano.cli import UserError
from research.check.bench.table import Run, Table
from research.check.bench.world import HORIZONS, World, cost
from research.decide.belief import Arm, Belief
from research.learn.allocate import Action
from research.learn.posterior import Candidate
from research.ledger.state import State

DRAWN = 64  # candidates of a campaign, of a table or of recorded curves
WORLDS = {"made-up": {}, "lucky": {"seed_sd": 0.016},
          "hard": {"n_candidates": 200, "pair_sd": 0.02, "drift_sd": 0.03, "diverging": 0.1}}
LEAST = 2  # runs of a recipe, to be a candidate


class Problem(Protocol):
    """One campaign's. value_C: effects at the full horizon, nats, higher is better, minus infinity where a run does not
    complete. seeds: 0 .. seeds - 1 can be asked for."""

    candidates: Sequence[Candidate]
    horizons: tuple[float, ...]
    seeds: int
    value_C: np.ndarray

    def loss(self, run: Action) -> float | None:
        """A run's final loss, nats; None if it diverged. The same run always ends the same."""
        ...

    def price(self, run: Action) -> float:
        """What the run costs now, in full runs of the base; asked once a run, in the order in which they are made."""
        ...

    def expected(self, run: Action) -> float:
        """What it will cost, as far as that is known before."""
        ...


@dataclass
class MadeUp:
    """A made-up world."""

    world: World
    horizons: tuple[float, ...] = HORIZONS
    seeds: int = 8

    @property
    def candidates(self) -> Sequence[Candidate]:
        return self.world.candidates

    @property
    def value_C(self) -> np.ndarray:
        return np.where(np.isin(np.arange(self.world.n_candidates), [*self.world.fallen]), -np.inf, self.world.value)

    def loss(self, run: Action) -> float | None:
        return None if run.candidate in self.world.fallen and run.horizon > 0.25 else self.world.loss(run)

    def price(self, run: Action) -> float:
        return cost(run.horizon)

    expected = price


@dataclass
class Recorded:
    """A campaign on a table: `rows` of its recipes, the base first, and its seeds in another order.

    A structure is compiled the first time that it is run: what that cost when it was recorded is paid once.
    """

    table: Table
    rows: Sequence[int]
    order: Sequence[int]
    arms: Sequence[Arm]
    compiled: set[str] = field(default_factory=set)

    @property
    def candidates(self) -> Sequence[Candidate]:
        return [arm.candidate for arm in self.arms]

    @property
    def horizons(self) -> tuple[float, ...]:
        return self.table.header.horizons

    @property
    def seeds(self) -> int:
        return len(self.order)

    @property
    def value_C(self) -> np.ndarray:
        return -np.array([self.table.value(row) for row in self.rows])

    def run(self, run: Action) -> Run:
        """What was recorded."""
        return self.table.at[self.rows[run.candidate], run.horizon, self.order[run.seed]]

    def loss(self, run: Action) -> float | None:
        return self.run(run).loss

    def price(self, run: Action) -> float:
        compiled = self.compiling_s(run)
        self.compiled.add(self.arms[run.candidate].structure)
        return (self.run(run).steady_s + compiled) / self.unit_s

    def compiling_s(self, run: Action) -> float:
        """Seconds that a run would compile for now."""
        new = self.arms[run.candidate].structure not in self.compiled
        return self.table.compile_s[self.rows[run.candidate]] if new else 0.0

    def expected(self, run: Action) -> float:
        """As the table's recipes cost at the median: all get the same FLOPs."""
        new = self.arms[run.candidate].structure not in self.compiled
        return (self.table.steady_s[run.horizon] + new * self.table.steady_s[0.0]) / self.unit_s

    @property
    def unit_s(self) -> float:
        """Seconds of a full run, compiled."""
        return self.table.steady_s[1.0]


@dataclass
class Curves:
    """Recorded curves: a run to a share of its horizon is the beginning of the whole one, and goes on for the rest.

    losses: by candidate and seed, shares and losses. prices: of a whole run, in the base's.
    """

    candidates: Sequence[Candidate]
    losses: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]
    prices: Sequence[float]
    horizons: tuple[float, ...] = HORIZONS
    paid: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        return min(len(found) for found in self.losses)

    @property
    def value_C(self) -> np.ndarray:
        ends = [[self.loss(Action(i, 1.0, s)) for s in range(len(found))] for i, found in enumerate(self.losses)]
        return -np.array([math.inf if None in end else np.mean(end) for end in ends])  # type: ignore[arg-type]

    def loss(self, run: Action) -> float | None:
        share, loss = self.losses[run.candidate][run.seed]
        found = loss[np.searchsorted(share, run.horizon - 1e-9)]
        return float(found) if np.isfinite(found) else None

    def expected(self, run: Action) -> float:
        before = self.paid.get((run.candidate, run.seed), 0.0)
        return max(run.horizon - before, 1e-3) * self.prices[run.candidate]

    def price(self, run: Action) -> float:
        spent = self.expected(run)
        self.paid[run.candidate, run.seed] = max(run.horizon, self.paid.get((run.candidate, run.seed), 0.0))
        return spent


@dataclass(frozen=True)
class DrawnWorlds:
    """Made-up worlds to draw from."""

    settings: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, number: int) -> MadeUp:
        """World `number`."""
        return MadeUp(World(number, **self.settings))


@dataclass
class DrawnTable:
    """A table to draw campaigns from."""

    table: Table

    @cached_property
    def arms(self) -> list[Arm]:
        """What a session makes of the table's recipes, in their order."""
        state = State()
        for row in self.table.recipes:
            state.proposals[row.id] = row.proposed
            state.accepted.add(row.id)
        return Belief(self.table.track).arms(state)

    def draw(self, number: int) -> Recorded:
        """The base and DRAWN - 1 of the other whole recipes, and an order of the seeds."""
        rng = np.random.default_rng([number, 7])
        others = [row for row in self.table.whole if row]
        picked = sorted(rng.choice(others, min(DRAWN - 1, len(others)), replace=False).tolist())
        rows = [0, *picked]
        return Recorded(self.table, rows, rng.permutation(self.table.header.seeds).tolist(),
                        [self.arms[i] for i in rows])


@dataclass
class DrawnCurves:
    """Recorded curves to draw campaigns from: by recipe its features, its runs, and the price of one."""

    recipes: Sequence[tuple[Mapping[str, float | str], Sequence[tuple[np.ndarray, np.ndarray]], float]]

    def draw(self, number: int) -> Curves:
        """DRAWN recipes, in a random order, and of each as many runs as all have."""
        rng = np.random.default_rng([number, 8])
        picked = rng.permutation(len(self.recipes))[:DRAWN]
        least = min(len(self.recipes[i][1]) for i in picked)
        runs = [[self.recipes[i][1][j] for j in rng.permutation(len(self.recipes[i][1]))[:least]] for i in picked]
        base = self.recipes[picked[0]]
        candidates = [Candidate(_apart(base[0], self.recipes[i][0])) for i in picked]
        return Curves(candidates, runs, [self.recipes[i][2] / base[2] for i in picked])


def _apart(base: Mapping[str, float | str], other: Mapping[str, float | str]) -> dict[str, float | str]:
    """Features of a recipe seen from the base."""
    found = {name: value - base[name] if isinstance(value, float) else value  # type: ignore[operator]
             for name, value in other.items()}
    return {} if base is other else found


def recorded_curves(folder: Path) -> dict[str, DrawnCurves]:
    """What the folder has of the recorded curves that are known, by name.

    Raises: UserError if it has none.
    """
    found: dict[str, DrawnCurves] = {}
    if (path := folder / "track3_logs.json").is_file():
        found["track3"] = DrawnCurves(list(_track3(json.loads(path.read_text()))))
    if (path := folder / "taskset.tar.xz").is_file():
        with tarfile.open(path) as archive:
            for member in sorted(filter(tarfile.TarInfo.isfile, archive), key=lambda m: m.name):
                held = archive.extractfile(member)
                if held is not None and member.name.endswith(".json"):
                    name = member.name.rsplit("/", 1)[-1].removesuffix(".json")
                    found[f"taskset {name.removeprefix('FixedTextRNNClassification_')}"] = DrawnCurves(
                        list(_taskset(json.load(held))))
    if not found:
        raise UserError(f"--curves: {folder}: neither track3_logs.json nor taskset.tar.xz is there; a folder with one "
                        "would do")
    return found


def _track3(logs: Sequence[Any]) -> Iterator[Any]:
    """modded-nanogpt's track 3: validation losses; a folder of logs, and a number of steps, is a recipe."""
    grouped: dict[Any, list[Any]] = defaultdict(list)
    for path, curve in logs:
        grouped[path.rsplit("/", 1)[0], curve[-1][1]].append(curve)
    for (path, steps), curves in grouped.items():
        runs = [(np.array([p[0] / steps for p in c]), np.array([p[2] for p in c])) for c in curves if c[-1][0] >= steps]
        if len(runs) >= LEAST:
            yield {"recipe": f"{path} {steps}"}, runs, float(steps)


def _taskset(settings: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """TaskSet: validation losses of one task by settings of its optimizer."""
    for setting in settings:
        loss = np.array([math.nan if x is None else x for x in setting["valid"]["loss"]], float)
        share = np.linspace(0, 1, len(loss))
        yield {name: math.log(max(value, 1e-12)) for name, value in setting["hp"].items()}, [(share, loss)], 1.0
