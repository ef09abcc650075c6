"""A published model: a folder that any change shows in, written whole or not at all, here, in a bucket or on the Hub.

    recipe.yaml  diff.md  README.md  card.json  checkpoint/...    what `research.share` publishes
    manifest.json                                                 SHA-256 of every other file; written last

The SHA-256 of the manifest itself names the whole. The manifest finds damage and careless edits; whoever rewrites it
too is found out by that name alone, which `load` takes as `digest`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from jaxnano import checkpoint, hub, sharding
from jaxnano.cli import Failure, UserError
from jaxnano.config.recipe import Recipe

MANIFEST, CARD = "manifest.json", "card.json"
FORMAT = 1
DEEPEST = 32  # folders in folders
_CHUNK = 1 << 20  # bytes


def load(path: str | os.PathLike[str], mesh: Mesh | str | None = None,
         digest: str | None = None) -> tuple[Recipe, dict[str, jax.Array], dict[str, Any]]:
    """Open a published model, or the folder of a run of `jaxnano.train --out`, which has no manifest to check.

    Args:
        path: a folder, hf://OWNER/NAME, or a URL that etils.epath reads (gs:// needs gcsfs or TensorFlow); a remote
            model is copied to a temporary folder first.
        mesh: where the parameters go: a mesh, its text ("data=2,fsdp=4"), or None for all devices.
        digest: the id that `research.share` printed: refuses any other model, however consistent.
    Returns: the recipe; the parameters to evaluate {path: array}, where averaging is over and done; and what was
        recorded: seed, total_steps, data_hash and, of a published model, `card` and `id`.
    Raises: ValueError in one line for a changed, missing or added file, an upload that did not end, another id, or a
        mesh that does not fit; Failure if a bucket cannot be read.
    """
    if hub.is_hub(path):
        return _from_hub(os.fspath(path), mesh, digest)
    place, remote = epath.Path(path), is_remote(path)
    mesh = mesh if isinstance(mesh, Mesh) else sharding.parse_mesh(mesh)
    with tempfile.TemporaryDirectory(prefix="jaxnano-") as copy:
        with reaching(path):
            published = (place / MANIFEST).exists()
            if not published and (remote or digest is not None or (place / CARD).exists()):
                raise UserError(f"{path}: no {MANIFEST}: not published, or not to the end; another path would do")
            name = verify(place, Path(copy) if remote else None, digest) if published else None
        if name is None:
            return checkpoint.load(Path(path), mesh)
        folder = Path(copy) if remote else Path(path)
        recipe, params, about = checkpoint.load(folder / checkpoint.FOLDER, mesh)
        return recipe, params, {**about, "card": json.loads((folder / CARD).read_text()), "id": name}


def _from_hub(path: str, mesh: Mesh | str | None,
              digest: str | None) -> tuple[Recipe, dict[str, jax.Array], dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="jaxnano-") as copy:
        hub.download(path, Path(copy))
        try:
            return load(copy, mesh, digest)
        except UserError as error:
            raise UserError(str(error).replace(copy, path)) from None


def seal(folder: Path) -> str:
    """Write the manifest of all that lies in `folder`. Returns: its SHA-256, the model's id."""
    text = _manifest({name: _read(item) for name, item in _files(epath.Path(folder))})
    (folder / MANIFEST).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def _manifest(files: dict[str, str]) -> bytes:
    """The one way to write it down, so that no byte of it can change unseen either."""
    return (json.dumps({"format": FORMAT, "files": files}, indent=1, sort_keys=True) + "\n").encode()


def verify(place: epath.Path, into: Path | None = None, digest: str | None = None) -> str:
    """Read every file and compare it with the manifest.

    Args: into: an empty folder that gets a copy of what was read, so that what is used is what was checked.
    Returns: the id. Raises: ValueError that names the first file that differs.
    """
    found = dict(_files(place))
    text = (place / MANIFEST).read_bytes()
    name = hashlib.sha256(text).hexdigest()
    if digest not in (None, name):
        raise UserError(f"{place}: its id is {name}, not {digest}; the path of that model would do")
    recorded = _recorded(place, text)
    for file in sorted(recorded.keys() | found.keys()):
        where = f"{place}: {file}"
        if file not in found:
            raise UserError(f"{where}: missing, the manifest lists it; another copy would do")
        if file not in recorded:
            raise UserError(f"{where}: added, the manifest does not list it; the folder without it would do")
        if (now := _read(found[file], into and into / file)) != recorded[file]:
            raise UserError(f"{where}: changed since it was published (SHA-256 {now}, the manifest says "
                            f"{recorded[file]}); another copy would do")
    return name


