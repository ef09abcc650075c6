"""One split's tokens on disk, as one long array that is never loaded.

Tokens are read when they are asked for, straight into the batch they are for. A memory map would make the same copy,
but pages it touched count as resident until they are given back, and each maps its neighbours: random windows over
20 GB of shards grow towards 20 GB. The operating system's cache serves both alike.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxnano.cli import UserError

BLOCK = 1 << 20  # tokens
STRETCHES = 16  # that a share of a split is made of


@dataclass(frozen=True)
class Part:
    """A run of tokens in a file. header: bytes before the file's token 0; first, size: in tokens; dtype: NumPy's."""

    path: Path
    header: int
    first: int
    size: int
    dtype: str

    @staticmethod
    def of_array(path: Path) -> Part:
        """The whole of a one-dimensional `.npy` file; raises ValueError or OSError if it is none."""
        array = np.load(path, mmap_mode="r")
        return Part(path, path.stat().st_size - array.nbytes, 0, array.size, array.dtype.str)


class Tokens:
    """Parts of files, one after another.

    Args: parts: at least one, of one dtype. vocab: tokens are below it, which every read checks.
    """

    def __init__(self, parts: Sequence[Part], vocab: int):
        self.parts, self.vocab, self.dtype = tuple(parts), vocab, np.dtype(parts[0].dtype)
        self._ends = np.cumsum([part.size for part in parts])
        self._begins = (self._ends - [part.size for part in parts]).tolist()
        self._files = [os.open(part.path, os.O_RDONLY) for part in parts]
        weakref.finalize(self, _close, self._files)
        self.size = int(self._ends[-1])
        self._checks = vocab <= np.iinfo(self.dtype).max

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, where: slice) -> np.ndarray:
        """Tokens of a slice without a step, in memory: (stop - start,)."""
        start, stop, _ = where.indices(self.size)
        out = np.empty(max(0, stop - start), self.dtype)
        self._read(start, int(self._part_of(start)), out.view(np.uint8).data)
        self._check(out[None], np.array([start]))
        return out

    def gather(self, starts_W: np.ndarray, length: int) -> np.ndarray:
        """Windows of `length` tokens from each start: (W, length).

        Raises: ValueError for a token outside the vocabulary, or a file that has become shorter.
        """
        out_WxL = np.empty((len(starts_W), length), self.dtype)
        rows, row_bytes = out_WxL.reshape(-1).view(np.uint8).data, length * self.dtype.itemsize
        places = zip(starts_W.tolist(), self._part_of(starts_W).tolist(), strict=True)
        for row, (start, index) in enumerate(places):
            self._read(start, index, rows[row * row_bytes : (row + 1) * row_bytes])
        self._check(out_WxL, starts_W)
        return out_WxL

    def blocks(self, size: int = BLOCK) -> Iterator[np.ndarray]:
        """All tokens in their order, at most `size` at a time."""
        for start in range(0, self.size, size):
            yield self[start : start + size]

    def _read(self, start: int, index: int, out: memoryview) -> None:
        """Fill `out` with bytes from token `start` on, which is in part `index`."""
        width = self.dtype.itemsize
        place = (start - self._begins[index]) * width  # bytes into the part
        while out:
            part = self.parts[index]
            rest = out[: part.size * width - place]
            got = os.preadv(self._files[index], [rest], part.header + part.first * width + place)
            if not got:
                raise UserError(f"{part.path}: has become shorter since it was opened; start again once it is whole")
            out, place = out[got:], place + got
            if place == part.size * width:
                index, place = index + 1, 0

    def _check(self, out_WxL: np.ndarray, starts_W: np.ndarray) -> None:
        if not self._checks or not out_WxL.size or out_WxL.max() < self.vocab:
            return
        row, column = np.argwhere(out_WxL >= self.vocab)[0]
        place = int(starts_W[row] + column)
        index = int(self._part_of(place))
        part = self.parts[index]
        raise outside(part.path, part.first + place - self._begins[index], int(out_WxL[row, column]), self.vocab)

    def _part_of(self, place: Any) -> Any:
        """Index of the part that holds a token, or of the parts that hold an array of them."""
        return np.searchsorted(self._ends, place, "right")


def within(parts: Sequence[Part], start: int, stop: int) -> tuple[Part, ...]:
    """The tokens from `start` to before `stop` of parts that follow one another."""
    found, begin = [], 0
    for part in parts:
        low, high = max(start - begin, 0), min(stop - begin, part.size)
        if low < high:
            found.append(replace(part, first=part.first + low, size=high - low))
        begin += part.size
    return tuple(found)


def share_of(parts: Sequence[Part], share: str, split: str) -> tuple[Part, ...]:
    """The I-th of K shares: of STRETCHES x K stretches of equal length every K-th, so that all kinds of text are in
    each. share: "I/K"; split: as it was asked for.
    """
    found = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", share)
    number, shares = (int(found[1]), int(found[2])) if found else (1, 0)
    if not number <= shares:
        raise UserError(f"data: split {split!r}: {share!r} is no share; 1/2 and 2/2 would do")
    cuts = np.linspace(0, sum(part.size for part in parts), STRETCHES * shares + 1).astype(int).tolist()
    taken = [within(parts, cuts[i], cuts[i + 1]) for i in range(number - 1, STRETCHES * shares, shares)]
    return tuple(part for stretch in taken for part in stretch)


def outside(path: Path, place: int, token: int, vocab: int) -> UserError:
    """The error for a token that is not in the vocabulary. place: of the token in its file."""
    return UserError(f"{path}: token {place:,} is {token}, and a vocabulary of {vocab:,} ends at {vocab - 1}; "
                     "the file written again, or a data node with its vocabulary, would do")


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
