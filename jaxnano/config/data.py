"""Where the tokens come from. Data and batch are frozen in a track: they are what is compared on.

Every node has `length` (predicted tokens a window), `batch` (windows a step), `vocab` (how many tokens there are) and
`separator` (the token that begins a document).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from jaxnano.config.base import Node, refuse

GPT2_VOCAB = 50257
NUL = 0
SHAKESPEARE = "tiny_shakespeare"


class Bytes(Node):
    """A token is a byte; NUL stands between documents."""

    kind: Literal["bytes"]
    separator: ClassVar[int] = NUL

    @property
    def vocab(self) -> int:
        return 256


class Gpt2(Node):
    """GPT-2's byte-pair encoding. Its vocabulary is downloaded once, or the file that JAXNANO_GPT2 names."""

    kind: Literal["gpt2"]
    separator: ClassVar[int] = GPT2_VOCAB - 1

    @property
    def vocab(self) -> int:
        return GPT2_VOCAB


class Bpe(Node):
    """A byte-pair encoding trained on the train split. vocab: bytes, merges and the separator together, at most."""

    kind: Literal["bpe"]
    separator: ClassVar[None] = None  # known once it is trained, as it may have fewer tokens
    vocab: int = Field(default=4096, ge=258, le=65536)


Tokenizer = Annotated[Bytes | Gpt2 | Bpe, Field(discriminator="kind")]
Length = Annotated[int, Field(ge=2, le=65536)]
Batch = Annotated[int, Field(ge=1, le=65536)]


class Documents(Node):
    """How documents share rows, each of which goes from one separator to the next.

    mask: attention stays within a document. most: within a piece of it, of so many tokens. align: rows of training
    begin where documents do; a row ends before the next begins, and what is left of its last document is skipped.
    separator: the token that begins a document, null for the data's own. Evaluation's rows are the same whatever is
    said here. Source: track 1, records 12 (mask), 26 (align) and 29 (most).
    """

    mask: bool = True
    most: int | None = Field(default=None, ge=1, le=65536)
    align: bool = False
    separator: int | None = Field(default=None, ge=0, le=65535)

    @model_validator(mode="after")
    def _says_something(self) -> Documents:
        if not self.mask and not self.align:
            raise refuse("mask", False, "mask or align, else nothing asks where documents begin; true would do")
        if self.most is not None and not self.mask:
            raise refuse("most", self.most, "without mask nothing asks for it; null would do")
        return self


class _Rows(Node):
    """What all data have. own_separator: the token that begins a document, where that is known without the data."""

    documents: Documents | None = None

    @property
    def own_separator(self) -> int | None:
        raise NotImplementedError

    @property
    def separator(self) -> int | None:
        """The token that begins a document, or None where nobody says."""
        told = None if self.documents is None else self.documents.separator
        return self.own_separator if told is None else told

    @property
    def aligned(self) -> int | None:
        """The token that rows of training begin with, or None where they begin anywhere."""
        return self.separator if self.documents is not None and self.documents.align else None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.documents is not None and self.separator is None:
            raise refuse("documents.separator", None, "the token that begins a document, which is the last one of the "
                         "encoding once it is trained; its number would do")
        return self


class _Wheels(_Rows):
    """Text of installed wheels, as bytes: no download."""

    length: Length = 64
    batch: Batch = 32

    @property
    def vocab(self) -> int:
        return 256

    @property
    def own_separator(self) -> int:
        return NUL


class Embedded(_Wheels):
    """Docstrings of the installed jax, numpy, scipy, flax and optax, as bytes: no download."""

    kind: Literal["embedded"]


class Code(_Wheels):
    """Code of the installed matplotlib, pydantic and rich, without docstrings, as bytes: no download."""

    kind: Literal["code"]


class Shards(_Rows):
    """`.bin` shards as modded-nanogpt prepares FineWeb: uint16 tokens, GPT-2's unless `vocab` says otherwise."""

    kind: Literal["shards"]
    path: str = "data/fineweb10B"
    vocab: int = Field(default=GPT2_VOCAB, ge=2, le=65536)
    length: Length = 1024
    batch: Batch = 512

    @property
    def own_separator(self) -> int:
        return NUL if self.vocab == 256 else self.vocab - 1  # as `jaxnano.data.tokenize` writes them


class Text(_Rows):
    """UTF-8 text. path: a file, or a folder of files; each is a document, or several with a NUL between them."""

    kind: Literal["text"]
    path: str
    tokenizer: Tokenizer = Bytes(kind="bytes")
    length: Length = 256
    batch: Batch = 32

    @property
    def vocab(self) -> int:
        return self.tokenizer.vocab

    @property
    def own_separator(self) -> int | None:
        return self.tokenizer.separator


class Tfds(_Rows):
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

    @property
    def own_separator(self) -> int | None:
        return self.tokenizer.separator


Data = Annotated[Embedded | Code | Shards | Text | Tfds, Field(discriminator="kind")]
