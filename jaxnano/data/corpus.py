"""Documents: near duplicates removed, and divided into splits; and those of the embedded corpora.

An embedded corpus is of the installed wheels, so that a run needs no download: their docstrings, or, of other wheels,
the code without them. Sources are read and parsed, never imported. A document is of one file. The same wheels give the
same documents, in the same splits, on every machine.
"""

import ast
import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import decode_source
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxnano.cli import UserError

PACKAGES: Mapping[str, tuple[str, ...]] = {  # of each text
    "docstrings": ("jax", "numpy", "scipy", "flax", "optax"), "code": ("matplotlib", "pydantic", "rich")}
# search steers the loop, protected only verifies, heldout is opened once per champion.
SHARES = {"train": 0.915, "search": 0.03, "protected": 0.03, "heldout": 0.025}

MIN_DOCSTRING = 40  # characters; shorter ones ("Returns the mean.") teach nothing a longer one does not
MIN_DOCUMENT = 200  # characters
LARGEST_PART = 0.1  # of an evaluation split; one document may not decide what it measures
LONG_LINE = 40  # characters; a line this long that recurs is a copy, not a coincidence
SECTIONS = 1000  # that text is cut into where its documents are too few or too long to be divided
BEGINNING = 1 << 16  # characters of a document that say how predictable it is
MIN_LETTERS = 16  # a long line with fewer is a rule or a row of numbers, and says nothing about copying


class Document(NamedTuple):
    """Text that stays in one split. source: where it is from, a path inside the wheel or the folder of text."""

    source: str
    text: str

    @property
    def package(self) -> str:
        """The first folder of the path, "" without one: splits are alike in these."""
        folder, slash, _ = self.source.partition("/")
        return folder if slash else ""


def documents(packages: Sequence[str], text: str = "docstrings") -> list[Document]:
    """Read a corpus, without near duplicates, in the order of packages and paths.

    Args: packages: names of installed distributions whose top-level package has the same name. text: which of TEXTS.
    Returns: documents of at least MIN_DOCUMENT characters.
    Raises: ValueError if a distribution is not installed or lists no Python files.
    """
    raw = (Document(path, TEXTS[text](source)) for name in packages for path, source in _sources(name))
    return [document for document in without_copies(raw) if len(document.text) >= MIN_DOCUMENT]


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the installed distributions; raises ValueError if one is missing."""
    return {name: _distribution(name).version for name in packages}


def docstrings(source: str | bytes) -> list[str]:
    """Docstrings of a module, its classes and functions, in line order, if MIN_DOCSTRING characters or longer."""
    found = (str(node.value).expandtabs().rstrip() for node in _walk(_parsed(source)))
    return [text for text in found if len(text) >= MIN_DOCSTRING]


def code(source: bytes) -> str:
    """A module without the lines of its docstrings, and without spaces at the ends of lines."""
    lines: list[str | None] = [line.expandtabs().rstrip() for line in decode_source(source).split("\n")]
    for node in _walk(_parsed(source)):
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        lines[first:last] = [None] * (last - first)
    return "\n".join(line for line in lines if line is not None)


TEXTS: Mapping[str, Callable[[bytes], str]] = {
    "docstrings": lambda source: "\n\n".join(docstrings(source)), "code": code}


def without_copies(raw: Iterable[Document]) -> Iterator[Document]:
    """Drop each paragraph with a long line of an earlier document, but for case, digits and punctuation.

    Libraries repeat themselves ("axis : int, optional ..."), and whole paragraphs wander from NumPy to SciPy and JAX.
    Cutting by paragraph keeps the rest of a document, which cutting by file would lose, and makes the splits disjoint
    in long lines however documents are assigned.
    """
    first: dict[str, str] = {}
    for document in raw:
        kept = []
        for paragraph in re.split(r"\n\s*\n", document.text):
            keys = _long_lines(paragraph)
            if all(first.get(key, document.source) == document.source for key in keys):
                kept.append(paragraph)
                first.update(dict.fromkeys(keys, document.source))
        yield Document(document.source, "\n\n".join(kept))


def split(corpus: Sequence[Document]) -> dict[str, list[Document]]:
    """Assign whole documents to the splits of SHARES, balanced by bytes, alike in packages and predictability.

    Every document adds its bytes, times a split's share, to that split's credit, and is charged to the split that takes
    it. Walking through one package after the other, from its most to its least predictable document, gives each split
    its share of every stretch: of tables and of prose alike. No document makes up more than LARGEST_PART of an
    evaluation split.
    Returns: {split: documents}, each in the order of `corpus`.
    """
    bits = _bits(corpus)
    sizes = {document.source: len(document.text.encode()) for document in corpus}
    largest = {name: LARGEST_PART * share * sum(sizes.values()) for name, share in SHARES.items()}
    credit = dict.fromkeys(SHARES, 0.0)
    chosen: dict[str, str] = {}
    for document in sorted(corpus, key=lambda d: (d.package, bits[d.source], _digest(d))):
        size = sizes[document.source]
        for name, share in SHARES.items():
            credit[name] += share * size
        ready = [name for name in SHARES if name != "train" and size <= min(largest[name], 2 * credit[name])]
        taker = max(ready, key=lambda name: credit[name] / SHARES[name], default="train")
        credit[taker] -= size
        chosen[document.source] = taker
    return {name: [document for document in corpus if chosen[document.source] == name] for name in SHARES}


def divide(raw: Sequence[Document]) -> dict[str, list[Document]]:
    """The splits of any documents, near duplicates removed; each evaluation split has at least half of its share.

    Where whole documents are too few or too long for that (a play, ten novels), they are cut at blank lines, or at ends
    of lines, into about SECTIONS sections, and these are divided instead.
    Raises: ValueError if the sections are too few or too long as well.
    """
    for cut in (iter, sections):
        kept = [document for document in without_copies(cut(raw)) if document.text.strip()]
        parts = split(kept)
        sizes = {name: sum(len(document.text.encode()) for document in part) for name, part in parts.items()}
        if kept and all(size >= SHARES[name] / 2 * sum(sizes.values()) for name, size in sizes.items()):
            return parts
    size = sum(len(document.text) for document in raw)
    raise UserError(f"{len(raw)} document(s), {size:,} characters: too few lines to divide into {', '.join(SHARES)}; "
                    f"{SECTIONS} lines of the usual length would do")


def sections(raw: Sequence[Document]) -> list[Document]:
    """Documents cut into about SECTIONS runs of lines, at a blank line where there is one in time."""
    size = max(1, sum(len(document.text) for document in raw) // SECTIONS)
    found = []
    for document in raw:
        text, start = document.text, 0
        while start < len(text):
            blank, line = text.find("\n\n", start + size), text.find("\n", start + 2 * size)
            ends = [end + 1 for end in (blank, line) if end >= 0]
            stop = min(ends, default=len(text))
            found.append(Document(f"{document.source}:{start}", text[start:stop].strip("\n")))
            start = stop
    return found


def recurring_share(text: str, train: str) -> float:
    """Share of the bytes in long lines of `text` whose line also stands in `train`, letter by letter."""
    known = {line.strip() for line in train.splitlines()}
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) >= LONG_LINE]
    total = sum(len(line.encode()) for line in lines)
    return sum(len(line.encode()) for line in lines if line in known) / total if total else 0.0


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise UserError(f"corpus: {name} is not installed; its sources are the data: pip install {name}") from None


def _sources(name: str) -> Iterator[tuple[str, bytes]]:
    """Yield (path, source) of a wheel's Python files in the order of their paths; tests are left out."""
    files = _distribution(name).files or []
    python = sorted(file for file in files if file.suffix == ".py" and file.parts[0] == name)
    if not python:
        raise UserError(f"corpus: {name} lists no Python files of its own; install its wheel: pip install {name}")
    for file in python:
        if "tests" in file.parts:
            continue  # a third of the parsing, 2 % of the text
        yield file.as_posix(), Path(str(file.locate())).read_bytes()


