"""Compiling for TPUs on a machine without one; where libtpu is not installed, only what says so is tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxnano import topology
from jaxnano.cli import report_errors
from jaxnano.config.file import save
from jaxnano.device import hbm_bytes
from jaxnano.optim.polar import polar_flops
from jaxnano.preflight import main
from tests.jaxnano.recipes import TINY, edited

# Splash attention takes lengths of whole blocks.
RECIPE = edited(TINY, {"model.width": 128, "model.depth": 1, "model.attention": {"heads": 1}, "data.length": 128,
                       "data.batch": 8, "optimizer.groups": [
    {"name": "m", "roles": ["matrix"], "lr": 0.02, "chain": [{"kind": "muon"}]},
    {"name": "r", "roles": ["embedding", "head", "gain", "bias", "scalar", "gate"], "lr": 0.01,
     "chain": [{"kind": "adam"}]}]})
OUT_OF_MEMORY = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.
Used 74.50G of 31.25G hbm. Exceeded hbm capacity by 43.25G."""


@pytest.fixture
def config(tmp_path: Path) -> str:
    save(RECIPE, tmp_path / "small.yaml")
    return str(tmp_path / "small.yaml")


def preflight(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: libtpu reads its environment once."""
    return subprocess.run([sys.executable, "-m", "jaxnano.preflight", *arguments], text=True, capture_output=True,
                          check=False, env=os.environ | {"XLA_FLAGS": ""})


def test_without_libtpu_one_line_says_what_to_install(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    assert report_errors(lambda: main([config, "--topology", "v6e:2x4"])) == 2
    assert capsys.readouterr().err == ('error: --topology v6e:2x4: libtpu is not installed; '
                                       'pip install "jaxnano[tpu]" would do\n')


def test_a_mesh_without_a_topology_is_refused(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_errors(lambda: main([config, "--mesh", "data=8"])) == 2
    assert "--mesh: only with --topology" in capsys.readouterr().err


def test_what_the_compiler_would_have_taken_is_read_from_its_refusal() -> None:
    assert topology._refusal(OUT_OF_MEMORY, None) == (int(74.5 * 2**30), int(31.25 * 2**30))
    assert topology._refusal("RESOURCE_EXHAUSTED: other words", 5) == (None, 5)


def test_memory_is_known_for_the_chips_we_name() -> None:
    kinds = ("TPU v6 lite", "TPU v5", "TPU v5 lite", "TPU v4", "TPU7x")
    assert [(hbm_bytes(kind) or 0) >> 30 for kind in kinds] == [32, 95, 16, 32, 192]
    assert hbm_bytes("cpu") is None


@pytest.mark.parametrize(("name", "grid", "hosts"), [
    ("v6e-8", "v6e:2x4", {"chips_per_host_bounds": (2, 4, 1)}),
    ("v5e-4", "v5e:2x2", {"chips_per_host_bounds": (2, 2, 1)}),
    ("v5litepod-1", "v5e:1x1", {"chips_per_host_bounds": (1, 1, 1)}), ("v5e-16", "v5e:4x4", {}),
    ("v5p-16", "v5p:2x2x2", {}), ("v6e:2x4", "v6e:2x4", {}),
])
def test_slices_are_called_as_their_machines_are(name: str, grid: str, hosts: dict[str, Any]) -> None:
    assert topology._grid(name) == (grid, hosts)


@pytest.mark.parametrize(("name", "reason"), [("v6e-9", "v6e comes in 1, 4, 8"), ("v9-8", "v9 is not known")])
def test_a_slice_of_another_size_is_refused_with_those_there_are(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"--topology {name}: {reason}.* would do"):
        topology._grid(name)


def test_a_trial_compiles_for_eight_chips_with_its_attention_kernels(config: str) -> None:
    pytest.importorskip("libtpu")
    done = preflight(config, "--topology", "v6e-8", "--mesh", "data=2,fsdp=4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["chips"], found["hosts"], found["mesh"]) == (8, 1, "data=2,fsdp=4,tensor=1") and found["fits"] is True
    assert found["splash_kernels"] == 3  # forward, and two going back
    assert 0 < found["state_bytes"] < found["peak_bytes"] < found["device_bytes"] == 32 << 30
    for name in ("init", "params", "evaluation"):
        assert found[f"{name}_compile_s"] > 0 and found[f"{name}_peak_bytes"] > 0
    # Eight chips have one each of four square matrices and of two of the FFN's; the rest is elementwise.
    stack = 4 * polar_flops((128, 128), "quintic") + 2 * polar_flops((128, 512), "quintic")
    part = polar_flops((128, 128), "quintic") + polar_flops((128, 512), "quintic")
    assert part < found["optimizer_flops_per_chip"] < 1.3 * part < stack


def test_two_hosts_of_a_slice_are_told(config: str) -> None:
    pytest.importorskip("libtpu")
    found = json.loads(preflight(config, "--topology", "v5p-16", "--json").stdout)
    assert (found["chips"], found["hosts"], found["mesh"], found["fits"]) == (8, 2, "data=8,fsdp=1,tensor=1", True)
    assert found["accumulate"] == 1  # laid over them as a trial is


def test_a_slice_there_is_not_is_one_line_and_code_2(config: str) -> None:
    pytest.importorskip("libtpu")
    done = preflight(config, "--topology", "v9:2x4")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --topology v9:2x4: ") and "v5p-16, v6e:2x4 or" in done.stderr
