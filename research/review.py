"""Review: the candidates as a person weighs them, and the person's word, which is an event of the ledger.

    python -m research.review SESSION                                   # the candidates
    python -m research.review SESSION --approve 3f2a9c1d --note "simple, and the gain grows"
    python -m research.review SESSION --veto 3f2a9c1d --reviewer ada    # or --hold

An approval lets a verified recipe be crowned (needed with the loop's --require-review); a veto or a hold keeps it from
the crown, and a vetoed one is not nominated again. The last word counts. An ID may be the beginning of one.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, UserError, report_errors
from research.ledger.kinds import DECISIONS, LONGEST, Review
from research.ledger.state import fold
from research.text import beginning, by_seed, clean, count, effect, interval, spread, the_one

PARSER = Command("research.review", __doc__)
PARSER.add_argument("session", type=Path)
action = PARSER.add_mutually_exclusive_group()
for name in DECISIONS:
    action.add_argument(f"--{name}", metavar="ID")
PARSER.add_argument("--note", default="", help="why")
PARSER.add_argument("--reviewer", default="", help="your name; the login's by default")
PARSER.add_argument("--json", action="store_true", help="the candidates, machine-readable")
PARSER.early(__name__)

from jaxnano.config.edit import changed
from research.ledger.session import Session
from research.show.candidates import CandidateRow, Spent, candidates
from research.show.facts import Facts


def main(argv: list[str] | None = None) -> int:
    """The command: shows what waits for a person, or takes down a decision."""
    options = PARSER.options(argv)
    decision = next((name for name in DECISIONS if getattr(options, name) is not None), None)
    for name in ("note", "reviewer"):
        if (text := getattr(options, name)) and decision is None:
            raise UserError(f"--{name}: {text!r}: with --approve, --veto or --hold ID it would do")
        if len(text) > LONGEST:
            raise UserError(f"--{name}: {len(text)} characters; at most {LONGEST} would do")
    with Session.open(options.session) as session:
        facts = Facts.of(fold(session.ledger.events()))
        if decision is None:
            found = candidates(facts)
            lines = [line for row in found for line in (*_lines(row), "")]
            print(json.dumps([asdict(row) for row in found]) if options.json else "\n".join(map(clean, lines))
                  or "no candidate yet: nothing has run but the base")
            return 0
        known = [recipe_id for recipe_id in facts.state.proposals if recipe_id in facts.state.accepted]
        text = getattr(options, decision)
        recipe_id = the_one(f"--{decision}: {text!r}", beginning(text, known),
                            "no recipe of this session begins with it; research.review lists them")
        reviewer = options.reviewer or getpass.getuser()
        said = Review(decision=decision, reviewer=reviewer, note=options.note)
        session.ledger.append("review", recipe_id, said)
        after = Facts.of(fold(session.ledger.events()))
        print(clean(f"{recipe_id[:8]} {after.name(recipe_id)}: {after.said(recipe_id)}"))
        print(_consequence(after, recipe_id, decision, session.ledger.held()))
    return 0


def _consequence(facts: Facts, recipe_id: str, decision: str, running: bool) -> str:
    """What the loop will do about a decision."""
    if recipe_id in {e.subject for e in facts.state.crowned}:
        return "it was crowned before this; the crown stays, the review is in the report"
    if decision != "approve":
        return "it will not be crowned" + (", nor nominated again" if decision == "veto" else " until it is approved")
    if recipe_id not in facts.waiting():
        return "it will be crowned if it passes its verification"
    return "the loop crowns it now" if running else "python -m research.loop --resume --session SESSION crowns it"


def _lines(row: CandidateRow) -> Iterator[str]:
    """A candidate as a reviewer reads it."""
    yield f"{row.recipe_id[:8]}  {row.name}: {row.status}"
    yield f"  hypothesis: {row.hypothesis} ({row.lane}" + (f", {row.origin})" if row.origin else ")")
    for part in row.parts if len(row.parts) > 1 else ():
        worth = effect((part["ablation"] or {}).get("effect"))  # what the loss rises by without it
        yield (f"  part {part['name']}{worth and f' (worth {worth})'}: "
               f"{part['why'] or part['source'] or 'no reason given'}")
    for edit in row.edits:
        yield f"    {changed(**edit)}"
    yield f"  believed at the full horizon: {spread(row.effect, row.sd)}"
    if row.search:
        yield f"  search split, against the base: {_test(row.search)}, common seeds"
    for proof in row.proofs:
        passed = {True: "passed", False: "failed", None: "under way"}[proof["passed"]]
        test = proof["comparisons"].get("incumbent")
        found = f": {_test(test)}, fresh seeds" if test else ""
        yield f"  proof, attempt {proof['attempt']} at alpha {proof['alpha']:.2g}, {passed}{found}"
    yield f"  cost: {_cost(row.cost, row.base_cost)}"
    if row.gains:
        by = "; ".join(f"{h:g}: {by_seed(g)}" for h, g in row.gains.items())
        yield f"  transfer, gain over the base by horizon: {by}" + (
            f"; it {'is ' * (row.trend == 'steady')}{row.trend} with the horizon" if row.trend else "")
        full = row.gains.get(1.0, {})
        yield (f"  better than the base on {sum(gain > 0 for gain in full.values())} of {count(len(full), 'seed')} run "
               "in full")
    for said in row.reviews:
        yield f"  {said['decision']} by {said.get('reviewer')}" + (f": {said['note']}" if said.get("note") else "")


def _test(test: dict[str, Any]) -> str:
    return f"effect {effect(test['effect'])} ({interval(test)}), p = {test['p_value']:.2g}, n = {test['n']}"


def _cost(own: Spent, base: Spent) -> str:
    """Parameters, FLOPs and seconds, each against the base's."""
    parts = [f"{count(own.parameters, 'parameter')} ({_more(own.parameters, base.parameters)})",
             f"{own.flops_per_step:.4g} FLOPs a step ({_more(own.flops_per_step, base.flops_per_step)})"]
    if own.device_s is not None:
        against = f" ({_more(own.device_s, base.device_s)})" if base.device_s else ""
        parts.append(f"{own.device_s:.1f} device-seconds a full run{against}")
    return ", ".join(parts)


def _more(own: float, base: float) -> str:
    return f"{100 * (own / base - 1):+.1f} %"


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
