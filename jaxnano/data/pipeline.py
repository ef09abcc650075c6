"""From a data node to batches: training windows through Grain, evaluation windows as one fixed array.

The order of windows is a function of the data seed and their length alone: batch size and steps per call only cut the
stream, and a longer run sees what a shorter one saw, then more.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnano.cache import cache_root
from jaxnano.cli import Failure, UserError
from jaxnano.config import data as config
from jaxnano.data import embedded, shards, text, tokenizer
from jaxnano.data.store import Corpus
from jaxnano.data.tokenizer import Tokenizer
from jaxnano.data.tokens import Tokens

if TYPE_CHECKING:
    import grain

CALLS = 2**40  # a stream without an end, as far as any run is concerned
ROUNDS = 6  # of the shuffling network
LARGE = 1 << 21  # windows an epoch; sorting as many costs 50 MB, and shuffling more is done without


def load(data: config.Data) -> Corpus:
    """Open a data node's corpus, preparing it first if need be.

    Raises: ValueError if its files are missing or damaged, or an extra it needs is not installed; Failure if what it
    needs cannot be downloaded, or the disk of the cache is full.
    """
    try:
        return _load(data)
    except (OSError, RuntimeError) as error:  # a RuntimeError is ArrayRecord's, which says it in words
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise Failure(f"{cache_root()}: no room for prepared data; JAXNANO_CACHE=DIR on another disk would do"
                      ) from error


def _load(data: config.Data) -> Corpus:
    match data:
        case config.Embedded():
            return embedded.embedded()
        case config.Code():
            return embedded.embedded(text="code")
        case config.Shards():
            return shards.load(data.path, data.vocab)
        case config.Text() | config.Tfds():
            return text.load(data)


def tokenizer_of(data: config.Data) -> Tokenizer:
    """What turns text into a node's tokens and back; without the data, unless it was trained on them.

    Raises: what `load` raises; Failure where GPT-2's vocabulary cannot be downloaded.
    """
    match data:
        case config.Embedded() | config.Code():
            return tokenizer.build("bytes")
        case config.Shards():
            folder = Path(data.path).expanduser()
            return tokenizer.beside(folder, shards.manifest(folder)["encoding"])
        case config.Text() | config.Tfds():
            kind = data.tokenizer.kind
            return load(data).tokenizer() if kind == "bpe" else tokenizer.build(kind)


def train_batches(
    corpus: Corpus, batch: int, length: int, seed: int, steps_per_call: int = 10, align: int | None = None,
    later: tuple[tuple[int, int, int], ...] = (),
) -> grain.DatasetIterator[np.ndarray]:
    """Endless training batches, several steps at a time.

    Args: batch: windows a step. length: predicted tokens a window. seed: the data seed. steps_per_call: steps a call.
    align: the token that every window begins with, None where they begin anywhere. later: (call, batch, length) for
    each other batch and length, with the call that they begin with.
    Returns: Grain iterator of (steps_per_call, batch, length + 1) arrays in the tokens' dtype. `get_state()` is JSON,
    and `set_state` continues exactly there, in an iterator of the same arguments.
    Raises: ValueError if train is shorter than one window, no window of it begins so, or shorter windows do not fill
    the longest in every call.
    """
    import grain  # a second and 150 MB, which reading and describing data do without

    source = Windows(corpus.tokens("train"), batch, length, seed, steps_per_call, align, later)
    # The tokens are in the system's cache: threads would only contend with the training step for its core.
    inline = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(grain.MapDataset.source(source).to_iter_dataset(inline))


def eval_batches(corpus: Corpus, split: str, length: int, n_windows: int, batch: int) -> np.ndarray:
    """Fixed evaluation windows, evenly spaced over a split: the same in every run. No token is predicted twice.

    Returns: (n_windows / batch, batch, length + 1) in the tokens' dtype.
    Raises: ValueError if the split holds fewer windows, or batches do not divide them.
    """
    tokens = corpus.tokens(split)
    most = (tokens.size - 1) // length
    if not 0 < n_windows <= most:
        raise UserError(f"data: {n_windows} windows of length {length} asked of {split}; 1 to {most} would do")
    if n_windows % batch:
        raise UserError(f"data: {n_windows} evaluation windows are not divisible into batches of {batch}")
    starts = np.arange(n_windows) * (tokens.size // n_windows)
    return tokens.gather(starts, length + 1).reshape(-1, batch, length + 1)


@dataclass(frozen=True)
class Windows:
    """Random access to the stream of training windows, a call's worth an element: (steps_per_call, batch, length + 1).

    An epoch cuts the tokens into windows side by side, from an offset of its own, and visits each once; where they are
    aligned, the windows are `aligned_starts`. Shuffling and batching single windows is left to NumPy: one gather a call
    costs less per window than Grain costs per element.
    Where the length changes, windows are cut from the longest ones, a call's from as many as they fill, so that no
    token is skipped or repeated; those of one cut are as far apart in a call as they can be.
    """

    tokens: Tokens
    batch: int
    length: int
    seed: int
    steps_per_call: int
    align: int | None = None
    later: tuple[tuple[int, int, int], ...] = ()

    @property
    def longest(self) -> int:
        """The longest windows there are, which an epoch is cut into."""
        return max(length for *_, length in self._legs)

    @property
    def _legs(self) -> tuple[tuple[int, int, int], ...]:
        return (0, self.batch, self.length), *self.later

    @cached_property
    def begins(self) -> np.ndarray | None:
        """Where windows begin, if they are aligned."""
        return None if self.align is None else aligned_starts(self.tokens, self.longest, self.align)

    def __post_init__(self):
        if self.tokens.size < 2 * self.longest:
            most = self.tokens.size // 2
            raise UserError(f"data.length: {self.longest} is too long for {self.tokens.size} tokens; at most {most}")
        if self.begins is not None and not self.begins.size:
            raise UserError(f"data.documents.align: no row of {self.longest} tokens lies between two separators (token "
                            f"{self.align}); shorter rows, or false, would do")
        for _, batch, length in self._legs:
            if self.longest % length or self.steps_per_call * batch * length % self.longest:
                raise UserError(f"data: {self.steps_per_call} steps of {batch} windows of {length} do not fill windows "
                                f"of {self.longest}")

    def __len__(self) -> int:
        return CALLS

    def __getitem__(self, index: int) -> np.ndarray:
        first, ends = 0, [start for start, *_ in self.later] + [CALLS]
        for (start, batch, length), end in zip(self._legs, ends, strict=True):
            cuts = self.longest // length
            n_windows = self.steps_per_call * batch // cuts  # of the longest, in a call
            if index < end:
                break
            first += (end - start) * n_windows
        first += (index - start) * n_windows
        begins = self.begins
        per_epoch = (self.tokens.size - self.longest) // self.longest if begins is None else begins.size
        epochs, places = np.divmod(np.arange(first, first + n_windows), per_epoch)
        starts = np.concatenate(
            [
                _starts(self.seed, int(epoch), per_epoch, self.longest, places[epochs == epoch], begins)
                for epoch in range(epochs[0], epochs[-1] + 1)
            ]
        )
        starts = (starts + length * np.arange(cuts)[:, None]).ravel()
        return self.tokens.gather(starts, length + 1).reshape(self.steps_per_call, batch, length + 1)


def _starts(seed: int, epoch: int, per_epoch: int, length: int, places: np.ndarray, begins: Any) -> np.ndarray:
    """Starts of the windows at some places of an epoch's random order, from raw bits: NumPy keeps those for ever."""
    if per_epoch <= LARGE:
        offset, order = _sorted_order(seed, epoch, per_epoch, length)
        windows = order[places]
    else:
        bits = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(1 + ROUNDS)
        offset, windows = int(bits[0] % length), permuted(places, per_epoch, bits[1:])
    return offset + windows * length if begins is None else begins[windows]


