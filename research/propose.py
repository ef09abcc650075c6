"""Propose an experiment to a session from the shell: the gate's verdict, the trial's id, and with --wait the outcome.

    python -m research.propose SESSION --set optimizer.groups.matrices.lr.value=0.006 --why "the base is timid"
    python -m research.propose SESSION --file diff.yaml --why "as in the paper" --on base --wait 300

A file holds edits as research/lanes/ideas does: `edits: [{path: model.norm, new: {kind: rmsnorm}}, ...]`, or just the
list.
Exit code: 0 accepted, 1 refused, 2 bad input.
"""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, report_errors
from research.text import clean, effect, spread

LONG_S = 600.0

PARSER = Command("research.propose", __doc__)
PARSER.add_argument("session", type=Path)
PARSER.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="an edit; may be repeated")
PARSER.add_argument("--file", type=Path, metavar="YAML", help="edits, as in research/lanes/ideas")
PARSER.add_argument("--why", required=True, help="the hypothesis, in a sentence")
PARSER.add_argument("--name", default="", help="what the change is called")
PARSER.add_argument("--on", default="best", help="best (the default), base, or a recipe's id")
PARSER.add_argument("--source", default="", help="a paper or a record")
PARSER.add_argument("--effect", type=float, default=0.0, help="expected gain, nats")
PARSER.add_argument("--wait", type=float, nargs="?", const=LONG_S, metavar="SECONDS", help="print what came of it")
PARSER.add_argument("--json", action="store_true", help="machine-readable")
PARSER.early(__name__)

from jaxnano.config.base import ConfigError, Problem, dump_full, validate
from jaxnano.config.edit import show
from jaxnano.config.text import parse_yaml, read_yaml
from research.decide.book import base_id
from research.outside.desk import Desk
from research.outside.forms import Judged, Outcome
from research.outside.inbox import Ask, Inbox


def main(argv: list[str] | None = None) -> int:
    """The command: submits a proposal; exit code 1 where the gate, or with --wait its outcome, refuses it."""
    options = PARSER.options(argv)
    asked = validate(Ask, {"name": options.name, "why": options.why, "source": options.source, "on": options.on,
                           "effect": options.effect, "edits": _edits(options.file, options.set)}, "research.propose")
    with Inbox(options.session) as inbox:
        desk = Desk(inbox)
        verdict = desk.propose(asked, origin=getpass.getuser())
        outcome = None
        if not options.json:
            print("\n".join(map(clean, _verdict(verdict))), flush=True)
        if options.wait is not None and verdict.accepted:
            inbox.wait(verdict.number, options.wait)
            outcome = desk.wait(verdict.number)
            if not options.json:
                print("\n".join(map(clean, _outcome(outcome, base_id(inbox.state)))))
    if options.json:
        print(json.dumps(dump_full(verdict) | ({"outcome": dump_full(outcome)} if outcome else {})))
    return 0 if verdict.accepted and not (outcome and outcome.outcome and not outcome.outcome.accepted) else 1


def _edits(file: Path | None, sets: list[str]) -> list[Any]:
    """The edits of a file, then those of the command line.

    Raises: ConfigError for a file that holds something else, or an option that is no path=value.
    """
    edits: list[Any] = []
    if file is not None:
        data = read_yaml(file, "--file")
        found = data.get("edits") if isinstance(data, dict) and set(data) == {"edits"} else data
        if not isinstance(found, list):
            raise ConfigError([Problem("--file", str(file), "a list of edits, {path, new}, would do")])
        edits += found
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals:
            raise ConfigError([Problem("--set", text, "written as path=value")])
        edits.append({"path": path, "new": parse_yaml(value, "--set")})
    if not edits:
        raise ConfigError([Problem("--set", "absent", "an edit, with --set PATH=VALUE or --file YAML, is needed")])
    return edits


def _verdict(verdict: Judged) -> list[str]:
    if verdict.accepted:
        lines = [f"accepted: {verdict.name}", f"  recipe {verdict.recipe_id}, first run {verdict.trial}"]
    else:
        lines = [f"refused: {verdict.name}"]
        lines += [f"  {r['path'] or '(all of it)'}: {show(r['value'])}: {r['rule']}" for r in verdict.refusals]
    lines += [f"  note: {note}" for note in verdict.notes]
    return [*lines, f"  submission {verdict.number}" + (f"; {verdict.note}" if verdict.note else "")]


def _outcome(outcome: Outcome, base: str | None) -> list[str]:
    """What came of it. base: its id."""
    found = outcome.outcome
    if found is None:
        return [outcome.note]
    lines = [f"{outcome.note}:"] + [f"  {r.path}: {show(r.value)}: {r.rule}" for r in found.refusals]
    for key, run in found.runs.items():
        over = {"parent": run.gain_over_parent} if run.parent != base else {}
        gains = ", ".join(f"{effect(gain)} over the {name}" for name, gain in ({"base": run.gain} | over).items()
                          if gain is not None)
        reason = f": {run.reason}" if run.reason else ""
        predicted = f", predicted to end at {run.predicted[0]:.4f}" if run.predicted and not run.loss else ""
        lines.append(f"  {key}: {run.outcome}{reason}{predicted}" + (f", on seed {run.seed}: {gains}" if gains else ""))
    return lines + ([f"  believed at the full horizon: {spread(*found.effect)}"] if found.effect else [])


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
