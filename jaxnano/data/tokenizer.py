"""Text to tokens and back: bytes, GPT-2's byte-pair encoding, or one trained on the data.

A byte-pair encoding is a list of merges in the format of GPT-2's `vocab.bpe`; its tokens are the 256 bytes, one for
each merge, and the separator. A trained one is therefore read by the same code as GPT-2's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from jaxnano.cli import Failure, UserError

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
GPT2_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
MERGES = "vocab.bpe"  # name of a trained encoding beside the data it was trained on


class Tokenizer(Protocol):
    """vocab: how many tokens there are. separator: the token before every document."""

    @property
    def vocab(self) -> int: ...

    @property
    def separator(self) -> int: ...

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text: (tokens,) uint8 or uint16. No text gives the separator."""
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> bytes:
        """The bytes tokens stand for; those outside the vocabulary stand for none."""
        ...

    def lengths(self) -> np.ndarray:
        """Bytes a token stands for: (vocab,) int64. The separator counts as one, as NUL does among bytes."""
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """A token is a byte, and NUL the separator."""

    vocab: int = 256
    separator: int = 0

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> bytes:
        return bytes(token for token in np.asarray(tokens).tolist() if token < 256)

    def lengths(self) -> np.ndarray:
        return np.ones(256, np.int64)


class BpeTokenizer:
    """A byte-pair encoding of the merges in `text`, which is what `vocab.bpe` holds; the separator is the last token.

    Raises: ValueError if a line is no merge of known tokens; `source` names the file in the message.
    """

    def __init__(self, text: str, source: str):
        self.text = text
        self._ranks = _ranks(text, source)
        self._words = sorted(self._ranks, key=self._ranks.__getitem__)
        self.separator, self.vocab = len(self._words), len(self._words) + 1

    @cached_property
    def _encoding(self) -> Any:
        """tiktoken's encoder: half a second for GPT-2's, and decoding does without."""
        pattern = _extra("tiktoken_ext.openai_public").r50k_pat_str
        return _extra("tiktoken").Encoding("bpe", pat_str=pattern, mergeable_ranks=self._ranks, special_tokens={})

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._encoding.encode_ordinary(text), np.uint16)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> bytes:
        return b"".join(self._words[token] for token in np.asarray(tokens).tolist() if token < self.separator)

    def lengths(self) -> np.ndarray:
        return np.array([*map(len, self._words), 1])


def build(kind: Literal["bytes", "gpt2"], download: bool = True) -> Tokenizer:
    """A tokenizer that needs no training; raises what `gpt2` does."""
    return ByteTokenizer() if kind == "bytes" else gpt2(download)


def beside(folder: Path, encoding: str, download: bool = True) -> Tokenizer:
    """The tokenizer that a folder of tokens was made with; raises what `load` and `gpt2` do."""
    if encoding == "bytes":
        return ByteTokenizer()
    return load(folder / MERGES) if (folder / MERGES).exists() else gpt2(download)


def gpt2(download: bool = True) -> BpeTokenizer:
    """GPT-2's tokenizer, from the file JAXNANO_GPT2, or else from what tiktoken has downloaded or downloads now.

    Raises: ValueError if tiktoken is missing, or JAXNANO_GPT2 is not GPT-2's vocabulary; Failure if that is neither
    here nor can be downloaded, or `download` is false.
    """
    named = os.environ.get("JAXNANO_GPT2")
    try:
        raw = Path(named).expanduser().read_bytes() if named else _downloaded(download)
    except OSError as error:
        raise UserError(f"JAXNANO_GPT2: {named}: {error.strerror}; a copy of {GPT2_URL} would do") from None
    if hashlib.sha256(raw).hexdigest() != GPT2_SHA256:
        raise UserError(f"JAXNANO_GPT2: {named}: not GPT-2's vocab.bpe; {GPT2_URL} is, 456,318 bytes")
    return BpeTokenizer(raw.decode(), named or MERGES)


def train(texts: Iterable[str], vocab: int) -> BpeTokenizer:
    """A byte-pair encoding of at most `vocab` tokens, of the pairs that are most frequent in `texts`.

    The same texts give the same encoding: pairs of equal frequency are merged in the order of their tokens.
    Raises: ValueError if `tokenizers` is not installed.
    Source: Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019.
    """
    tokenizers = _extra("tokenizers")
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab - 1, initial_alphabet=sorted(alphabet),
                                             show_progress=False)
    trained.train_from_iterator(texts, trainer)
    merges = json.loads(trained.to_str())["model"]["merges"]
    first_of = {"".join(pair): " ".join(pair) for pair in reversed(merges)}  # two pairs may spell one token
    lines = [" ".join(pair) for pair in merges if first_of["".join(pair)] == " ".join(pair)]
    return BpeTokenizer("\n".join(["#version: 0.2", *lines, ""]), "trained")


def load(path: Path) -> BpeTokenizer:
    """A byte-pair encoding from a file in the format of `vocab.bpe`; raises ValueError or OSError if it is none."""
    try:
        return BpeTokenizer(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; a vocab.bpe in GPT-2's format would do") from None


def _ranks(text: str, source: str) -> dict[bytes, int]:
    """{token's bytes: its number}: the printable bytes, the others, then a token a merge."""
    letters = _letters()
    ranks = {bytes([byte]): rank for rank, byte in enumerate(letters.values())}
    for number, line in enumerate(text.splitlines()[1:], 2):
        try:
            first, second = (bytes(letters[letter] for letter in half) for half in line.split(" "))
        except (KeyError, ValueError):
            first = second = b""
        if first not in ranks or second not in ranks or first + second in ranks:
            raise UserError(f"{source}: line {number}: {line[:40]!r} is no merge of two earlier tokens; a vocab.bpe "
                            "in GPT-2's format would do")
        ranks[first + second] = len(ranks)
    return ranks


def _letters() -> dict[str, int]:
    """The letter GPT-2's files write for each byte: itself if it is printable, else the next from code 256 on."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _downloaded(download: bool) -> bytes:
    """GPT-2's merges from tiktoken's cache, downloaded first if need be."""
    load = _extra("tiktoken.load")
    # tiktoken itself would write to its cache even where it may not, and fetch where nothing must be.
    if not download and not os.path.exists(_tiktoken_cache()):
        raise Failure("GPT-2's vocabulary is not here")
    try:
        return load.read_file_cached(GPT2_URL, GPT2_SHA256)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise Failure(f"GPT-2's vocabulary cannot be downloaded ({type(error).__name__}); JAXNANO_GPT2=FILE, a copy of "
                      f"{GPT2_URL}, would do") from None


def _tiktoken_cache() -> str:
    """Where tiktoken keeps what it downloads."""
    import tempfile

    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    name = hashlib.sha1(GPT2_URL.encode()).hexdigest()
    return os.path.join(folder or os.path.join(tempfile.gettempdir(), "data-gym-cache"), name)


def _extra(module: str) -> Any:
    """A module of the extra `text`; raises ValueError that names it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0].removesuffix("_ext")
        raise UserError(f'data.tokenizer: {package} is not installed; pip install "jaxnano[text]" would do') from None
