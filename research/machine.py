"""What this machine offers (cores, accelerators) and what a result was measured on (the fingerprint)."""

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from jaxnano.cgroup import cpu_quota, read
from jaxnano.cli import UserError

ROOT = Path(__file__).resolve().parents[1]  # the folder that holds jaxnano/ and research/
TOLERANCE = 5e-3  # nats, where processor, versions, threads or code differ: measured differences are below 1e-3
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "pydantic", "numpy",
            "scipy")


@dataclass(frozen=True)
class Place:
    """Where one worker runs.

    Args: cores: the cores it is pinned to (empty: not pinned). gpu: the device's name for CUDA_VISIBLE_DEVICES, or
    None for a CPU worker.
    """

    cores: tuple[int, ...]
    gpu: str | None = None


def cores() -> list[int]:
    """The cores this process may use: its affinity mask, cut to the cgroup's CPU quota, at least one."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    quota = cpu_quota()
    return allowed if quota is None else allowed[: max(1, int(quota))]


def places(workers: int | None = None) -> list[Place]:
    """One place a GPU, or else one a core.

    Args: workers: how many places; by default as many as there are devices.
    Raises: ValueError if more workers are asked for than there are devices.
    """
    available, devices = cores(), gpus()
    limit = len(devices) or len(available)
    count = limit if workers is None else workers
    if not 1 <= count <= limit:
        kind = "GPUs" if devices else "cores"
        raise UserError(f"workers: {count} asked for, but this machine offers {limit} {kind}; 1 to {limit} would do")
    if not devices:
        return [Place((core,)) for core in available[:count]]
    return [Place(tuple(available[i::count]), gpu) for i, gpu in enumerate(devices[:count])]


def rss_mb() -> float:
    """Resident memory of this process, in 2**20 bytes."""
    return psutil.Process().memory_info().rss / 2**20


def gpus() -> list[str]:
    """Names of the NVIDIA devices this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [str(i) for i in range(len(_gpu_models()))]
    if visible is None or not found:
        return found
    return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]


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
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]).strip() or platform.machine()
    return platform.processor() or platform.machine()


@cache
def code_hash(root: Path = ROOT) -> str:
    """SHA-256 over the names and bytes of the Python files of jaxnano/ and research/ (16 hex digits)."""
    digest = hashlib.sha256()
    for file in sorted(path for package in ("jaxnano", "research") for path in (root / package).rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


@cache
def _gpu_models() -> tuple[str, ...]:
    """Models of the NVIDIA devices, by index; asked of the driver's tool so that jax need not be imported."""
    if not shutil.which("nvidia-smi"):
        return ()
    return tuple(_output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines())


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
