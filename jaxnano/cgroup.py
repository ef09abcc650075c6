"""The limits on cores and memory that bind this process.

A container sees the host's cores and memory through the usual calls; the limits that bind are in its cgroup. Both
generations are read, from the process's own group up to the root, and the tightest limit counts. Where neither
exists (macOS) the plain totals are used.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The cgroup's CPU limit in cores, or None without one.

    Args: root: the folder that stands for `/`, for tests.
    """
    quotas = []
    for folder in _groups(root, "cpu"):
        if (folder / "cpu.max").is_file():
            quota, period = (read(folder / "cpu.max").split() + ["100000"])[:2]
        else:
            quota, period = read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_bytes(root: Path = Path("/")) -> int:
    """Memory this process may use, in bytes: the machine's, or the cgroup's limit where that is lower."""
    limits = [psutil.virtual_memory().total]
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = read(folder / name)
            limits += [int(limit)] if limit.isdigit() else []
    return min(limits)


def read(path: Path) -> str:
    """What a file says, without the space around it; "" if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the cgroups that bind this process for one controller, from its own up to the root."""
    for line in read(root / "proc/self/cgroup").splitlines():
        number, names, group = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not names:
            top = root / "sys/fs/cgroup"
        elif controller in names.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        folder = top / group.strip("/")
        while folder != top:  # a container may see a path that exists only outside it: such folders read as no limit
            yield folder
            folder = folder.parent
        yield top
