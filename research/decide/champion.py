"""The champion's folder: the sealed recipe, and the first verification seed's checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from jaxnano import checkpoint, data, evaluate
from jaxnano.cli import UserError
from jaxnano.config.file import save
from jaxnano.device import use_compile_cache
from research.contract.track import Track
from research.decide.belief import Arm
from research.ledger.events import encode, read
from research.ledger.kinds import Crowned
from research.ledger.session import Session, replace_file

ABOUT = "crowned.json"


def crown(session: Session, track: Track, arm: Arm, trial_key: str) -> Crowned:
    """Make a verified recipe's folder beside the champion's; `install` puts it in its place once the ledger says so.

    A crash leaves the champion that the ledger knows. A folder that was finished before it is taken as it is: the
    held-out split is opened once for each champion.

    Args: trial_key: the verification run whose checkpoint ships.
    Returns: the `crowned` event's body, with the loss of the one opening of the held-out split.
    """
    source, folder = session.trial_dir(trial_key) / "checkpoint", _beside(session)
    if (made := _about(folder)) and made.trial == trial_key:
        return made
    if not source.is_dir():
        raise UserError(f"{source}: missing, so {arm.recipe_id} cannot be crowned; research.review --veto "
                        f"{arm.recipe_id[:8]} would let the session go on")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save(arm.recipe, folder / "recipe.yaml")
    shutil.copytree(source, folder / "checkpoint")
    use_compile_cache()  # the loop compiles nothing but this
    recipe, params, about = checkpoint.load(folder / "checkpoint")
    corpus = data.load(recipe.data)
    windows = evaluate.eval_windows(corpus, track.splits.heldout, recipe, track.proof_tokens)
    body = Crowned(trial=trial_key, name=arm.name, seed=about["seed"],
                   heldout=evaluate.evaluate(recipe, params, windows))
    replace_file(folder / ABOUT, encode(body).encode())  # last: with it, the folder is whole
    return body


def install(session: Session, crowned: Crowned) -> None:
    """Put the folder of the recipe that the ledger crowned in its place; does nothing where it is there.

    Whatever this is killed at, done again it ends in the same: the new folder, alone.

    Args: crowned: the body of the last `crowned` event.
    """
    new, old = _beside(session), session.path / "champion.old"
    made = _about(new)
    if made is not None and made.trial == crowned.trial:
        if session.champion.exists():
            shutil.rmtree(old, ignore_errors=True)
            session.champion.rename(old)
        new.rename(session.champion)
    if session.champion.exists():
        shutil.rmtree(old, ignore_errors=True)


def _beside(session: Session) -> Path:
    return session.path / "champion.new"


def _about(folder: Path) -> Crowned | None:
    """What a folder that was finished says of itself; None of any other."""
    path = folder / ABOUT
    return read("crowned", path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None  # type: ignore
