"""Gives a loop that runs more time, or fewer of its workers and then all of them again, or tries again what failed.

    python -m research.extend SESSION --minutes 60
    python -m research.extend SESSION --workers 2
    python -m research.extend SESSION --retry          # all runs that failed; or ID, of a recipe or of one run
"""

import math
from pathlib import Path

from jaxnano.cli import Command, UserError, above_zero, positive, report_errors

PARSER = Command("research.extend", __doc__)
PARSER.add_argument("session", type=Path)
PARSER.add_argument("--minutes", type=float, help="more")
PARSER.add_argument("--workers", type=positive, help="of those that the loop has begun with")
PARSER.add_argument("--retry", nargs="?", const="", metavar="ID", help="runs that failed or ran out of time: all, a "
                    "recipe's or one; where no loop runs, the next one tries them")
PARSER.early(__name__)

from research.decide.plan import minutes_left
from research.outside.steer import ask, retry
from research.text import clean


def main(argv: list[str] | None = None) -> int:
    """The command: what is asked is obeyed within a second."""
    options = PARSER.options(argv)
    above_zero(options, "minutes")
    if options.minutes is None and options.workers is None and options.retry is None:
        raise UserError("--minutes: absent: it, --workers or --retry would do")
    for want in ("minutes", "workers"):
        if (value := getattr(options, want)) is not None:
            state = ask(options.session, want, value)
            left = f"; about {math.ceil(minutes_left(state))} minutes are left" if want == "minutes" else ""
            print(f"{want}: {value:g}{' more' if left else ''}{left}")
    if options.retry is not None:
        print(clean(retry(options.session, options.retry)))
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
