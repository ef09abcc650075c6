"""Corpora of one's own: UTF-8 text in files, and TFDS text data sets, prepared once per machine.

All documents are held in memory while they are divided and tokenized: a few GB of text want as many.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxnano.cli import UserError
from jaxnano.config import data as config
from jaxnano.config.base import dump_full
from jaxnano.data import corpus, store, tokenizer
from jaxnano.data.corpus import Document
from jaxnano.data.store import Corpus
from jaxnano.data.tokenizer import BpeTokenizer, Tokenizer

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def load(node: config.Text | config.Tfds) -> Corpus:
    """The corpus of text in files or in TFDS, prepared if the cache does not hold it in its present state.

    The state is the files' names, sizes and times of change: touching one prepares again, and gives the same tokens.
    Raises: ValueError if there is no such text, it is not UTF-8, or too little to divide; Failure if TFDS or GPT-2's
    vocabulary is not here and cannot be downloaded.
    """
    state = [[str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in _files(node)]
    name = [node.name, node.feature] if isinstance(node, config.Tfds) else []
    source = [node.kind, *name, dump_full(node.tokenizer), state]
    code = (corpus.__file__, tokenizer.__file__, __file__)
    return store.cached(f"{node.kind}-{store.fingerprint(source, *code)}", lambda directory: _write(node, directory))


def documents(node: config.Text | config.Tfds) -> list[Document]:
    """All documents of a node as they stand, in the order of their names.

    Raises: ValueError if there are none, or one is not UTF-8; Failure if TFDS cannot get them.
    """
    if isinstance(node, config.Tfds) and node.path is None:
        from jaxnano.data import tfds_text

        found = list(tfds_text.documents(node.name, node.data_dir, node.feature))
    else:
        root = Path(str(node.path)).expanduser()
        found = [document for path in _files(node) for document in _read(path, root)]
    if not found:
        raise UserError(f"data: {node.path if isinstance(node, config.Text) else node.name}: no text in it")
    return found


def trained(node: config.Tokenizer, train: Sequence[Document]) -> Tokenizer:
    """The tokenizer of a node, trained on `train` if need be; raises what `tokenizer.train` and `gpt2` do."""
    if isinstance(node, config.Bpe):
        return tokenizer.train((document.text for document in train), node.vocab)
    return tokenizer.build(node.kind)


def encoded(chosen: Sequence[Document], by: Tokenizer) -> Iterator[np.ndarray]:
    """Tokens of each document, the separator first: (tokens,) uint8 for bytes, else uint16."""
    for document in chosen:
        tokens = by.encode(document.text)
        yield np.concatenate([np.array([by.separator], tokens.dtype), tokens])


def byte_count(chosen: Sequence[Document]) -> int:
    """Bytes of documents, with one for each separator."""
    return sum(len(document.text.encode()) + 1 for document in chosen)


def _write(node: config.Text | config.Tfds, directory: Path) -> None:
    parts = corpus.divide(documents(node))
    by = trained(node.tokenizer, parts["train"])
    tokens = {split: np.concatenate(list(encoded(chosen, by))) for split, chosen in parts.items()}
    if isinstance(by, BpeTokenizer):
        (directory / tokenizer.MERGES).write_text(by.text, encoding="utf-8")
    store.save(directory, tokens, _rows(parts), vocab_size=by.vocab, encoding=node.tokenizer.kind)


def _rows(parts: Mapping[str, Sequence[Document]]) -> dict[str, dict[str, float]]:
    texts = {split: "\n".join(document.text for document in chosen) for split, chosen in parts.items()}
    return {split: {"documents": len(chosen), "bytes": byte_count(chosen), "recurring_share":
                    0.0 if split == "train" else corpus.recurring_share(texts[split], texts["train"])}
            for split, chosen in parts.items()}


def _files(node: config.Text | config.Tfds) -> list[Path]:
    """The files that hold a node's text, in the order of their names; those of TFDS are prepared first."""
    if isinstance(node, config.Tfds) and node.path is None:
        root = Path(node.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        path = root / node.name.split(":")[0]
        if not path.is_dir():
            if node.name == config.SHAKESPEARE:  # TFDS would need TensorFlow for it
                raise UserError(f"data.path: absent: {node.name} is one file; a copy of {SHAKESPEARE_URL} would do")
            from jaxnano.data import tfds_text

            tfds_text.prepare(node.name, node.data_dir)
    else:
        path = Path(str(node.path)).expanduser()
        if not path.exists():
            raise UserError(f"data.path: {node.path}: no such file or folder; one of UTF-8 text would do")
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))


def _read(path: Path, root: Path) -> Iterator[Document]:
    """Documents of one file: what NUL bytes part in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start:,} is no UTF-8; only text may stand in {root}") from None
    name = path.name if path == root else path.relative_to(root).as_posix()
    for number, piece in enumerate(text.split("\0")):
        if piece.strip():
            yield Document(f"{name}:{number}", piece)
