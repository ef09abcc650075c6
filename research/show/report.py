"""The report of a session: report.html and report.md, from templates/report.j2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from research.contract.trial import FRESH
from research.ledger.session import Session, refuse_links, replace_file
from research.ledger.state import fold
from research.show.claim import books, scope, spared
from research.show.facts import NORMAL_95, Facts
from research.show.figures import figures
from research.show.pages import render
from research.show.summary import summary_png
from research.show.verdict import verdict

FOLDER, SUMMARY = "plots", "summary.png"


def write_report(session_path: Path) -> Path:
    """Write report.html, report.md, plots/*.svg and summary.png into the session's folder; returns the first of them.

    Raises: SessionError if there is no session, or a link lies in the folder.
    """
    with Session.open(session_path) as session:
        folder, events = session.path, session.ledger.events()
    refuse_links(folder)
    facts = Facts.of(fold(events))
    title = f"{folder.name}: what was tried and what was proven on track {facts.track.name}"
    drawn = figures(facts, events)
    (folder / FOLDER).mkdir(exist_ok=True)
    for figure in filter(None, drawn.values()):
        replace_file(folder / FOLDER / f"{figure.name}.svg", figure.svg.encode())
    context = {"facts": facts, "state": facts.state, "figures": drawn, "verdict": verdict(facts),
               "attempts": list(attempts(facts)),
               "spared": [spared(e.body, facts.name(e.body.recipe_id)) for e in facts.state.futile],
               "runs": lambda *a, **k: runs(facts, *a, **k),
               **leading(facts), **endings(facts), **again(facts)}
    for form in ("html", "md"):
        replace_file(folder / f"report.{form}", render(form, "report.j2", title, **context).encode())
    replace_file(folder / SUMMARY, summary_png(facts))
    return folder / "report.html"


def leading(facts: Facts) -> dict[str, Any]:
    """Who leads, how it stands, and the parts that an ablation took off."""
    state, waiting, shown = facts.state, facts.waiting(), facts.state.champion or facts.front
    standing = "The champion" if state.champion else "Verified, not crowned" if waiting else \
        "The leading candidate, not proven"
    worth = [(nominee, body, {row["part"]: row for row in body.rows}) for nominee, body in state.ablations.items()]
    ran = dict.fromkeys(trial.recipe_id for trial in state.trials.values() if trial.attempts)
    return {"leader": state.champion or next(iter(waiting), shown), "standing": standing, "ran": list(ran),
            "measured": measured(facts),
            "outcomes": sorted(state.counts().items(), key=lambda item: -item[1]),
            "barnacles": [(name, nominee, rows.get(name, {})) for nominee, body, rows in worth
                          for name in body.removed]}


def measured(facts: Facts) -> str:
    """The base, and who is shown beside it, in the objective's own terms, on the seeds of both; "" where these say no
    more."""
    pair = (facts.base, facts.state.champion or facts.front)
    sides = {facts.name(own): facts.measure(own, other) for own, other in (pair, pair[::-1]) if own}
    return "; ".join(f"{name}: {text}" for name, text in sides.items() if text)


def attempts(facts: Facts) -> Iterator[dict[str, Any]]:
    """Every sealed attempt, with its losses by seed and its tests. roles: who was run, by what it was run as."""
    for row in facts.verifications():
        roles = {"incumbent": row["incumbent"], "candidate": row["recipe_id"]}
        if row["best_single"] != row["recipe_id"]:
            roles["best_single"] = row["best_single"]
        roles = {role: rid for role, rid in roles.items() if rid and row["losses"].get(role)}
        tests = [(role, test) for role, test in row["comparisons"].items() if test and role in roles]
        yield row | {"scope": scope(row["comparisons"].get("incumbent") or {}), "books": books(row), "roles": roles,
                     "tests": tests, "by_seed": _by_seed(row, roles) if roles else []}


def _by_seed(row: dict[str, Any], roles: dict[str, str]) -> list[dict[str, Any]]:
    """A line a seed, each loss with its trial; then the means over the seeds that all of them ran."""
    lines, losses = [], row["losses"]
    for seed in map(str, row["seeds"]):
        old, new = (losses.get(role, {}).get(seed) for role in ("incumbent", "candidate"))
        lines.append({"name": seed, "gain": None if None in (old, new) else old - new,
                      "losses": [(losses[role].get(seed), f"{rid}-1-{seed}") for role, rid in roles.items()]})
    common = set.intersection(*(set(losses[role]) for role in roles))
    means = [float(np.mean([losses[role][seed] for seed in common])) if common else None for role in roles]
    return [*lines, {"name": f"mean (n = {len(common)})", "losses": [(mean, None) for mean in means],
                     "gain": (row["comparisons"].get("incumbent") or {}).get("effect")}]


def endings(facts: Facts) -> dict[str, Any]:
    """Runs that did not finish, and those that were found hopeless and finished all the same."""
    audits = facts.audit()
    return {"ended": [(t, r) for t, r in facts.results() if r.outcome not in ("completed", "interrupted")],
            "audits": audits,
            "hits": sum(a["final"] is not None and abs(a["final"] - a["predicted"]) <= NORMAL_95 * a["sd"]
                        for a in audits)}


def again(facts: Facts) -> dict[str, Any]:
    """Commands that run something again, and where the results come from."""
    state, session = facts.state, facts.state.session
    crowned = state.crowned[-1].body.trial if state.crowned else None
    done = [key for key, trial in state.trials.items() if trial.outcome == "completed"]
    key = crowned or (done[-1] if done else None)
    rerun = [f"python -m research.explain SESSION {key}", f"python -m research.replay SESSION {key}"] if key else []
    rerun += ["python -m jaxnano.sample SESSION/champion/checkpoint --prompt 'Returns'"] if crowned else []
    prints = sorted({tuple(sorted(r.fingerprint.items())) for _, r in facts.results() if r.fingerprint})
    return {"rerun": rerun, "environments": prints, "origin": [
        ("track", f"{session.track}, {session.track_hash[:16]}"), ("data", session.data_hash[:16]),
        ("seed of the researcher", session.seed),
        ("command", "python -m research.loop " + " ".join(session.argv)),
        *((name, value) for found in prints for name, value in found if name != "data")]}


def runs(facts: Facts, recipe_id: str | None, full: bool = True) -> list[tuple[str, str]]:
    """A recipe's runs: its seed, after its horizon where that is not the full one, v1, v2 ... for fresh seeds; its key.
    """
    found = [t for t in facts.state.trials.values() if t.recipe_id == recipe_id and (t.horizon == 1.0 or not full)]
    names = [(f"{t.seed}" if t.horizon == 1.0 else f"{t.horizon:g}/{t.seed}", t.key) for t in found if t.seed < FRESH]
    return names + [(f"v{i}", t.key) for i, t in enumerate((t for t in found if t.seed >= FRESH), start=1)]
