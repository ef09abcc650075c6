"""The champion's folder: the sealed recipe, the diff a person reads, and the first verification seed's checkpoint."""

from __future__ import annotations

import shutil
from typing import Any

from jaxnano import checkpoint, data, evaluate
from jaxnano.cli import UserError
from jaxnano.config.edit import diff
from jaxnano.config.recipe import recipe_id, save
from research.belief import Arm
from research.card import change
from research.session import Session
from research.track import Track


def crown(session: Session, track: Track, arm: Arm, trial_key: str) -> dict[str, Any]:
    """Install a verified recipe as the champion.

    Args: trial_key: the verification run whose checkpoint ships.
    Returns: the `crowned` event's body, with the loss of the one opening of the held-out split.
    """
    folder, source = session.champion, session.trial_dir(trial_key) / "checkpoint"
    if not source.is_dir():  # before the champion that is there goes
        raise UserError(f"{source}: missing, so {arm.recipe_id} cannot be crowned; research.review --veto "
                        f"{arm.recipe_id[:8]} would let the session go on")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    save(arm.recipe, folder / "recipe.yaml")
    about = {"name": arm.name, "track": {"name": track.name}, "base": recipe_id(track.base_recipe),
             "diff": [edit.model_dump() for edit in diff(track.base_recipe, arm.recipe).edits],
             "parts": [part.as_dict() for part in arm.parts]}
    (folder / "diff.md").write_text(change(about), encoding="utf-8")
    shutil.copytree(source, folder / "checkpoint")
    recipe, params, about = checkpoint.load(folder / "checkpoint")
    corpus = data.load(recipe.data)
    windows = evaluate.eval_windows(corpus, track.splits.heldout, recipe, track.proof_tokens)
    return {"trial": trial_key, "name": arm.name, "seed": about["seed"],
            "heldout": evaluate.evaluate(recipe, params, windows)}