def aligned_starts(tokens: Tokens, length: int, separator: int) -> np.ndarray:
    """Windows that begin with documents: after each the next begins at the first document at least `length` later.

    Source: modded-nanogpt track 1, 2025-07-12_BosAlign.
    """
    found, size = [], 0
    for block in tokens.blocks():
        found.append(np.flatnonzero(block == separator) + size)
        size += block.size
    begins = np.concatenate(found)
    following = np.searchsorted(begins, begins + length).tolist()
    chosen, here = [], 0
    while here < len(following) and following[here] < len(following):
        chosen.append(here)
        here = following[here]
    return begins[chosen]


@lru_cache(maxsize=2)
def _sorted_order(seed: int, epoch: int, per_epoch: int, length: int) -> tuple[int, np.ndarray]:
    """Offset and random order of an epoch's windows: random numbers sorted."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(per_epoch + 1)
    return int(bits[0] % length), np.argsort(bits[1:], kind="stable")


def permuted(places: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where a keyed permutation of range(size) takes `places`, without writing it down.

    A Feistel network permutes the numbers of an even count of bits, at most 4 * size; one that lands outside the range
    goes through it again until it is inside.
    Args: places: (n,) int64 below size, at most 2^62. keys: (rounds,) uint64.
    Source: Luby and Rackoff 1988; Black and Rogaway 2002 (cycle walking).
    """
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    found = places.astype(np.uint64)
    out = np.ones(found.shape, bool)
    while out.any():
        left, right = found[out] >> half, found[out] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        found[out] = left << half | right
        out = found >= size
    return found.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of x. Source: Steele et al. 2014 (SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
