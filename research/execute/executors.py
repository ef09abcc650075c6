"""The executors there are. A new one is a module with what `local` and `ray` have, an entry here, and a class of
executor_contract.py in the tests."""

from __future__ import annotations

import argparse
from typing import Protocol

from research.execute import Offer, local, ray


class _Module(Protocol):
    """What a module of an executor has besides."""

    PLACE: str  # where it runs, for the help

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options that are its own."""
        ...

    def check(self, options: argparse.Namespace) -> None:
        """Raises: UserError for options of its own that cannot be used."""
        ...

    def offer(self, options: argparse.Namespace, workers: int | None) -> Offer:
        """Where trials may run: on so many workers, or on all that there are."""
        ...


EXECUTORS: dict[str, _Module] = {"local": local, "ray": ray}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare --executor and the options of each."""
    parser.add_argument("--executor", choices=tuple(EXECUTORS), default="local",
                        help=", or ".join(executor.PLACE for executor in EXECUTORS.values()))
    for executor in EXECUTORS.values():
        executor.add_options(parser)


def check(options: argparse.Namespace) -> None:
    """Raises: UserError for an option of any executor that cannot be used."""
    for executor in EXECUTORS.values():
        executor.check(options)


def offer(options: argparse.Namespace, workers: int | None) -> Offer:
    """Where trials may run: on so many workers, or on all that there are."""
    return EXECUTORS[options.executor].offer(options, workers)
