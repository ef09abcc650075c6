"""Batches: the order of windows, its resume, and the fixed evaluation windows."""

import json

import numpy as np
import pytest

from jaxnano.data import Corpus, eval_batches, pipeline, train_batches
from jaxnano.data.tokens import Part

LENGTH = 7


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    """Tokens that tell their own position: token i is i."""
    np.save(tmp_path / "train.npy", np.arange(1003, dtype=np.uint16))
    np.save(tmp_path / "search.npy", np.arange(500, dtype=np.uint16))
    parts = {split: (Part.of_array(tmp_path / f"{split}.npy"),) for split in ("train", "search")}
    return Corpus(tmp_path, "0" * 64, 65536, "gpt2", parts, {})


def _windows(corpus: Corpus, n: int, batch: int = 4, seed: int = 0, steps_per_call: int = 1) -> np.ndarray:
    batches = train_batches(corpus, batch, LENGTH, seed, steps_per_call)
    return np.concatenate([next(batches) for _ in range(n // (batch * steps_per_call))]).reshape(-1, LENGTH + 1)


def test_windows_are_runs_of_tokens(corpus):
    steps = next(train_batches(corpus, 4, LENGTH, 0, steps_per_call=5))
    assert steps.shape == (5, 4, LENGTH + 1) and steps.dtype == np.uint16 and steps.flags.c_contiguous
    np.testing.assert_array_equal(np.diff(steps.astype(int)), 1)


def test_an_epoch_visits_every_window_once_and_the_next_differs(corpus):
    per_epoch = (1003 - LENGTH) // LENGTH
    starts = _windows(corpus, 4 * per_epoch, batch=2)[:, 0].astype(int).reshape(4, per_epoch)
    for epoch in starts:
        np.testing.assert_array_equal(np.diff(np.sort(epoch)), LENGTH)
    assert len({tuple(epoch) for epoch in starts}) == 4
    assert len(set(starts.min(axis=1))) > 1, "every epoch cuts the tokens at the same places"


def test_order_depends_on_the_seed_alone(corpus):
    stream = _windows(corpus, 480, batch=4)
    np.testing.assert_array_equal(stream, _windows(corpus, 480, batch=4))
    np.testing.assert_array_equal(stream, _windows(corpus, 480, batch=16, steps_per_call=10))
    np.testing.assert_array_equal(stream[:160], _windows(corpus, 160, batch=8, steps_per_call=2))
    assert not np.array_equal(stream, _windows(corpus, 480, batch=4, seed=1))


def test_the_order_is_the_one_it_has_always_been(corpus):
    """Ledgers hold losses of this order: random numbers from the seed and the epoch, sorted."""
    expected = []
    for epoch in range(3):
        bits = np.random.PCG64(np.random.SeedSequence([9, epoch])).random_raw(1 + (1003 - LENGTH) // LENGTH)
        expected += [int(bits[0]) % LENGTH + LENGTH * place for place in np.argsort(bits[1:])]
    found = _windows(corpus, 426, batch=6, seed=9)
    np.testing.assert_array_equal(found, np.add.outer(expected, np.arange(LENGTH + 1)))


def test_a_large_epoch_is_shuffled_as_well_without_sorting_it(corpus, monkeypatch):
    monkeypatch.setattr(pipeline, "LARGE", 100)
    test_an_epoch_visits_every_window_once_and_the_next_differs(corpus)
    test_order_depends_on_the_seed_alone(corpus)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_permuted_is_a_permutation(size):
    keys = np.random.default_rng(size).integers(0, 2**64, pipeline.ROUNDS, np.uint64)
    assert sorted(pipeline.permuted(np.arange(size), size, keys).tolist()) == list(range(size))


def test_permuted_looks_random_even_between_neighbours():
    size, rng = 10_000_000, np.random.default_rng(0)
    keys = rng.integers(0, 2**64, pipeline.ROUNDS, np.uint64)
    found = pipeline.permuted(np.arange(20_001), size, keys)
    assert found.max() < size
    bins = np.bincount(found * 100 // size, minlength=100)
    assert ((bins - 200.01) ** 2 / 200.01).sum() < 160  # chi-squared, 99 degrees of freedom: p = 1e-4
    steps = np.bincount(np.diff(found) % size * 100 // size, minlength=100)
    assert ((steps - 200) ** 2 / 200).sum() < 160
    keys[-1] += np.uint64(1)
    assert (pipeline.permuted(np.arange(20_001), size, keys) == found).sum() < 10


@pytest.mark.parametrize("done", [0, 1, 70])
def test_resume_is_exact(corpus, done):
    batches = train_batches(corpus, 2, LENGTH, 5, steps_per_call=3)
    for _ in range(done):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(30)]
    resumed = train_batches(corpus, 2, LENGTH, 5, steps_per_call=3)
    next(resumed)
    resumed.set_state(state)
    np.testing.assert_array_equal([next(resumed) for _ in range(30)], expected)


def test_a_corpus_shorter_than_a_window_is_refused(corpus):
    with pytest.raises(ValueError, match=r"data.length: 600 is too long for 1003 tokens; at most 501"):
        train_batches(corpus, 4, 600, 0)


def test_evaluation_windows_are_fixed_even_and_apart(corpus):
    windows = eval_batches(corpus, "search", LENGTH, n_windows=60, batch=20)
    assert windows.shape == (3, 20, LENGTH + 1) and windows.dtype == np.uint16
    starts = windows.reshape(60, -1)[:, 0].astype(int)
    np.testing.assert_array_equal(np.diff(starts), 8)  # the tokens of a window, with the first one's context
    np.testing.assert_array_equal(windows, eval_batches(corpus, "search", LENGTH, 60, 20))
    np.testing.assert_array_equal(windows.ravel(), eval_batches(corpus, "search", LENGTH, 60, 10).ravel())
    with pytest.raises(ValueError, match="1 to 49 would do"):  # the first of 500 tokens is never predicted
        eval_batches(corpus, "search", 10, 50, 50)
    everything = eval_batches(corpus, "search", LENGTH, 71, 71)[0]
    np.testing.assert_array_equal(everything[:, 1:].ravel(), np.arange(1, 71 * LENGTH + 1))  # each predicted once


@pytest.mark.parametrize(
    ("n_windows", "batch", "message"), [(72, 9, "1 to 71 would do"), (0, 1, "1 to 71"), (60, 7, "not divisible")]
)
def test_impossible_evaluation_is_refused(corpus, n_windows, batch, message):
    with pytest.raises(ValueError, match=message):
        eval_batches(corpus, "search", LENGTH, n_windows, batch)


@pytest.fixture
def documents(tmp_path) -> Corpus:
    """Documents of 1 to 12 tokens, each of which begins with 0; the other tokens tell their position."""
    tokens = np.arange(3000, dtype=np.uint16)
    begins = np.cumsum(np.random.default_rng(0).integers(1, 13, 600))
    tokens[begins[begins < 3000]] = 0
    tokens[0] = 65535
    np.save(tmp_path / "train.npy", tokens)
    return Corpus(tmp_path, "0" * 64, 65536, "gpt2", {"train": (Part.of_array(tmp_path / "train.npy"),)}, {})


@pytest.mark.parametrize("large", [pipeline.LARGE, 10])
def test_aligned_windows_begin_with_documents_and_do_not_overlap(documents, monkeypatch, large):
    monkeypatch.setattr(pipeline, "LARGE", large)
    tokens, expected = documents.tokens("train")[:], []
    begins, at = np.flatnonzero(tokens == 0).tolist(), None
    for begin in begins:  # as the definition walks them
        if at is None:
            at = begin
        elif begin - at >= LENGTH:
            expected.append(at)
            at = begin
    batches = train_batches(documents, len(expected), LENGTH, 3, 1, align=0)
    for _ in range(3):
        epoch = next(batches)[0]
        rows = sorted(map(bytes, epoch))
        assert rows == sorted(bytes(tokens[start : start + LENGTH + 1]) for start in expected)
        assert not np.array_equal(epoch[:, 1], np.sort(epoch[:, 1]))
    state = json.loads(json.dumps(batches.get_state()))
    resumed = train_batches(documents, len(expected), LENGTH, 3, 1, align=0)
    resumed.set_state(state)
    np.testing.assert_array_equal(next(resumed), next(batches))
    with pytest.raises(ValueError, match=r"data.documents.align: no row of 7 tokens .* \(token 65535\)"):
        train_batches(documents, 4, LENGTH, 0, align=65535)
