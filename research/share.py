"""Publishes a session's champion: recipe, checkpoint, diff, provenance card and a manifest of them all.

    python -m research.share runs/tiny-20260101-000000 shared/champion
    python -m research.share runs/tiny-20260101-000000 gs://bucket/champion
    python -m research.share runs/tiny-20260101-000000 hf://OWNER/NAME

On the Hugging Face Hub the provenance is the model's card. `jaxnano.load(PATH)` opens what was published; `python -m
jaxnano.export PATH OUT` writes it for Hugging Face's transformers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, Failure, Output, UserError, report_errors
from research.machine.place import PLATFORMS, free_port, places
from research.text import clean, listed

PARSER = Command("research.share", __doc__)
PARSER.add_argument("session", type=Path)
PARSER.add_argument("path", help="a new folder, gs://BUCKET/FOLDER or hf://OWNER/NAME")
PARSER.add_argument("--license", metavar="NAME", help="of the weights, for the card, such as apache-2.0")
PARSER.add_argument("--platform", choices=PLATFORMS, metavar="KIND", help="to evaluate it on, as of research.loop")
PARSER.add_argument("--registry", type=Path, metavar="FILE", help="of all seals; the user's own by default, see books")
PARSER.add_argument("--json", action="store_true")
PARSER.early(__name__)

from jaxnano import checkpoint, data, evaluate, published
from jaxnano.config.base import dump, validate
from jaxnano.config.file import save
from jaxnano.config.recipe import Recipe
from jaxnano.device import stay_at, use_compile_cache
from research.decide.claims import violations
from research.ledger.registry import Contest, Registry
from research.ledger.session import Session, refuse_links
from research.ledger.state import fold
from research.machine import TOLERANCE
from research.show.card import card, change, model_card
from research.show.facts import Facts


def share(session: Path, target: str, registry: Registry, license: str | None = None) -> dict[str, Any]:
    """Publish the champion at `target`, a new or empty folder, gs:// path or hf:// repository: all of it or nothing.

    The checkpoint is evaluated before it goes out: it has to give the losses that the ledger holds, on the search and
    on the protected split. Ledger and registry say that the latter was opened, before it is.

    Returns: path, champion, id (the manifest's SHA-256), the loss in the ledger, how far it is off on this machine.
    Raises: ValueError for a session without a champion or whose ledger breaks a rule, a champion's folder that is not
        what the ledger crowned, and a target that is taken; Failure if the checkpoint does not give its loss.
    """
    facts = _checked(session)
    about, track = card(facts), facts.track
    recipe = validate(Recipe, facts.state.proposals[about["recipe_id"]].recipe)
    made = about["checkpoint"]
    with published.publishing(target) as folder:
        _copy(session / "champion" / checkpoint.FOLDER, folder / checkpoint.FOLDER,
              {"recipe": dump(recipe), "seed": made["seed"], "total_steps": made["steps"],
               "data_hash": about["data_hash"]})
        save(recipe, folder / "recipe.yaml")
        (folder / "diff.md").write_text(change(about), encoding="utf-8")
        (folder / "README.md").write_text(model_card(about, license), encoding="utf-8")
        (folder / published.CARD).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        name = published.seal(folder)
        gaps = []
        tested, begun = about["test"]["split"], facts.state.session
        for split, tokens in ((track.splits.search, track.eval_tokens), (tested, track.proof_tokens)):
            if split == tested:
                registry.published(Contest(begun.track, begun.track_hash, begun.data_hash), split, about["recipe_id"],
                                   session)
                with Session.open(session) as opened:
                    opened.ledger.append("opening", about["recipe_id"], {"split": split, "trial": made["trial"],
                                                                         "why": "to publish its checkpoint"})
            found, loss = _measure(folder, split, tokens), made["loss"][split]
            if not abs(found - loss) <= TOLERANCE:
                raise Failure(f"{session}: champion/{checkpoint.FOLDER}: its {split} loss is {found:.6f} here, but "
                              f"{loss:.6f} in the ledger; not published")
            gaps.append(abs(found - loss))
    return {"path": target, "champion": clean(about["name"]), "id": name,
            f"{track.splits.search}_loss": made["loss"][track.splits.search], "difference_here": max(gaps)}


def _checked(session: Path) -> Facts:
    """The facts of a session that may be published from: with a link in it, other people's files would be."""
    with Session.open(session) as opened:
        refuse_links(opened.path)
        broken = list(violations(opened.ledger, opened.path))
        events = opened.ledger.events()
    if broken:
        raise UserError(f"{session}: its ledger does not hold: {listed(broken, 1)}; research.ledger --check lists them")
    facts = Facts.of(fold(events))
    if facts.state.champion is None:
        raise UserError(f"{session}: no champion was crowned, so there is nothing to share; a session that proved an "
                        "improvement would do")
    return facts


def _copy(source: Path, folder: Path, expected: dict[str, Any]) -> None:
    """Copy the champion's checkpoint, if it is that of the run the ledger crowned."""
    if not source.is_dir():
        raise UserError(f"{source}: missing, although a champion was crowned; it cannot be shared without")
    shutil.copytree(source, folder)
    found = checkpoint.recorded(folder) or {}
    for name, value in expected.items():
        if found.get(name) != value:
            raise UserError(f"{source}: {name}: not that of the run the ledger crowned; the champion's own checkpoint "
                            "would do")


def _measure(folder: Path, split: str, tokens: int) -> float:
    """The loss of what is about to be published, on this machine."""
    try:
        recipe, params, about = published.load(folder)
    except Exception as error:  # of a damaged file, Orbax and TensorStore say what they like, at any length
        raise Failure(f"champion/{checkpoint.FOLDER}: cannot be read ({type(error).__name__}); not published") from None
    corpus = data.load(recipe.data)
    if corpus.data_hash != about["data_hash"]:
        raise UserError(f"data: {corpus.data_hash[:12]} on this machine, the champion's is {about['data_hash'][:12]}; "
                        "the machine that the session ran on would do")
    return evaluate.evaluate(recipe, params, evaluate.eval_windows(corpus, split, recipe, tokens))


def main(argv: list[str] | None = None) -> int:
    """The command: publishes the champion, evaluated by a place of this machine."""
    options = PARSER.options(argv)
    here = places(1, platform=options.platform)[0]
    with Session.open(options.session) as opened:
        if here.accelerated and opened.ledger.held():
            raise UserError(f"{options.session}: its loop is at work, on this machine's devices; when it has ended, or "
                            "--platform cpu")
    stay_at(here.environment(free_port()) if here.accelerated else {"JAX_PLATFORMS": "cpu"})
    use_compile_cache()
    with Registry(options.registry) as registry:
        Output(options.json).table("shared", share(options.session, options.path, registry,
                                                     options.license))
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
