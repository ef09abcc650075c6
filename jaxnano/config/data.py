"""Where the tokens come from. Data and batch are frozen in a track: they are what is compared on.

Every node has `length` (predicted tokens a window), `batch` (windows a step) and `vocab` (how many tokens there are).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxnano.config.base import Node, refuse

GPT2_VOCAB = 50257
SHAKESPEARE = "tiny_shakespeare"


class Bytes(Node):
    """A token is a byte; NUL stands between documents."""

    kind: Literal["bytes"]

    @property
    def vocab(self) -> int:
        return 256


class Gpt2(Node):
    """GPT-2's byte-pair encoding. Its vocabulary is downloaded once, or the file that JAXNANO_GPT2 names."""

    kind: Literal["gpt2"]

    @property
    def vocab(self) -> int:
        return GPT2_VOCAB


class Bpe(Node):
    """A byte-pair encoding trained on the train split. vocab: bytes, merges and the separator together, at most."""

    kind: Literal["bpe"]
    vocab: int = Field(default=4096, ge=258, le=65536)


Tokenizer = Annotated[Bytes | Gpt2 | Bpe, Field(discriminator="kind")]
Length = Annotated[int, Field(ge=2, le=65536)]
Batch = Annotated[int, Field(ge=1, le=65536)]


class Embedded(Node):
    """Docstrings of the installed jax, numpy, scipy, flax and optax, as bytes: no download."""

    kind: Literal["embedded"]
    length: Length = 64
    batch: Batch = 32

    @property
    def vocab(self) -> int:
        return 256


class Shards(Node):
    """`.bin` shards as modded-nanogpt prepares FineWeb: uint16 tokens, GPT-2's unless `vocab` says otherwise."""

    kind: Literal["shards"]
    path: str = "data/fineweb10B"
    vocab: int = Field(default=GPT2_VOCAB, ge=2, le=65536)
    length: Length = 1024
    batch: Batch = 512


class Text(Node):
    """UTF-8 text. path: a file, or a folder of files; each is a document, or several with a NUL between them."""

    kind: Literal["text"]
    path: str
    tokenizer: Tokenizer = Bytes(kind="bytes")
    length: Length = 256
    batch: Batch = 32

    @property
    def vocab(self) -> int:
        return self.tokenizer.vocab


class Tfds(Node):
    """A TFDS text data set; each example is a document.

    name: as TFDS knows it, `lm1b` or `wiki40b/en:1.3.0`. feature: which one holds the text. data_dir: where it is
    prepared, TFDS's default if None. path: for tiny_shakespeare alone, its text in a local file, read without TFDS.
    """

    kind: Literal["tfds"]
    name: str
    feature: str = "text"
    data_dir: str | None = None
    path: str | None = None
    tokenizer: Tokenizer = Bytes(kind="bytes")
    length: Length = 256
    batch: Batch = 32

    @model_validator(mode="after")
    def _local(self) -> Tfds:
        if self.path is not None and self.name != SHAKESPEARE:
            raise refuse("path", self.path, f"for {SHAKESPEARE} alone; kind: text reads any other file")
        return self

    @property
    def vocab(self) -> int:
        return self.tokenizer.vocab


Data = Annotated[Embedded | Shards | Text | Tfds, Field(discriminator="kind")]
