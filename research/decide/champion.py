"""The champion's folder: the sealed recipe, and the first verification seed's checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from jaxnano.cli import UserError
from jaxnano.config.file import save
from jaxnano.curves import EVENTS
from research.contract.track import Track
from research.decide.belief import Arm
from research.execute import Job
from research.execute.measure import TARGET
from research.ledger.events import encode, read
from research.ledger.kinds import Crowned
from research.ledger.session import KEPT, Session, read_result, replace_file

ABOUT = "crowned.json"


def crown(session: Session, track: Track, arm: Arm, trial_key: str) -> Crowned | None:
    """Make a verified recipe's folder beside the champion's; `install` puts it in its place once the ledger says so.

    A crash leaves the champion that the ledger knows. A folder that was finished before it is taken as it is: the
    held-out split is opened once for each champion.

    Args: trial_key: the verification run whose checkpoint ships.
    Returns: the `crowned` event's body, with the loss of the one opening of the held-out split; None until
    `held_out_job` has been run, which opens it.
    """
    folder = _beside(session)
    made = _about(folder)
    if made is None or made.trial != trial_key:
        made = _prepared(session, arm, trial_key)
    if "heldout" not in made.model_fields_set:
        found = read_result(folder, key=trial_key)
        if found is None or found["outcome"] != "completed":
            return None
        made = made.model_copy(update={"heldout": found["loss"][track.splits.heldout],
                                       "sample": found.get("sample", "")})
        replace_file(folder / ABOUT, encode(made).encode())
    return made


def held_out_job(session: Session, track: Track, data_hash: str, trial_key: str, attempt: int) -> Job:
    """The job that measures what `crown` has prepared; its result stays in the folder until `install`."""
    folder = _beside(session)
    args = {"checkpoint": str(folder / "checkpoint"), "splits": {track.splits.heldout: track.proof_tokens},
            "data_hash": data_hash, "mesh": track.mesh}
    return Job(id=trial_key, attempt=attempt, dir=str(folder), target=TARGET, args=args, brings=["checkpoint"])


def _prepared(session: Session, arm: Arm, trial_key: str) -> Crowned:
    """The folder but for the held-out loss, and what there is to say of it."""
    source, folder = session.trial_dir(trial_key) / "checkpoint", _beside(session)
    if not source.is_dir():
        raise UserError(f"{source}: missing, so {arm.recipe_id} cannot be crowned; research.review --veto "
                        f"{arm.recipe_id[:8]} would let the session go on")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save(arm.recipe, folder / "recipe.yaml")
    shutil.copytree(source, folder / "checkpoint")
    body = Crowned(trial=trial_key, name=arm.name, seed=int(trial_key.rpartition("-")[2]))
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
        for item in new.iterdir():
            if item.name in KEPT or item.name.startswith(EVENTS):  # of the job that measured it
                item.unlink()
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
