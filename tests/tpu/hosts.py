"""The scripts of tpu/ on machines that are only folders: what stands for Python, Ray, the cloud and its metadata."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "tpu"

# Python: a session that leaves a ledger, a file, and the arguments it was given; a Ray whose nodes are all there.
PYTHON = f"""#!/usr/bin/env bash
case "$*" in
  -c*ray.init*) echo "all there: ${{*: -2}}" >>"$HOME/calls"; exit ;;
  -c*) exec {sys.executable} "$@" ;;
esac
echo "$*" >>"$HOME/calls"
if [[ $* != *--session* ]]; then exit 3; fi
session=$(sed 's/.*--session \\([^ ]*\\).*/\\1/' <<<"$*")
mkdir -p "$session/trials"
echo "$*" >>"$session/trials/calls"
{sys.executable} -c 'import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as ledger:
    ledger.execute("create table if not exists events (n)")
    ledger.execute("insert into events values (1)")' "$session/ledger.sqlite"
exit 3
"""
# Ray: a head that stays until it is ended, and others that leave at once; whether it is well is read from a file.
RAY = """#!/usr/bin/env bash
if [[ $1 == health-check ]]; then
  if [[ -f $HOME/health ]]; then line=$(head -n 1 "$HOME/health") && sed -i 1d "$HOME/health" && [[ $line == yes ]]
  else [[ -f $HOME/rays ]]; fi
else
  echo "$*" >>"$HOME/rays"
  if [[ $2 == --head ]]; then read -r <>"$HOME/never"; fi
fi
"""
CURL = '#!/usr/bin/env bash\nlast=${*: -1}\ncat "$HOME/metadata/${last##*/}"\n'
SLEEP = "#!/bin/sh\n[ \"$1\" != 60 ]\n"  # no time passes; the copies of each minute are left out
RSYNC = f"""#!{sys.executable}
import shutil, sys
from pathlib import Path
here, there = map(Path, sys.argv[-2:])
if "--delete" in sys.argv and there.exists():
    for item in there.iterdir():
        shutil.rmtree(item) if item.is_dir() else item.name.startswith("ledger.sqlite") or item.unlink()
without = shutil.ignore_patterns("ledger.sqlite*") if "--exclude" in sys.argv else None
shutil.copytree(here, there, ignore=without, dirs_exist_ok=True)
"""


def program(path: Path, text: str) -> None:
    """A file that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def host(home: Path, bucket: Path | None = None, python: str = PYTHON, **metadata: str) -> dict[str, str]:
    """A machine as `worker.sh setup` leaves it; returns the variables of a shell there.

    Args: bucket: what is mounted. metadata: what the TPU says of itself, with _ for -.
    """
    program(home / "venv" / "bin" / "python", python)
    program(home / "venv" / "bin" / "ray", RAY)
    program(home / "bin" / "curl", CURL)
    program(home / "bin" / "sleep", SLEEP)
    if shutil.which("rsync") is None:
        program(home / "bin" / "rsync", RSYNC)
    (home / "metadata").mkdir()
    for name, value in metadata.items():
        (home / "metadata" / name.replace("_", "-")).write_text(value)
    os.mkfifo(home / "never")
    if bucket is not None:
        (home / "shared").symlink_to(bucket)
    return {"HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}


def bash(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script of tpu/, run to its end."""
    return shell([str(FOLDER / script), *arguments], environment)


def shell(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Bash with these arguments, without what a cluster says of itself where the tests run."""
    around = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SKYPILOT_"))}
    return subprocess.run(["bash", *command], text=True, capture_output=True, check=False, timeout=60,
                          env=around | environment)


def lines(file: Path) -> list[str]:
    """What was written down; nothing where there is no file."""
    return file.read_text().splitlines() if file.exists() else []
