"""The report of a session: report.html and report.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxnano.config.edit import show
from research.contract.trial import FRESH
from research.ledger.session import Session, refuse_links, replace_file
from research.ledger.state import State
from research.show.document import (
    Anchor,
    Banner,
    Block,
    Code,
    Figure,
    Heading,
    Line,
    Link,
    Listing,
    Paragraph,
    Span,
    Table,
    to_html,
    to_markdown,
)
from research.show.facts import NORMAL_95, Facts, trial_id
from research.show.figures import figures
from research.show.verdict import verdict
from research.text import by_seed, cost, count, effect, interval, loss, over_leader, spread

FOLDER = "plots"
REFUSALS = 12


def write_report(session_path: Path, state: State) -> None:
    """Write report.html, report.md and plots/*.svg into the session's folder.

    Args: state: the session's, folded; the plots over time read the ledger itself.
    Raises: SessionError if a link lies in the folder.
    """
    refuse_links(session_path)
    with Session.open(session_path) as session:
        events = session.ledger.events()
    facts = Facts.of(state)
    title = f"{session_path.name}: what was tried and what was proven on track {facts.track.name}"
    drawn = figures(facts, events)
    blocks = [block for section in (_verdict, _champion, _proof, _review, _search, _effort, _llm, _kills, _refusals,
                                    _replay, _recipes, _trials) for block in section(facts, drawn)]
    (session_path / FOLDER).mkdir(exist_ok=True)
    for figure in drawn.values():
        replace_file(session_path / FOLDER / f"{figure.name}.svg", figure.svg.encode())
    replace_file(session_path / "report.html", to_html(title, blocks).encode())
    replace_file(session_path / "report.md", to_markdown(title, blocks, FOLDER).encode())


def _verdict(facts: Facts, drawn: dict[str, Figure]) -> list[Block]:
    kind, text = verdict(facts)
    state, counts = facts.state, facts.state.counts()
    ran = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items(), key=lambda item: -item[1]))
    line = (f"{state.wall_s / 60:.1f} minutes on {state.session['workers']} workers, {state.device_s:,.0f} "
            f"device-seconds; {state.verdicts['accepted']} recipes accepted and {state.verdicts['refused']} refused; "
            f"{count(sum(counts.values()), 'trial')}" + (f" ({ran})" if ran else "") + f". Losses are in {facts.unit}; "
            "an effect is how much lower a loss is than the base's on the same seed, so more is better. Each run links "
            "to its row at the end.")
    best = state.champion or next((row["recipe_id"] for row in facts.frontier(1)), None)
    sides = {facts.name(rid): facts.measure(rid) for rid in (facts.base, best) if rid}
    measured = "; ".join(f"{name}: {text}" for name, text in sides.items() if text)
    blocks = [Banner(kind, text), Paragraph(line), *([Paragraph(f"{measured}.")] if measured else [])]
    return [*blocks, *_figure(drawn, "progress")]


def _champion(facts: Facts, drawn: dict[str, Figure]) -> list[Block]:
    champion = facts.champion()
    frontier = facts.frontier(1)
    waiting = facts.waiting()
    recipe_id = facts.state.champion or next(iter([*waiting, *(row["recipe_id"] for row in frontier)]), None)
    if recipe_id is None:
        return []
    title = "The champion" if champion else "Verified, not crowned" if waiting else "The leading candidate, not proven"
    blocks: list[Block] = [Heading(title)]
    blocks.append(Paragraph([facts.name(recipe_id), ", recipe ", _recipe(recipe_id), ", against the base:"]))
    blocks.append(Listing(_diff(facts.edits(recipe_id)), "diff"))
    rows = []
    for part in facts.parts(recipe_id):
        row = part["ablation"] or {}
        worth, why_not = effect(row.get("effect")), part["untested"]
        if why_not:
            worth = f"{worth} in a larger recipe; {why_not}" if row else f"not tested: {why_not}"
        rows.append([part["name"], part["why"], _source(part["source"]), worth, interval(row),
                     _runs(facts, row.get("recipe_id"))])
    if rows:
        ablated = any(part["ablation"] or part["untested"] for part in facts.parts(recipe_id))
        head = ["part", "why", "source", "worth", "95 % interval", "runs without it"][: 6 if ablated else 3]
        blocks.append(Table(head, [row[: len(head)] for row in rows], "lllrrl"[: len(head)]))
    if rows and ablated:
        blocks.append(Paragraph("What a part is worth: how much the loss rises without it, on the search split."))
    return blocks + _barnacles(facts) + _figure(drawn, "curves")


def _barnacles(facts: Facts) -> list[Block]:
    """Parts that the ablation took off."""
    rows = []
    for nominee, body in facts.state.ablations.items():
        worth = {row["part"]: row for row in body["rows"]}
        for name in body["removed"]:
            row = worth.get(name, {})
            rows.append([name, facts.name(nominee), effect(row.get("effect")), _runs(facts, row.get("recipe_id"))])
    if not rows:
        return []
    head = ["part", "of", "worth", "runs without it"]
    return [Paragraph("Barnacles, removed because they did not earn their place:"), Table(head, rows, "llrl")]


def _proof(facts: Facts, drawn: dict[str, Figure]) -> list[Block]:
    blocks: list[Block] = []
    for row in facts.verifications():
        passed = {True: "passed", False: "failed", None: "not finished"}[row["passed"]]
        blocks.append(Paragraph([
            f"Attempt {row['attempt']}, {passed}: ", _recipe(row["recipe_id"]), f" {row['name']}, sealed before its "
            f"{row['n']} seeds existed, tested at alpha {row['alpha']:.2g} against ", _recipe(row["incumbent"]),
            f" {facts.name(row['incumbent'])} on the {facts.track.splits.protected} split."]))
        roles = {"incumbent": row["incumbent"], "candidate": row["recipe_id"], "best_single": row["best_single"]}
        if row["best_single"] == row["recipe_id"]:
            del roles["best_single"]
            blocks.append(Paragraph("It is itself the best single idea of the catalogue."))
        roles = {role: rid for role, rid in roles.items() if rid and row["losses"].get(role)}
        if roles:
            blocks += [_seeds(row, roles), _tests(facts, row, roles)]
    if facts.state.openings:
        blocks.append(Paragraph(f"The {facts.track.splits.protected} split was opened "
                                f"{count(len(facts.state.openings), 'more time')}, to publish a checkpoint."))
    return [Heading("The proof"), *blocks] if blocks else []


def _review(facts: Facts, drawn: dict[str, Figure]) -> list[Block]:
    """Who decided what about which recipe, and how to decide about those that wait."""
    blocks: list[Block] = []
    for recipe_id in facts.waiting():
        said = facts.said(recipe_id) or "nobody has decided yet"
        blocks += [Paragraph(["Verified and not crowned: ", _recipe(recipe_id), f" {facts.name(recipe_id)}; {said}. "
                              "What speaks for it, what it costs, and how to decide:"]),
                   Listing(f"python -m research.review SESSION\n"
                           f"python -m research.review SESSION --approve {recipe_id[:8]} --note 'why'")]
    if facts.state.reviews:
        rows = [[e.body["decision"], _recipe(e.subject), facts.name(e.subject), e.body.get("reviewer", ""),
                 e.body.get("note", "")] for e in facts.state.reviews]
        blocks.append(Table(["decision", "recipe", "name", "reviewer", "note"], rows, "lllll"))
    return [Heading("Review"), *blocks] if blocks else []


def _seeds(row: dict[str, Any], roles: dict[str, str]) -> Table:
    lines: list[list[Line]] = []
    for seed in map(str, row["seeds"]):
        losses = {role: row["losses"][role].get(seed) for role in roles}
        gain = None if None in (losses["incumbent"], losses["candidate"]) else losses["incumbent"] - losses["candidate"]
        lines.append([seed, *(Link(loss(losses[role]), _to(f"{rid}-1-{seed}")) for role, rid in roles.items()),
                      effect(gain)])
    common = set.intersection(*(set(row["losses"][role]) for role in roles))
    means = [loss(float(np.mean([row["losses"][role][seed] for seed in common])) if common else None)
             for role in roles]
    gain = (row["comparisons"].get("incumbent") or {}).get("effect")
    lines.append([f"mean (n = {len(common)})", *means, effect(gain)])
    heads = [role.replace("_", " ") for role in roles]
    return Table(["seed", *heads, "gain over incumbent"], lines, "l" + "r" * (len(roles) + 1))


def _tests(facts: Facts, row: dict[str, Any], roles: dict[str, str]) -> Table:
    lines: list[list[Line]] = []
    for role, test in row["comparisons"].items():
        if test and role in roles:
            lines.append([f"{role.replace('_', ' ')}: {facts.name(roles[role])}", effect(test["effect"]),
                          interval(test), f"{test['p_value']:.2g}", f"{test['p_adjusted']:.2g}",
                          f"{test['correlation']:.2f}"])
    head = ["candidate against", "effect", "95 % interval", "p", "p, adjusted", "seed correlation"]
    return Table(head, lines, "lrrrrr")


def _search(facts: Facts, drawn: dict[str, Figure]) -> list[Block]:
    rows: list[list[Line]] = []
    for row in facts.frontier(10):
        rows.append([Link(row["name"], f"#recipe-{row['recipe_id']}"), row["lane"],
                     spread(row["mean"], row["sd"]), by_seed(row["gains"]), over_leader(row), str(row["runs"]),
                     _runs(facts, row["recipe_id"])])
    if not rows:
        return []
    head = ["candidate", "lane", "expected effect ± sd", "measured gain over the base", "over the leader", "runs",
            "full-horizon runs"]
    about = Paragraph("The expected effect allows for every seed's own luck. Measured gains compare on one seed only; "
                      "over the leader they are means over the seeds that both ran in full.")
    return [Heading("The search"), about, Table(head, rows, "llrlrrl"), *_figure(drawn, "effects")]


def _effort(facts: Facts, drawn: dict[str, Figure]) -> list[Block]:
    if not facts.state.decisions:
        return []
    shares = facts.state.shares()
    rows: list[list[Line]] = [[lane, str(row["proposed"]), str(row["accepted"]), str(row["runs"]),
                               f"{row['device_seconds']:,.0f}",
                               spread(*row["best_effect"]) if row["best_effect"] else ""]
                              for lane, row in facts.lanes().items()]
    named = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return [Heading("Where the time went"), *_figure(drawn, "allocation"), *_figure(drawn, "information"),
            Paragraph(f"Shares of the core-seconds between the first dispatch and the last result: {named}. Compiling "
                      "is part of whatever it was done for."),
            Table(["lane", "proposed", "accepted", "runs", "device-seconds", "best expected effect ± sd"], rows,
                  "lrrrrr")]


def _llm(facts: Facts, drawn: dict[str, Figure]) -> list[Block]:
    if (spent := facts.llm()) is None:
        return []
    line = (f"{count(spent['requests'], 'request')} to {', '.join(spent['models'])}, {spent['seconds']:,.0f} s of "
            f"waiting beside the loop: {cost(spent)}. {count(spent['proposals'], 'proposal')}, of which "
            f"{spent['accepted']} became recipes of their own; for each of these: {cost(spent, each=True)}.")
    rows = [[name, str(n)] for name, n in spent["outcomes"].items()]
    return [Heading("What language models cost"), Paragraph(line), Table(["answer", "times"], rows, "lr")]


def _kills(facts: Facts, drawn: dict[str, Figure]) -> list[Block]:
    ended = [(t, r) for t, r in facts.results() if r["outcome"] not in ("completed", "interrupted")]
    audits = facts.audit()
    blocks: list[Block] = [Heading("Runs that did not finish, and the audit of kills")] if ended or audits else []
    if ended:
        rows = [[_trial(t.key), facts.name(t.recipe_id), r["outcome"], r.get("reason") or ""] for t, r in ended]
        blocks.append(Table(["trial", "recipe", "outcome", "reason"], rows, "llll"))
    if audits:
        hits = sum(a["final"] is not None and abs(a["final"] - a["predicted"]) <= NORMAL_95 * a["sd"] for a in audits)
        blocks.append(Paragraph(f"One hopeless run in ten is finished all the same: {hits} of {len(audits)} ended in "
                                "the 95 % interval that was predicted when it would have been killed."))
        rows = [[_trial(a["trial"]), f"{a['predicted']:.4f} ± {a['sd']:.4f}", loss(a["final"]), effect(a["gain"])]
                for a in audits]
        blocks.append(Table(["trial", "predicted loss ± sd", "final loss", "gain over base"], rows, "lrrr"))
    return blocks


def _refusals(facts: Facts, drawn: dict[str, Figure]) -> list[Block]:
    rules = facts.state.refusals.most_common(REFUSALS)
    if not rules:
        return []
    rest = len(facts.state.refusals) - len(rules)
    more = f" The {len(rules)} commonest rules of {rest + len(rules)}:" if rest else ""
    return [Heading("Refused by the gate"),
            Paragraph(f"Refused before any compute: {count(facts.state.verdicts['refused'], 'proposal')}.{more}"),
            Table(["times", "rule"], [[str(n), rule] for rule, n in rules], "rl")]


def _replay(facts: Facts, drawn: dict[str, Figure]) -> list[Block]:
    crowned = facts.state.crowned[-1].body["trial"] if facts.state.crowned else None
    done = [key for key, trial in facts.state.trials.items() if trial.outcome == "completed"]
    blocks: list[Block] = [Heading("Run it again")]
    if key := crowned or (done[-1] if done else None):
        lines = [f"python -m research.explain SESSION {key}", f"python -m research.replay SESSION {key}"]
        lines += ["python -m jaxnano.sample SESSION/champion/checkpoint --prompt 'Returns'"] if crowned else []
        blocks += [Paragraph("Why a run was chosen and what it taught; the run itself, from the ledger alone:"),
                   Listing("\n".join(lines))]
    prints = {tuple(sorted(r["fingerprint"].items())) for _, r in facts.results() if r.get("fingerprint")}
    session = facts.state.session
    rows: list[Sequence[Line]] = [["track", f"{session['track']}, {session['track_hash'][:16]}"],
                              ["data", session["data_hash"][:16]], ["seed of the researcher", str(session["seed"])],
                              ["command", Code("python -m research.loop " + " ".join(session["argv"]))]]
    rows += [[f"{name}", str(value)] for fingerprint in sorted(prints) for name, value in fingerprint if name != "data"]
    return [*blocks, Paragraph(f"The results come from {count(len(prints), 'environment')}:"),
            Table(["what", "value"], rows, "ll")]


def _recipes(facts: Facts, drawn: dict[str, Figure]) -> list[Block]:
    ran = dict.fromkeys(trial.recipe_id for trial in facts.state.trials.values() if trial.attempts)
    rows: list[list[Line]] = []
    for recipe_id in ran:
        proposal = facts.proposal(recipe_id)
        changes = "; ".join(f"{e['path']} = {show(e['new'])}" for e in facts.edits(recipe_id))
        rows.append([Anchor(recipe_id[:8], f"recipe-{recipe_id}"), proposal.get("name", ""), proposal.get("lane", ""),
                     proposal.get("hypothesis", ""), Code(changes) if changes else "",
                     _runs(facts, recipe_id, full=False)])
    head = ["recipe", "name", "lane", "hypothesis", "what it changes", "runs"]
    return [Heading("Recipes that ran"), Table(head, rows, "llllll")] if rows else []


def _trials(facts: Facts, drawn: dict[str, Figure]) -> list[Block]:
    rows: list[list[Line]] = []
    for trial in facts.state.trials.values():
        result, purposes = trial.result or {}, dict.fromkeys(a.purpose for a in trial.attempts)
        folder = f"trials/{trial.key}"
        files: list[Span] = [Link("log", f"{folder}/log.txt"), " ", Link("metrics", f"{folder}/metrics.jsonl")]
        name = Link(facts.name(trial.recipe_id), f"#recipe-{trial.recipe_id}")
        rows.append([Anchor(trial.key, trial_id(trial.key)), name, ", ".join(purposes), trial.outcome,
                     loss(trial.loss.get(facts.track.splits.search)), effect(facts.gain(trial)),
                     effect(facts.gain(trial, facts.leader) if facts.leader else None),
                     f"{result.get('device_s') or 0.0:.1f}", files])
    head = ["trial: recipe-horizon-seed", "recipe", "purpose", "outcome", "search loss", "gain over base",
            "over the leader", "device s", "files"]
    return [Heading("Trials"), Table(head, rows, "llllrrrrl")] if rows else []


def _figure(drawn: dict[str, Figure], name: str) -> list[Block]:
    return [drawn[name]] if name in drawn else []


def _diff(edits: Sequence[dict[str, Any]]) -> str:
    """Edits as removed and added lines."""
    sides = (("-", "old"), ("+", "new"))
    return "\n".join(f"{mark} {edit['path']}: {show(edit[side])}" for edit in edits for mark, side in sides)


def _to(key: str) -> str:
    return f"#{trial_id(key)}"


def _trial(key: str) -> Link:
    return Link(key, _to(key))


def _recipe(recipe_id: str) -> Link:
    return Link(recipe_id[:8], f"#recipe-{recipe_id}")


def _runs(facts: Facts, recipe_id: str | None, full: bool = True) -> Sequence[Span]:
    """A link for each run: its seed, after its horizon where that is not the full one; v1, v2 ... for fresh seeds."""
    runs = [t for t in facts.state.trials.values() if t.recipe_id == recipe_id and (t.horizon == 1.0 or not full)]
    search = [t for t in runs if t.seed < FRESH]
    names = [(f"{t.seed}" if t.horizon == 1.0 else f"{t.horizon:g}/{t.seed}", t) for t in search]
    names += [(f"v{i}", t) for i, t in enumerate((t for t in runs if t.seed >= FRESH), start=1)]
    return [span for name, t in names for span in (Link(name, _to(t.key)), " ")][:-1]


def _source(text: str) -> Span:
    """A source; a paper's number leads to it."""
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", text)
    return Link(text, f"https://arxiv.org/abs/{found[1]}") if found else text
