"""What ending runs early would cost and save, on runs of which the end is known.

    python -m research.check.bench kills --table runs/table/table.jsonl --curves FOLDER

Runs come in a random order. At two preset looks, a third and two thirds of the way, each run's final loss is predicted
from its loss then, by the runs before it that went to the end; it is ended where the chance that it ends below the best
of them is less than the risk. Wrong: it would have. Saved: the share of all compute. Runs of a table are compared
within a horizon and seed, by their training loss, as a loop sees it; recorded curves (`allocate --help` says which) by
their validation loss. Loops end no run early: this says whether they should, for a track. It pays from 5 % saved at 2 %
wrong, of at least 100.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special

from jaxnano.cli import Command, UserError, positive
from research.check.bench import problems, table

LOOKS = (1 / 3, 2 / 3)
RISKS = (0.05, 0.02, 0.005)
WINDOW = 0.1  # of a run, over which a look takes the mean
LEAST = 4  # runs that have ended, for a prediction
DRIFT_SD, WEIGHT = 0.1, 3.0  # nats that two runs may drift apart over a whole run, by prior, and its weight in runs

PARSER = Command("research.check.bench kills", __doc__)
PARSER.description, PARSER.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
PARSER.add_argument("--table", type=Path, metavar="FILE", help="of `record`")
PARSER.add_argument("--curves", type=Path, metavar="FOLDER", help="recorded curves")
PARSER.add_argument("--orders", type=positive, default=20, help="random orders that the runs come in")
PARSER.add_argument("--json", action="store_true")


@dataclass(frozen=True)
class Cell:
    """Runs that compare. level_NxK: mean loss at each look. final_N: final losses. cost_N: of each run, any unit;
    trained_N: as much of it as goes with the steps."""

    level_NxK: np.ndarray
    final_N: np.ndarray
    cost_N: np.ndarray
    trained_N: np.ndarray


@dataclass
class Count:
    """Runs, those that were ended, those of them that would have been the best, and cost saved and in all."""

    runs: int = 0
    kills: int = 0
    wrong: int = 0
    saved: float = 0.0
    cost: float = 0.0

    @property
    def wrong_share(self) -> float:
        """Of the runs that were ended."""
        return self.wrong / self.kills if self.kills else 0.0

    @property
    def saved_share(self) -> float:
        """Of all compute."""
        return self.saved / self.cost if self.cost else 0.0


def level(share: np.ndarray, loss: np.ndarray, at: float) -> float:
    """Mean loss over the stretch of a run that ends at a look; NaN where nothing is known by then."""
    before = share <= at + 1e-9
    if not before.any():
        return float("nan")
    recent = before & (share > share[before][-1] - WINDOW)
    return float(loss[recent].mean())


def chance(mine: float, now_n: np.ndarray, final_n: np.ndarray, look: float) -> float:
    """Probability that a run ends below the best of those that have ended.

    By regression of final losses on losses at the look, its slope shrunk to 1 (a difference stays), its scatter pooled
    with a prior: the next run may cross the others as none of them crossed yet. A Student-t distribution.
    """
    n, prior = len(now_n), (DRIFT_SD * (1.0 - look)) ** 2 + 1e-8
    centred = now_n - now_n.mean()
    spread = float(centred @ centred) + prior
    slope = (float(centred @ (final_n - final_n.mean())) + prior) / spread
    residual = final_n - final_n.mean() - slope * centred
    freedom = WEIGHT + n - 1.0
    variance = (WEIGHT * prior + float(residual @ residual)) / freedom
    scale = np.sqrt(variance * (1.0 + 1.0 / n + (mine - now_n.mean()) ** 2 / spread))
    mean = final_n.mean() + slope * (mine - now_n.mean())
    return float(special.stdtr(freedom, (final_n.min() - mean) / scale))


def replayed(cell: Cell, order: Sequence[int], risk: float, count: Count) -> None:
    """Let a cell's runs come in an order and end them by the rule; adds to `count`."""
    ended: list[int] = []
    for i in order:
        count.runs += 1
        count.cost += cell.cost_N[i]
        for k, look in enumerate(LOOKS):
            if len(ended) < LEAST or not np.isfinite(cell.level_NxK[i, k]):
                continue
            if chance(cell.level_NxK[i, k], cell.level_NxK[ended, k], cell.final_N[ended], look) < risk:
                count.kills += 1
                count.wrong += bool(cell.final_N[i] < cell.final_N[ended].min())
                count.saved += (1.0 - look) * cell.trained_N[i]
                break
        else:
            if np.isfinite(cell.level_NxK[i]).all():
                ended.append(i)


def of_table(found: table.Table) -> Iterator[Cell]:
    """The cells of a table: its completed runs by horizon and seed."""
    for horizon in found.header.horizons:
        for seed in range(found.header.seeds):
            runs = [run for run in found.runs if (run.horizon, run.seed) == (horizon, seed) and run.loss is not None]
            curves = [np.array([point for point in run.curve if point[1] is not None], float).reshape(-1, 2)
                      for run in runs]
            yield Cell(np.array([[level(c[:, 0], c[:, 1], look) for look in LOOKS] for c in curves]).reshape(-1, 2),
                       np.array([run.loss for run in runs], float), np.array([run.device_s for run in runs]),
                       np.array([run.steady_s for run in runs]))


def of_curves(drawn: problems.DrawnCurves) -> Cell:
    """All recorded runs of one task that ended with a number."""
    runs = [(curve, price) for _, curves, price in drawn.recipes for curve in curves if np.isfinite(curve[1][-1])]
    prices = np.array([price for _, price in runs])
    return Cell(np.array([[level(*curve, look) for look in LOOKS] for curve, _ in runs]),
                np.array([curve[1][-1] for curve, _ in runs]), prices, prices)


def sources(options: argparse.Namespace) -> dict[str, list[Cell]]:
    """Cells by where they come from. Raises: UserError where nothing is named."""
    found: dict[str, list[Cell]] = {}
    if options.table:
        found["table"] = list(of_table(table.load(options.table)))
    for name, drawn in problems.recorded_curves(options.curves).items() if options.curves else ():
        found[name] = [of_curves(drawn)]
    if not found:
        raise UserError("--table: absent, as is --curves: one of them would do")
    return found


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options, rows = PARSER.options(argv), []
    for name, cells in sources(options).items():
        for risk in RISKS:
            count = Count()
            for order in range(options.orders):
                rng = np.random.default_rng(order)
                for cell in cells:
                    replayed(cell, rng.permutation(len(cell.final_N)).tolist(), risk, count)
            pays = bool(count.saved_share >= 0.05 and count.wrong_share <= 0.02 and count.kills >= 100)
            rows.append({"source": name, "risk": risk, "runs": count.runs, "kills": count.kills, "wrong": count.wrong,
                         "wrong_share": count.wrong_share, "saved_share": float(count.saved_share), "pays": pays})
    print(json.dumps(rows) if options.json else page(rows))
    return 0


def page(rows: Sequence[dict]) -> str:
    """The counts as a Markdown table."""
    return "\n".join(["| runs of | risk | runs | ended | wrong | saved | pays |", "|---|---|---|---|---|---|---|", *(
        f"| {row['source']} | {row['risk']:g} | {row['runs']} | {row['kills']} | {row['wrong_share']:.1%} | "
        f"{row['saved_share']:.1%} | {'yes' if row['pays'] else 'no'} |" for row in rows)])
