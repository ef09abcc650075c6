"""Shards written from text: the same documents come back, and a failure leaves nothing."""

import json

import numpy as np
import pytest

from jaxnano import data
from jaxnano.cli import report_errors
from jaxnano.config.data import Shards
from jaxnano.data import bench, shards
from jaxnano.data.__main__ import main as describe
from jaxnano.data.tokenize import main
from tests.jaxnano.data.test_text import library


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXNANO_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("tokenizer", "vocab"), [("bytes", 256), ("{kind: bpe, vocab: 400}", 400)])
def test_documents_come_back(tmp_path, capsys, tokenizer, vocab):
    texts, out = library(tmp_path / "books"), tmp_path / "made" / "web"
    size = ["--shard-tokens", "20000", "--name", "book", "--json"]
    assert main([str(tmp_path / "books"), "--out", str(out), "--tokenizer", tokenizer, *size]) == 0
    about = json.loads(capsys.readouterr().out)
    corpus = data.load(Shards(kind="shards", path=str(out), vocab=vocab))
    by, streams = corpus.tokenizer(), {}
    for use in ("val", "train"):
        files = sorted(out.glob(f"book_{use}_*.bin"))
        pieces = [np.fromfile(file, "<u2", offset=1024) for file in files]
        assert [piece.size for piece in pieces[:-1]] == [20000] * (len(files) - 1)
        assert 0 < pieces[-1].size <= 20000
        streams[use] = np.concatenate(pieces)
        assert (about[use]["shards"], about[use]["tokens"]) == (len(files), streams[use].size)
        assert about[use]["bytes"] == by.lengths()[streams[use]].sum()
    assert len(files) > 1
    joined = np.concatenate([streams["val"], streams["train"], [by.separator]])
    begins = np.flatnonzero(joined == by.separator)
    found = [by.decode(joined[a + 1 : b]).decode() for a, b in zip(begins, begins[1:], strict=False)]
    assert sorted(found) == sorted(texts)
    assert about["val"]["bytes"] == pytest.approx(0.03 * sum(map(len, texts)), rel=0.1)
    np.testing.assert_array_equal(corpus.tokens("protected")[:], streams["val"])
    assert corpus.bytes_per_token("protected") == pytest.approx(about["val"]["bytes"] / about["val"]["tokens"])
    assert describe([str(out)]) == 0 and f"{vocab} tokens" in capsys.readouterr().out


def test_a_node_of_another_vocabulary_is_refused(tmp_path):
    library(tmp_path / "books")
    main([str(tmp_path / "books"), "--out", str(tmp_path / "web"), "--tokenizer", "bytes"])
    with pytest.raises(ValueError, match="data.vocab: 50257: the shards in .*web were written with bytes and 256 tok"):
        data.load(Shards(kind="shards", path=str(tmp_path / "web")))
    (tmp_path / "web" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="manifest.json: not the manifest of jaxnano.data.tokenize"):
        data.load(Shards(kind="shards", path=str(tmp_path / "web")))


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, capsys):
    library(tmp_path / "books")
    order = [str(tmp_path / "books"), "--tokenizer", "bytes", "--out"]
    for wrong, message in (
        ([*order, str(tmp_path / "books")], "--out: .*books: exists already; another folder would do"),
        ([*order, str(tmp_path / "web"), "--shard-tokens", str(2**31)], "--shard-tokens: 2,147,483,648"),
        (["{kind: embedded}", "--out", str(tmp_path / "web")],
         "data: {kind: embedded}: kind embedded; text and tfds have text to tokenize"),
        ([str(tmp_path / "books"), "--out", str(tmp_path / "web"), "--tokenizer", "words"],
         "data.tokenizer.kind: \"words\": one of 'bytes', 'gpt2', 'bpe'"),
    ):
        with pytest.raises(ValueError, match=message):
            main(wrong)

    def full(path, tokens):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(shards, "write", full)
    assert report_errors(lambda: main([*order, str(tmp_path / "web")])) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["books"]


def test_the_benchmark_reads_what_it_writes(tmp_path, capsys):
    (tmp_path / "random").mkdir()
    bench.generate(tmp_path / "random", 2)
    tokens = shards.load(str(tmp_path / "random"), 50257).tokens("train").size
    assert bench.sequential(str(tmp_path / "random")) == tokens
    assert bench.main([str(tmp_path / "random"), "--measure", "sequential"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["tokens_per_s"] == pytest.approx(tokens / row["seconds"]) and row["peak_mb"] > 10
