"""The n-gram model against a dictionary that counts."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxnano.data import ngram


def _reference(train: bytes, text: bytes, order: int) -> float:
    following: dict[bytes, Counter] = defaultdict(Counter)
    for n in range(order):
        for end in range(n, len(train)):
            following[train[end - n : end]][train[end]] += 1

    def probability(context: bytes, byte: int) -> float:
        lower = probability(context[1:], byte) if context else 1 / 256
        counts = following.get(context)
        if not counts:
            return lower
        return (counts[byte] + len(counts) * lower) / (counts.total() + len(counts))

    bits = [-math.log2(probability(text[end - order + 1 : end], text[end])) for end in range(order - 1, len(text))]
    return sum(bits) / len(bits)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_against_counting(order):
    train = b"the cat sat on the mat, and the cat ate the rat" * 3
    text = b"the rat sat on a hat\xff; the cat"
    found = ngram.bits_per_byte(np.frombuffer(train, np.uint8), np.frombuffer(text, np.uint8), order)
    assert found == pytest.approx(_reference(train, text, order), rel=1e-12)
