"""Prepared data: complete or absent, whatever happens while it is written."""

import hashlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxnano.cache import cache_root
from jaxnano.cli import Failure, UserError, report_errors
from jaxnano.config.data import Embedded
from jaxnano.data import corpus, embedded, load, ngram, store, tfds_text
from jaxnano.data.__main__ import main

SMALL = ("optax",)
PREPARE = "from jaxnano.data.embedded import embedded; print(embedded(('optax',)).data_hash)"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JAXNANO_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Iterator[store.Corpus]:
    """One prepared cache, for the tests that only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXNANO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield embedded.embedded(SMALL)


def _start(code: str) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_tokens_are_the_documents_and_the_hash_is_theirs(prepared):
    digest = hashlib.sha256()
    for split, documents in corpus.split(corpus.documents(SMALL)).items():
        text = "\0".join(document.text for document in documents).encode()
        digest.update(f"{split}:|u1:{len(text)}\n".encode() + text)
        tokens = prepared.tokens(split)
        assert bytes(tokens[:]) == text and tokens.dtype == np.uint8
    assert prepared.data_hash == digest.hexdigest()
    assert prepared.vocab_size == 256
    with pytest.raises(ValueError, match="no split 'validation'; there are train, search, protected, heldout"):
        prepared.tokens("validation")


@pytest.mark.parametrize("shares", [1, 2, 3])
def test_shares_of_a_split_are_all_of_it_and_each_is_of_all_its_kinds(prepared, shares):
    whole = prepared.tokens("protected")[:]
    found = [prepared.tokens(f"protected:{i}/{shares}")[:] for i in range(1, shares + 1)]
    assert sum(map(len, found)) == whole.size and max(map(len, found)) - min(map(len, found)) <= 16
    cuts = np.linspace(0, whole.size, 16 * shares + 1).astype(int)
    for i, share in enumerate(found):
        stretches = [whole[cuts[k]:cuts[k + 1]] for k in range(i, 16 * shares, shares)]
        np.testing.assert_array_equal(share, np.concatenate(stretches))
    for wrong in ("0/2", "3/2", "1", "a/b", "1/2/3"):
        with pytest.raises(ValueError, match="is no share; 1/2 and 2/2 would do"):
            prepared.tokens(f"protected:{wrong}")


def test_array_records_hold_the_same_text(prepared):
    texts = tfds_text.read(prepared.data_hash[:16], prepared.directory / "tfds", "search")
    assert b"\0".join(texts) == bytes(prepared.tokens("search")[:])


def test_damage_is_noticed_and_repaired(cache):
    found = embedded.embedded(SMALL)
    intact = bytes(found.tokens("search")[:])
    with (found.directory / "search.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    assert embedded.embedded(SMALL) == found
    assert bytes(found.tokens("search")[:]) == intact
    assert list(cache.glob(".preparing-*")) == []


def test_the_slower_of_two_processes_takes_what_the_faster_left(cache, monkeypatch):
    write = embedded._write

    def overtaken(packages, text, directory):
        write(packages, text, directory)
        monkeypatch.setattr(embedded, "_write", write)
        embedded.embedded(packages)  # another process, from here to its end
        marked.append(next(cache.glob("docstrings-*")).stat().st_ino)

    marked: list[int] = []
    monkeypatch.setattr(embedded, "_write", overtaken)
    found = embedded.embedded(SMALL)
    assert [found.directory.stat().st_ino] == marked
    assert [path.name for path in cache.iterdir()] == [found.directory.name]


def test_two_processes_at_once_agree_without_tensorflow(cache):
    together = "import sys; from jaxnano.data import store; sys.stdin.readline()"
    code = f"{together}; {PREPARE}; print('tensorflow' in sys.modules)"
    both = [_start(code) for _ in range(2)]
    outputs = [process.communicate("go\n") for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert {output for output, _ in outputs} == {f"{embedded.embedded(SMALL).data_hash}\nFalse\n"}
    assert len(list(cache.iterdir())) == 1


def test_a_killed_process_leaves_nothing_that_is_taken_for_data(cache):
    half_way = f"import os, numpy; numpy.save = lambda *_: os.kill(os.getpid(), {signal.SIGKILL:d}); {PREPARE}"
    killed = _start(half_way)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    (left,) = cache.iterdir()
    assert left.name.startswith(".preparing-")
    os.utime(left, (0, 0))
    found = embedded.embedded(SMALL)
    assert found.tokens("train").size > 100_000
    assert [path.name for path in cache.iterdir()] == [found.directory.name]


def test_a_valid_cache_is_opened_without_tfds(prepared, monkeypatch):
    monkeypatch.setenv("JAXNANO_CACHE", str(prepared.directory.parent))
    reader = _start(f"import sys; {PREPARE}; print('tensorflow_datasets' in sys.modules)")
    assert reader.communicate()[0] == f"{prepared.data_hash}\nFalse\n"


def test_an_unwritable_cache_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("JAXNANO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="JAXNANO_CACHE: cannot write to .*cache; set it"):
        embedded.embedded(SMALL)


@pytest.mark.parametrize("fault", [
    OSError(28, "No space left on device"), RuntimeError('"train": write() failed: No space left on device; ...')])
def test_a_full_cache_is_named(tmp_path, monkeypatch, fault):
    def write(*args):
        raise fault

    monkeypatch.setenv("JAXNANO_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_write", write)
    with pytest.raises(Failure, match="no room for prepared data; JAXNANO_CACHE=DIR on another disk"):
        load(Embedded(kind="embedded"))


def test_the_command_describes_the_data(prepared, monkeypatch, capsys):
    monkeypatch.setattr(embedded, "embedded", lambda: prepared)
    assert main(["--ngram"]) == 0
    assert prepared.data_hash in (output := capsys.readouterr().out)
    assert f"{prepared.tokens('heldout').size:,}" in output

    def missing():
        raise UserError("corpus: scipy is not installed")

    monkeypatch.setattr(embedded, "embedded", missing)
    assert report_errors(lambda: main([])) == 2
    assert capsys.readouterr().err == "error: corpus: scipy is not installed\n"


def test_the_whole_corpus_keeps_its_splits_apart_and_alike():
    found = embedded.embedded()  # in the user's cache: 15 s on a machine that has none
    text = {split: bytes(found.tokens(split)[:]) for split in found.splits}
    known = {line.strip() for line in text["train"].decode().splitlines()}
    for split in ("search", "protected", "heldout"):
        assert len(text[split]) >= 200_000
        lines = [line.strip() for line in text[split].decode().splitlines() if len(line.strip()) >= 40]
        recurring = sum(len(line) for line in lines if line in known)
        assert recurring < 0.01 * sum(len(line) for line in lines)
    train = np.concatenate([found.tokens("train")[place : place + 20_000] for place in range(0, 8_000_000, 160_000)])
    bits = [ngram.bits_per_byte(train, found.tokens(split)[:], order=3) for split in ("search", "protected", "heldout")]
    assert max(bits) / min(bits) < 1.05  # 1.01 on two sets of wheels, 1.02 at most on 16 random parts of one
    shares = {split: np.bincount(found.tokens(split)[:], minlength=256) / found.tokens(split).size
              for split in found.splits}
    for one, other in itertools.combinations(shares.values(), 2):  # 0.03 to 0.05 on two sets of wheels
        assert 0.5 * np.abs(one - other).sum() < 0.08


def test_the_cache_lies_where_the_user_keeps_caches(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("JAXNANO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "jaxnano"
    monkeypatch.setattr(embedded, "_write", lambda packages, text, directory: store.save(
        directory, {"train": np.zeros(8, np.uint8)}, {"train": {}}, vocab_size=256, encoding="bytes"))
    embedded.embedded()
    embedded.embedded()  # which has nothing to prepare any more
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("preparing the embedded corpus") and str(tmp_path) in said
