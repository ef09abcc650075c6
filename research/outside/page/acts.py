"""What a person may do from the page: propose, with the gate's verdict as one types, and decide on candidates."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxnano.cli import UserError
from jaxnano.config.base import ConfigError, Problem, is_under, validate, walk
from jaxnano.config.text import parse_yaml
from research.contract.schema import describe
from research.ledger.kinds import DECISIONS, LONGEST, WANTS, Review
from research.ledger.session import Session
from research.ledger.state import fold
from research.outside.desk import Desk
from research.outside.inbox import Ask, Inbox
from research.outside.steer import ask, retry
from research.show.facts import Facts

Form = Mapping[str, str]


def form(facts: Facts, query: Form) -> dict[str, Any]:
    """What the form of a proposal begins with."""
    return {"on": query.get("on", "best"), "places": list(_places(facts)), "text": query.get("text", "")}


def _places(facts: Facts) -> Iterator[str]:
    """The paths of the base that may be changed."""
    for path, *_ in walk(facts.track.base_recipe):
        if not any(is_under(path, frozen) for frozen in facts.track.frozen):
            yield path


def asked(form: Form) -> Ask:
    """The proposal in a form: a line an edit, PATH = VALUE. Raises: ConfigError for what is none."""
    edits = []
    for line in filter(None, map(str.strip, form.get("edits", "").splitlines())):
        path, equals, value = line.partition("=")
        if not equals:
            raise ConfigError([Problem("edits", line, "written as PATH = VALUE, a line each")])
        edits.append({"path": path.strip(), "new": parse_yaml(value.strip(), path.strip())})
    return validate(Ask, {"edits": edits, "why": form.get("why", ""), "name": form.get("name", ""),
                          "on": form.get("on", "") or "best"}, "the form")


def check(path: Path, form: Form) -> dict[str, Any]:
    """What the gate says of a proposal; nothing is submitted."""
    if not form.get("edits", "").strip():
        return {"template": "verdict", "verdict": None, "problems": []}
    try:
        ask = asked({**form, "why": form.get("why") or "not told yet"})
        with Inbox(path) as inbox:
            proposal = inbox.compose(ask, "inbox", "page")
            verdict = inbox.gate.judge_parts(proposal.parts)
    except ConfigError as error:
        return {"template": "verdict", "verdict": None, "problems": error.problems}
    return {"template": "verdict", "verdict": verdict, "problems": verdict.problems}


def propose(path: Path, form: Form) -> dict[str, Any]:
    """Submit a proposal. Raises: UserError for one that cannot be read."""
    with Inbox(path) as inbox:
        judged = Desk(inbox).propose(asked(form), origin=f"page: {getpass.getuser()}")
    return {"template": "said", "judged": judged}


def place(path: Path, form: Form) -> dict[str, Any]:
    """What may stand at a path."""
    with Inbox(path) as inbox:
        try:
            return {"template": "place", "lines": describe(form.get("path", ""), inbox.track.frozen)}
        except ConfigError as error:
            return {"template": "place", "lines": [str(problem) for problem in error.problems]}


def review(path: Path, form: Form) -> dict[str, Any]:
    """Take down what a person says of a recipe. Raises: UserError for what is no decision on a recipe that is known."""
    decision, recipe_id, note = form.get("decision", ""), form.get("recipe", ""), form.get("note", "")
    if decision not in DECISIONS:
        raise UserError(f"{decision}: no decision; {', '.join(DECISIONS)} would do")
    if len(note) > LONGEST:
        raise UserError(f"note: {len(note)} characters; at most {LONGEST} would do")
    with Session.open(path) as session:
        if recipe_id not in fold(session.ledger.events()).accepted:
            raise UserError(f"{recipe_id}: no accepted recipe of this session")
        session.ledger.append("review", recipe_id, Review(decision=decision, reviewer=getpass.getuser(), note=note))
    return {"template": "said", "decision": decision, "recipe_id": recipe_id}


def steer(path: Path, form: Form) -> dict[str, Any]:
    """Ask something of the loop. Raises: UserError for what it cannot do, or where none runs."""
    want = form.get("want", "")
    if want not in WANTS:
        raise UserError(f"{want}: nothing a loop does; {', '.join(WANTS)} would do")
    try:
        value = float(form.get(want) or 0)
    except ValueError:
        value = 0.0
    if want in ("minutes", "workers") and not 0 < value < 1e6:
        raise UserError(f"{want}: {form.get(want) or 'absent'}: a number above 0 would do")
    if want == "retry":
        return {"template": "said", "want": retry(path)}
    ask(path, want, value)
    return {"template": "said", "want": want if not value else f"{want} {value:g}"}


ACTS: dict[str, Callable[[Path, Form], dict[str, Any]]] = {
    "check": check, "propose": propose, "place": place, "review": review, "ask": steer}
