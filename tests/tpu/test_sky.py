"""The SkyPilot files: keys and values as SkyPilot's own schema has them, and sections that run, on hosts that are
folders, what our own commands accept."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import FOLDER, host, lines, program, shell

from research.loop import parse

FILES = {"v6e-8": 1, "v5p-16": 2, "h100-8": 1, "kubernetes": 4, "slurm": 2}  # and the hosts that run each
TASK = {"name": str, "workdir": str, "num_nodes": int, "resources": dict, "envs": dict, "file_mounts": dict,
        "setup": str, "run": str}
RESOURCES = {"infra": str, "accelerators": str, "accelerator_args": dict, "use_spot": bool, "job_recovery": dict}
WITHIN = {"accelerator_args": {"runtime_version": str}, "job_recovery": {"max_restarts_on_errors": int},
          "~/shared": {"source": str, "mode": str}}
CLOUDS = {"gcp", "kubernetes", "slurm"}
MOUNTS = {"gcp", "kubernetes", None}  # Slurm has no buckets, and no spot


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "sky" / f"{name}.yaml").read_text())


def typed(found: dict[str, Any], known: dict[str, type]) -> bool:
    return all(type(value) is known.get(key) for key, value in found.items())


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_as_skypilot_s_schema_says(name: str) -> None:
    """The parts that the files use of get_task_schema and get_resources_schema, SkyPilot 0.14.1."""
    task = read(name)
    resources = task["resources"]
    assert typed(task, TASK) and typed(resources, RESOURCES)
    parts = resources | task.get("file_mounts", {})
    assert all(typed(parts[key], known) for key, known in WITHIN.items() if key in parts)
    assert typed(task["envs"], dict.fromkeys(task["envs"], str)) and all(map(str.isidentifier, task["envs"]))
    assert resources.get("infra") in CLOUDS | {None}
    assert re.fullmatch(r"H100:[18]|tpu-v\d+[a-z]*-\d+", resources["accelerators"])
    mounts = resources.get("infra") in MOUNTS
    assert mounts == ("file_mounts" in task) == ("BUCKET" in task["envs"]) and (mounts or "use_spot" not in resources)
    assert all(mount["source"] == "${BUCKET}" and mount["mode"] == "MOUNT"
               for mount in task.get("file_mounts", {}).values())


def test_all_files_are_known() -> None:
    assert {path.stem for path in (FOLDER / "sky").iterdir()} == set(FILES)


@pytest.mark.parametrize(("name", "hosts"), FILES.items())
def test_its_sections_install_what_there_is_and_run_a_loop_that_accepts_its_options(
        name: str, hosts: int, tmp_path: Path) -> None:
    task = read(name)
    assert task.get("num_nodes", 1) in (1, hosts) and (FOLDER.parent / task["workdir"]).resolve() == FOLDER.parent
    ips = "\n".join(f"10.0.0.{number}" for number in range(1, hosts + 1))
    around = host(tmp_path) | task["envs"] | {"SKYPILOT_NODE_IPS": ips, "SKYPILOT_NODE_RANK": "0",
                                              "SHARED": str(tmp_path / "kept"), "RUNS": str(tmp_path / "runs")}
    program(tmp_path / "bin" / "uv", '#!/bin/sh\necho "$*" >>"$HOME/installed"\n')
    for section, code in (("setup", 0), ("run", 3)):
        done = shell(["-c", f"cd {shlex.quote(str(FOLDER.parent))} && {task[section]}"], around)
        assert done.returncode == code, done.stderr

    package, _, extras = lines(tmp_path / "installed")[-1].rstrip("]").rpartition("[")
    known = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert package.endswith(f"--editable {FOLDER.parent}") and set(extras.split(",")) <= set(known)
    python, module, *words = lines(tmp_path / "calls")[-1].split()
    assert (python, module) == ("-m", "research.loop")
    options = parse(words)
    assert options.session == tmp_path / "runs" / "night" and options.track == "tiny"
    assert options.executor == ("local" if hosts == 1 else "ray") and (hosts > 1) == (tmp_path / "rays").exists()
    assert (options.devices_per_trial == "slice") == (name == "v5p-16")
    assert (tmp_path / "kept" / "night" / "ledger.sqlite").exists()
