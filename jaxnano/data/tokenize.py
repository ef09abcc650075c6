"""Write `.bin` shards, as modded-nanogpt reads them, from text files or a TFDS data set.

    python -m jaxnano.data.tokenize books --out data/books                       # GPT-2's tokens
    python -m jaxnano.data.tokenize '{kind: tfds, name: lm1b}' --out data/lm1b --tokenizer '{kind: bpe, vocab: 8192}'

Near duplicates are removed, and the documents divided as everywhere: validation is the protected split, and the
training shards end with search and heldout. Within a split the order is by hash, so that any run of documents is like
the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxnano.cli import Command, Output, UserError, positive, report_errors

PARSER = Command("jaxnano.data.tokenize", __doc__)
PARSER.add_argument("data", help="a file or folder of UTF-8 text, or a data node of kind text or tfds")
PARSER.add_argument("--out", required=True, metavar="DIR", help="new folder for the shards and manifest.json")
PARSER.add_argument("--tokenizer", metavar="KIND", default="gpt2",
                    help="bytes, gpt2, bpe or '{kind: bpe, vocab: 8192}' (gpt2)")
PARSER.add_argument("--shard-tokens", type=positive, default=100_000_000, metavar="N",
                    help="tokens a shard (100 M)")
PARSER.add_argument("--name", help="what the files' names begin with (the folder's name)")
PARSER.add_argument("--json", action="store_true", help="print the manifest as JSON")
PARSER.early(__name__)

import numpy as np

from jaxnano.config import data as config
from jaxnano.config.text import parse_yaml
from jaxnano.data import corpus, shards, store, text, tokenizer
from jaxnano.data.corpus import Document
from jaxnano.data.source import parsed
from jaxnano.data.tokenizer import BpeTokenizer

USES = {"val": ("protected",), "train": ("train", "search", "heldout")}
MOST_TOKENS = 2**31 - 1


def write(node: config.Text | config.Tfds, out: Path, shard_tokens: int, name: str) -> dict[str, Any]:
    """Write a node's text as shards NAME_val_000000.bin, NAME_train_000001.bin ... to a new folder, with a manifest.

    The folder appears by a rename, complete.
    Returns: the manifest: encoding, vocab_size, separator, and of `train` and `val` shards, documents, tokens, bytes.
    Raises: ValueError if the folder exists, or the text cannot be had, divided or tokenized.
    """
    if shard_tokens > MOST_TOKENS:
        raise UserError(f"--shard-tokens: {shard_tokens:,}: a shard's header counts to {MOST_TOKENS:,}")
    if out.exists():
        raise UserError(f"--out: {out}: exists already; another folder would do")
    parts = corpus.divide(text.documents(node))
    by = text.trained(node.tokenizer, parts["train"])
    about: dict[str, Any] = {"encoding": node.tokenizer.kind, "vocab_size": by.vocab, "separator": by.separator}
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        number = 0
        for use, splits in USES.items():
            chosen = [document for split in splits for document in sorted(parts[split], key=_hash)]
            sizes = []
            for shard in _filled(text.encoded(chosen, by), shard_tokens):
                shards.write(temporary / f"{name}_{use}_{number:06}.bin", shard)
                number, sizes = number + 1, [*sizes, shard.size]
            about[use] = {"shards": len(sizes), "documents": len(chosen), "tokens": sum(sizes),
                          "bytes": text.byte_count(chosen)}
        if isinstance(by, BpeTokenizer):
            (temporary / tokenizer.MERGES).write_text(by.text, encoding="utf-8")
        (temporary / store.MANIFEST).write_text(json.dumps(about, indent=2))
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return about


def _hash(document: Document) -> str:
    return hashlib.sha256(document.text.encode()).hexdigest()


def _filled(documents: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cut a stream of documents' tokens into shards of `size` tokens and a last one with the rest: (tokens,) uint16."""
    waiting, count = [], 0
    for tokens in documents:
        waiting.append(tokens.astype(np.uint16))
        count += tokens.size
        if count >= size:
            whole = np.concatenate(waiting)
            full = count // size * size
            yield from whole[:full].reshape(-1, size)
            waiting, count = [whole[full:]], count - full
    if count:
        yield np.concatenate(waiting)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = PARSER.options(argv)
    chosen = parse_yaml(options.tokenizer, "--tokenizer")
    node = parsed(options.data, {"tokenizer": {"kind": chosen} if isinstance(chosen, str) else chosen})
    if not isinstance(node, config.Text | config.Tfds):
        raise UserError(f"data: {options.data}: kind {node.kind}; text and tfds have text to tokenize")
    out = Path(options.out).expanduser()
    about = write(node, out, options.shard_tokens, options.name or out.name)
    rows = {f"{use} {name}": value for use in USES for name, value in about[use].items()}
    Output(options.json).table(str(out), about if options.json else {
        "encoding": about["encoding"], "vocabulary": about["vocab_size"], **rows})
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
