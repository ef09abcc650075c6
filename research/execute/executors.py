"""The executors there are. A new one is a module with an `offer`, and options where it has any, an entry here, and a
class of executor_contract.py in the tests."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from jaxnano.cli import positive
from research.execute import Offer, local, ray
from research.machine.place import PLATFORMS


@dataclass(frozen=True)
class Kind:
    """An executor. place: where it runs, for the help. offer: see below. add_options, check: of options of its own."""

    place: str
    offer: Callable[[argparse.Namespace, int | None, int | str], Offer]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    check: Callable[[argparse.Namespace], None] = lambda options: None


EXECUTORS = {"local": Kind("this machine", local.offer),
             "ray": Kind("a Ray cluster", ray.offer, ray.add_options, ray.check)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare --executor, the options of each, and those of places."""
    parser.add_argument("--executor", choices=tuple(EXECUTORS), default="local",
                        help=", or ".join(executor.place for executor in EXECUTORS.values()))
    parser.add_argument("--devices-per-trial", type=_devices, metavar="N|host|slice",
                        help="that one run trains on: so many, all of a host, or of a TPU slice (the track's, else 1)")
    parser.add_argument("--platform", choices=PLATFORMS, metavar="KIND",
                        help="cpu, cuda, rocm or tpu; by default the accelerators that are here, or else cpu")
    for executor in EXECUTORS.values():
        executor.add_options(parser)


def _devices(text: str) -> int | str:
    return text if text in ("host", "slice") else positive(text)


def check(options: argparse.Namespace) -> None:
    """Raises: UserError for an option of any executor that cannot be used."""
    for executor in EXECUTORS.values():
        executor.check(options)


def offer(options: argparse.Namespace, workers: int | None, devices: int | str = 1) -> Offer:
    """Where trials may run: on so many workers, or on all that there are.

    Args: devices: of each worker, or "slice", where the options do not say.
    """
    return EXECUTORS[options.executor].offer(options, workers, options.devices_per_trial or devices)