def _recorded(place: epath.Path, text: bytes) -> dict[str, str]:
    """SHA-256 by file, as the manifest says."""
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise UserError(f"{place}: {MANIFEST}: format {content['format']!r}; this version reads {FORMAT}")
        files = content["files"]
        if _manifest(files) == text and all(isinstance(sha256, str) for sha256 in files.values()):
            return files
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(f"{place}: {MANIFEST}: changed, or never a manifest; another copy would do")


def _files(place: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """Every file below a folder but its manifest, by its name there.

    Raises: ValueError for a link, a pipe or a device: it may lead anywhere, round in circles, or have no end.
    """
    for item in place.iterdir():
        if item == place or item.name in ("", ".", ".."):
            continue  # some buckets list a folder in itself, and their names may hold anything
        if not is_remote(item) and (os.path.islink(item) or not (os.path.isdir(item) or os.path.isfile(item))):
            raise UserError(f"{place}: {item.name}: no plain file or folder; the folder without it would do")
        if prefix + item.name == MANIFEST:
            continue
        if item.is_dir():
            if prefix.count("/") >= DEEPEST:
                raise UserError(f"{place}: folders are more than {DEEPEST} deep; another copy would do")
            yield from _files(item, f"{prefix}{item.name}/")
        else:
            yield prefix + item.name, item


def _read(source: epath.Path | Path, into: Path | None = None) -> str:
    """SHA-256 of a file, which is copied on the way if `into` says where to."""
    digest = hashlib.sha256()
    if into is not None:
        into.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file, open(into or os.devnull, "wb") as copy:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)  # type: ignore[arg-type]
            copy.write(chunk)  # type: ignore[arg-type]
    return digest.hexdigest()


@contextlib.contextmanager
def publishing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when the block ends well, and is gone otherwise.

    A folder is renamed. A bucket has no such thing: files go up one by one, the manifest last, and without it nobody
    opens them. A repository of the Hub gets one commit.

    Raises: ValueError if something is there already; Failure if a bucket or the Hub cannot be written, which says where
        the files lie that did not get there.
    """
    if hub.is_hub(target):
        hub.check(os.fspath(target))
    else:
        _free(target)
    if is_remote(target):
        with _sending(os.fspath(target)) as folder:
            yield folder
        return
    final = Path(target).resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        partial.replace(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _free(target: str | os.PathLike[str]) -> None:
    place = epath.Path(target)
    with reaching(target):
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise UserError(f"{target}: is there already; a new or empty folder would do")


@contextlib.contextmanager
def _sending(target: str) -> Iterator[Path]:
    """A temporary folder that is sent to `target`; it stays if only that fails, for it may have been work."""
    folder = Path(tempfile.mkdtemp(prefix="jaxnano-"))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        if hub.is_hub(target):
            hub.upload(folder, target)
        else:
            with reaching(target):
                _upload(folder, epath.Path(target))
    except Failure as error:
        raise Failure(f"{error}; what was to go there lies in {folder}") from None
    shutil.rmtree(folder, ignore_errors=True)


def _upload(folder: Path, place: epath.Path) -> None:
    names = [name for name, _ in _files(epath.Path(folder))] + [MANIFEST] * (folder / MANIFEST).exists()
    try:
        for name in names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            with open(folder / name, "rb") as source, (place / name).open("wb") as there:
                shutil.copyfileobj(source, there, _CHUNK)  # type: ignore[arg-type]
    except BaseException:
        with contextlib.suppress(Exception):  # the error that ended it is the one to tell
            place.rmtree(missing_ok=True)
        raise


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL: gs://bucket/folder, say."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def reaching(path: str | os.PathLike[str]) -> Iterator[None]:
    """What a bucket's library raises, in one line; a folder's errors are left as they are."""
    try:
        yield
    except (UserError, Failure):
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        if isinstance(error, ImportError):
            raise UserError(f"{path}: {error.name or 'gcsfs'} is not installed; pip install gcsfs would do") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Failure(f"{path}: cannot be reached: {reason[:200]}") from None
