"""Text of one's own and TFDS: four splits of whole documents, prepared once, without TensorFlow."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxnano import data
from jaxnano.cli import report_errors
from jaxnano.config.data import Bpe, Bytes, Text, Tfds
from jaxnano.data import corpus, text, tfds_text
from jaxnano.data.__main__ import main
from jaxnano.data.corpus import Document

WORDS = [start + middle + end for start in ("k", "str", "", "w", "gl") for middle in ("ea", "i", "ou", "a")
         for end in ("n", "ck", "mble", "st", "r")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXNANO_CACHE", str(tmp_path / "cache"))


def prose(lines: int, seed: int) -> str:
    """Speeches of two lines each, none like another."""
    rng = random.Random(seed)
    words = [" ".join(rng.choices(WORDS, k=14)) for _ in range(lines)]
    return "\n".join(line + "\n" * (number % 2) for number, line in enumerate(words)).strip()


def library(folder: Path, books: int = 600) -> list[str]:
    """Files of several documents each, in folders."""
    texts = [prose(random.Random(seed).randint(2, 12), seed) for seed in range(books)]
    for number in range(0, books, 4):
        path = folder / "abc"[number % 3] / f"{number:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\0".join(texts[number : number + 4]))
    return texts


def _documents(corpus: data.Corpus, split: str) -> list[str]:
    by, tokens = corpus.tokenizer(), corpus.tokens(split)[:]
    begins = np.flatnonzero(tokens == by.separator)
    assert begins[0] == 0
    return [by.decode(piece[1:]).decode() for piece in np.split(tokens, begins[1:])]


@pytest.mark.parametrize("tokenizer", [Bytes(kind="bytes"), Bpe(kind="bpe", vocab=400)])
def test_whole_documents_go_to_four_splits(tmp_path, tokenizer):
    texts = library(tmp_path / "books")
    found = data.load(Text(kind="text", path=str(tmp_path / "books"), tokenizer=tokenizer))
    parts = {split: _documents(found, split) for split in found.splits}
    assert sorted(sum(parts.values(), [])) == sorted(texts)
    total = sum(map(len, texts))
    for split, share in corpus.SHARES.items():
        assert sum(map(len, parts[split])) / total == pytest.approx(share, abs=0.01)
        row = found.about["splits"][split]
        assert row["documents"] == len(parts[split]) and row["tokens"] == found.tokens(split).size
        assert found.bytes_per_token(split) == sum(len(text) + 1 for text in parts[split]) / row["tokens"]
    assert (found.vocab_size, found.encoding) == (tokenizer.vocab, tokenizer.kind)
    assert found.bytes_per_token("train") == 1.0 if tokenizer.kind == "bytes" else found.bytes_per_token("train") > 3


def test_copies_are_dropped_and_long_lines_stay_in_one_split(tmp_path):
    texts = library(tmp_path / "books")
    (tmp_path / "books" / "z.txt").write_text("\0".join(texts[:200]))
    found = data.load(Text(kind="text", path=str(tmp_path / "books")))
    assert sum(len(_documents(found, split)) for split in found.splits) == len(texts)
    assert all(row["recurring_share"] == 0 for row in found.about["splits"].values())


def test_one_long_text_is_cut_into_sections(tmp_path):
    play = prose(4000, 0)
    (tmp_path / "play.txt").write_text(play)
    found = data.load(Text(kind="text", path=str(tmp_path / "play.txt")))
    pieces = {split: _documents(found, split) for split in found.splits}
    lines = {split: {line for piece in part for line in piece.split("\n") if line} for split, part in pieces.items()}
    assert set().union(*lines.values()) == set(play.split("\n")) - {""}
    assert sum(map(len, lines.values())) == len(set().union(*lines.values())), "a line stands in two splits"
    assert all(piece in play for part in pieces.values() for piece in part)
    assert 500 < sum(map(len, pieces.values())) < 1100
    assert len(pieces["search"]) >= 10


def test_prepared_text_is_opened_until_a_file_changes(tmp_path, monkeypatch):
    library(tmp_path / "books")
    node = Text(kind="text", path=str(tmp_path / "books"))
    before = data.load(node)
    written: list[Path] = []
    monkeypatch.setattr(text, "_write", lambda node, directory, write=text._write: (
        written.append(directory), write(node, directory)))
    assert data.load(Text(kind="text", path=str(tmp_path / "books"), length=9, batch=3)) == before and not written
    os.utime(tmp_path / "books" / "a" / "000.txt", (0, 0))
    (tmp_path / "books" / ".hidden").write_bytes(b"\xff")
    after = data.load(node)
    assert len(written) == 1 and after.data_hash == before.data_hash
    (tmp_path / "books" / "a" / "000.txt").write_text("Another text of one line.")
    assert data.load(node).data_hash != before.data_hash


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.txt", b"good \xff bad", "a.txt: byte 5 is no UTF-8; only text may stand in"),
    ("a.txt", b"too short", r"1 document\(s\), 9 characters: too few lines to divide into train, search"),
    ("a.txt", b" \n\0", "no text in it"), (".hidden", b"text", "no text in it"),
])
def test_text_that_is_none_is_refused_in_one_line(tmp_path, name, content, message, capsys):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.load(Text(kind="text", path=str(tmp_path / "books")))
    assert report_errors(lambda: main([str(tmp_path / "books")])) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="data.path: .*none: no such file or folder"):
        data.load(Text(kind="text", path=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="none: no such file or folder; a recipe, a folder of shards or text, or a"):
        main([str(tmp_path / "none")])


def test_tiny_shakespeare_needs_neither_tfds_nor_a_network(tmp_path):
    (tmp_path / "input.txt").write_text(prose(3000, 1))
    code = ("import sys; from jaxnano.data.__main__ import main; main([sys.argv[1]]);"
            "print({'tensorflow', 'tensorflow_datasets', 'requests'} & set(sys.modules))")
    node = json.dumps({"kind": "tfds", "name": "tiny_shakespeare", "path": str(tmp_path / "input.txt")})
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, node], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("set()\n") and "256 tokens (bytes)" in done.stdout


def test_a_prepared_tfds_data_set_is_read_by_its_name(tmp_path):
    texts = {split: [Document(f"{split}{n}", prose(6, n + 1000 * len(split))) for n in range(count)]
             for split, count in (("train", 500), ("test", 60))}
    tfds_text.write(texts, "small", tmp_path / "tfds")
    node = {"kind": "tfds", "name": "text_documents/small:1.0.0", "data_dir": str(tmp_path / "tfds")}
    found = data.load(Tfds(**node))
    parts = [document for split in found.splits for document in _documents(found, split)]
    assert sorted(parts) == sorted(document.text for split in texts for document in texts[split])
    assert data.load(Tfds(**node)) == found
    with pytest.raises(ValueError, match="data.feature: words: no text in text_documents/small:1.0.0; one of source"):
        data.load(Tfds(**node, feature="words"))


def test_a_data_set_that_cannot_be_had_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data.name: no_such_set: TFDS and data_dir have no such data set"):
        data.load(Tfds(kind="tfds", name="no_such_set", data_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="data.path: absent: tiny_shakespeare is one file; a copy of https://.* would"):
        data.load(Tfds(kind="tfds", name="tiny_shakespeare", data_dir=str(tmp_path)))
