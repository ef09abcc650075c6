"""Who finds the best candidate with the least compute: the loop's allocation, and others, on equal budgets.

    python -m research.check.bench allocate runs/bench --table runs/table/table.jsonl
    python -m research.check.bench allocate runs/bench --problems made-up,hard --policies ours,asha-3 --campaigns 24
    python -m research.check.bench allocate runs/bench --problems curves --curves FOLDER
    python -m research.check.bench allocate runs/bench --show             # the summary of what has run by now

Problems: `table`, real runs: a campaign draws 64 of the recipes and an order of the seeds, asking for a run returns
that run, and the truth is the mean of a recipe's full runs; `made-up`, worlds of 64 candidates made of 24 edits, whose
effects depend on each other, on the horizon and on the seed; `lucky`, such worlds with seeds that matter four times as
much; `hard`, worlds of 200 candidates with strong interactions, horizons that misrank and 10 % that diverge; `curves`,
those that others recorded, in FOLDER: track3_logs.json (modded-nanogpt's logs of track 3: [path, [[step, steps,
validation loss], ...]]) and taskset.tar.xz (TaskSet, arXiv:2002.11887, a file of settings a task), each task a problem
of its own.

Policies: `ours`, `ours-flat` (nothing is promised of any candidate), `ours-apart` (no candidate is like another),
`ours-full` (full runs alone), `ours-eig`, `ours-both` (not by the gain but by information, and by their geometric
mean); `random`; `best-k` (the shortest horizon for all, then the best 8 in full); `1-3-8`
(seeds); `asha-pETA` (ASHA whose candidates wait to be promoted); and by Optuna's code `asha-ETA` (decided at once),
`hyperband-ETA` and `tpe`. Every policy gets the same campaigns and the same budget, in full runs.

Compute to goal: after which the recommendation stays within 0.005 nats of the best until the budget ends, which is what
one that does not gets. Ratios are paired by campaign; intervals of 95 % are of a bootstrap over campaigns, each of
which has recipes of its own. Results are appended to FOLDER/results.jsonl as campaigns end: the same command goes on.

Cost: a campaign of ours takes 5 to 20 s of one core, a peer's less than one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from jaxnano.cli import Command, UserError, positive
from research.check.bench import ours, peers, problems, table
from research.check.bench.ours import GOAL, Steps
from research.check.bench.problems import Problem
from research.show import plots

OURS, MANY = ("ours", "ours-flat"), 2000  # policies of most campaigns, with the peer at its best; draws of a bootstrap
ETAS = (2, 3, 4, 8)
POLICIES: dict[str, Callable[[Problem, np.random.Generator], Steps]] = {
    "ours": ours.ours, "ours-flat": partial(ours.ours, change=ours.flat),
    "ours-apart": partial(ours.ours, change=ours.apart), "ours-full": partial(ours.ours, full=True),
    "ours-eig": partial(ours.ours, by=ours.eig), "ours-both": partial(ours.ours, by=ours.both),
    "random": peers.random, "best-k": peers.best_k, "1-3-8": peers.ladder, "tpe": peers.tpe,
    **{f"{pruner}-{eta}": partial(peers.pruned, pruner=pruner, eta=eta)
       for pruner in ("asha", "hyperband") for eta in ETAS},
    **{f"asha-p{eta}": partial(peers.promoted, eta=eta) for eta in ETAS}}
KINDS = ("table", *problems.WORLDS, "curves")

PARSER = Command("research.check.bench allocate", __doc__)
PARSER.description, PARSER.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
PARSER.add_argument("folder", type=Path, help="for results, summary and plots")
PARSER.add_argument("--problems", default="made-up,hard", help=f"comma-separated, of {', '.join(KINDS)}")
PARSER.add_argument("--policies", default=",".join(POLICIES), help=f"comma-separated, of {', '.join(POLICIES)}")
PARSER.add_argument("--campaigns", type=positive, default=200, help="of ours, ours-flat and the best ASHA")
PARSER.add_argument("--others", type=positive, default=60, help="campaigns of every other policy")
PARSER.add_argument("--budget", type=float, default=60.0, help="full runs, compiling included where it is known")
PARSER.add_argument("--table", type=Path, metavar="FILE", help="of `record`, for the problem `table`")
PARSER.add_argument("--curves", type=Path, metavar="FOLDER", help="recorded curves, for the problem `curves`")
PARSER.add_argument("--processes", type=positive, default=1, help="campaigns at a time")
PARSER.add_argument("--show", action="store_true", help="write the summary of what there is, and run nothing")

Key = tuple[str, str, int]  # problem, policy, campaign


def campaign(problem: Problem, policy: str, number: int, budget: float) -> dict[str, Any]:
    """Run one. Returns: what was spent when the recommendation changed, full runs, and its regret from there on, nats
    (None where nothing was recommended that completes)."""
    value_C, spent, start = problem.value_C, 0.0, time.process_time()
    best, told, runs, last = float(np.max(value_C)), [], 0, None
    for price, recommended in POLICIES[policy](problem, np.random.default_rng([number, 3])):
        spent += price
        if spent > budget:
            break
        runs += 1
        if recommended != last:
            regret = best - float(value_C[recommended])
            told.append([round(spent, 3), round(regret, 5) if math.isfinite(regret) else None])
            last = recommended
    return {"path": told, "runs": runs, "cpu_s": round(time.process_time() - start, 2)}


def to_goal(path: Sequence[Sequence[float | None]], budget: float) -> float:
    """What was spent when the regret came within the goal for good; the budget where it did not."""
    reached = budget
    for spent, regret in reversed(path):
        if regret is None or regret > GOAL:
            break
        reached = float(spent or 0.0)
    return reached


def regret_at(path: Sequence[Sequence[float | None]], spent: float) -> float:
    """The regret of what was recommended once so much was spent; infinite before anything was."""
    found = [regret for at, regret in path if at is not None and at <= spent]
    return math.inf if not found or found[-1] is None else found[-1]


@cache
def sources(kinds: tuple[str, ...], at: Path | None, curves: Path | None) -> dict[str, Any]:
    """What campaigns are drawn from, by problem. Raises: UserError for what is missing."""
    found: dict[str, Any] = {}
    for kind in kinds:
        match kind:
            case "made-up" | "lucky" | "hard":
                found[kind] = problems.DrawnWorlds(problems.WORLDS[kind])
            case "table":
                if at is None:
                    raise UserError("--table: absent: a file that `record` has written would do")
                found[kind] = problems.DrawnTable(table.load(at))
                if len(found[kind].table.whole) < 2:
                    raise UserError(f"--table: {at}: fewer than two of its recipes are whole; record more of them")
            case "curves":
                if curves is None:
                    raise UserError("--curves: absent: a folder of recorded curves would do")
                found |= problems.recorded_curves(curves)
            case _:
                raise UserError(f"--problems: {kind}: no such problem; {', '.join(KINDS)} would do")
    return found


def one(key: Key, budget: float, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The line of one campaign."""
    problem, policy, number = key
    found = campaign(sources(*arguments)[problem].draw(number), policy, number, budget)
    return {"problem": problem, "policy": policy, "campaign": number, "budget": budget} | found


