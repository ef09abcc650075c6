"""What all commands share: one clear line for a user's mistake, and plain or JSON output."""

from __future__ import annotations

import argparse
import json
import math
import os
import select
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from jaxnano import interrupt

SIGPIPE = 141  # what a shell says of a program that a closed pipe ended


class UserError(ValueError):
    """What somebody gave that cannot be used, in one line: what, where, the value, what would do.

    A plain ValueError is a fault of ours, and is shown with its traceback.
    """


class Failure(Exception):
    """What went wrong through nobody's input, in one line: a run that diverged, say."""


def report_errors(main: Callable[[], int]) -> int:
    """Run a command: exit code 2 and one line for bad input, 1 and one line for a failure or a refusing machine.

    Whatever else is raised is a fault of ours: it goes on as a traceback, and Python ends with exit code 1.
    """
    interrupt.heard()
    try:
        code = main()
        sys.stdout.flush()  # while what it raises can still be answered
        return code
    except UserError as error:
        _complain(str(error))
        return 2
    except Failure as error:
        _complain(str(error))
        return 1
    except OSError as error:
        if lost(sys.stdout) and isinstance(error, BrokenPipeError):
            return SIGPIPE  # whoever read has seen enough
        _complain(": ".join(filter(None, (str(error.filename or ""), error.strerror or str(error)))))
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _complain(text: str) -> None:
    """Names of files and of edits come from outside, and a terminal obeys what it is sent."""
    print("error: " + "".join(c if c.isprintable() or c == "\n" else " " for c in text), file=sys.stderr)


def lost(file: TextIO) -> bool:
    """Whether nobody can read a file any more: a closed pipe or terminal. What still comes goes nowhere then.

    Python would raise once more when it flushes the file at its end.
    """
    try:
        here, found = file.fileno(), select.poll()
    except OSError:  # no file of the system's
        return False
    found.register(here, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in found.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, here)
    os.close(nowhere)
    return True


def positive(text: str) -> int:
    """An option's value that counts something, for `type=` of an argument."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def above_zero(options: argparse.Namespace, name: str) -> None:
    """Raises: UserError if an option that was given is not above 0, or not finite."""
    if (value := getattr(options, name)) is not None and not 0 < value < math.inf:
        raise UserError(f"--{name.replace('_', '-')}: {value}: above 0 would do" + ", and finite" * (value != 0))


def seed_number(text: str) -> int:
    """A seed of a run, for `type=` of an argument: what fits into the 32 bits of the compiled step's argument."""
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 to {2**32 - 1}")
    return int(text)


class Command(argparse.ArgumentParser):
    """The options of a command, declared before the imports that its work needs, which may take seconds."""

    def __init__(self, prog: str, about: str | None):
        """about: the module's docstring, of which the first line describes the command."""
        super().__init__(prog, description=(about or "").partition("\n")[0])
        self._found: argparse.Namespace | None = None

    def early(self, module: str) -> None:
        """Answer --help and mistakes at once, where the module of this name is run as a program."""
        if module == "__main__":
            self._found = self.parse_args()

    def options(self, argv: list[str] | None) -> argparse.Namespace:
        """What was asked for; argv: None for the program's own."""
        return self._found if argv is None and self._found else self.parse_args(argv)


class Output:
    """Rows for a person or, with `as_json`, for a program."""

    def __init__(self, as_json: bool):
        self.as_json = as_json

    def table(self, title: str, rows: Mapping[str, Any]) -> None:
        """Print named values."""
        if self.as_json:
            print(json.dumps(rows))
            return
        width = max(len(name) for name in rows)
        print(title)
        for name, value in rows.items():
            print(f"  {name:<{width}}  {_human(name, value)}")


def _human(name: str, value: Any) -> str:
    match value:
        case None:
            return "unknown"
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith("bytes"):
            return f"{value / 2**20:,.1f} MiB"
        case int():
            return f"{value:,}"
        case float() if abs(value) >= 1e15:
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(_human(name, item) for item in value)
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
