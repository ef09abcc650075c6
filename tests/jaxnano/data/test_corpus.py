"""The embedded corpus: what is extracted, what is dropped, who gets which document."""

import random

import numpy as np
import pytest

from jaxnano.data import corpus, ngram
from jaxnano.data.corpus import Document

SOURCE = '''"""The module's docstring, which is long enough to be kept.   """
raise RuntimeError("whoever imports this sees the error")
SIGNS = """A string of enough characters that is nobody's docstring."""
class Outer:
    "too short"
    def method(self):
        """Second:\tthe tab becomes spaces, and it is long enough."""
    if SIGNS:
        async def nested():
            """Third: nested in a condition, in a class, and asynchronous."""
try:
    pass
except OSError:
    def fourth():
        """Fourth: defined where an exception is handled; \\d is no escape."""
'''


def test_docstrings_come_in_line_order_and_nothing_is_executed():
    found = corpus.docstrings(SOURCE)
    assert [text.split()[0] for text in found] == ["The", "Second:", "Third:", "Fourth:"]
    assert found[0].endswith("kept.")
    assert "\t" not in found[1] and found[1].startswith("Second: ")


def test_code_is_what_is_left_without_docstrings():
    source = "# -*- coding: latin-1 -*-\n" + SOURCE.replace("whoever", "\xe9")
    left = corpus.code(source.encode("latin-1")).split("\n")
    assert left[:2] == ["# -*- coding: latin-1 -*-", 'raise RuntimeError("\xe9 imports this sees the error")']
    assert len(left) == len(SOURCE.split("\n")) + 1 - 5 and not any("long enough" in line for line in left)
    assert left[2].startswith('SIGNS = """A string') and left[-3:] == ["except OSError:", "    def fourth():", ""]


def test_a_copied_long_line_removes_its_paragraph_only():
    line = "    axis : int, optional, the axis along which the {} is computed"
    own = "This paragraph belongs to the second document alone, and so it stays."
    first = Document("a/x.py", f"An introduction that is long enough to count as a long line.\n\n{line.format('mean')}")
    second = Document("b/y.py", f"{own}\n\nAxis:\n{line.format('mean').upper()} 42")
    kept = list(corpus.without_copies([first, second]))
    assert kept[0] == first
    assert kept[1].text == own


def test_repetition_inside_a_document_and_rules_are_no_copies():
    line = "The same long line stands twice in one document, as in two methods."
    rule = "=" * 60
    texts = [f"{line}\n\n{line}", f"{rule}\nA first sentence under a rule.", f"{rule}\nAnother sentence under a rule."]
    raw = [Document(f"a/{index}.py", text) for index, text in enumerate(texts)]
    assert [document.text for document in corpus.without_copies(raw)] == texts


def _synthetic(seed: int) -> list[Document]:
    sizes = random.Random(seed)
    return [
        Document(f"{package}/{index}.py", f"{package} {index} ".ljust(int(200 * 2 ** sizes.uniform(0, 7)), "."))
        for package in "abc"
        for index in range(400)
    ]


def _bytes(documents: list[Document]) -> int:
    return sum(len(document.text.encode()) for document in documents)


def _of(package: str, documents: list[Document]) -> int:
    return _bytes([document for document in documents if document.package == package])


def test_split_is_a_balanced_partition_alike_in_packages():
    documents = _synthetic(0)
    parts = corpus.split(documents)
    assert sorted(document for part in parts.values() for document in part) == sorted(documents)
    for name, part in parts.items():
        assert _bytes(part) / _bytes(documents) == pytest.approx(corpus.SHARES[name], rel=0.02)
        for package in "abc":
            expected = _of(package, documents) / _bytes(documents)
            assert _of(package, part) / _bytes(part) == pytest.approx(expected, abs=0.03)


def _lumpy(seed: int) -> list[Document]:
    """Wheels of different sizes and mixtures: in each, prose, tables and symbols, a file being mostly one of them."""
    chance, found = random.Random(seed), []
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(300)]
    write = [lambda: " ".join(chance.choices(words, k=9)), lambda: " ".join(["0.000", "1.000"] * 6),
             lambda: "".join(chr(chance.randint(33, 1000)) for _ in range(40))]
    for package in "abcde"[: chance.randint(2, 5)]:
        mixture = [chance.random() + 0.1 for _ in write]
        for index in range(chance.randint(80, 300)):
            (line,) = chance.choices(write, mixture)
            lines = [line() for _ in range(int(5 * 2 ** chance.uniform(0, 5)))]
            found.append(Document(f"{package}/{index}.py", "\n".join(lines)))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_splits_are_equally_predictable_however_lumpy_the_corpus(seed):
    documents = _lumpy(seed)
    text = {name: "\0".join(document.text for document in part) for name, part in corpus.split(documents).items()}
    tokens = {name: np.frombuffer(part.encode(), np.uint8) for name, part in text.items()}
    bits = [ngram.bits_per_byte(tokens["train"], tokens[name], order=2) for name in tokens if name != "train"]
    assert max(bits) / min(bits) < 1 + corpus.LARGEST_PART  # 1.09 at most; assigned by hash alone up to 1.70


def test_no_document_dominates_an_evaluation_split():
    documents = [*_synthetic(1), Document("a/huge.py", "huge " * 40_000)]
    parts = corpus.split(documents)
    for name in ("search", "protected", "heldout"):
        assert max(len(document.text) for document in parts[name]) <= 0.11 * _bytes(parts[name])


def test_split_does_not_depend_on_the_order_of_documents():
    documents = _synthetic(2)
    shuffled = random.Random(0).sample(documents, len(documents))
    one, other = corpus.split(documents), corpus.split(shuffled)
    assert {name: set(part) for name, part in one.items()} == {name: set(part) for name, part in other.items()}


def test_installed_packages_are_read_in_order_and_missing_ones_named():
    documents, code = corpus.documents(("optax",)), corpus.documents(("optax",), "code")
    assert len(code) > 10 and not {document.text for document in documents} & {document.text for document in code}
    assert [document.source for document in documents] == sorted(document.source for document in documents)
    assert all(len(document.text) >= corpus.MIN_DOCUMENT for document in documents)
    with pytest.raises(ValueError, match="pip install no-such-package"):
        corpus.documents(("no-such-package",))


def test_recurring_share_counts_bytes_of_long_lines():
    train = "x" * 50 + "\n" + "short line"
    assert corpus.recurring_share("x" * 50 + "\nshort line\n" + "y" * 150, train) == pytest.approx(0.25)
    assert corpus.recurring_share("short line", train) == 0.0


def test_sections_are_runs_of_lines():
    lines = [f"Line {number} of a text that has no blank ones." for number in range(3000)]
    found = corpus.sections([Document("a/x.txt", "\n".join(lines)), Document("b/y.txt", "One line.")])
    assert "\n".join(document.text for document in found) == "\n".join([*lines, "One line."])
    assert 400 < len(found) < 1100 and len({document.source for document in found}) == len(found)
    verses = "\n\n".join("\n".join(lines[place : place + 2]) for place in range(0, 3000, 2))
    assert all(document.text.count("\n") % 3 == 1 for document in corpus.sections([Document("v", verses)]))
