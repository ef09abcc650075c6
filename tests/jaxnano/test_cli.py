"""What all commands share."""

from pathlib import Path
from typing import Any

import pytest

from jaxnano import published
from jaxnano.cli import Failure, report_errors


@pytest.mark.parametrize(("error", "code"), [(ValueError, 2), (Failure, 1), (OSError, 1)])
def test_what_a_terminal_would_obey_is_not_sent_to_it(capsys: Any, error: type, code: int) -> None:
    def main() -> int:
        raise error("one \x1b]0;title\x07\x1b[2J \x9b31m two\nthree \u202e")

    assert report_errors(main) == code
    assert capsys.readouterr().err.replace("error: : ", "error: ") == "error: one  ]0;title  [2J  31m two\nthree  \n"


def test_a_file_of_a_published_folder_may_be_called_anything(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "card.json").write_text("{}")
    published.seal(tmp_path)
    (tmp_path / "\x1b[2J").write_text("")
    assert report_errors(lambda: published.load(tmp_path) and 0) == 2
    assert "\x1b" not in capsys.readouterr().err
