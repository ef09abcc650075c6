"""Byte n-gram model with Witten-Bell smoothing: the figure that a trained model has to beat."""

import numpy as np


def bits_per_byte(train: np.ndarray, text: np.ndarray, order: int = 5) -> float:
    """Cross entropy of `text` under the n-gram model of `train`, from the first byte with a whole context on.

    Each order is mixed with the one below in proportion to the number of different bytes that followed the context:
    p_n(b | c) = (count(c b) + kinds(c) p_{n-1}(b | c')) / (count(c) + kinds(c)), with p_0 uniform.

    Args: train, text: (bytes,) uint8, at least `order` long. order: longest n-gram, 1 to 8.
    Returns: bits per byte.
    Source: Witten and Bell 1991, IEEE Transactions on Information Theory 37(4).
    """
    probability = np.full(text.size - order + 1, 1 / 256)
    for n in range(1, order + 1):
        grams, counts = np.unique(_pack(train, n), return_counts=True)
        contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
        count_of_context = np.add.reduceat(counts, first)
        kinds_of_context = np.diff(np.append(first, grams.size))
        asked = _pack(text, n)[order - n :]
        count = _look_up(grams, counts, asked)
        total = _look_up(contexts, count_of_context, asked >> np.uint64(8))
        kinds = _look_up(contexts, kinds_of_context, asked >> np.uint64(8))
        probability = np.where(total > 0, (count + kinds * probability) / np.maximum(total + kinds, 1), probability)
    return float(-np.log2(probability).mean())


def _pack(tokens: np.ndarray, n: int) -> np.ndarray:
    """All n-grams as integers, the first byte the highest: (tokens - n + 1,) uint64."""
    packed = np.zeros(tokens.size - n + 1, np.uint64)
    for place in range(n):
        packed = packed << np.uint64(8) | tokens[place : place + packed.size]
    return packed


def _look_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Values of sorted keys, 0 where a key is missing."""
    place = np.minimum(np.searchsorted(keys, asked), keys.size - 1)
    return np.where(keys[place] == asked, values[place], 0)
