"""Training speed in tokens per second: of a config, or beside PyTorch in one alternating run.

    python -m jaxnano.bench                                     # the config that suits this device
    python -m jaxnano.bench --config configs/track3-124m.yaml --accumulate 16
    python -m jaxnano.bench --gpu --config configs/track3-124m.yaml --accumulate 16    # flags, kernels, remat by turns
    python -m jaxnano.bench --peer torch --json                 # extra `bench`; several minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from jaxnano.cli import Command, Output, positive, report_errors

ROUNDS, ROUND_S = 9, 2.0

PARSER = Command("jaxnano.bench", __doc__)
PARSER.add_argument("--config", help="a recipe; a GPT-2 of 64 x 3 by default")
PARSER.add_argument("--accumulate", type=positive, default=1, help="pieces a batch is taken in")
PARSER.add_argument("--peer", choices=("torch",), help="compare with PyTorch, alternating")
PARSER.add_argument("--gpu", dest="target", action="store_const", const="gpu", help="the arms that may help a GPU")
PARSER.add_argument("--tpu", dest="target", action="store_const", const="tpu", help="those that may help a TPU")
PARSER.add_argument("--arms", nargs="+", default=[], metavar="NAME", help="of these only some")
PARSER.add_argument("--arm", help=argparse.SUPPRESS)
PARSER.add_argument("--rounds", type=positive, default=ROUNDS)
PARSER.add_argument("--seconds", type=float, default=ROUND_S, help="of a stretch")
PARSER.add_argument("--json", action="store_true")
PARSER.add_argument("--contestant", type=json.loads, help=argparse.SUPPRESS)
PARSER.early(__name__)

from jaxnano.bench_arms import Arm, chosen, race
from jaxnano.bench_shapes import PEER_SHAPES, Shape
from jaxnano.config.edit import Diff, Edit, apply
from jaxnano.config.file import load
from jaxnano.config.recipe import Recipe

SINGLE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class Contestant:
    """A training loop in a process of its own, that runs for a while when asked and says how many steps a second."""

    def __init__(self, kind: str, shape: Shape, core: int | None):
        threads = "2" if core is None else "1"
        env = os.environ | {"OMP_NUM_THREADS": threads, "JAX_PLATFORMS": "cpu"}
        if core is not None:
            env["XLA_FLAGS"] = SINGLE_THREAD
        order = json.dumps({"kind": kind, "shape": asdict(shape), "core": core})
        self.shape = shape
        self._process = subprocess.Popen([sys.executable, "-m", "jaxnano.bench", "--contestant", order], env=env,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def start(self, seconds: float) -> None:
        """Begin a stretch of about `seconds`."""
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)

    def tokens_per_s(self) -> float:
        """Wait for the stretch to end."""
        return self.shape.tokens * float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"a {self._process.args} ended with {self._process.wait()}")
        return line

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def contest(order: dict[str, Any]) -> None:
    """The contestant's side: compile, say so, then run a stretch for each line read."""
    shape, core = Shape(**order["shape"]), order["core"]
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    if order["kind"] == "jaxnano":
        run = our_loop(shape.recipe())
    else:
        from jaxnano import bench_torch

        run = bench_torch.loop(shape, order["kind"] == "torch-compile", 2 if core is None else 1)
    run()
    print("ready", flush=True)
    for line in sys.stdin:
        start, steps = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < float(line):
            steps += run()
        print(steps / elapsed, flush=True)


def our_loop(recipe: Recipe, accumulate: int = 1) -> Any:
    """A function that trains a few steps on random tokens, waits for them, and returns how many."""
    import jax
    import numpy as np

    from jaxnano import step
    from jaxnano.config.recipe import hypers

    compiled, values = step.program(recipe, accumulate=accumulate), hypers(recipe, 1000)
    state = compiled.init(np.uint32(0), values)
    steps = step.STEPS_PER_CALL if accumulate == 1 else 1
    shape = (steps, recipe.data.batch, recipe.data.length + 1)
    batches = np.random.default_rng(0).integers(0, recipe.model.vocab, shape).astype(np.uint16)

    def run() -> int:
        nonlocal state
        state, losses = compiled.steps(state, batches, np.int32(steps), values)
        jax.block_until_ready(losses)
        return steps

    return run


