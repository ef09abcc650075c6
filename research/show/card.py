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
import yaml

from jaxnano.cli import UserError
from jaxnano.config.base import dump_full
from jaxnano.config.edit import diff
from jaxnano.config.recipe import recipe_id
from research.contract.track import Track
from research.decide.belief import Arm
from research.ledger.session import replace_file
from research.show.claim import within
from research.show.facts import Facts
from research.show.pages import render
from research.text import count

FORMAT = 1


def card(facts: Facts) -> dict[str, Any]:
    """The champion's card as plain data; losses and effects in `unit`.

    Raises: ValueError if no champion was crowned.
    """
    champion, state, track = facts.champion(), facts.state, facts.track
    if champion is None:
        raise UserError("no champion was crowned")
    crowned, shipped = state.crowned[-1], state.trials[state.crowned[-1].body.trial]
    result = shipped.result
    assert result is not None
    against = facts.side(champion["against"], beside=champion["recipe_id"])
    test = {key: champion[key] for key in ("effect", "interval", "p_value", "p_adjusted", "alpha", "attempt", "n",
                                           "split", "rule", "scope")}
    return {
        "format": FORMAT,
        "name": champion["name"],
        "title": facts.proposal(champion["recipe_id"]).name,
        "recipe_id": champion["recipe_id"],
        "crowned": datetime.fromtimestamp(crowned.time, UTC).isoformat(timespec="seconds"),
        "track": {"name": track.name, "summary": track.summary, "hash": state.session.track_hash,
                  "objective": dump_full(track.objective)},
        "base": facts.base,
        "diff": champion["diff"],
        "hypothesis": facts.claim(champion["recipe_id"]),
        "parts": champion["parts"],
        "unit": facts.unit,
        "test": {"against": {"recipe_id": against["recipe_id"], "name": against["name"]}, **test},
        "over_base": champion["over_base"],
        "losses": {"champion": champion["loss"], "against": against["loss"]},
        "heldout": crowned.body.heldout,
        "text": facts.text,
        "transfer": [dump_full(line) for line in facts.transfer()],
        "beside": facts.beside(),
        "checkpoint": {"trial": shipped.key, "seed": shipped.seed, "steps": result.steps, "loss": shipped.loss,
                       "fingerprint": result.fingerprint},
        "data_hash": state.session.data_hash,
        "versions": state.session.versions,
        "rerun": [
            f"python -m research.replay SESSION {shipped.key}",
            f"python -m jaxnano.train --config recipe.yaml --steps {result.steps} --seed {shipped.seed} --out AGAIN",
        ],
        "tried": tried(facts),
    }


def tried(facts: Facts) -> str:
    """What the whole session tried, in one line: the champion is the best of that many."""
    state, counts = facts.state, facts.state.counts()
    ran = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items(), key=lambda item: -item[1]))
    return (f"{state.verdicts['accepted']} recipes accepted and {state.verdicts['refused']} refused; "
            f"{count(sum(counts.values()), 'run')} ({ran}) in {facts.device_time}; "
            f"{count(len(state.sealed), 'sealed attempt')}, {count(len(state.crowned), 'champion')}")


def change(card: Mapping[str, Any]) -> str:
    """diff.md: what separates the recipe from the track's base, and the reason of each of its parts.

    Args: card: of it, title, track, base, diff and parts are read.
    """
    return render("md", "change.j2", card["title"], card=card)


def write_change(track: Track, folder: Path, arm: Arm) -> None:
    """Write diff.md into a champion's folder."""
    shown = {"title": arm.name, "track": {"name": track.name}, "base": recipe_id(track.base_recipe),
             "diff": [edit.model_dump() for edit in diff(track.base_recipe, arm.recipe).edits],
             "parts": [dump_full(part) for part in arm.parts]}
    replace_file(folder / "diff.md", change(shown).encode())


def page(card: dict[str, Any]) -> str:
    """README.md: the card for people. Names and hypotheses are shown as they are, never as markup."""
    return render("md", "card.j2", card["name"], card=card, losses=_losses(card), origin=_origin(card), within=within)


def model_card(card: dict[str, Any], license: str | None = None) -> str:
    """README.md of a published model: `page` below what the Hugging Face Hub reads of it, as YAML.

    Args: license: of the weights; not stated where it is not known.
    """
    test, unit = card["test"], card["unit"]
    found = {f"loss, {split} split": side["mean"] for split, side in card["losses"]["champion"].items()}
    found |= {f"gain over {test['against']['name']}": test["effect"]}
    results = [{"type": "loss", "name": f"{what}, {unit}", "value": value} for what, value in found.items()]
    about = {
        "library_name": "jaxnano", "pipeline_tag": "text-generation", **({"license": license} if license else {}),
        "tags": ["jaxnano", "jax", "gpt", "language-model"],
        "model-index": [{"name": card["name"], "results": [{
            "task": {"type": "text-generation"},
            "dataset": {"type": "text", "name": f"text of track {card['track']['name']}"}, "metrics": results}]}]}
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n\n{page(card)}"


def _losses(card: dict[str, Any]) -> list[tuple[str, str, float | None, float | None]]:
    """A row a split and seed, then their mean; the champion beside what it had to beat."""
    own, other = card["losses"]["champion"], card["losses"]["against"]
    rows = []
    for split, side in own.items():
        rival = other.get(split, {"mean": None, "by_seed": {}})
        rows += [(split, seed, value, rival["by_seed"].get(seed)) for seed, value in side["by_seed"].items()]
        common = side["by_seed"].keys() & rival["by_seed"].keys()
        means = [float(np.mean([s["by_seed"][seed] for seed in common])) if common else None for s in (side, rival)]
        rows.append((split, f"mean (n = {len(common)})", *means))
    return rows


def _origin(card: dict[str, Any]) -> list[tuple[str, Any]]:
    shipped = card["checkpoint"]
    rows = [("checkpoint of", shipped["trial"]), ("seed", shipped["seed"]), ("steps", shipped["steps"]),
            ("track", card["track"]["hash"]), ("data", card["data_hash"])]
    rows += [(f"run on: {name}", value) for name, value in shipped["fingerprint"].items() if name != "data"]
    return rows + [(name, value) for name, value in card["versions"].items() if name not in shipped["fingerprint"]]
