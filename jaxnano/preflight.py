"""What a recipe costs, before anything is compiled: parameters, FLOPs, memory, whether it fits.

    python -m jaxnano.preflight configs/gpt2-124m.yaml
    python -m jaxnano.preflight configs/track3-124m.yaml --devices 8       (of one of these: how a trial is laid over 8)
    python -m jaxnano.preflight configs/track3-124m.yaml --topology v6e-8    (compiled, in `topology`)
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from jaxnano.cli import Command, Output, UserError, positive, report_errors

PARSER = Command("jaxnano.preflight", __doc__)
PARSER.add_argument("config")
PARSER.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change the recipe")
PARSER.add_argument("--accumulate", type=positive, metavar="K", help="pieces a batch is taken in; 1, or with "
                    "--topology alone what a trial takes")
PARSER.add_argument("--devices", type=positive, metavar="N", help="lay it over so many such devices")
PARSER.add_argument("--topology", metavar="TPU", help="compile a trial for this slice: v6e-8, v5p-16, v6e:2x4; no "
                    "TPU is needed")
PARSER.add_argument("--mesh", metavar="AXES", help="with --topology or --devices: data=2,fsdp=4,tensor=1")
PARSER.add_argument("--json", action="store_true")
PARSER.early(__name__)

import jax

from jaxnano.config.file import load
from jaxnano.cost import least_accumulate, preflight
from jaxnano.device import device_bytes, hbm_bytes
from jaxnano.layout import MEMORY_SHARE, layout


def main(argv: list[str] | None = None) -> int:
    """The command. Exit code 0 if a step fits into the device's memory, 1 if not."""
    options = PARSER.options(argv)
    rows = _compiled(options) if options.topology else _estimated(options)
    Output(options.json).table(f"preflight of {options.config}", rows)
    return 0 if rows["fits"] else 1


def _estimated(options: argparse.Namespace) -> dict[str, Any]:
    if options.mesh is not None and not options.devices:
        raise UserError("--mesh: only with --topology or --devices; without them the cost is that of one device")
    recipe, platform, room = load(options.config, tuple(options.set)), jax.default_backend(), device_bytes()
    laid: dict[str, Any] = {}
    found = preflight(recipe, options.accumulate or 1, platform)
    if options.devices:
        axes, pieces = over = layout(recipe, options.devices, room, platform, options.mesh)
        found = preflight(recipe, max(pieces), platform, axes)
        laid = {"mesh": over.told, "accumulate": ",".join(map(str, pieces))}
    return laid | asdict(found) | {
        "flops_per_step": found.flops_per_step, "flops_per_token": found.flops_per_token,
        "total_bytes": found.total_bytes, "device_bytes": room, "fits": found.total_bytes <= room,
        "fits_with_accumulate": least_accumulate(recipe, room, platform),
    }


def _compiled(options: argparse.Namespace) -> dict[str, Any]:
    from jaxnano import sharding, topology  # which read this module

    recipe, chips = load(options.config, tuple(options.set)), topology.describe(options.topology)
    if (room := hbm_bytes(chips[0].device_kind)) and options.mesh is None and options.accumulate is None:
        axes, pieces = layout(recipe, len(chips), int(MEMORY_SHARE * room), "tpu")
        return topology.compiled_cost(recipe, sharding.make_mesh(**axes, devices=chips), pieces)
    mesh = sharding.make_mesh(*sharding.sizes(options.mesh), chips)
    return topology.compiled_cost(recipe, mesh, options.accumulate or 1)


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
