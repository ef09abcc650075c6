"""What a session's device time was spent on, and how far it had come by then."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from research.ledger.state import TrialRecord
from research.show.facts import Facts

PURPOSES = ("search", "base", "replicate", "ablate", "verify", "beside")


def spending(facts: Facts) -> list[tuple[float, float, TrialRecord]]:
    """Each run that ended: when, Unix seconds; the device-seconds spent by then, over all runs; its trial."""
    ended = sorted(((a.ended or 0.0, a.seq, a.result.device_s or 0.0, trial) for trial in facts.state.trials.values()
                    for a in trial.attempts if a.result), key=lambda row: row[:2])
    total = np.cumsum([seconds for _, _, seconds, _ in ended])
    return [(when, float(spent), trial) for (when, _, _, trial), spent in zip(ended, total, strict=True)]


def climb(facts: Facts) -> list[tuple[float, dict[str, Any]]]:
    """The frontier's rows in the order in which their first runs were completed, with the device-seconds spent by then,
    over all runs."""
    at: dict[str, float] = {}
    for _, spent, trial in spending(facts):
        if trial.outcome == "completed":
            at.setdefault(trial.recipe_id, spent)
    rows = [(at[row["recipe_id"]], row) for row in facts.frontier(len(facts.snapshot.arms)) if row["recipe_id"] in at]
    return sorted(rows, key=lambda pair: pair[0])


def rise(facts: Facts, rows: list[tuple[float, dict[str, Any]]]) -> list[tuple[float, float]]:
    """Device-seconds and the best effect by then, as is believed now, of the rows of `climb`."""
    best, found = 0.0, [(0.0, 0.0)]
    for spent, row in rows:
        best = max(best, row["mean"])
        found.append((spent, best))
    return [*found, (facts.state.device_s, best)]


def allocation(facts: Facts) -> tuple[list[str], list[tuple[float, list[float]]]]:
    """The purposes that anything was spent on, and by horizon the device-seconds for each of them."""
    spent: dict[float, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for trial in facts.state.trials.values():
        for attempt in trial.attempts:
            spent[trial.horizon][attempt.purpose] += (attempt.result and attempt.result.device_s) or 0.0
    used = [p for p in PURPOSES if any(row[p] for row in spent.values())]
    return used, [(h, [spent[h][p] for p in used]) for h in sorted(spent)]
