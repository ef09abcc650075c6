"""worker.sh on hosts that are folders: a session alone, over several, and elsewhere again; signals, second starts."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hosts import FOLDER, bash, host, lines, program

SLICE = "a:0:10.0.0.1,b:1:10.0.0.2"
RAY = "--executor ray --ray-address 10.0.0.1:6379"
HEAD = "start --head --port=6379 --include-dashboard=false --disable-usage-stats --block"
JOIN = "start --address=10.0.0.1:6379 --disable-usage-stats --block"


def ledgers(folder: Path) -> int:
    """How many runs have written into a session's ledger."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        return ledger.execute("select count(*) from events").fetchone()[0]


def test_a_session_is_kept_in_the_bucket_and_goes_on_elsewhere(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    for machine in ("one", "two"):
        home = host(tmp_path / machine, bucket, worker_network_endpoints="a:0:10.0.0.1")
        done = bash("worker.sh", "run", "mine", "loop", "--minutes", "9", "--platform", "tpu", **home)
        assert done.returncode == 0, done.stderr
        assert bash("worker.sh", "status", "mine", **home).stdout == "ended 3\n"
    first, second = lines(bucket / "mine" / "trials" / "calls")
    assert first.endswith("runs/mine --minutes 9 --platform tpu")
    assert second.endswith("runs/mine --resume --platform tpu")
    assert ledgers(bucket / "mine") == 2


def test_a_slice_has_its_session_on_the_first_host_and_the_others_join_its_ray(tmp_path: Path) -> None:
    bucket, words = tmp_path / "bucket", ("--devices-per-trial", "slice", "--tensorboard", "--minutes", "9")
    bucket.mkdir()
    for machine in ("one", "two"):
        folder = tmp_path / machine
        home = host(folder, bucket, worker_network_endpoints=SLICE, agent_worker_number="0")
        assert bash("worker.sh", "run", "mine", "loop", *words, **home).returncode == 0
        assert bash("worker.sh", "status", "mine", **home).stdout == "ended 3\n"
        assert lines(folder / "rays") == [HEAD] and lines(folder / "calls")[0] == "all there: 10.0.0.1:6379 2"
    first, second = lines(bucket / "mine" / "trials" / "calls")
    assert first.endswith(f"runs/mine {RAY} --devices-per-trial slice --tensorboard --minutes 9")
    assert second.endswith(f"runs/mine --resume {RAY} --devices-per-trial slice --tensorboard")
    assert ledgers(bucket / "mine") == 2


@pytest.mark.parametrize("cluster", ["tpu", "skypilot", "slurm"])
def test_another_host_joins_the_first_until_that_has_ended(cluster: str, tmp_path: Path) -> None:
    metadata = {"worker_network_endpoints": SLICE, "agent_worker_number": "1"} if cluster == "tpu" else {}
    home = host(tmp_path, **metadata)
    if cluster == "skypilot":
        home |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
    if cluster == "slurm":
        program(tmp_path / "bin" / "scontrol", "#!/bin/sh\necho 10.0.0.1\necho 10.0.0.2\n")
        home |= {"SLURM_JOB_NODELIST": "10.0.0.[1-2]", "SLURM_NODEID": "1"}
    (tmp_path / "health").write_text("no\nyes\nyes\nyes\nno\n")  # not yet; there; still there, so again; gone
    done = bash("worker.sh", "loop", "mine", "--minutes", "9", **home)
    assert done.returncode == 0, done.stderr
    assert lines(tmp_path / "rays") == [JOIN, JOIN] and lines(tmp_path / "calls") == []


def test_a_head_that_does_not_start_ends_the_run(tmp_path: Path) -> None:
    home = host(tmp_path, worker_network_endpoints=SLICE, agent_worker_number="0")
    (tmp_path / "venv" / "bin" / "ray").write_text("#!/bin/sh\nexit 1\n")
    done = bash("worker.sh", "loop", "mine", **home)
    assert done.returncode == 1 and lines(tmp_path / "calls") == []


def test_data_in_the_bucket_is_the_run_s(tmp_path: Path) -> None:
    """In a copy of the scripts: the data lands in the checkout."""
    bucket, checkout = tmp_path / "bucket", tmp_path / "checkout" / "tpu"
    (bucket / "data" / "fineweb10B").mkdir(parents=True)
    (bucket / "data" / "fineweb10B" / "a.bin").write_text("tokens")
    checkout.mkdir(parents=True)
    (checkout / "worker.sh").write_text((FOLDER / "worker.sh").read_text())
    home = host(tmp_path / "home", bucket)
    assert bash(str(checkout / "worker.sh"), "run", "mine", "train", "--steps", "9", **home).returncode == 0
    assert (tmp_path / "checkout" / "data" / "fineweb10B" / "a.bin").read_text() == "tokens"


def test_a_signal_to_the_worker_ends_the_run_as_its_own_code_says(tmp_path: Path) -> None:
    python = "#!/usr/bin/env bash\ntrap 'exit 143' TERM\necho \"$*\"\nread -r <>\"$HOME/never\"\n"
    home = os.environ | host(tmp_path, python=python)
    command = ["bash", str(FOLDER / "worker.sh"), "run", "mine", "train", "--steps", "9"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env=home) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline().split() == [
            "-m", "jaxnano.train", "--distributed", "--out", f"{tmp_path}/shared/mine", "--resume", "--steps", "9"]
        worker.terminate()
        assert worker.wait(timeout=60) == 0 and (tmp_path / "mine.code").read_text() == "143\n"


def test_a_second_start_ends_all_that_the_first_has_begun(tmp_path: Path) -> None:
    """Processes in a group of their own too, as Ray's are. One that has ended no longer holds its file open."""
    python = (f"#!{sys.executable}\nimport os, signal, sys\nos.setpgrp()\n"
              "held = open(os.environ['HOME'] + '/' + sys.argv[-1], 'w')\nprint('here', file=held, flush=True)\n"
              "signal.pause()\n")
    home = host(tmp_path, python=python)
    for number in "12":
        os.mkfifo(tmp_path / number)
    assert bash("worker.sh", "start", "mine", "train", "1", **home).returncode == 0
    with open(tmp_path / "1") as first:
        assert first.readline() == "here\n"
        assert bash("worker.sh", "status", "mine", **home).stdout == "running\n"
        assert bash("worker.sh", "start", "mine", "train", "2", **home).returncode == 0
        assert first.read() == ""
    with open(tmp_path / "2") as second:
        assert second.readline() == "here\n"
        subprocess.run(["pkill", "-KILL", "-s", (tmp_path / "mine.pid").read_text().strip()], check=True)
        assert second.read() == ""
