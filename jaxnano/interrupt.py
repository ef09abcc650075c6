"""Ctrl-C while a command still imports what it needs: nothing has begun, and a traceback out of a library says nothing.

Until `main` runs, a KeyboardInterrupt would come out of whatever is being imported.
"""

import os
import signal
import sys
from types import FrameType


def quiet() -> None:
    """End at once on Ctrl-C, where `python -m` is on its way to a command; Ctrl-C that is ignored stays so."""
    if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def heard() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt, as in any program."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(130)  # what a shell says of a program that Ctrl-C ended
