"""What all commands share."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxnano import published
from jaxnano.cli import Command, Failure, Output, UserError, report_errors, seed_number
from research.learn.compare import compare


@pytest.mark.parametrize(("error", "code"), [(UserError, 2), (Failure, 1), (OSError, 1)])
def test_what_a_terminal_would_obey_is_not_sent_to_it(capsys: Any, error: type, code: int) -> None:
    def main() -> int:
        raise error("one \x1b]0;title\x07\x1b[2J \x9b31m two\nthree \u202e")

    assert report_errors(main) == code
    assert capsys.readouterr().err == "error: one  ]0;title  [2J  31m two\nthree  \n"


@pytest.mark.parametrize("text", ["-1", "4294967296", "1.5", "x", ""])
def test_a_seed_that_the_compiled_step_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number of 0 to 4294967295"):
        seed_number(text)
    assert seed_number("4294967295") == 2**32 - 1


def test_a_file_of_a_published_folder_may_be_called_anything(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "card.json").write_text("{}")
    published.seal(tmp_path)
    (tmp_path / "\x1b[2J").write_text("")
    assert report_errors(lambda: published.load(tmp_path) and 0) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_command_answers_help_before_it_goes_on_and_is_parsed_once(monkeypatch: Any, capsys: Any) -> None:
    command = Command("a.command", "What it does.\n\nAnd more.")
    command.add_argument("--count", type=int, default=1)
    monkeypatch.setattr(sys, "argv", ["a.command", "--help"])
    command.early("a.command")  # imported: nothing is asked
    with pytest.raises(SystemExit) as ended:
        command.early("__main__")
    assert ended.value.code == 0 and "What it does.\n" in (said := capsys.readouterr().out) and "more" not in said
    monkeypatch.setattr(sys, "argv", ["a.command", "--count", "2"])
    command.early("__main__")
    monkeypatch.setattr(sys, "argv", ["a.command", "--count", "many"])
    assert command.options(None).count == 2 and command.options(["--count", "3"]).count == 3


def run(program: str) -> subprocess.CompletedProcess[str]:
    code = f"from jaxnano.cli import report_errors\n{program}\nraise SystemExit(report_errors(main))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))


def test_a_fault_of_ours_is_shown_with_its_traceback() -> None:
    ended = run("from research.learn.compare import compare\ndef main(): return compare({}, {}).n")
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.startswith("Traceback") and "ValueError: a comparison needs at least 2" in ended.stderr


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_seen_enough_ends_a_command_in_silence(lines: int) -> None:
    program = f"def main():\n    input()\n    print('line\\n' * {lines})\n    return 0"
    code = f"from jaxnano.cli import report_errors\n{program}\nraise SystemExit(report_errors(main))"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        process.stdout.close()
        _, said = process.communicate("go\n")
    assert (process.returncode, said) == (141, "")


def test_a_table_shows_numbers_not_their_types(capsys: Any) -> None:
    Output(False).table("t", compare({0: 2.0, 1: 2.1, 2: 2.3}, {0: 1.9, 1: 2.05, 2: 2.1}).as_dict())
    assert "np." not in (out := capsys.readouterr().out)
    low, high = next(line for line in out.splitlines() if "interval" in line).split()[1:]
    assert float(low.rstrip(",")) < float(high)


EARLY = """
import os, signal, sys
sys.argv[0] = {argv!r}
import research
{more}
os.kill(os.getpid(), signal.SIGINT)
"""
HEARD = """
from jaxnano.cli import report_errors
sys.exit(report_errors(lambda: os.kill(os.getpid(), signal.SIGINT) or 0))
"""


@pytest.mark.parametrize(("argv", "more", "told"), [
    ("-m", "", "stopped\n"), ("-m", HEARD, "stopped\n"), ("notebook.py", "", None)])
def test_ctrl_c_while_a_command_is_imported_is_quiet(argv: str, more: str, told: str | None) -> None:
    """Of a command alone: whoever imports the package keeps Python's own way."""
    ended = subprocess.run([sys.executable, "-c", EARLY.format(argv=argv, more=more)], capture_output=True, text=True)
    assert (ended.stderr == told and ended.returncode == 130) if told else "KeyboardInterrupt" in ended.stderr
