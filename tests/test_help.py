"""Every command answers --help before it imports what takes a second."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKERS = {"research.execute.worker"}  # started by the loop; it has no options
HELP = """
import runpy, sys
sys.argv[1:] = ["--help"]
try:
    runpy.run_module({name!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    sys.exit(end.code or " ".join({{"jax", "scipy"}} & set(sys.modules)) or 0)
sys.exit("--help did not end it")
"""


def commands() -> list[str]:
    """All modules that run as a command, as `python -m` takes them."""
    files = [path for wing in ("jaxnano", "research") for path in sorted((ROOT / wing).rglob("*.py"))
             if '\nif __name__ == "__main__":\n' in path.read_text()]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in files]
    return [name for name in names if name not in WORKERS]


@pytest.mark.parametrize("name", commands())
def test_help_needs_neither_jax_nor_scipy(name: str) -> None:
    told = subprocess.run([sys.executable, "-c", HELP.format(name=name)], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "usage:" in told.stdout and "--help" in told.stdout


def test_the_commands_are_found() -> None:
    assert {"jaxnano.train", "jaxnano.data", "research.loop", "research.check.fuzz"} <= set(commands())