def _parsed(source: str | bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        return ast.parse(source)


def _walk(node: ast.AST) -> Iterator[ast.Constant]:
    """Yield the docstrings below a node. Only statements are visited: no expression holds a docstring."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            yield first.value
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        statements = getattr(node, field, None)
        for child in statements if isinstance(statements, list) else ():
            yield from _walk(child)


def _long_lines(paragraph: str) -> list[str]:
    lines = (line for line in paragraph.splitlines() if len(line.strip()) >= LONG_LINE)
    keys = (re.sub(r"[\W\d_]+", "", line).lower() for line in lines)
    return [key for key in keys if len(key) >= MIN_LETTERS]


def _bits(corpus: Sequence[Document]) -> dict[str, float]:
    """Bits a byte of each document's beginning, by source, a byte given the one before it, as counted in all of them.

    In whole 1/1024 bits, so that no machine's rounding decides an order.
    """
    counts = np.zeros(1 << 16, np.int64)
    for document in corpus:
        np.add.at(counts, _pairs(document), 1)
    table = counts.reshape(256, 256)
    share = np.maximum(table, 1) / np.maximum(table.sum(1, keepdims=True), 1)
    cost = np.rint(-1024 * np.log2(share)).astype(np.int64).ravel()
    pairs = ((document.source, _pairs(document)) for document in corpus)
    return {source: int(cost[found].sum()) / max(1, found.size) for source, found in pairs}


def _pairs(document: Document) -> np.ndarray:
    """Each byte of a document's beginning with the next one, as one number below 1 << 16."""
    data = np.frombuffer(document.text[:BEGINNING].encode(), np.uint8).astype(np.intp)
    return data[:-1] << 8 | data[1:]


def _digest(document: Document) -> str:
    return hashlib.sha256(document.text.encode()).hexdigest()
