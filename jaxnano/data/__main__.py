"""`python -m jaxnano.data`: prepare the embedded corpus and say what is in it (15 s once, then at once)."""

import argparse
import sys

import numpy as np

from jaxnano.data import ngram, store


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m jaxnano.data", description="Prepare and describe the corpus.")
    parser.add_argument("--ngram", action="store_true", help="add bits/byte of a 5-gram model of train (10 s)")
    arguments = parser.parse_args()
    try:
        corpus = store.embedded()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    manifest = corpus.manifest()
    print(f"{corpus.directory}\ndata hash {corpus.data_hash}")
    print("from " + ", ".join(f"{name} {version}" for name, version in manifest["packages"].items()))
    print("\nsplit      documents      bytes  recurring  entropy" + "  5-gram" * arguments.ngram)
    for split, row in manifest["splits"].items():
        tokens = np.asarray(corpus.tokens(split))
        line = f"{split:10} {row['documents']:9,} {tokens.size:10,}  {row['recurring_share']:8.2%}"
        line += f"  {_entropy(tokens):7.3f}"
        if arguments.ngram and split != "train":
            line += f"  {ngram.bits_per_byte(np.asarray(corpus.tokens('train')), tokens):6.3f}"
        print(line)
    print("\nrecurring: bytes in long lines that also stand in train; entropy and 5-gram: bits per byte")
    return 0


def _entropy(tokens: np.ndarray) -> float:
    """Entropy of single bytes, in bits."""
    share = np.bincount(tokens) / tokens.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


if __name__ == "__main__":
    sys.exit(main())
