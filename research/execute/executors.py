"""The executors there are. A new one is a module with an `offer`, and options where it has any, an entry here, and a
class of executor_contract.py in the tests."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from jaxnano.cli import UserError, positive
from research.execute import Offer, local, ray
from research.ledger.kinds import Begun
from research.ledger.session import SessionError
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


def again(options: argparse.Namespace, begun: Begun, devices: int) -> Offer:
    """What a session began on. options: its folder among them. devices: of the track's runs.

    Raises: SessionError for any other place: by seed, its results would be paired with the session's.
    """
    place, workers = begun.place, options.workers or begun.workers
    if place is None:  # a ledger of before
        return offer(options, workers, devices)
    options, same = argparse.Namespace(**vars(options)), False
    if place.kind in ("cpu", "virtual") and options.platform is None:  # somebody's word, where there is an accelerator
        options.platform, same = place.kind, True
    try:
        offered = offer(options, workers, "slice" if place.processes > 1 else place.devices)
        if place.like(offered.place):
            return offered
        reason = f"here is {offered.place}"
    except UserError as error:
        if same and place.processes == 1:
            raise
        reason = str(error)
    raise SessionError(f"{options.session}: it began on {place}, and no other place's results compare with its own "
                       f"({reason}); that place would do, or a new session here with --from {options.session}, which "
                       "runs its champion anew")
