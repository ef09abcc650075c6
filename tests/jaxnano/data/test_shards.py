"""Shards: cut into splits where documents begin, read through once, and refused in one line."""

import os
import shutil

import numpy as np
import pytest

from jaxnano import data
from jaxnano.cli import report_errors
from jaxnano.config.data import Shards
from jaxnano.data import shards
from jaxnano.data.__main__ import main
from jaxnano.data.store import Corpus
from tests.jaxnano.data.binary import SEPARATOR, documents, folder, put

VOCAB = 50257


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXNANO_CACHE", str(tmp_path / "cache"))


def _load(path, **settings) -> Corpus:
    return shards.load(str(path), VOCAB, **settings)


def test_splits_begin_with_documents_and_lose_no_token(tmp_path):
    stream = folder(tmp_path / "web")
    corpus = data.load(Shards(kind="shards", path=str(tmp_path / "web")))
    assert corpus.splits == ("train", "search", "protected", "heldout") and corpus.vocab_size == VOCAB
    splits = {split: corpus.tokens(split)[:] for split in corpus.splits}
    joined = np.concatenate([splits[split] for split in ("train", "search", "heldout")])
    np.testing.assert_array_equal(joined, stream[3:])  # the beginning belongs to a document of another file
    np.testing.assert_array_equal(splits["protected"], documents(2000, 1)[3:])
    for tokens in splits.values():
        assert tokens[0] == SEPARATOR and tokens.dtype == np.uint16
    for split in ("search", "heldout"):
        assert stream.size // 32 <= splits[split].size < stream.size // 32 + 61
    assert (corpus.tokens("search").parts[0].path.name, len(corpus.tokens("train").parts)) == (
        "fineweb_train_000003.bin", 3)


def test_a_document_that_begins_just_there_begins_the_split(tmp_path):
    stream = np.where(np.arange(960) % 10, 5, SEPARATOR)
    put(tmp_path / "a_val_000000.bin", stream)
    put(tmp_path / "a_train_000001.bin", stream)
    corpus = _load(tmp_path)  # 960 / 32 = 30 tokens each
    assert {split: corpus.tokens(split).size for split in corpus.splits} == {
        "train": 900, "search": 30, "protected": 960, "heldout": 30}


def test_evaluation_reads_what_the_benchmark_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BENCHMARK", 96)
    stream = folder(tmp_path)
    corpus = _load(tmp_path)
    assert corpus.tokens("protected").size == 97
    windows = data.eval_batches(corpus, "protected", 16, 6, 3).reshape(6, 17)
    official = documents(2000, 1)[3:]
    np.testing.assert_array_equal(windows[:, :-1].ravel(), official[:96])
    np.testing.assert_array_equal(windows[:, 1:].ravel(), official[1:97])
    assert 97 <= corpus.tokens("heldout").size < 97 + 60
    assert corpus.tokens("heldout")[:].tolist() == stream[-corpus.tokens("heldout").size:].tolist()


def test_the_hash_is_of_the_tokens_wherever_they_lie(tmp_path):
    folder(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    before = _load(tmp_path / "a").data_hash
    assert _load(tmp_path / "b").data_hash == before
    with (tmp_path / "b" / "fineweb_train_000001.bin").open("r+b") as file:
        file.seek(1024 + 40)
        file.write(b"\1\1")
    assert _load(tmp_path / "b").data_hash != before


def test_files_are_read_through_once_and_again_when_they_change(tmp_path, monkeypatch):
    folder(tmp_path)
    read, through = [], shards._read_through
    monkeypatch.setattr(shards, "_read_through", lambda part: read.append(part.path.name) or through(part))
    first = _load(tmp_path)
    assert len(read) == 4
    assert _load(tmp_path) == first and len(read) == 4
    os.utime(tmp_path / "fineweb_train_000002.bin", (0, 0))
    assert _load(tmp_path) == first and read[4:] == ["fineweb_train_000002.bin"]


def test_a_token_changed_behind_the_clocks_back_is_found_by_the_check(tmp_path, capsys):
    folder(tmp_path)
    path, before = tmp_path / "fineweb_train_000002.bin", _load(tmp_path)
    assert main([str(tmp_path), "--check"]) == 0
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(2000)
        file.write(b"\1\1")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert _load(tmp_path) == before
    capsys.readouterr()
    assert report_errors(lambda: main([str(tmp_path), "--check"])) == 2
    error = capsys.readouterr().err
    assert "fineweb_train_000002.bin: other tokens than when it was first read" in error and error.count("\n") == 1


BAD = {
    "header cut": (lambda path: path.write_bytes(path.read_bytes()[:100]), "cut short: 100 bytes, and the header"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-10]),
            "cut short: its header promises 3,333 tokens and it holds 3,328; downloading"),
    "long": (lambda path: put(path, [SEPARATOR] * 9, count=8), "too long: its header promises 8 tokens and it holds 9"),
    "odd": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "odd length: 6,667 bytes of two-byte tokens"),
    "magic": (lambda path: put(path, [SEPARATOR] * 9, magic=20240801), "no shard: magic number 20240801, not 20240520"),
    "version": (lambda path: put(path, [SEPARATOR] * 9, version=2), "version 2 of the format; version 1 would do"),
    "empty": (lambda path: put(path, []), "no tokens in it"),
    "outside": (lambda path: put(path, [SEPARATOR, 1, 2, 50257, 50256]),
                "token 3 is 50257, and a vocabulary of 50,257 ends at 50256"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_shard_is_refused_in_one_line(tmp_path, capsys, fault):
    folder(tmp_path)
    damage, message = BAD[fault]
    damage(tmp_path / "fineweb_train_000002.bin")
    assert report_errors(lambda: main([str(tmp_path)])) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/fineweb_train_000002.bin: {message}" in error
    assert error.startswith("error: ") and error.count("\n") == 1 and "would do" in error


def test_missing_shards_are_told_how_to_get(tmp_path):
    with pytest.raises(ValueError, match="data.path: .*none: no such folder; `python data/cached_fineweb10B.py 9`"):
        _load(tmp_path / "none")
    put(tmp_path / "fineweb_train_000001.bin", documents(100, 0))
    with pytest.raises(ValueError, match=r"no such \*_val\*.bin in it"):
        _load(tmp_path)
    put(tmp_path / "edu_val_000000.bin", documents(100, 0))
    with pytest.raises(ValueError, match="shards of several data sets: edu, fineweb; a folder each"):
        _load(tmp_path)


def test_shards_without_documents_cannot_be_divided(tmp_path):
    put(tmp_path / "a_train_000001.bin", np.arange(5000))
    put(tmp_path / "a_val_000000.bin", documents(100, 0))
    with pytest.raises(ValueError, match=r"no document begins \(token 50256\)"):
        _load(tmp_path)
    put(tmp_path / "a_train_000001.bin", [SEPARATOR, *range(5000)])
    with pytest.raises(ValueError, match=r"a_train_000001.bin: no two documents begin"):
        _load(tmp_path)


def test_what_is_written_is_the_format(tmp_path):
    tokens = documents(500, 3)
    shards.write(tmp_path / "ours.bin", tokens)
    assert (tmp_path / "ours.bin").read_bytes() == put(tmp_path / "theirs.bin", tokens).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.bin", "theirs.bin"]


def test_bytes_a_token_are_unknown_without_the_vocabulary(tmp_path, monkeypatch):
    folder(tmp_path)
    monkeypatch.delenv("JAXNANO_GPT2", raising=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert _load(tmp_path).bytes_per_token("search") is None
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nt h\n")  # of other tokens
    assert _load(tmp_path).bytes_per_token("search") is None
