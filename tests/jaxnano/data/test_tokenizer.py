"""Text to tokens and back, against merging by hand; no vocabulary is downloaded."""

import hashlib
import sys

import numpy as np
import pytest

from jaxnano.cli import Failure
from jaxnano.data import tokenizer
from jaxnano.data.tokenizer import BpeTokenizer, ByteTokenizer

TINY = "#version: 0.2\nt h\nth e\nĠ the\ni n\nÃ ©\n"
TEXT = "the thin in the\n\n  then, 12 café \U0001f600 don't\t<|endoftext|>"


def _by_hand(text: str) -> list[bytes]:
    """TINY's merges in their order, applied to words that begin with their space."""
    found: list[bytes] = []
    for word in text.replace(" ", "\1 ").split("\1"):
        pieces = [bytes([byte]) for byte in word.encode()]
        for pair in ((b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b"i", b"n"), (b"\xc3", b"\xa9")):
            at = 0
            while at + 1 < len(pieces):
                if (pieces[at], pieces[at + 1]) == pair:
                    pieces[at : at + 2] = [b"".join(pair)]
                at += 1
        found += pieces
    return found


def test_merges_are_applied_in_their_order():
    bpe = BpeTokenizer(TINY, "tiny")
    assert (bpe.vocab, bpe.separator) == (262, 261)
    tokens = bpe.encode(TEXT)
    assert tokens.dtype == np.uint16
    assert [bpe.decode([token]) for token in tokens.tolist()] == _by_hand(TEXT)
    assert bpe.encode("!the in").tolist() == [0, 257, 220, 259]  # GPT-2 numbers bytes from "!"; a space is its 220
    assert bpe.lengths()[tokens].sum() == len(TEXT.encode())


@pytest.mark.parametrize("by", [ByteTokenizer(), BpeTokenizer(TINY, "tiny"), tokenizer.train([TEXT] * 3, 300)])
def test_decoding_gives_the_bytes_back(by):
    tokens = by.encode(TEXT)
    assert by.decode(tokens) == TEXT.encode()
    assert by.decode([by.separator, *tokens.tolist(), 60000]) in (TEXT.encode(), b"\0" + TEXT.encode())
    assert by.lengths().shape == (by.vocab,) and by.lengths()[by.separator] == 1
    assert by.encode("").size == 0


def test_training_is_repeatable_and_merges_what_is_frequent(tmp_path):
    texts = ["low lower lowest", "new newer newest", "wide wider widest " * 5]
    first, again = (tokenizer.train(iter(texts), 270) for _ in range(2))
    assert first.text == again.text and first.vocab == 270
    assert len(first.encode("widest")) < len(first.encode("ziqest"))
    assert tokenizer.train(["ab ab"], 5000).vocab == 256 + 2 + 1  # no more pairs to merge: "ab", " ab"
    (tmp_path / "vocab.bpe").write_text(first.text, encoding="utf-8")
    assert tokenizer.load(tmp_path / "vocab.bpe").encode(texts[0]).tolist() == first.encode(texts[0]).tolist()


@pytest.mark.parametrize(("line", "number"), [("t", 2), ("t h e", 2), ("t €", 2), ("th e", 2), ("t h\nt h", 3)])
def test_a_line_that_is_no_merge_is_refused(line, number, tmp_path):
    (tmp_path / "v").write_text(f"#version\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"v: line {number}: .* is no merge of two earlier tokens"):
        tokenizer.load(tmp_path / "v")


def test_gpt2s_vocabulary_is_a_file_or_a_download(tmp_path, monkeypatch):
    (tmp_path / "other.bpe").write_text(TINY, encoding="utf-8")
    monkeypatch.setenv("JAXNANO_GPT2", str(tmp_path / "other.bpe"))
    with pytest.raises(ValueError, match="JAXNANO_GPT2: .*other.bpe: not GPT-2's vocab.bpe; https://.* is"):
        tokenizer.gpt2()
    monkeypatch.setattr(tokenizer, "GPT2_SHA256", hashlib.sha256(TINY.encode()).hexdigest())
    assert tokenizer.build("gpt2").vocab == 262
    monkeypatch.setenv("JAXNANO_GPT2", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="JAXNANO_GPT2: .*none: No such file"):
        tokenizer.gpt2()
    monkeypatch.delenv("JAXNANO_GPT2")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(Failure, match="not here"):
        tokenizer.gpt2(download=False)
    monkeypatch.setattr(tokenizer, "GPT2_URL", "http://127.0.0.1:9/vocab.bpe")  # where nobody listens
    with pytest.raises(Failure, match="cannot be downloaded .*; JAXNANO_GPT2=FILE"):
        tokenizer.gpt2()


@pytest.mark.parametrize(("module", "call"), [
    ("tokenizers", lambda: tokenizer.train(["text"], 300)), ("tiktoken", lambda: BpeTokenizer(TINY, "").encode("text")),
])
def test_a_missing_extra_is_named(monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "tiktoken_ext.openai_public", None)
    with pytest.raises(ValueError, match=rf'{module} is not installed; pip install "jaxnano\[text\]" would do'):
        call()
