"""The executors there are. A new one is a module with an `offer`, and options where it has any, an entry here, and a
class of executor_contract.py in the tests."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from research.execute import Offer, local, ray


@dataclass(frozen=True)
class Kind:
    """An executor. place: where it runs, for the help. offer: see below. add_options, check: of options of its own."""

    place: str
    offer: Callable[[argparse.Namespace, int | None], Offer]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    check: Callable[[argparse.Namespace], None] = lambda options: None


EXECUTORS = {"local": Kind("this machine", local.offer),
             "ray": Kind("a Ray cluster", ray.offer, ray.add_options, ray.check)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare --executor and the options of each."""
    parser.add_argument("--executor", choices=tuple(EXECUTORS), default="local",
                        help=", or ".join(executor.place for executor in EXECUTORS.values()))
    for executor in EXECUTORS.values():
        executor.add_options(parser)


def check(options: argparse.Namespace) -> None:
    """Raises: UserError for an option of any executor that cannot be used."""
    for executor in EXECUTORS.values():
        executor.check(options)


def offer(options: argparse.Namespace, workers: int | None) -> Offer:
    """Where trials may run: on so many workers, or on all that there are."""
    return EXECUTORS[options.executor].offer(options, workers)
