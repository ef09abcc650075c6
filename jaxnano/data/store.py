"""Prepared data on disk, and the embedded corpus: ArrayRecord files, and beside them an array of tokens a split.

A directory of the cache belongs to one source, in one state, and one version of the code that prepares it. It appears
by a rename, complete, so a killed or a second process never leaves or sees a half-written one.
"""

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxnano.cache import cache_root
from jaxnano.cli import Failure, UserError
from jaxnano.data import tokenizer
from jaxnano.data.tokens import Part, Tokens, share_of

MANIFEST = "manifest.json"
ABANDONED_S = 24 * 3600  # a temporary directory this old belongs to a process that was killed


@dataclass(frozen=True)
class Corpus:
    """Tokens by split, and what they are.

    data_hash: SHA-256 that names the tokens and their splits, the same wherever they lie. encoding: what turns text
    into them: bytes, gpt2 or bpe. parts: {split: where its tokens are}. about: the manifest; where the data was
    prepared here it has a row for each split: tokens, documents, bytes and the recurring share.
    """

    directory: Path
    data_hash: str
    vocab_size: int
    encoding: str
    parts: Mapping[str, tuple[Part, ...]]
    about: Mapping[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.parts)

    def tokens(self, split: str) -> Tokens:
        """Tokens of one split, a separator between documents: uint8 for bytes, uint16 for larger vocabularies.

        Args: split: a name, or `NAME:I/K`: the I-th of K shares of it, cut alike for all who ask (`share_of`).
        Raises: ValueError if there is no such split.
        """
        name, _, share = split.partition(":")
        if name not in self.parts:
            raise UserError(f"data: no split {split!r}; there are {', '.join(self.parts)}")
        parts = self.parts[name]
        return Tokens(share_of(parts, share, split) if share else parts, self.vocab_size)

    def tokenizer(self, download: bool = True) -> tokenizer.Tokenizer:
        """What turns text into these tokens and back.

        Raises: ValueError or Failure if it is GPT-2's and not at hand (nor downloaded, if `download` is false).
        """
        return tokenizer.beside(self.directory, self.encoding, download)

    def bytes_per_token(self, split: str) -> float | None:
        """Bytes of text a token of the split stands for, a separator counting as one; None if nobody can say.

        Nats per token / (log(2) * this) is bits per byte. Counted here at 100 M tokens/s where no manifest has it.
        """
        row = self.about.get("splits", {}).get(split, {})
        if self.encoding == "bytes" or "tokens" in row:
            return row["bytes"] / row["tokens"] if "tokens" in row else 1.0
        try:
            lengths = self.tokenizer(download=False).lengths()
        except (UserError, Failure):
            return None
        if lengths.size != self.vocab_size:
            return None
        tokens = self.tokens(split)
        total = sum(int(np.bincount(block, minlength=lengths.size) @ lengths) for block in tokens.blocks())
        return total / tokens.size


def cached(name: str, write: Callable[[Path], None], notice: str = "") -> Corpus:
    """The prepared data called `name`, written to a fresh directory by `write` if the cache does not hold it.

    The cache is the directory JAXNANO_CACHE, or else jaxnano below XDG_CACHE_HOME or ~/.cache.
    notice: what is said on standard error before somebody has to wait for that.
    Raises: UserError if the cache cannot be written.
    """
    directory = cache_root() / name
    opened = _open(directory)
    if opened is None:
        if notice:
            print(f"{notice} in {directory}", file=sys.stderr, flush=True)
        _prepare(directory, write)
        opened = _open(directory)
    if opened is None:
        raise Failure(f"data: {directory} does not hold what was just written there; is the disk full?")
    return opened


def fingerprint(source: Any, *code: str) -> str:
    """Name what decides prepared data, without preparing it: its source, as JSON, and the files that read it."""
    digest = hashlib.sha256(json.dumps(source).encode())
    for path in (*code, __file__):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]


def save(directory: Path, tokens: Mapping[str, np.ndarray], rows: Mapping[str, Mapping[str, Any]],
         **identity: Any) -> None:
    """Write tokens and manifest. rows: what is known of each split. identity: vocab_size, encoding, and what else."""
    for split, array in tokens.items():
        np.save(directory / f"{split}.npy", array)
    splits = {split: {"tokens": tokens[split].size, **row} for split, row in rows.items()}
    about = {"data_hash": hash_of(tokens), **identity, "splits": splits}
    (directory / MANIFEST).write_text(json.dumps(about, indent=2))


def hash_of(tokens: Mapping[str, np.ndarray | Tokens]) -> str:
    """SHA-256 over splits and tokens. Separators part documents, so it also covers where each begins and ends."""
    digest = hashlib.sha256()
    for split, array in tokens.items():
        digest.update(f"{split}:{array.dtype.str}:{array.size}\n".encode())
        for block in array.blocks() if isinstance(array, Tokens) else [array]:
            digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def _open(directory: Path) -> Corpus | None:
    """Open prepared data; None if it is missing or its tokens are not those of its manifest."""
    try:
        about = json.loads((directory / MANIFEST).read_text())
        parts = {split: (Part.of_array(directory / f"{split}.npy"),) for split in about["splits"]}
        found = Corpus(directory, about["data_hash"], about["vocab_size"], about["encoding"], parts, about)
        actual = hash_of({split: found.tokens(split) for split in found.splits})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if actual == found.data_hash else None


def _prepare(directory: Path, write: Callable[[Path], None]) -> None:
    _remove_abandoned(directory.parent)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".preparing-") as temporary:
        complete = Path(temporary) / "complete"
        complete.mkdir()
        write(complete)
        try:
            complete.rename(directory)
        except OSError:
            if _open(directory) is None:  # damaged, and not another process's work
                directory.rename(Path(temporary) / "damaged")
                complete.rename(directory)


def _remove_abandoned(root: Path) -> None:
    for path in root.glob(".preparing-*"):
        try:
            abandoned = time.time() - path.stat().st_mtime > ABANDONED_S
        except OSError:
            continue  # its owner has just removed it
        if abandoned:
            shutil.rmtree(path, ignore_errors=True)
