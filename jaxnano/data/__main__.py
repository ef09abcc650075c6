"""Prepare a corpus, say what is in it, check it.

    python -m jaxnano.data                                   # the embedded corpus (15 s once, then at once)
    python -m jaxnano.data configs/track3-124m.yaml          # a recipe's
    python -m jaxnano.data data/fineweb10B --check           # a folder of shards, or of text
    python -m jaxnano.data '{kind: text, path: books, tokenizer: {kind: bpe}}'
"""

from __future__ import annotations

import sys

from jaxnano.cli import Command, report_errors

PARSER = Command("jaxnano.data", __doc__)
PARSER.add_argument("data", nargs="?", help="a recipe in YAML, a data node, or a folder or file of shards or text")
PARSER.add_argument("--check", action="store_true", help="read every shard again, and compare with the first time")
PARSER.add_argument("--ngram", action="store_true", help="add bits/byte of a 5-gram model of train (10 s)")
PARSER.early(__name__)

import numpy as np

from jaxnano import data
from jaxnano.config.data import Embedded, Shards
from jaxnano.data import Corpus, ngram, shards
from jaxnano.data.source import parsed

COUNTED = 10**8  # tokens of a split that are read to describe it


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = PARSER.options(argv)
    node = parsed(options.data) if options.data else Embedded(kind="embedded")
    if options.check and isinstance(node, Shards):
        corpus = shards.load(node.path, node.vocab, again=True)
        print("every shard is what it was when it was first read")
    else:
        corpus = data.load(node)  # which reads and hashes whatever is no shard every time
    print(f"{corpus.directory}\ndata hash {corpus.data_hash}\n{corpus.vocab_size:,} tokens ({corpus.encoding})")
    if packages := corpus.about.get("packages"):
        print("from " + ", ".join(f"{name} {version}" for name, version in packages.items()))
    _table(corpus, options.ngram and corpus.encoding == "bytes")
    return 0


def _table(corpus: Corpus, with_ngram: bool) -> None:
    print("\nsplit      documents          tokens  bytes/token  recurring  entropy" + "  5-gram" * with_ngram)
    rows = corpus.about.get("splits", {})
    for split in corpus.splits:
        tokens, row = corpus.tokens(split), rows.get(split, {})
        per_token = corpus.bytes_per_token(split) if row or tokens.size < COUNTED else None
        cells = [f"{row['documents']:9,}" if row else f"{'':9}", f"{tokens.size:14,}",
                 f"{per_token:11.3f}" if per_token else f"{'unknown':>11}",
                 f"{row['recurring_share']:9.2%}" if row else f"{'':9}",
                 f"{_entropy(tokens[:]):7.3f}" if row else ""]
        if with_ngram and split != "train":
            cells.append(f"{ngram.bits_per_byte(corpus.tokens('train')[:], tokens[:]):6.3f}")
        print(f"{split:10} " + "  ".join(cells))
    if rows:
        print("\nrecurring: bytes in long lines that also stand in train; entropy: bits per token, of single tokens")


def _entropy(tokens: np.ndarray) -> float:
    share = np.bincount(tokens) / tokens.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


if __name__ == "__main__":
    sys.exit(report_errors(main))
