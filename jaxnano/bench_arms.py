"""Ways to run the same step on an accelerator, each measured in a process of its own.

What is worth having differs by device, compiler and model, so it is measured and not assumed. None of these arms was
run on hardware yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxnano.cli import UserError

VMEM = {"LIBTPU_INIT_ARGS": "--xla_tpu_scoped_vmem_limit_kib=98304"}
LARGE_BLOCKS = {"splash_blocks": (1024, 512, 256, 128)}


class Arm(NamedTuple):
    """environment: variables of its process, XLA_FLAGS among them, which are added to those there are. choices: of
    `model.backend`. remat: whether blocks are recomputed going back, None as the recipe says."""

    name: str
    environment: Mapping[str, str] = {}
    choices: Mapping[str, Any] = {}
    remat: bool | None = None


LAYERS = (Arm("scan", choices={"scan": True}), Arm("remat", remat=True),
          Arm("scan-remat", choices={"scan": True}, remat=True))
ARMS: dict[str, tuple[Arm, ...]] = {
    "gpu": (Arm("plain"), Arm("xla-attention", choices={"fused": False}), *LAYERS,
            Arm("O1", {"JAX_OPTIMIZATION_LEVEL": "O1"}),
            Arm("latency-hiding", {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=true"}),
            Arm("no-triton-gemm", {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}),
            Arm("no-command-buffers", {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="})),
    "tpu": (Arm("plain"), Arm("xla-attention", choices={"fused": False}), *LAYERS,
            Arm("blocks-1024", choices=LARGE_BLOCKS), Arm("vmem", VMEM),
            Arm("blocks-1024-vmem", VMEM, LARGE_BLOCKS)),
}


def chosen(target: str, names: Sequence[str]) -> list[Arm]:
    """The arms of a target, gpu or tpu, or those that are named. Raises: ValueError for a name there is not."""
    known = {arm.name: arm for arm in ARMS[target]}
    if (strange := next((name for name in names if name not in known), None)) is not None:
        raise UserError(f"--arms: {strange}: no such arm of --{target}; {', '.join(known)} would do")
    return [known[name] for name in names or known]


def race(target: str, names: Sequence[str], arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run arms one after another, as `python -m jaxnano.bench --arm ...` with more arguments.

    Yields: a row an arm: its name, and what `bench.alone` returns, or its `error`.
    """
    for arm in chosen(target, names):
        flags = f"{os.environ.get('XLA_FLAGS', '')} {arm.environment.get('XLA_FLAGS', '')}".strip()
        done = subprocess.run(
            [sys.executable, "-m", "jaxnano.bench", f"--{target}", "--arm", arm.name, "--json", *arguments],
            env=os.environ | arm.environment | {"XLA_FLAGS": flags}, capture_output=True, text=True, check=False)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        told = {"error": lines[-1][:300] if lines else f"exit {done.returncode}"}
        yield {"arm": arm.name, **(told if done.returncode else json.loads(done.stdout))}