def read(path: Path) -> list[dict[str, Any]]:
    """The lines so far; the last may be torn."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def wanted(names: Iterable[str], policies: Sequence[str], campaigns: int, others: int) -> Iterator[Key]:
    """Campaigns in their order: those of all first, a problem at a time, so that what there is compares."""
    for number in range(max(campaigns, others)):
        for name in names:
            for policy in policies:
                if policy == "ours-flat" and name != "table":  # nothing is promised elsewhere
                    continue
                many = policy in OURS or policy.startswith("asha")
                if number < (campaigns if many else others):
                    yield name, policy, number


def run(keys: Sequence[Key], budget: float, arguments: tuple[Any, ...], path: Path, processes: int) -> None:
    """Run campaigns and append each as it ends."""
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n" * torn)

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())

        if processes == 1:
            for key in keys:
                write(one(key, budget, arguments))
            return
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            for line in pool.map(partial(one, budget=budget, arguments=arguments), keys):
                write(line)


def bootstrap(ratios: np.ndarray) -> tuple[float, float]:
    """An interval of 95 % of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (MANY, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def summary(lines: Sequence[Mapping[str, Any]], budget: float) -> dict[str, Any]:
    """By problem and policy: campaigns, the share that reached the goal, the median compute to it, the median regret at
    shares of the budget; and ratios of the compute to the best ASHA's and the best peer's, paired by campaign."""
    paths: dict[str, dict[str, dict[int, Any]]] = {}
    for line in lines:
        if line["budget"] == budget:
            paths.setdefault(line["problem"], {}).setdefault(line["policy"], {})[line["campaign"]] = line["path"]
    found: dict[str, Any] = {"budget": budget, "goal": GOAL, "problems": {}}
    for name, by_policy in paths.items():
        spent = {policy: {n: to_goal(path, budget) for n, path in own.items()} for policy, own in by_policy.items()}
        best = {"asha": _best(spent, [policy for policy in spent if policy.startswith("asha")]),
                "peer": _best(spent, [policy for policy in spent if not policy.startswith("ours")])}
        rows = {policy: _row(by_policy[policy], own, budget)
                | {f"over_{kind}": _ratio(own, spent[peer]) for kind, peer in best.items() if peer}
                for policy, own in spent.items()}
        found["problems"][name] = {f"best_{kind}": peer for kind, peer in best.items()} | {"policies": rows}
    return found


def _best(spent: Mapping[str, Mapping[int, float]], policies: Sequence[str]) -> str | None:
    """The policy with the least median compute to the goal; of equals, with the least mean."""
    return min(policies, key=lambda p: (np.median([*spent[p].values()]), np.mean([*spent[p].values()])), default=None)


def _row(paths: Mapping[int, Any], spent: Mapping[int, float], budget: float) -> dict[str, Any]:
    return {"campaigns": len(spent), "reached": float(np.mean([s < budget for s in spent.values()])),
            "to_goal": float(np.median([*spent.values()])),
            "regret": {f"{share:g}": _number(np.median([regret_at(path, share * budget) for path in paths.values()]))
                       for share in (0.1, 0.25, 0.5, 1.0)}}


def _ratio(spent: Mapping[int, float], peer: Mapping[int, float]) -> dict[str, Any] | None:
    """The median of the ratios in common campaigns, its interval, and their number."""
    ratios = np.array([spent[n] / peer[n] for n in sorted(spent.keys() & peer.keys())])
    return {"ratio": float(np.median(ratios)), "interval": bootstrap(ratios), "n": len(ratios)} if len(ratios) else None


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _told(ratio: Mapping[str, Any] | None) -> str:
    return "" if ratio is None else f"{ratio['ratio']:.2f} ({ratio['interval'][0]:.2f} to {ratio['interval'][1]:.2f})"


def page(found: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    lines = [f"Budget {found['budget']:g} full runs; goal {found['goal']:g} nats; ratios of the compute to the goal, "
             "paired by campaign, medians with intervals of 95 %.", ""]
    for name, about in found["problems"].items():
        lines += [f"## {name}", "", f"The best ASHA is {about['best_asha']}, the best peer {about['best_peer']}.", "",
                  "| policy | campaigns | reached | to goal, full runs | over the best ASHA | over the best peer | "
                  "regret at 10, 25, 50, 100 % of the budget, nats |", "|---|---|---|---|---|---|---|"]
        for policy, row in sorted(about["policies"].items(), key=lambda item: item[1]["to_goal"]):
            regret = ", ".join("-" if r is None else f"{r:.4f}" for r in row["regret"].values())
            ratios = " | ".join(_told(row.get(f"over_{kind}")) for kind in ("asha", "peer"))
            lines.append(f"| {policy} | {row['campaigns']} | {row['reached']:.0%} | {row['to_goal']:.1f} | {ratios} | "
                         f"{regret} |")
        lines.append("")
    return "\n".join(lines)


def picture(lines: Sequence[Mapping[str, Any]], name: str, budget: float) -> str:
    """Median regret over what was spent, with the quartiles as a band: ours, and the best of each other kind."""
    spent, shown = np.linspace(0, budget, 61)[1:], []
    told = summary(lines, budget)["problems"][name]["policies"]
    kinds: dict[str, str] = {}
    for policy in sorted(told, key=lambda policy: (policy not in OURS, told[policy]["to_goal"])):
        kinds.setdefault(policy.split("-")[0] if policy.startswith(("asha", "hyperband")) else policy, policy)
    for policy in kinds.values():
        paths = [line["path"] for line in lines if (line["problem"], line["policy"]) == (name, policy)
                 and line["budget"] == budget]
        regrets = np.array([[min(regret_at(path, s), 1.0) for s in spent] for path in paths])  # 1 nat: nothing yet
        low, middle, high = np.quantile(regrets, [0.25, 0.5, 0.75], axis=0)
        shown.append(plots.Series(policy, spent.tolist(), middle.tolist(), low=low.tolist(), high=high.tolist()))
    return plots.xy(shown[:6], "spent, full runs", "regret, nats", log_y=True)


def report(folder: Path, budget: float) -> None:
    """Write summary and plots of the results so far."""
    lines = read(folder / "results.jsonl")
    found = summary(lines, budget)
    (folder / "allocate.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "allocate.md").write_text(page(found))
    for name in found["problems"]:
        (folder / f"regret-{name.replace(' ', '-')}.svg").write_text(picture(lines, name, budget))
    print(page(found), end="")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = PARSER.options(argv)
    if not 0 < options.budget < math.inf:
        raise UserError(f"--budget: {options.budget}: above 0, and finite, would do")
    policies, kinds = options.policies.split(","), tuple(options.problems.split(","))
    for policy in policies:
        if policy not in POLICIES:
            raise UserError(f"--policies: {policy}: no such policy; {', '.join(POLICIES)} would do")
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.show:
        if any(policy.startswith(("asha", "hyperband", "tpe")) for policy in policies):
            peers.optuna()
        arguments = (kinds, options.table, options.curves)
        path = options.folder / "results.jsonl"
        done = {(line["problem"], line["policy"], line["campaign"]) for line in read(path)
                if line["budget"] == options.budget}
        keys = [key for key in wanted(sources(*arguments), policies, options.campaigns, options.others)
                if key not in done]
        run(keys, options.budget, arguments, path, options.processes)
    report(options.folder, options.budget)
    return 0
