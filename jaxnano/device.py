"""The machine: how fast it can be, how much it holds, and where compiled programs are kept between processes."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import jax

from jaxnano.cache import cache_root
from jaxnano.cgroup import memory_bytes

# Dense bfloat16 FLOP/s of one device, from vendors' data sheets; the first name within `device_kind` counts.
PEAK_FLOPS = (
    ("B200", 2250e12), ("H100 PCIe", 756e12), ("H200", 989e12), ("H100", 989e12), ("A100", 312e12), ("L40S", 362e12),
    ("TPU7x", 2307e12), ("TPU v6", 918e12), ("TPU v5p", 459e12), ("TPU v5 lite", 197e12), ("TPU v5e", 197e12),
    ("TPU v5", 459e12), ("TPU v4", 275e12),
)
# Memory of one TPU chip.
HBM_BYTES = (
    ("TPU7x", 192 << 30), ("TPU v6", 32 << 30), ("TPU v5p", 95 << 30), ("TPU v5 lite", 16 << 30),
    ("TPU v5e", 16 << 30), ("TPU v5", 95 << 30), ("TPU v4", 32 << 30),
)
COMPILE_CACHE_BYTES = {"cpu": 1 << 30}  # of programs kept on disk, by backend
LARGE_CACHE_BYTES = 20 << 30  # on others, where each is larger and takes longer to compile


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one such device, or None where it is not known."""
    return next((peak for name, peak in PEAK_FLOPS if name in device_kind), None)


def hbm_bytes(device_kind: str) -> int | None:
    """Memory of one such TPU chip, or None where it is not known."""
    return next((size for name, size in HBM_BYTES if name in device_kind), None)


def device_bytes(root: Path = Path("/")) -> int:
    """Memory of one device; on CPU the machine's, or what its cgroup leaves of it. root: see `memory_bytes`."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or memory_bytes(root)


def stay_at(environment: Mapping[str, str | None]) -> None:
    """Have this process use the devices that such variables leave it, and no other.

    Call it before anything asks JAX for a device, which takes hold of all that there are.

    Args: environment: variables, None for those that must not be set; JAX_PLATFORMS among them.
    """
    for name, value in environment.items():
        os.environ.pop(name, None)
        os.environ |= {} if value is None else {name: value}
    jax.config.update("jax_platforms", environment["JAX_PLATFORMS"])  # JAX has read the variable already


def use_compile_cache() -> None:
    """Keep compiled programs on disk, so that a later process starts at once (tiny models: 7 s -> 0.5 s of CPU).

    Compiled code is trusted: the folder is the user's own, one per kind of CPU, and bounded. A folder that the user
    chose himself (JAX_COMPILATION_CACHE_DIR) stays. Call it before the first compilation, and again before later work:
    a folder that somebody has deleted since is made again, or each program would be compiled and warned about for ever.
    """
    folder, chosen = cache_root() / f"compiled-{_cpu()}", jax.config.values["jax_compilation_cache_dir"]
    if chosen and chosen != str(folder):
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    if chosen:
        return
    _prune(folder, COMPILE_CACHE_BYTES.get(jax.default_backend(), LARGE_CACHE_BYTES))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _cpu() -> str:
    """Names the instructions this CPU has; a program compiled for others may not run."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:8]


def _prune(folder: Path, most: int) -> None:
    """Remove the oldest programs beyond so many bytes; other processes may be doing the same."""
    files = []
    for entry in os.scandir(folder):
        try:
            files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
        except FileNotFoundError:
            continue
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > most:
            Path(path).unlink(missing_ok=True)
