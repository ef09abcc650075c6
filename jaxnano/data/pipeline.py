"""From a data node to batches: training windows through Grain, evaluation windows as one fixed array.

The order of windows is a function of the data seed and their length alone: batch size and steps per call only cut the
stream, and a longer run sees what a shorter one saw, then more.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import grain
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from jaxnano.data import store
from jaxnano.data.store import Corpus

CALLS = 2**40  # a stream without an end, as far as any run is concerned


class DataNode(Protocol):
    """What this module reads of a data node."""

    @property
    def kind(self) -> str: ...


def load(data: DataNode) -> Corpus:
    """Open a data node's corpus, preparing it first if need be.

    Raises: ValueError if the kind is unknown, or the corpus cannot be prepared.
    """
    match data.kind:
        case "embedded":
            return store.embedded()
        case "shards":
            raise ValueError("data.kind: shards: FineWeb is described but not read yet; track tiny runs without it")
        case other:
            raise ValueError(f"data.kind: no reader for {other!r}; 'embedded' would do")


def train_batches(
    corpus: Corpus, batch: int, length: int, seed: int, steps_per_call: int = 10
) -> grain.DatasetIterator[np.ndarray]:
    """Endless training batches, several steps at a time.

    Args: batch: windows a step. length: predicted tokens a window. seed: the data seed. steps_per_call: steps a call.
    Returns: Grain iterator of (steps_per_call, batch, length + 1) arrays in the tokens' dtype. `get_state()` is JSON,
    and `set_state` continues exactly there, in an iterator of the same arguments.
    Raises: ValueError if train is shorter than one window.
    """
    source = _Windows(corpus.tokens("train"), batch, length, seed, steps_per_call)
    # The tokens are in memory: threads would only contend with the training step for its core.
    inline = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(grain.MapDataset.source(source).to_iter_dataset(inline))


def eval_batches(corpus: Corpus, split: str, length: int, n_windows: int, batch: int) -> np.ndarray:
    """Fixed evaluation windows, evenly spaced over a split and without overlap: the same in every run.

    Returns: (n_windows / batch, batch, length + 1) in the tokens' dtype.
    Raises: ValueError if the split holds fewer windows, or batches do not divide them.
    """
    tokens = corpus.tokens(split)
    most = tokens.size // (length + 1)
    if not 0 < n_windows <= most:
        raise ValueError(f"data: {n_windows} windows of length {length} asked of {split}; 1 to {most} would do")
    if n_windows % batch:
        raise ValueError(f"data: {n_windows} evaluation windows are not divisible into batches of {batch}")
    starts = np.arange(n_windows) * (tokens.size // n_windows)
    return _gather(tokens, starts, length).reshape(-1, batch, length + 1)


@dataclass(frozen=True)
class _Windows:
    """Random access to the stream of training windows, a call's worth an element.

    An epoch cuts the tokens into windows side by side, from an offset of its own, and visits each once. Shuffling and
    batching single windows is left to NumPy: one gather a call costs less per window than Grain costs per element.
    """

    tokens: np.ndarray
    batch: int
    length: int
    seed: int
    steps_per_call: int

    def __post_init__(self):
        if self.tokens.size < 2 * self.length:
            most = self.tokens.size // 2
            raise ValueError(f"data.length: {self.length} is too long for {self.tokens.size} tokens; at most {most}")

    def __len__(self) -> int:
        return CALLS

    def __getitem__(self, index: int) -> np.ndarray:
        n_windows = self.steps_per_call * self.batch
        per_epoch = (self.tokens.size - self.length) // self.length
        epochs, places = np.divmod(np.arange(index * n_windows, (index + 1) * n_windows), per_epoch)
        starts = np.concatenate(
            [
                _epoch_starts(self.seed, int(epoch), per_epoch, self.length)[places[epochs == epoch]]
                for epoch in range(epochs[0], epochs[-1] + 1)
            ]
        )
        return _gather(self.tokens, starts, self.length).reshape(self.steps_per_call, self.batch, self.length + 1)


@lru_cache(maxsize=2)
def _epoch_starts(seed: int, epoch: int, per_epoch: int, length: int) -> np.ndarray:
    """Starts of one epoch's windows in their random order, from raw bits: NumPy keeps those the same for ever."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(per_epoch + 1)
    return int(bits[0] % length) + np.argsort(bits[1:], kind="stable") * length


def _gather(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    return sliding_window_view(np.asarray(tokens), length + 1)[starts]
