"""What each view of the page shows, as plain data for its template, from the facts alone."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from research.contract.part import LLM, Part
from research.contract.proposal import try_build
from research.contract.track import Track
from research.contract.trial import FRESH, Trial
from research.learn.features import features
from research.learn.posterior import Candidate
from research.ledger.events import Ledger
from research.ledger.exchanges import find
from research.ledger.session import Session
from research.ledger.state import Attempt, TrialRecord
from research.show.candidates import status, trend, words
from research.show.facts import NORMAL_95, Facts
from research.show.report import again, measured, runs
from research.show.report import attempts as sealed_attempts
from research.show.spent import allocation
from research.show.verdict import stage, verdict
from research.show.view import line_of
from research.text import beginning, count

Query = Mapping[str, str]
Context = dict[str, Any]
PER_PAGE, NODES = 100, 250  # rows of a table, and of the lineage
PARTS = 200  # of those that ran most
COLUMNS = {"lane": "lane", "status": "status", "effect": "expected effect", "over": "over the leader", "loss": "loss",
           "n": "n", "runs": "runs", "spent": "device s", "parent": "put on"}


def overview(facts: Facts, query: Query) -> Context:
    """Whether this is the run that was meant, what it does now and why, how recipes came out, who leads."""
    session = facts.state.session
    meant = [("track", f"{facts.track.name}: {facts.track.summary}"), ("base", facts.track.base),
             ("data", session.data_hash[:16]), ("minutes", f"{session.minutes:g}"),
             ("machine", str(session.place) if session.place else ""), ("workers", session.workers),
             ("lanes", ", ".join(session.lanes)), ("seed of the researcher", session.seed),
             ("command", "python -m research.loop " + " ".join(session.argv))]
    return {"verdict": verdict(facts), "measured": measured(facts), "meant": meant, "stage": _stage(facts),
            "running": list(_running(facts)), "standing": standing(facts), "frontier": banded(facts.frontier(12))}


def _stage(facts: Facts) -> str:
    """What it is at, or why it ended."""
    return f"ended: {facts.state.end.reason}" if facts.state.end else stage(facts.snapshot)


def standing(facts: Facts) -> dict[str, int]:
    """How many recipes were proven, refuted, searched (a run completed), broke off, were not run, were refused."""
    state, found = facts.state, Counter[str]()
    tested = {row["recipe_id"]: row["passed"] for row in facts.verifications()}
    ran = {trial.recipe_id for trial in state.trials.values() if trial.outcome == "completed"}
    begun = {trial.recipe_id for trial in state.trials.values() if trial.attempts}
    for recipe_id in state.accepted:
        match tested.get(recipe_id):
            case True:
                found["proven"] += 1
            case False:
                found["refuted"] += 1
            case _:
                found["searched" if recipe_id in ran else "broke off or running" if recipe_id in begun
                      else "not run yet"] += 1
    found["refused by the gate"] = state.verdicts["refused"]
    order = ("proven", "refuted", "searched", "broke off or running", "not run yet", "refused by the gate")
    return {name: found[name] for name in order}


def _running(facts: Facts) -> Iterator[Context]:
    for trial in facts.state.trials.values():
        for attempt in trial.attempts:
            if attempt.result is None:
                why = trial.decisions[-1].body.why if trial.decisions else ""
                yield {"worker": attempt.worker, "key": trial.key, "recipe_id": trial.recipe_id, "why": why,
                       "purpose": attempt.purpose, "cell": trial.trial.cell, "since": time.time() - attempt.started}


def banded(rows: Sequence[Context], width: int = 220) -> list[Context]:
    """Rows with mean and sd, and where their 95 % intervals lie on a common scale, in pixels; zero: None beyond it."""
    ends = [row["mean"] + sign * NORMAL_95 * row["sd"] for row in rows for sign in (-1, 1)] or [0.0]
    low, span = min(ends), max(max(ends) - min(ends), 1e-9)

    def at(value: float) -> float:
        return round(6 + (width - 12) * (value - low) / span, 1)

    zero = at(0.0) if low <= 0.0 <= low + span else None
    return [row | {"band": {"width": width, "zero": zero, "mean": at(row["mean"]),
                            "low": at(row["mean"] - NORMAL_95 * row["sd"]),
                            "high": at(row["mean"] + NORMAL_95 * row["sd"])}} for row in rows]


@lru_cache(maxsize=2)
def rows(facts: Facts) -> tuple[Context, ...]:
    """A row a recipe, its seeds folded into what is believed of it and their number, in the order of proposals."""
    by_recipe: dict[str, list[TrialRecord]] = defaultdict(list)
    for trial in facts.state.trials.values():
        by_recipe[trial.recipe_id].append(trial)
    split, found = facts.track.splits.search, []
    means, sds = facts.snapshot.effects if facts.snapshot.arms else ([], [])
    statuses = words(facts)
    for number, recipe_id in enumerate(facts.state.proposals):
        own, i = by_recipe[recipe_id], facts.snapshot.index.get(recipe_id)
        full = {t.seed: t.loss[split] for t in own if t.horizon == 1.0 and split in t.loss and t.seed < FRESH}
        over = facts.gains(recipe_id, facts.leader) if facts.leader and full else {}
        parent = facts.parent(recipe_id)
        found.append({
            "number": number, "recipe_id": recipe_id, "name": facts.name(recipe_id),
            "lane": facts.proposal(recipe_id).lane, "status": statuses[recipe_id],
            "mean": float(means[i]) if i else 0.0, "sd": float(sds[i]) if i else 0.0, "known": bool(i) and bool(own),
            "over": sum(over.values()) / len(over) if over else None, "over_n": len(over),
            "loss": sum(full.values()) / len(full) if full else None, "n": len(full),
            "runs": sum(t.outcome == "completed" for t in own), "parent": facts.names.brief(parent) if parent else "",
            "spent": sum((a.result.device_s or 0.0) for t in own for a in t.attempts if a.result)})
    return tuple(found)


def recipes(facts: Facts, query: Query) -> Context:
    """The table of recipes, filtered, sorted, a page of it."""
    everything = rows(facts)
    found = list(everything)
    words = query.get("q", "").lower().split()
    for name in ("lane", "status"):
        if wanted := query.get(name):
            found = [row for row in found if row[name] == wanted]
    if words:
        found = [row for row in found if all(
            word in f"{row['name']} {row['recipe_id']} {facts.proposal(row['recipe_id']).name}".lower()
            for word in words)]
    by = query.get("sort", "effect")
    keys: dict[str, Callable[[Context], Any]] = {
        "effect": lambda row: (row["known"], row["mean"]), "number": lambda row: row["number"],
        "loss": lambda row: -row["loss"] if row["loss"] is not None else -float("inf"),
        "over": lambda row: row["over"] if row["over"] is not None else -float("inf"),
        **{name: (lambda row, name=name: row[name]) for name in ("n", "runs", "spent", "name", "lane", "status")}}
    found.sort(key=keys.get(by, keys["effect"]), reverse=query.get("order", "down") != "up")
    page, pages, shown = _paged(found, query)
    shown = found if query.get("all") else shown
    columns = [name for name in COLUMNS if f"hide-{name}" not in query]
    return {"rows": banded(shown), "found": len(found), "page": page, "pages": pages, "columns": columns,
            "all_columns": COLUMNS, "sort": by, "order": query.get("order", "down"),
            "lanes": sorted({facts.proposal(r).lane for r in facts.state.proposals}),
            "statuses": sorted({row["status"] for row in everything})}


def recipe(facts: Facts, query: Query) -> Context:
    """One recipe: what it changes against parent, base and champion; its runs; why it was proposed and run.

    Raises: KeyError if no recipe is called so.
    """
    found = beginning(query.get("id", ""), facts.state.proposals)
    if len(found) != 1:
        raise KeyError(query.get("id", ""))
    recipe_id = found[0]
    proposal, parent = facts.proposal(recipe_id), facts.parent(recipe_id)
    rivals = {"the recipe it was put on": parent, "the base": facts.base, "the champion": facts.state.champion}
    diffs = {rival: (f"{role}, {facts.name(rival)}", facts.edits(recipe_id, rival)) for role, rival in rivals.items()
             if rival and rival != recipe_id and rival in facts.state.proposals}
    trials = [trial for trial in facts.state.trials.values() if trial.recipe_id == recipe_id]
    accepted = recipe_id in facts.snapshot.index
    return {"recipe_id": recipe_id, "proposal": proposal,
            "status": status(facts, recipe_id), "diffs": list(diffs.values()),
            "parts": facts.parts(recipe_id), "parent": parent, "accepted": accepted,
            "children": [rid for rid in facts.state.proposals if facts.parent(rid) == recipe_id],
            "believed": facts.effect(recipe_id) if facts.snapshot.index.get(recipe_id) else None,
            "runs": [facts.run(trial) for trial in trials if trial.attempts],
            "decisions": [(trial, event) for trial in trials for event in trial.decisions],
            "trend": trend(facts, recipe_id),
            "waiting": recipe_id in facts.waiting(), "said": facts.said(recipe_id),
            "exchange": _exchange(facts, recipe_id)}


def _exchange(facts: Facts, recipe_id: str) -> int:
    """The number of the exchange in which a language model came up with a recipe; 0 where none is kept."""
    number = next((n for n, (found, _) in facts.state.answers.items() if found == recipe_id), 0)
    if facts.proposal(recipe_id).lane != LLM:
        return 0
    calls = reversed(facts.state.calls)
    return next((call.body.kept for call in calls if call.seq < number and call.body.outcome == "ok"), 0)


def call(facts: Facts, query: Query, session: Session) -> Context:
    """What a language model was asked and answered.

    Raises: KeyError if that is not kept.
    """
    number = int(query["id"]) if query.get("id", "").isdigit() else 0
    event = next((event for event in facts.state.calls if number and event.body.kept == number), None)
    if event is None or (found := find(session, number)) is None:
        raise KeyError(f"call {query.get('id', '')}")
    return {"event": event, "line": _said(facts, event), "said": found,
            "asked": [_laid_out(line) for line in found.asked.splitlines()]}


def _laid_out(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=1)
    except (ValueError, RecursionError):
        return text


def lineage(facts: Facts, query: Query) -> Context:
    """Which recipe was put on which, and why; without `all`, only what ran or leads to what ran."""
    children: dict[str | None, list[str]] = defaultdict(list)
    for recipe_id in facts.state.proposals:
        children[facts.parent(recipe_id)].append(recipe_id)
    ran = {trial.recipe_id for trial in facts.state.trials.values() if trial.attempts}
    keep: set[str] = set(facts.state.proposals) if query.get("all") else set()
    for recipe_id in ran:
        at: str | None = recipe_id
        while at is not None and at not in keep:
            keep.add(at)
            at = facts.parent(at)
    flat: list[tuple[str, int]] = []
    stack = [(root, 0) for root in reversed(children[None]) if root in keep]
    seen: set[str] = set()
    while stack:
        recipe_id, depth = stack.pop()
        if recipe_id in seen:
            continue
        seen.add(recipe_id)
        flat.append((recipe_id, depth))
        stack += [(child, depth + 1) for child in reversed(children[recipe_id]) if child in keep]
    page, pages, shown = _paged(flat, query, NODES)
    by_id = {row["recipe_id"]: row for row in rows(facts)}
    return {"nodes": [(by_id[recipe_id], depth, facts.proposal(recipe_id).hypothesis) for recipe_id, depth in shown],
            "page": page, "pages": pages, "left": len(facts.state.proposals) - len(flat)}


def decisions(facts: Facts, query: Query) -> Context:
    """Why each run was the next one, the latest first: its value, its price, and what else there was."""
    made = list(reversed(facts.state.decisions))
    page, pages, shown = _paged(made, query)
    return {"decisions": [(event, Trial.of(event.subject)) for event in shown], "page": page, "pages": pages,
            "start": facts.state.stretches[0].start if facts.state.stretches else 0.0}


def _paged(items: Sequence[Any], query: Query, most: int = PER_PAGE) -> tuple[int, int, Sequence[Any]]:
    pages = max(1, -(-len(items) // most))
    page = min(max(int(query["page"]) if query.get("page", "").isdigit() else 1, 1), pages)
    return page, pages, items[(page - 1) * most:page * most]


def effects(facts: Facts, query: Query) -> Context:
    """What each of the parts that ran most would be worth alone, at each horizon, as believed; and what never ran."""
    return _worth(facts)


@lru_cache(maxsize=2)
def _worth(facts: Facts) -> Context:
    horizons, track = sorted(facts.track.horizons), facts.track
    used: Counter[Part] = Counter()
    for arm in facts.snapshot.arms:
        for part in arm.parts:
            used[part] += facts.snapshot.finished[arm.recipe_id]
    found = {part: alone for part, n in used.most_common(PARTS) if n and (alone := _alone(track, part)) is not None}  # type: ignore[arg-type]  # frozen, so it hashes
    by_horizon = [facts.snapshot.fitted.predict([*found.values()], h) for h in horizons] if found else []
    rows = []
    for i, part in enumerate(found):
        mean, variance = by_horizon[-1][0][i], by_horizon[-1][1][i, i]
        rows.append({"part": part.name, "mean": float(mean), "sd": float(max(variance, 0.0)) ** 0.5, "runs": used[part],
                     "by_horizon": [float(means[i]) for means, _ in by_horizon]})
    rows.sort(key=lambda row: -row["mean"])
    return {"parts": banded(rows), "horizons": horizons,
            "never": sorted({part.name for part in used if not used[part]})}


@lru_cache(maxsize=8192)
def _alone(track: Track, part: Part) -> Candidate | None:
    """The base with one part, as the belief sees it; None where that is no recipe."""
    recipe = try_build(track.base_recipe, [part])
    return None if recipe is None else Candidate(features(track.base_recipe, recipe))


def money(facts: Facts, query: Query) -> Context:
    """Where the time went, by purpose, lane and worker, how much was idle, and what language models cost."""
    used, rows = allocation(facts)
    return {"shares": facts.state.shares().items(), "purposes": used, "lanes": facts.lanes().items(),
            "by_horizon": [(h, values, sum(values)) for h, values in rows],
            "workers": workers(facts), "spent": facts.llm()}


def workers(facts: Facts, width: int = 900, most: int = 4000) -> list[Context]:
    """A lane a worker: what it ran when, as boxes on a common scale of so many pixels; what would be narrower than one
    is part of the box before it, if that is of its purpose."""
    attempts: list[tuple[Attempt, TrialRecord]] = [
        (attempt, trial) for trial in facts.state.trials.values() for attempt in trial.attempts][-most:]
    if not attempts:
        return []
    start = min(a.started for a, _ in attempts)
    end = max(a.ended or a.started for a, _ in attempts)
    scale, lanes = width / max(end - start, 1e-9), defaultdict(list)
    for attempt, trial in attempts:
        ended = attempt.ended if attempt.ended is not None else end
        x, w, boxes = (attempt.started - start) * scale, (ended - attempt.started) * scale, lanes[attempt.worker]
        if boxes and w < 1 and boxes[-1]["purpose"] == attempt.purpose and x - boxes[-1]["x"] - boxes[-1]["w"] < 1:
            n = boxes[-1]["n"] + 1
            boxes[-1] |= {"w": round(x + w - boxes[-1]["x"], 1), "n": n, "title": f"{attempt.purpose}: {n} runs"}
            continue
        boxes.append({
            "x": round(x, 1), "w": max(round(w, 1), 0.5), "n": 1,
            "purpose": attempt.purpose, "title": f"{attempt.purpose} {trial.trial.cell}: "
            f"{facts.name(trial.recipe_id)}, {trial.outcome}, {ended - attempt.started:.1f} s"})
    return [{"worker": worker, "boxes": lanes[worker], "width": width} for worker in sorted(lanes)]


def proof(facts: Facts, query: Query) -> Context:
    """The proofs: nominated, pruned, sealed, the seeds as they come, what they say; and what waits for a person."""
    ablations = [(recipe_id, body) for recipe_id, body in facts.state.ablations.items()]
    return {"stage": _stage(facts), "attempts": list(sealed_attempts(facts)), "ablations": ablations,
            "futile": facts.state.futile, "beside": facts.beside(), "carried": facts.transfer(),
            "text": facts.text, "waiting": facts.waiting(), "reviews": facts.state.reviews,
            "runs": lambda *a, **k: runs(facts, *a, **k), **again(facts)}


def log(facts: Facts, query: Query, ledger: Ledger) -> Context:
    """What happened, the latest first."""
    kinds, kind = ledger.kinds(), query.get("kind", "")
    page, pages, numbers = _paged(range(kinds.get(kind, 0) if kind else sum(kinds.values())), query)
    shown = ledger.latest(kind or None, len(numbers), numbers[0]) if numbers else []
    return {"events": [(event, line_of(event, facts) or _said(facts, event)) for event in shown], "kind": kind,
            "kinds": [*kinds], "page": page, "pages": pages,
            "start": facts.state.stretches[0].start if facts.state.stretches else 0.0}


def _said(facts: Facts, event: Any) -> str:
    """A line for the events that the terminal leaves out."""
    body = event.body
    match event.kind:
        case "proposal":
            return f"{facts.name(event.subject)}: {body.proposal.hypothesis}"
        case "verdict":
            told = "; ".join(f"{r.path or 'recipe'}: {r.rule}" for r in body.refusals)
            who = facts.name(event.subject) if event.subject else "a proposal"
            return f"{'accepted' if body.accepted else 'refused'}: {who}; {told or f'{body.ms:.0f} ms'}"
        case "decision" | "attempt":
            trial = Trial.of(event.subject)
            return f"{body.purpose} {trial.cell}: {facts.name(trial.recipe_id)}" + (
                f"; {body.why}" if event.kind == "decision" else f", attempt {body.attempt}, worker {body.worker}")
        case "review":
            return f"{body.decision} {facts.name(event.subject)} by {body.reviewer or 'somebody'}: {body.note}"
        case "session" | "resume":
            return f"{count(body.workers or 0, 'worker')}, process {body.pid}"
        case "end":
            return body.reason
        case "call":
            told = f"{body.outcome}{', a repair' if body.repair else ''}{f': {body.reason}' if body.reason else ''}"
            return (f"{body.model}: {count(body.proposals, 'proposal')}, {body.accepted} accepted; {body.tokens_in:,} "
                    f"tokens in, {body.tokens_out:,} out, {body.wall_s:.1f} s; {told}")
    return ""


VIEWS: dict[str, Callable[[Facts, Query], Context]] = {
    "overview": overview, "recipes": recipes, "recipe": recipe, "lineage": lineage, "decisions": decisions,
    "effects": effects, "time": money, "proof": proof}
