"""Shards written byte by byte, by the format's description and not by the code under test."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

SEPARATOR = 50256


def put(path: Path, tokens: np.ndarray | list[int], magic: int = 20240520, version: int = 1,
        count: int | None = None) -> Path:
    """One `.bin` shard, whose header may lie."""
    body = np.asarray(tokens, "<u2").tobytes()
    head = struct.pack("<3i", magic, version, len(body) // 2 if count is None else count)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head.ljust(1024, b"\0") + body)
    return path


def documents(tokens: int, seed: int) -> np.ndarray:
    """A stream of documents of 1 to 60 tokens, cut at `tokens` wherever that is; the first has lost its beginning."""
    rng, found = np.random.default_rng(seed), [np.array([7, 7, 7])]
    while sum(map(len, found)) < tokens:
        found.append(np.append(SEPARATOR, rng.integers(0, 50256, rng.integers(1, 60))))
    return np.concatenate(found)[:tokens].astype(np.uint16)


def folder(path: Path, train: int = 10_000, shards: int = 3) -> np.ndarray:
    """A folder like modded-nanogpt's: one validation shard, and training shards. Returns: the training tokens."""
    stream = documents(train, 0)
    put(path / "fineweb_val_000000.bin", documents(2000, 1)[3:])
    for number, tokens in enumerate(np.array_split(stream, shards), 1):
        put(path / f"fineweb_train_{number:06}.bin", tokens)
    return stream
