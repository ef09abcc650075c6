"""`.bin` shards as modded-nanogpt prepares FineWeb: read as they are, cut into four splits, checked once, and written.

A shard is a header of 256 int32 (magic number, version, count of tokens) and that many uint16 tokens, little-endian.
Every document begins with the separator, GPT-2's 50256, and may go on in the next shard.

The data hash is made of the SHA-256 of every file, so that sessions with one hash have read the same tokens: sampled
blocks would miss a changed token, and the sessions would be compared. Hashing reads everything, and looks for tokens
outside the vocabulary on the way; so a folder is read once, on all cores, and what was found is kept in the cache by
size and time of change. A change that keeps both is found by `python -m jaxnano.data FOLDER --check`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxnano import cache
from jaxnano.cli import UserError
from jaxnano.config.data import GPT2_VOCAB
from jaxnano.data import store
from jaxnano.data.store import Corpus
from jaxnano.data.tokens import BLOCK, Part, Tokens, within

MAGIC, VERSION, HEADER_BYTES = 20240520, 1, 1024
BENCHMARK = 10_485_760  # tokens of the validation file that modded-nanogpt's tracks predict
LEAST_SHARE = 32  # search and heldout are at most one part in this many of the training tokens
SLOW_BYTES = 4 << 30  # of new shards: reading as many takes long enough to say so
HOW = (
    "`python data/cached_fineweb10B.py 9` in github.com/KellerJordan/modded-nanogpt downloads FineWeb's to "
    "data/fineweb10B, and `python -m jaxnano.data.tokenize` writes your own"
)


class Checked(NamedTuple):
    """What reading all of a file has shown. largest: the highest token."""

    size: int
    mtime_ns: int
    sha256: str
    largest: int


def load(path: str, vocab: int, again: bool = False) -> Corpus:
    """Open a folder of shards; every file that is new or has changed is read through once.

    protected: what the tracks' benchmark reads: the first BENCHMARK tokens of the validation files, and one to predict
    the first from. search, heldout: as many each, one part in LEAST_SHARE at most, from the end of the training tokens,
    cut where documents begin. train: the rest, from the first beginning of a document.
    Args: vocab: the data node's. again: read through every file, known or not.
    Raises: ValueError in one line for a folder without shards, and for a file that is cut short, of another kind, has a
    token outside the vocabulary or, `again`, other tokens than before.
    """
    folder = Path(path).expanduser()
    files = {use: sorted(folder.glob(f"*_{use}*.bin")) for use in ("train", "val")}
    if not all(files.values()):
        missing = "folder" if not folder.is_dir() else next(f"*_{use}*.bin in it" for use in files if not files[use])
        raise UserError(f"data.path: {path}: no such {missing}; {HOW}")
    if len(names := {file.name.split(f"_{use}")[0] for use in files for file in files[use]}) > 1:
        raise UserError(f"data.path: {path}: shards of several data sets: {', '.join(sorted(names))}; a folder each "
                        "would do")
    about = manifest(folder)
    if about["vocab_size"] != vocab:
        raise UserError(f"data.vocab: {vocab}: the shards in {path} were written with {about['encoding']} and "
                        f"{about['vocab_size']:,} tokens; {about['vocab_size']} would do")
    parts = {use: [header(file) for file in files[use]] for use in files}
    checked = _checked(folder, parts["train"] + parts["val"], again)
    for part in parts["train"] + parts["val"]:
        if checked[part.path.name].largest >= vocab:
            for _ in Tokens([part], vocab).blocks():  # names the first one outside
                pass
    splits = _cut(parts["train"], parts["val"], about["separator"], vocab)
    identity = {split: [[checked[part.path.name].sha256, part.first, part.size] for part in splits[split]]
                for split in splits}
    data_hash = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return Corpus(folder, data_hash, vocab, about["encoding"], splits, about)


def header(path: Path) -> Part:
    """The tokens of a shard, its header and length checked; raises ValueError in one line."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = np.frombuffer(file.read(HEADER_BYTES).ljust(HEADER_BYTES, b"\0"), "<i4")
    again = "downloading or writing it again would do"
    if size < HEADER_BYTES:
        raise UserError(f"{path}: cut short: {size:,} bytes, and the header alone has {HEADER_BYTES:,}; {again}")
    if head[0] != MAGIC:
        raise UserError(f"{path}: no shard: magic number {head[0]}, not {MAGIC}; a .bin file of modded-nanogpt's or "
                        "jaxnano.data.tokenize's would do")
    if head[1] != VERSION:
        raise UserError(f"{path}: version {head[1]} of the format; version {VERSION} would do")
    if (size - HEADER_BYTES) % 2:
        raise UserError(f"{path}: odd length: {size - HEADER_BYTES:,} bytes of two-byte tokens; {again}")
    if (held := (size - HEADER_BYTES) // 2) != head[2]:
        fault = "cut short" if held < head[2] else "too long"
        raise UserError(f"{path}: {fault}: its header promises {head[2]:,} tokens and it holds {held:,}; {again}")
    if not held:
        raise UserError(f"{path}: no tokens in it; {again}")
    return Part(path, HEADER_BYTES, 0, held, "<u2")


def write(path: Path, tokens: np.ndarray) -> None:
    """Write one shard, complete or not at all."""
    head = np.zeros(HEADER_BYTES // 4, "<i4")
    head[:3] = MAGIC, VERSION, tokens.size
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(head.tobytes())
        file.write(np.ascontiguousarray(tokens, "<u2").data)
    temporary.rename(path)


def manifest(folder: Path) -> dict[str, Any]:
    """encoding, vocab_size and separator, as our writer leaves them, or else those of modded-nanogpt's shards."""
    path = folder / store.MANIFEST
    if not path.exists():
        return {"encoding": "gpt2", "vocab_size": GPT2_VOCAB, "separator": GPT2_VOCAB - 1}
    try:
        about = json.loads(path.read_text())
        return {name: about[name] for name in ("encoding", "vocab_size", "separator")}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not the manifest of jaxnano.data.tokenize; without it the shards are taken for "
                        "GPT-2's") from None


def _checked(folder: Path, parts: Sequence[Part], again: bool) -> dict[str, Checked]:
    """What is known of each file by name; what is not yet, or not any more, is read."""
    memory = cache.cache_root() / f"shards-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"
    try:
        before = {name: Checked(*row) for name, row in json.loads(memory.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        before = {}
    new = [part for part in parts if again or not _same(part.path, before.get(part.path.name))]
    if (total := sum(part.size * 2 for part in new)) > SLOW_BYTES:
        print(f"data: reading {total / 1e9:.0f} GB of shards once, to check them", file=sys.stderr)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = {part.path.name: result for part, result in zip(new, pool.map(_read_through, new), strict=True)}
    for name, result in found.items():
        if name in before and result[:2] == before[name][:2] and result.sha256 != before[name].sha256:
            raise UserError(f"{folder / name}: other tokens than when it was first read, though size and time are the "
                            f"same; the original, or {memory} removed to accept these, would do")
    known = before | found
    if found:
        _remember(memory, known)
    return known


def _same(path: Path, before: Checked | None) -> bool:
    stat = path.stat()
    return before is not None and (stat.st_size, stat.st_mtime_ns) == before[:2]


def _remember(memory: Path, known: Mapping[str, Checked]) -> None:
    temporary = memory.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(known))
    temporary.rename(memory)


def _read_through(part: Part) -> Checked:
    """Hash all bytes of a shard and find its highest token."""
    stat, digest, largest = part.path.stat(), hashlib.sha256(), 0
    with part.path.open("rb") as file:
        digest.update(file.read(part.header))
    for block in Tokens([part], 1 << 16).blocks(2 * BLOCK):
        digest.update(block.data)
        largest = max(largest, int(block.max()))
    return Checked(stat.st_size, stat.st_mtime_ns, digest.hexdigest(), largest)


def _cut(train: Sequence[Part], val: Sequence[Part], separator: int, vocab: int) -> dict[str, tuple[Part, ...]]:
    """The four splits; see `load`."""
    tokens, official = Tokens(train, vocab), Tokens(val, vocab)
    size = min(BENCHMARK + 1, tokens.size // LEAST_SHARE)
    begin, first = _first(tokens, separator), _first(official, separator)
    heldout = _last(tokens, separator, tokens.size - size)
    search = _last(tokens, separator, heldout - size)
    if not begin < search < heldout:
        raise UserError(f"{train[-1].path}: no two documents begin (token {separator}) near the end of the training "
                        "shards, to divide search and heldout from train; more shards would do")
    return {
        "train": within(train, begin, search), "search": within(train, search, heldout),
        "protected": within(val, first, min(official.size, first + BENCHMARK + 1)),
        "heldout": within(train, heldout, tokens.size),
    }


def _first(tokens: Tokens, separator: int) -> int:
    """Where the first document begins."""
    start = 0
    for block in tokens.blocks():
        if (found := np.flatnonzero(block == separator)).size:
            return start + int(found[0])
        start += block.size
    raise UserError(f"{tokens.parts[0].path}: no document begins (token {separator}) in this or the following shards; "
                    "data of that vocabulary would do")


def _last(tokens: Tokens, separator: int, place: int) -> int:
    """Where the last document begins that begins at or before `place`; -1 if none does."""
    for stop in range(place + 1, 0, -BLOCK):
        start = max(0, stop - BLOCK)
        if (found := np.flatnonzero(tokens[start:stop] == separator)).size:
            return start + int(found[-1])
    return -1