def beside_torch(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Our loop, PyTorch eager and torch.compile in turn, at each shape, as one process and as two pinned ones.

    Returns: a row per shape and number of processes; ratio: median over the rounds of ours / the better PyTorch.
    """
    rows = []
    for shape in PEER_SHAPES:
        for cores in ((None,), (0, 1)):
            kinds = ("jaxnano", "torch-eager", "torch-compile")
            teams = {kind: [Contestant(kind, shape, core) for core in cores] for kind in kinds}
            rates: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(rounds):
                for kind, team in teams.items():
                    for contestant in team:
                        contestant.start(seconds)
                    rates[kind].append(sum(contestant.tokens_per_s() for contestant in team))
            for contestant in (c for team in teams.values() for c in team):
                contestant.close()
            peer = max(kinds[1:], key=lambda kind: statistics.median(rates[kind]))
            ratios = [a / b for a, b in zip(rates["jaxnano"], rates[peer], strict=True)]
            rows.append({**asdict(shape), "processes": len(cores), "peer": peer, "rounds": rounds,
                         "jaxnano_tokens_per_s": statistics.median(rates["jaxnano"]),
                         "peer_tokens_per_s": statistics.median(rates[peer]),
                         "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)})
    return rows


def alone(recipe: Recipe, accumulate: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Tokens per second of one recipe on this machine's default device, and MFU where the peak is known."""
    import jax

    from jaxnano.config.recipe import shares_of
    from jaxnano.cost import preflight
    from jaxnano.device import peak_flops

    compile_s, step_s = 0.0, [0.0] * rounds  # phases count by their share of the steps
    for share, part in shares_of(recipe):
        start, run = time.perf_counter(), our_loop(part, accumulate)
        run()
        compile_s += time.perf_counter() - start
        for i in range(rounds):
            begin, steps = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - begin) < seconds:
                steps += run()
            step_s[i] += share * elapsed / steps
    cost, device = preflight(recipe), jax.devices()[0].device_kind
    rates = [cost.tokens_per_step / each for each in step_s]
    rate, peak = statistics.median(rates), peak_flops(device)
    held = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"device": device, "parameters": cost.parameters, "tokens_per_step": cost.tokens_per_step,
            "compile_s": compile_s, "tokens_per_s": rate, "tokens_per_s_min": min(rates),
            "tokens_per_s_max": max(rates), "mfu": rate * cost.model_flops_per_token / peak if peak else None,
            "peak_bytes": held}


def by_arm(arm: Arm, recipe: Recipe, accumulate: int, rounds: int, seconds: float) -> dict[str, Any]:
    """`alone` by the choices of an arm; what its environment says is for who started this process."""
    from jaxnano.model import backend

    before, backend.CHOICES = backend.CHOICES, backend.Choices(**arm.choices)
    try:
        edits = () if arm.remat is None else (Edit.to(recipe, "train.remat", arm.remat),)
        return alone(apply(recipe, Diff(name=arm.name, edits=edits)), accumulate, rounds, seconds)
    finally:
        backend.CHOICES = before


def _race(options: argparse.Namespace, output: Output) -> None:
    """Every arm, told as it ends; then the order."""
    given = ["--accumulate", str(options.accumulate), "--rounds", str(options.rounds), "--seconds",
             str(options.seconds), *(["--config", options.config] if options.config else [])]
    rows = []
    for row in race(options.target, options.arms, given):
        rows.append(row)
        if not options.json:
            output.table(row["arm"], {name: value for name, value in row.items() if name != "arm"})
    rows.sort(key=lambda row: -row.get("tokens_per_s", 0.0))
    if options.json:
        print(json.dumps(rows))
    else:
        output.table("tokens per second", {row["arm"]: row.get("tokens_per_s", row.get("error")) for row in rows})


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = PARSER.options(argv)
    output = Output(options.json)
    if options.contestant:
        contest(options.contestant)
    elif options.target and not options.arm:
        _race(options, output)
    elif options.peer is None:
        recipe = load(options.config) if options.config else PEER_SHAPES[0].recipe()
        (arm,) = chosen(options.target, [options.arm]) if options.arm else (Arm("plain"),)
        output.table("bench", by_arm(arm, recipe, options.accumulate, options.rounds, options.seconds))
    else:
        rows = beside_torch(options.rounds, options.seconds)
        if options.json:
            print(json.dumps(rows))
        for row in () if options.json else rows:
            output.table(f"width {row['width']}, {row['processes']} process(es)", row)
    return 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
