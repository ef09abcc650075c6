"""The embedded corpora: docstrings of the installed wheels, or code."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxnano.data import corpus
from jaxnano.data.store import Corpus, cached, fingerprint, hash_of, save

BYTE_VOCABULARY = 256


def embedded(packages: Sequence[str] | None = None, text: str = "docstrings") -> Corpus:
    """The corpus of a text of the installed wheels, prepared if the cache does not hold it (15 s on one core).

    Args: packages: others than the text's own. text: docstrings or code.
    Raises: ValueError if a package is missing or the cache cannot be written.
    """
    packages = packages or corpus.PACKAGES[text]
    name = fingerprint(list(corpus.versions(packages).items()), corpus.__file__, __file__)
    return cached(f"{text}-{name}", lambda directory: _write(packages, text, directory),
                  f"preparing the embedded corpus ({text}), once on this machine (about 20 s),")


def _write(packages: Sequence[str], text: str, directory: Path) -> None:
    """Extract an embedded corpus into ArrayRecord files, then read them back into arrays of tokens."""
    from jaxnano.data import tfds_text  # half a second to import, and needed once per machine

    documents = corpus.split(corpus.documents(packages, text))
    tokens = {split: _join([document.text.encode() for document in chosen]) for split, chosen in documents.items()}
    name = hash_of(tokens)[:16]
    tfds_text.write(documents, name, directory / "tfds")
    train = tokens["train"].tobytes().decode()
    rows = {}
    for split, chosen in documents.items():
        tokens[split] = _join(tfds_text.read(name, directory / "tfds", split))
        copied = 0.0 if split == "train" else corpus.recurring_share(tokens[split].tobytes().decode(), train)
        rows[split] = {"documents": len(chosen), "bytes": tokens[split].size, "recurring_share": copied}
    save(directory, tokens, rows, vocab_size=BYTE_VOCABULARY, encoding="bytes", packages=corpus.versions(packages))


def _join(texts: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"\0".join(texts), np.uint8)
