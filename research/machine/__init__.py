"""What this machine offers and what a result was measured on (the fingerprint).

Its accelerators are in accelerators.py, what of it one worker gets in place.py.
"""

import hashlib
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from jaxnano.cgroup import cpu_quota, read

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds jaxnano/ and research/
ANSWER_S = 10.0  # for a tool of the machine's to answer in
TOLERANCE = 5e-3  # nats, where processor, versions, threads or code differ: measured differences are below 1e-3
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "pydantic", "numpy",
            "scipy")


def cores() -> list[int]:
    """The cores this process may use: its affinity mask, cut to the cgroup's CPU quota, at least one."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    quota = cpu_quota()
    return allowed if quota is None else allowed[: max(1, int(quota))]


def rss_mb() -> float:
    """Resident memory of this process, in 2**20 bytes."""
    return psutil.Process().memory_info().rss / 2**20


def process_identity(pid: int) -> str | None:
    """A text that names this process and no later one with the same number; None if no such process is alive.

    A process that has ended but was not waited for counts as dead.
    """
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        if sys.platform == "linux":  # ticks since boot: unlike psutil's time, a clock adjustment leaves them alone
            ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
            return f"{boot_identity()}/{pid}/{ticks}"
        return f"{pid}/{process.create_time():.2f}"
    except (psutil.Error, OSError):
        return None


@cache
def boot_identity() -> str:
    """This boot of this machine and this process namespace (process numbers mean nothing in another)."""
    try:
        return read(Path("/proc/sys/kernel/random/boot_id")) + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def host() -> str:
    """The machine's network name."""
    return socket.gethostname()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result may depend on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def fingerprint(backend: str = "cpu", device: str | None = None, threads: int | None = None) -> dict[str, str | int]:
    """What a result was computed by; two runs with equal fingerprints are expected to agree bit for bit.

    Args: backend: jax.default_backend(). device: the device's model, by default the CPU's. threads: threads of the
    process's computation, by default the cores it may run on.
    """
    known = versions()
    return {"backend": backend, "device": device or cpu_model(),
            "platform": f"{platform.system()}-{platform.machine()}",
            **{name: known.get(name, "") for name in ("python", "jax", "jaxlib")},
            "xla_flags": os.environ.get("XLA_FLAGS", ""), "threads": len(cores()) if threads is None else threads,
            "code": code_hash()}


@cache
def cpu_model() -> str:
    """The CPU's model name."""
    for line in read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return output(["sysctl", "-n", "machdep.cpu.brand_string"]).strip() or platform.machine()
    return platform.processor() or platform.machine()


@cache
def code_hash(root: Path = ROOT) -> str:
    """SHA-256 over the names and bytes of the Python files of jaxnano/ and research/ (16 hex digits)."""
    digest = hashlib.sha256()
    for file in sorted(path for package in ("jaxnano", "research") for path in (root / package).rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def output(command: Sequence[str]) -> str:
    """What a command says; "" if it fails, or has not ended after ANSWER_S."""
    with tempfile.TemporaryFile("w+") as answer:  # a pipe would be waited for, held open by a process that cannot end
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=answer, stderr=subprocess.DEVNULL)
        except OSError:
            return ""
        try:
            status = process.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # one that waits for a lost device does not even die
                process.wait(1.0)
            return ""
        answer.seek(0)
        return answer.read() if status == 0 else ""
