"""Kills a session's loop and its workers at random moments, resumes it each time, and checks what is left.

    python -m research.check.crashtest                        # 20 kills of a session, some minutes
    python -m research.check.crashtest --kills 3 --seed 1
    python -m research.check.crashtest --gang                 # of a gang of two processes on two Ray nodes, and a node

No (recipe, horizon, seed) may have two completed results, no finished one may be lost, what was interrupted is
recorded, no worker outlives its loop, and the ledger keeps every rule of its invariants.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from jaxnano.cli import Command, Failure, positive, report_errors, seed_number
from research.machine import ROOT, process_identity

TRACK = ROOT / "tests" / "research" / "micro.yaml"

PARSER = Command("research.check.crashtest", "Kill, resume, check.")
PARSER.add_argument("--kills", type=positive, default=20)
PARSER.add_argument("--seed", type=seed_number, default=0, help="of the moments and the victims")
PARSER.add_argument("--track", default=str(TRACK), help="a name below configs/tracks, or a YAML file")
PARSER.add_argument("--out", type=Path, help="a folder for the sessions; else a temporary one")
PARSER.add_argument("--gang", action="store_true", help="every run in two processes, each on a Ray node; nodes go too")
PARSER.early(__name__)

import psutil

from research.decide.claims import violations
from research.ledger.events import FILE, Event, Ledger, SessionError
from research.ledger.session import read_result

LANES = "tuner,recombine"  # nothing they propose compiles for long
OUTLIVE_S = 2.0  # how long a worker may take to notice that its loop is gone
OUTLIVE_RAY_S = 30.0  # how long Ray may
PROOF_RUNS = 8  # at least so many follow the search
DELAY_S = 0.5  # a kill comes up to so long after the result that it follows
SILENT_S = 180.0  # without an event for so long, the session hangs


@dataclass
class Victim:
    """One session under test. completed: results seen so far, by trial and attempt. faults: what was violated.

    nodes: that it runs on; None: this machine. kills: those it has seen. summary: of its attempts, once it was checked.
    """

    folder: Path
    track: str
    trials: int
    seed: int
    output: IO[bytes]
    nodes: Nodes | None = None
    completed: dict[tuple[str, int], dict] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    kills: int = 0
    summary: str = ""

    def start(self) -> psutil.Popen:
        """The loop, for the first time or with --resume."""
        command = [sys.executable, "-m", "research.loop", "--session", str(self.folder),
                   "--registry", str(self.folder.with_suffix(".seals"))]
        command += self.nodes.options if self.nodes else []
        if self.events():
            command += ["--resume"]
        else:
            command += ["--track", self.track, "--max-trials", str(self.trials), "--minutes", "60", "--lanes", LANES,
                        "--seed", str(self.seed)]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return psutil.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=self.output, stderr=self.output)

    def events(self, kind: str | None = None) -> list[Event]:
        """The ledger's events; none while there is no ledger."""
        try:
            with Ledger(self.folder / FILE) as ledger:
                return ledger.events(kind)
        except SessionError:  # the loop has not made it yet
            return []

    def wait(self, loop: psutil.Popen, results: int, delay_s: float) -> bool:
        """Wait until the loop runs, the session has so many results, and then for `delay_s`.

        Returns: False if the loop ended before. Raises: Failure if nothing happens any more.
        """
        seen, since = -1, time.monotonic()
        while loop.poll() is None:
            events = self.events()
            begun = any(e.kind in ("session", "resume") and e.body.pid == loop.pid for e in events)
            if begun and sum(e.kind == "result" for e in events) >= results:
                time.sleep(delay_s)
                return loop.poll() is None
            if len(events) != seen:
                seen, since = len(events), time.monotonic()
            elif time.monotonic() - since > SILENT_S:
                loop.kill()
                raise Failure(f"{self.folder}: no event for {SILENT_S:g} s after event {seen}; see {self.output.name}")
            time.sleep(0.05)
        return False

    def remember(self) -> int:
        """Take down what has completed so far: it must be there for ever. Returns: the number of runs in flight."""
        events = self.events()
        results = {(e.subject, e.body.attempt): e.body for e in events if e.kind == "result"}
        self.completed |= {key: body for key, body in results.items() if body.outcome == "completed"}
        return sum(e.kind == "attempt" and (e.subject, e.body.attempt) not in results for e in events)

    def check(self) -> None:
        """Once the session has ended: nothing lost, nothing twice, nothing left open."""
        events = self.events()
        outcomes = Counter(e.body.outcome for e in events if e.kind == "result")
        self.summary = f"{len(events)} events; attempts: " + ", ".join(f"{n} {name}" for name, n in outcomes.items())
        results = {(e.subject, e.body.attempt): e.body for e in events if e.kind == "result"}
        completed = Counter(key for (key, _), body in results.items() if body.outcome == "completed")
        self.faults += [f"{key}: {n} completed results" for key, n in completed.items() if n > 1]
        self.faults += [f"{key}: its result has changed or gone" for (key, attempt), body in self.completed.items()
                        if results.get((key, attempt)) != body]
        for folder in sorted((self.folder / "trials").iterdir()):
            found = read_result(folder)
            if found and found["outcome"] == "completed" and not completed[folder.name]:
                self.faults.append(f"{folder.name}: completed on disk, but the ledger does not say so")
        self.faults += [f"{e.subject}: attempt {e.body.attempt} has no result" for e in events
                        if e.kind == "attempt" and (e.subject, e.body.attempt) not in results]
        if not events or events[-1].kind != "end":
            self.faults.append("the session has no end")
        with Ledger(self.folder / FILE) as ledger:
            self.faults += violations(ledger, self.folder)


