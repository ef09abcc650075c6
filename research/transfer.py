"""Completes the transfer card of a session's champion: beside the base elsewhere, one seed each.

    python -m research.transfer runs/tiny-20260101-000000
    python -m research.transfer runs/tiny-20260101-000000 --text ~/texts

Twice the horizon, twice the width, half and twice the batch, another text, and the base on the held-out split. What the
loop has run of it is not run again, and an interrupted card is gone on with. Decides nothing: the card goes into the
report, the share card and `research.status --json`. Exit code: 0, 1 if a run failed, 2 for bad input.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from jaxnano.cli import Command, Failure, UserError, positive, report_errors
from research.execute import executors

PARSER = Command("research.transfer", __doc__)
PARSER.add_argument("session", type=Path)
PARSER.add_argument("--text", metavar="PATH|NODE", help="another text, as jaxnano.data takes it")
PARSER.add_argument("--workers", type=positive)
executors.add_options(PARSER)
PARSER.add_argument("--json", action="store_true")
PARSER.early(__name__)

import json

from jaxnano import data
from jaxnano.config.base import dump_full
from jaxnano.config.data import Data
from jaxnano.device import stay_at
from research.contract.track import Track
from research.contract.transfer import brought
from research.decide.book import Book, track_of
from research.decide.dispatch import Dispatcher
from research.decide.transfer import Card, Carrier
from research.execute import Executor
from research.execute.trial import WARM
from research.ledger.session import Session
from research.ledger.state import State, fold
from research.show.facts import Facts
from research.show.report import write_report
from research.text import carried, clean


def complete(session: Session, track: Track, executor: Executor, text: Data | None = None) -> None:
    """Run what the card lacks.

    Args: session: locked. text: another than the track's own other one.
    """
    book = Book(session, track)
    dispatcher, carrier = Dispatcher(book, executor), Carrier(book, text=text)
    while any([dispatcher.carry(worker, carrier) for worker in dispatcher.idle]) or dispatcher.flights:
        for message in executor.poll(0.25):
            dispatcher.handle(message)
        dispatcher.watch()


def _ended(path: Path, state: State) -> None:
    """Raises: UserError for a session that has no champion, or may still crown another."""
    if state.end is None:
        raise UserError(f"{path}: its loop has not come to its end; --resume of research.loop goes on with it")
    if state.champion is None:
        raise UserError(f"{path}: no champion was crowned, so there is nothing to carry over; a session that proved an "
                        "improvement would do")


def _check_data(path: Path, track: Track, state: State) -> None:
    """Raises: UserError if this machine's data is not the session's."""
    found, there = data.load(track.base_recipe.data).data_hash, state.session.data_hash
    if found != there:
        raise UserError(f"{path}: data_hash is {found[:12]} here, {there[:12]} there: other data; the machine that the "
                        "session ran on would do")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = PARSER.options(argv)
    executors.check(options)
    stay_at({"JAX_PLATFORMS": "cpu"})  # the devices are the workers'
    with Session.open(options.session, lock=True) as session:
        state = fold(session.ledger.events())
        _ended(options.session, state)
        track = track_of(state)
        text = brought(track.base_recipe.data, options.text) if options.text else None
        card = Card(Facts.of(state).snapshot, text)
        if any(map(card.missing, card.settings)):
            _check_data(options.session, track, state)
            offered = executors.again(options, state.session, track.devices)
            with closing(offered.start(session.workers, WARM)) as executor:
                complete(session, track, executor, text)
            write_report(session.path)
        card = Card(Facts.of(fold(session.ledger.events())).snapshot)
    rows = [dump_full(line) for line in card.lines()]
    print(json.dumps(rows) if options.json else "\n".join(clean(carried(row)) for row in rows))
    if failed := card.failed():
        raise Failure(f"{options.session}: {'; '.join(failed)}; once that is mended, the same command tries again")
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
