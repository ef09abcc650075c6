"""A champion's provenance: what it is, what was proven of it and how to run it again, for programs and for people.

Every number comes from the ledger, and nothing of the machine's folders or the clock of the sharing is in it: the
same champion gives the same card.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from jaxnano.cli import UserError
from jaxnano.config.base import dump_full
from jaxnano.config.edit import diff, show
from jaxnano.config.recipe import recipe_id
from research.contract.track import Track
from research.decide.belief import Arm
from research.ledger.session import replace_file
from research.show.document import Block, Heading, Listing, Paragraph, Table, to_markdown
from research.show.facts import Facts
from research.text import count, effect, interval, loss

FORMAT = 1


def card(facts: Facts) -> dict[str, Any]:
    """The champion's card as plain data; losses and effects in `unit`.

    Raises: ValueError if no champion was crowned.
    """
    champion, state, track = facts.champion(), facts.state, facts.track
    if champion is None:
        raise UserError("no champion was crowned")
    crowned, shipped = state.crowned[-1], state.trials[state.crowned[-1].body["trial"]]
    result = shipped.result or {}
    against = facts.side(champion["against"], beside=champion["recipe_id"])
    test = {key: champion[key] for key in ("effect", "interval", "p_value", "p_adjusted", "alpha", "attempt", "n")}
    return {
        "format": FORMAT,
        "name": champion["name"],
        "recipe_id": champion["recipe_id"],
        "crowned": datetime.fromtimestamp(crowned.time, UTC).isoformat(timespec="seconds"),
        "track": {"name": track.name, "summary": track.summary, "hash": state.session["track_hash"],
                  "objective": dump_full(track.objective)},
        "base": facts.base,
        "diff": champion["diff"],
        "hypothesis": facts.claim(champion["recipe_id"]),
        "parts": champion["parts"],
        "unit": facts.unit,
        "test": {"split": track.splits.protected, "against": {"recipe_id": against["recipe_id"],
                                                             "name": against["name"]}, **test},
        "over_base": champion["over_base"],
        "losses": {"champion": champion["loss"], "against": against["loss"]},
        "heldout": crowned.body["heldout"],
        "checkpoint": {"trial": shipped.key, "seed": shipped.seed, "steps": result["steps"], "loss": shipped.loss,
                       "fingerprint": result["fingerprint"]},
        "data_hash": state.session["data_hash"],
        "versions": state.session["versions"],
        "rerun": [
            f"python -m research.replay SESSION {shipped.key}",
            f"python -m jaxnano.train --config recipe.yaml --steps {result['steps']} --seed {shipped.seed} --out AGAIN",
        ],
        "tried": tried(facts),
    }


def tried(facts: Facts) -> str:
    """What the whole session tried, in one line: the champion is the best of that many."""
    state, counts = facts.state, facts.state.counts()
    ran = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items(), key=lambda item: -item[1]))
    return (f"{state.verdicts['accepted']} recipes accepted and {state.verdicts['refused']} refused; "
            f"{count(sum(counts.values()), 'run')} ({ran}) in {state.device_s:,.0f} device-seconds; "
            f"{count(len(state.sealed), 'sealed attempt')}, {count(len(state.crowned), 'champion')}")


def change(card: Mapping[str, Any]) -> str:
    """diff.md: what separates the recipe from the track's base, and the reason of each of its parts.

    Args: card: of it, name, track, base, diff and parts are read.
    """
    lines = "\n".join(f"{mark} {edit['path']}: {show(edit[side])}"
                      for edit in card["diff"] for mark, side in (("-", "old"), ("+", "new")))
    about = Paragraph(f"Against the base of track {card['track']['name']}, recipe {card['base']}:")
    rows = [[part["name"], part["why"], part["source"]] for part in card["parts"]]
    reasons = [Table(["part", "why", "source"], rows, "lll")] if rows else []
    return to_markdown(card["name"], [about, Listing(lines, "diff"), *reasons], "")


def write_change(track: Track, folder: Path, arm: Arm) -> None:
    """Write diff.md into a champion's folder."""
    shown = {"name": arm.name, "track": {"name": track.name}, "base": recipe_id(track.base_recipe),
             "diff": [edit.model_dump() for edit in diff(track.base_recipe, arm.recipe).edits],
             "parts": [dump_full(part) for part in arm.parts]}
    replace_file(folder / "diff.md", change(shown).encode())


def page(card: dict[str, Any]) -> str:
    """README.md: the card for people. Names and hypotheses are shown as they are, never as markup."""
    track, test, unit = card["track"], card["test"], card["unit"]
    low, high = test["interval"]
    blocks: list[Block] = [
        Paragraph(f"The champion of a session on track {track['name']} ({track['summary']}): recipe "
                  f"{card['recipe_id']}, crowned {card['crowned']}. diff.md has what it changes."),
        Paragraph(f"It lowers the loss by {test['effect']:.4f} {unit} against {test['against']['name']} (95 % interval "
                  f"{low:.4f} to {high:.4f}) on the {test['split']} split, paired over {test['n']} seeds drawn after "
                  f"the recipe was sealed; p = {test['p_value']:.2g}, where attempt {test['attempt']} had to reach "
                  f"{test['alpha']:.2g}."),
        Paragraph(f"Hypothesis: {card['hypothesis']}"),
        Heading("Its parts"), _parts(card),
        Heading("Losses"), Paragraph(f"In {unit}, by split and seed, at the full horizon."), _losses(card),
        Paragraph(f"What was tried: {card['tried']}."),
        Heading("Open it, run it again"),
        Listing("import jaxnano\n\nrecipe, params, about = jaxnano.load(PATH)  # this folder; any changed byte is "
                "refused"),
        Paragraph("The run whose checkpoint this is, from the session's ledger (to the bit where the fingerprint is "
                  "the same), or from the recipe alone:"),
        Listing("\n".join(card["rerun"])),
        Heading("Made with"), _origin(card),
    ]
    return to_markdown(card["name"], blocks, "")


def _parts(card: dict[str, Any]) -> Table:
    rows = []
    for part in card["parts"]:
        row = part["ablation"] or {}
        rows.append([part["name"], part["why"], part["source"], effect(row.get("effect")), interval(row)])
    return Table(["part", "why", "source", "worth", "95 % interval"], rows, "lllrr")


def _losses(card: dict[str, Any]) -> Table:
    """A row a split and seed; the champion beside what it had to beat."""
    own, other = card["losses"]["champion"], card["losses"]["against"]
    rows = []
    for split, side in own.items():
        rival = other.get(split, {"mean": None, "by_seed": {}})
        rows += [[split, seed, loss(value), loss(rival["by_seed"].get(seed))]
                 for seed, value in side["by_seed"].items()]
        common = side["by_seed"].keys() & rival["by_seed"].keys()
        means = [loss(float(np.mean([s["by_seed"][seed] for seed in common])) if common else None)
                 for s in (side, rival)]
        rows.append([split, f"mean (n = {len(common)})", *means])
    return Table(["split", "seed", "champion", card["test"]["against"]["name"]], rows, "lrrr")


def _origin(card: dict[str, Any]) -> Table:
    shipped = card["checkpoint"]
    rows = [["checkpoint of", shipped["trial"]], ["seed", str(shipped["seed"])], ["steps", str(shipped["steps"])],
            ["track", card["track"]["hash"]], ["data", card["data_hash"]]]
    rows += [[f"run on: {name}", str(value)] for name, value in shipped["fingerprint"].items() if name != "data"]
    rows += [[name, value] for name, value in card["versions"].items() if name not in shipped["fingerprint"]]
    return Table(["what", "value"], rows, "ll")