class Nodes:
    """A Ray cluster of two nodes of this machine, each of which offers four CPU devices."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={
            "num_cpus": 4, "include_dashboard": False,
            "_system_config": {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200}})
        self.other = self.cluster.add_node(num_cpus=4)

    @property
    def options(self) -> list[str]:
        """Of a loop that runs on them."""
        return ["--executor", "ray", "--ray-address", str(self.cluster.address), "--platform", "virtual",
                "--devices-per-trial", "slice"]

    @property
    def processes(self) -> list[psutil.Process]:
        """Of the nodes."""
        return [psutil.Process(each[0].process.pid) for node in self.cluster.list_all_nodes()
                if (each := node.all_processes.get("raylet"))]

    def lose(self) -> str:
        """Kill the node that is not the head, all at once, and begin another."""
        self.cluster.remove_node(self.other, allow_graceful=False)
        self.other = self.cluster.add_node(num_cpus=4)
        return "node"

    def close(self) -> None:
        """End them."""
        self.cluster.shutdown()


def _workers(victim: Victim, loop: psutil.Popen) -> list[psutil.Process]:
    """The loop's worker processes."""
    found = []
    for parent in victim.nodes.processes if victim.nodes else [loop]:
        with suppress(psutil.Error):
            found += [c for c in parent.children(recursive=True) if "research.execute.worker" in c.cmdline()]
    return found


def kill_loop(victim: Victim, loop: psutil.Popen) -> str:
    """Kill the loop; its workers must follow. Returns: what to say about it."""
    workers = {worker.pid: process_identity(worker.pid) for worker in _workers(victim, loop)}
    loop.kill()
    loop.wait()
    started, alive = time.monotonic(), list(workers)
    limit_s = OUTLIVE_RAY_S if victim.nodes else OUTLIVE_S
    while alive and time.monotonic() - started < limit_s:
        time.sleep(0.01)
        alive = [pid for pid in alive if workers[pid] and process_identity(pid) == workers[pid]]
    victim.faults += [f"worker {pid} outlived its loop by {limit_s:g} s" for pid in alive]
    return f"loop; its {len(workers)} workers ended within {time.monotonic() - started:.2f} s"


def kill_worker(victim: Victim, loop: psutil.Popen, rng: random.Random) -> str:
    """Kill one of the workers; the loop must go on. Returns: what to say about it, "" if there was none."""
    workers = sorted(_workers(victim, loop), key=lambda worker: worker.pid)
    if workers:
        rng.choice(workers).kill()
    return f"worker, one of {len(workers)}" if workers else ""


def crash(folder: Path, kills: int, seed: int, track: str, nodes: Nodes | None = None) -> Victim:
    """One session, run to its end and checked; it may end before all its kills. Half of them hit the loop."""
    rng = random.Random(seed)
    trials = 3 * kills
    moments = sorted(rng.randrange(trials + PROOF_RUNS) for _ in range(kills))
    others = ["worker", "node"] if nodes else ["worker"]
    targets = ["loop" if i % 2 == 0 else others[i // 2 % len(others)] for i in range(kills)]
    rng.shuffle(targets)
    with open(folder.with_suffix(".log"), "ab") as output:
        victim = Victim(folder, track, trials, seed, output, nodes)
        loop = victim.start()
        for results, target in zip(moments, targets, strict=True):
            if not victim.wait(loop, results, rng.uniform(0.0, DELAY_S)):
                break
            flying = victim.remember()
            match target:
                case "loop":
                    done = kill_loop(victim, loop)
                case "node" if nodes:
                    done = nodes.lose()
                case _:
                    done = kill_worker(victim, loop, rng)
            if not done:
                break
            victim.kills += 1
            known = len(victim.completed)
            print(f"kill {victim.kills:2}: {known} runs completed, {flying} in flight: {done}", flush=True)
            if target == "loop":
                loop = victim.start()
        victim.wait(loop, sys.maxsize, 0.0)
        if loop.returncode != 0:
            victim.faults.append(f"the loop ended with status {loop.returncode}")
    victim.check()
    print(victim.summary, flush=True)
    return victim


def crashes(folder: Path, kills: int, seed: int, track: str, nodes: Nodes | None = None) -> list[Victim]:
    """As many sessions below `folder`, which is there, as it takes for so many kills."""
    victims: list[Victim] = []
    while (left := kills - sum(victim.kills for victim in victims)) > 0:
        number = len(victims) + 1
        victims.append(crash(folder / f"session-{number}", left, seed + len(victims), track, nodes))
    return victims


def main(argv: list[str] | None = None) -> int:
    """The command: exit code 1 if a rule was violated."""
    options = PARSER.options(argv)
    with tempfile.TemporaryDirectory() as temporary, closing(Nodes()) if options.gang else nullcontext() as nodes:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        victims = crashes(folder, options.kills, options.seed, options.track, nodes)
    faults = [f"{victim.folder.name}: {fault}" for victim in victims for fault in victim.faults]
    print("\n".join(f"violated: {fault}" for fault in faults) or f"{options.kills} kills, nothing violated")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
