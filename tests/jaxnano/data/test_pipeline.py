"""Batches: the order of windows, its resume, and the fixed evaluation windows."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from jaxnano.data import Corpus, eval_batches, load, store, train_batches

LENGTH = 7


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    """Tokens that tell their own position: token i is i."""
    np.save(tmp_path / "train.npy", np.arange(1003, dtype=np.uint16))
    np.save(tmp_path / "search.npy", np.arange(500, dtype=np.uint16))
    return Corpus(tmp_path, "0" * 64, 65536, ("train", "search"))


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
    assert eval_batches(corpus, "search", LENGTH, 62, 31)[-1, -1, -1] < 500


@pytest.mark.parametrize(
    ("n_windows", "batch", "message"), [(63, 9, "1 to 62 would do"), (0, 1, "1 to 62"), (60, 7, "not divisible")]
)
def test_impossible_evaluation_is_refused(corpus, n_windows, batch, message):
    with pytest.raises(ValueError, match=message):
        eval_batches(corpus, "search", LENGTH, n_windows, batch)


def test_load_reads_the_kind(monkeypatch, corpus):
    monkeypatch.setattr(store, "embedded", lambda: corpus)
    assert load(SimpleNamespace(kind="embedded")) is corpus
    with pytest.raises(ValueError, match="data.kind: no reader for 'tape'"):
        load(SimpleNamespace(kind="tape"))
