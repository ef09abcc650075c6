"""Has a loop start nothing more until it is told to go on; what runs is finished, and the pause costs it no time.

    python -m research.pause SESSION            # and then
    python -m research.pause SESSION --go-on
    python -m research.pause SESSION --stop     # not a pause: the loop ends after this round and its proof
"""

from pathlib import Path

from jaxnano.cli import Command, report_errors

PARSER = Command("research.pause", __doc__)
PARSER.add_argument("session", type=Path)
what = PARSER.add_mutually_exclusive_group()
what.add_argument("--go-on", action="store_const", dest="want", const="go on", default="pause")
what.add_argument("--stop", action="store_const", dest="want", const="stop", help="end after this round")
PARSER.early(__name__)

from research.outside.steer import ask

SAID = {"pause": "nothing more is started until research.pause --go-on", "go on": "it goes on",
        "stop": "it ends after this round and its proof"}


def main(argv: list[str] | None = None) -> int:
    """The command: what is asked is obeyed within a second."""
    options = PARSER.options(argv)
    ask(options.session, options.want)
    print(SAID[options.want])
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
