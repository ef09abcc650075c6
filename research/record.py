"""Writes a session's champion as the folder a speedrun record is submitted as, to be read, checked and run again.

    python -m research.record SESSION [FOLDER]

FOLDER holds README.md (what it is, what it changes, what each lever is worth, seeds and steps), recipe.yaml, base.yaml,
record.json (what `research.replicate FOLDER` runs), curves.svg, and logs/ with the curves of each sealed run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, UserError, report_errors

PARSER = Command("research.record", __doc__)
PARSER.add_argument("session", type=Path)
PARSER.add_argument("folder", type=Path, nargs="?", help="a new one; SESSION/record by default")
PARSER.early(__name__)

import numpy as np

from jaxnano.config.base import dump, dump_full, validate
from jaxnano.config.file import save
from jaxnano.config.recipe import Recipe
from jaxnano.curves import METRICS
from research.contract.trial import Trial
from research.ledger.session import Session, refuse_links, replace_file
from research.ledger.state import fold
from research.show.facts import Facts
from research.show.figures import curves
from research.show.pages import render
from research.show.report import again, attempts

FILES = {"recipe.yaml": "the exact config", "base.yaml": "the track's base, from which the search began",
         "record.json": "both arms and the track, for research.replicate",
         "logs": "of each sealed run, a JSON object a line: step, loss of training, tokens per second"}


def write(session_path: Path, folder: Path | None) -> Path:
    """Write the record of a session's champion; returns its folder.

    Raises: UserError for a session without a champion, or a folder that is taken.
    """
    with Session.open(session_path) as session:
        facts = Facts.of(fold(session.ledger.events()))
        path, trials = session.path, session.trials
    refuse_links(path)
    side = facts.champion()
    if side is None:
        raise UserError(f"{session_path}: no champion was crowned, so there is no record; a session that proved an "
                        "improvement would do")
    folder = folder or path / "record"
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: already holds something; a new or empty folder would do")
    proof = next(row for row in reversed(list(attempts(facts))) if row["recipe_id"] == side["recipe_id"])
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    shown = {"recipe": side["recipe_id"], "against": side["against"], "base": str(facts.base)}
    recipes = {name: validate(Recipe, facts.state.proposals[rid].recipe) for name, rid in shown.items()}
    for name in ("recipe", "base"):
        save(recipes[name], folder / f"{name}.yaml")
    logs: dict[int, list[str]] = {seed: [] for seed in proof["seeds"]}
    for role, rid in (("champion", side["recipe_id"]), ("against", side["against"])):
        for seed in proof["seeds"]:
            source = trials / Trial(rid, 1.0, seed).key / METRICS
            if source.is_file():
                replace_file(folder / "logs" / f"{role}-{seed}.jsonl", source.read_bytes())
                logs[seed].append(role)
    figure = curves(facts)
    if figure:
        replace_file(folder / "curves.svg", figure.svg.encode())
    replace_file(folder / "record.json", (json.dumps({
        "name": side["name"], "effect": side["effect"], "interval": side["interval"], "n": side["n"],
        "contract": dump_full(facts.track), "data_hash": facts.state.session.data_hash,
        **{name: dump(recipe) for name, recipe in recipes.items()}},
        indent=1) + "\n").encode())
    versions = ", ".join(f"{name} {version}" for name, version in sorted(facts.state.session.versions.items()))
    text = render("md", "record.j2", f"{side['name']}: a record on track {facts.track.name}", facts=facts, side=side,
                  proof=proof, figure=figure, sealed=list(_sealed(facts, proof, logs)), levers=side["parts"],
                  versions=versions, files=list(FILES.items()), ladder=_passing(facts, side["recipe_id"]),
                  **again(facts))
    replace_file(folder / "README.md", text.encode())
    return folder


def _sealed(facts: Facts, proof: dict[str, Any], logs: dict[int, list[str]]) -> Iterator[dict[str, Any]]:
    """By sealed seed: the champion's steps, time and losses, and the loss of what it had to beat."""
    for seed, line in zip(proof["seeds"], proof["by_seed"], strict=False):
        trial = facts.state.trials[Trial(proof["recipe_id"], 1.0, seed).key]
        (other, _), (own, _), *_ = line["losses"]
        yield {"seed": seed, "steps": trial.result.steps if trial.result else None, "own": own, "other": other,
               "device_s": trial.result.device_s if trial.result else None, "gain": line["gain"], "logs": logs[seed],
               "search": trial.loss.get(facts.track.splits.search)}


def _passing(facts: Facts, recipe_id: str) -> list[dict[str, Any]]:
    """By horizon, where the track has a target: steps, mean loss of the search split, runs, whether its rule is met."""
    found = []
    for horizon in sorted(facts.track.horizons):
        losses = [*facts.state.losses(recipe_id, horizon, facts.track.splits.search).values()]
        met = facts.track.objective.met(losses)
        if losses and met is not None:
            recipe = validate(Recipe, facts.state.proposals[recipe_id].recipe)
            found.append({"steps": facts.track.steps(recipe, horizon), "mean": float(np.mean(losses)),
                          "n": len(losses), "met": met})
    return found


def main(argv: list[str] | None = None) -> int:
    """The command: writes the folder and says where it is."""
    options = PARSER.options(argv)
    folder = write(options.session, options.folder)
    print(f"{folder}: README.md is what to read; python -m research.replicate {folder} runs it on fresh seeds")
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
