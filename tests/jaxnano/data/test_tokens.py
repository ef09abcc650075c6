"""Many files read as one array: the same as if they had been joined in memory."""

import numpy as np
import pytest

from jaxnano.data.tokens import Part, Tokens, within

SIZES = (100, 1, 37, 250)


@pytest.fixture
def whole(tmp_path) -> np.ndarray:
    """Tokens that tell their place, in four files with headers of different length."""
    tokens = np.arange(sum(SIZES), dtype="<u2")
    for number, piece in enumerate(np.split(tokens, np.cumsum(SIZES)[:-1])):
        (tmp_path / str(number)).write_bytes(b"h" * number + b"xx" * 3 + piece.tobytes())
    return tokens


def _parts(folder) -> list[Part]:
    return [Part(folder / str(number), number, 3, size, "<u2") for number, size in enumerate(SIZES)]


def test_slices_and_windows_cross_files(whole, tmp_path):
    tokens = Tokens(_parts(tmp_path), 65536)
    assert len(tokens) == tokens.size == whole.size and tokens.dtype == np.uint16
    for start, stop in [(0, None), (0, 0), (99, 102), (5, 9), (100, 101), (-3, None), (380, 999), (138, 388)]:
        np.testing.assert_array_equal(tokens[start:stop], whole[start:stop])
    starts = np.array([0, 95, 99, 100, 101, 137, 138, 348])
    np.testing.assert_array_equal(tokens.gather(starts, 40), np.add.outer(starts, np.arange(40)))
    assert tokens.gather(starts[:0], 40).shape == (0, 40)
    blocks = list(tokens.blocks(150))
    assert [block.size for block in blocks] == [150, 150, 88]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize(("start", "stop"), [(0, 388), (50, 120), (100, 101), (101, 388), (137, 138)])
def test_a_run_of_parts_is_a_slice(whole, tmp_path, start, stop):
    np.testing.assert_array_equal(Tokens(within(_parts(tmp_path), start, stop), 65536)[:], whole[start:stop])


def test_a_token_outside_the_vocabulary_is_named_by_file_and_place(whole, tmp_path):
    tokens = Tokens(_parts(tmp_path)[1:], 180)
    np.testing.assert_array_equal(tokens[:80], whole[100:180])
    expected = r"/3: token 45 is 180, and a vocabulary of 180 ends at 179; the file written again"
    with pytest.raises(ValueError, match=expected):  # the 43rd of its part, which begins at the file's fourth token
        tokens[70:90]
    with pytest.raises(ValueError, match=expected):
        tokens.gather(np.array([0, 78, 200]), 4)


def test_a_file_that_becomes_shorter_is_named(whole, tmp_path):
    tokens = Tokens(_parts(tmp_path), 65536)
    with (tmp_path / "2").open("r+b") as file:
        file.truncate(20)
    with pytest.raises(ValueError, match="/2: has become shorter since it was opened"):
        tokens[:]


def test_an_array_file_is_one_part(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(251, 256, dtype=np.uint8))
    part = Part.of_array(tmp_path / "a.npy")
    assert Tokens([part], 256)[1:].tolist() == [252, 253, 254, 255]
    with pytest.raises(ValueError, match="token 4 is 255"):
        Tokens([part], 255)[1:]
