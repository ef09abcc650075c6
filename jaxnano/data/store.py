"""Prepared data on disk: ArrayRecord files, and beside them an array of tokens a split for training to map into memory.

A directory of the cache belongs to one set of wheels and one version of the extracting code. It appears by a rename,
complete, so a killed or a second process never leaves or sees a half-written one.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxnano.data import corpus

MANIFEST = "manifest.json"
BYTE_VOCABULARY = 256
ABANDONED_S = 24 * 3600  # a temporary directory this old belongs to a process that was killed


@dataclass(frozen=True)
class Corpus:
    """Tokens by split, in `directory`; `data_hash` is the SHA-256 of all splits' names and tokens."""

    directory: Path
    data_hash: str
    vocab_size: int
    splits: tuple[str, ...]

    def tokens(self, split: str) -> np.ndarray:
        """Tokens of one split, documents joined with NUL, as a read-only memory map.

        Returns: (tokens,) uint8 for bytes, uint16 for larger vocabularies.
        Raises: ValueError if there is no such split.
        """
        if split not in self.splits:
            raise ValueError(f"data: no split {split!r}; there are {', '.join(self.splits)}")
        return np.load(self.directory / f"{split}.npy", mmap_mode="r")

    def manifest(self) -> dict:
        """What was prepared: versions of the packages; documents, bytes and duplicate share of each split."""
        return json.loads((self.directory / MANIFEST).read_text())


def embedded(packages: Sequence[str] = corpus.PACKAGES) -> Corpus:
    """The corpus of the installed wheels' docstrings, prepared if the cache does not hold it (15 s on one core).

    The cache is the directory JAXNANO_CACHE, or else ~/.cache/jaxnano.
    Raises: ValueError if a package is missing or the cache cannot be written.
    """
    directory = cache_root() / f"docstrings-{_fingerprint(packages)}"
    opened = _open(directory)
    if opened is None:
        _prepare(packages, directory)
        opened = _open(directory)
    if opened is None:
        raise ValueError(f"data: {directory} does not hold what was just written there; is the disk full?")
    return opened


def cache_root() -> Path:
    """Directory of all prepared data, created if missing; raises ValueError if it cannot be written."""
    root = Path(os.environ.get("JAXNANO_CACHE") or Path.home() / ".cache" / "jaxnano").expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        writable = os.access(root, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(f"JAXNANO_CACHE: cannot write to {root}; set it to a directory that you can write to")
    return root


def _fingerprint(packages: Sequence[str]) -> str:
    """Name what decides the data, without extracting it: the wheels, in order, and the code that reads them."""
    digest = hashlib.sha256(json.dumps(list(corpus.versions(packages).items())).encode())
    for code in (corpus.__file__, __file__):
        digest.update(Path(code).read_bytes())
    return digest.hexdigest()[:16]


def _open(directory: Path) -> Corpus | None:
    """Open prepared data; None if it is missing or its tokens are not those of its manifest."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        found = Corpus(directory, manifest["data_hash"], manifest["vocab_size"], tuple(manifest["splits"]))
        actual = _hash({split: found.tokens(split) for split in found.splits})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if actual == found.data_hash else None


def _prepare(packages: Sequence[str], directory: Path) -> None:
    _remove_abandoned(directory.parent)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".preparing-") as temporary:
        complete = Path(temporary) / "complete"
        _write(packages, complete)
        try:
            complete.rename(directory)
        except OSError:
            if _open(directory) is None:  # damaged, and not another process's work
                directory.rename(Path(temporary) / "damaged")
                complete.rename(directory)


def _write(packages: Sequence[str], directory: Path) -> None:
    """Extract the corpus into ArrayRecord files, then read them back into arrays of tokens."""
    from jaxnano.data import tfds_text  # half a second to import, and needed once per machine

    documents = corpus.split(corpus.documents(packages))
    tokens = {split: _join([document.text.encode() for document in chosen]) for split, chosen in documents.items()}
    data_hash = _hash(tokens)
    tfds_text.write(documents, data_hash[:16], directory / "tfds")
    train = tokens["train"].tobytes().decode()
    rows = {}
    for split, chosen in documents.items():
        stored = _join(tfds_text.read(data_hash[:16], directory / "tfds", split))
        np.save(directory / f"{split}.npy", stored)
        copied = 0.0 if split == "train" else corpus.recurring_share(stored.tobytes().decode(), train)
        rows[split] = {"documents": len(chosen), "bytes": len(stored), "recurring_share": copied}
    identity = {"data_hash": data_hash, "vocab_size": BYTE_VOCABULARY, "packages": corpus.versions(packages)}
    (directory / MANIFEST).write_text(json.dumps(identity | {"splits": rows}, indent=2))


def _join(texts: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"\0".join(texts), np.uint8)


def _hash(tokens: dict[str, np.ndarray]) -> str:
    """SHA-256 over splits and tokens. NUL parts documents, so it also covers where each begins and ends."""
    digest = hashlib.sha256()
    for split, array in tokens.items():
        digest.update(f"{split}:{array.dtype.str}:{array.size}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _remove_abandoned(root: Path) -> None:
    for path in root.glob(".preparing-*"):
        try:
            abandoned = time.time() - path.stat().st_mtime > ABANDONED_S
        except OSError:
            continue  # its owner has just removed it
        if abandoned:
            shutil.rmtree(path, ignore_errors=True)
