import os

import psutil

from jaxnano.cgroup import cpu_quota, memory_bytes
from jaxnano.device import device_bytes
from research import machine


def cgroup(root, lines, files):
    """A false file system with the process's groups and the groups' files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("\n".join(lines) + "\n")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_tightest_quota_of_the_second_generation(tmp_path):
    files = {
        "sys/fs/cgroup/pod/job/cpu.max": "max 100000\n",
        "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/pod/job/memory.max": "max\n",
        "sys/fs/cgroup/pod/memory.max": "1048576\n",
    }
    root = cgroup(tmp_path, ["0::/pod/job"], files)
    assert cpu_quota(root) == 1.5
    assert memory_bytes(root) == device_bytes(root) == 1048576


def test_quota_of_the_first_generation(tmp_path):
    files = {
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "2097152\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    root = cgroup(tmp_path, ["3:cpu,cpuacct:/box", "2:memory:/box", "1:cpuset:/box"], files)
    assert cpu_quota(root) == 0.5
    assert memory_bytes(root) == device_bytes(root) == 2097152


def test_no_cgroup_means_the_whole_machine(tmp_path):
    assert cpu_quota(tmp_path) is None
    assert memory_bytes(tmp_path) == psutil.virtual_memory().total


def test_quota_cuts_the_cores_but_leaves_one(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 1, 2, 9}, raising=False)
    for quota, expected in ((None, [1, 2, 3, 9]), (2.9, [1, 2]), (0.3, [1])):
        monkeypatch.setattr(machine, "cpu_quota", lambda quota=quota: quota)
        assert machine.cores() == expected


def test_identity_is_stable_and_ends_with_the_process():
    mine = machine.process_identity(os.getpid())
    assert mine and mine == machine.process_identity(os.getpid())
    assert mine != machine.process_identity(os.getppid())
    assert machine.process_identity(2**22 + 1) is None


def test_fingerprint_follows_the_code_and_the_flags(tmp_path, monkeypatch):
    for package in ("jaxnano", "research"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("x = 1\n")
    before = machine.code_hash.__wrapped__(tmp_path)
    (tmp_path / "research" / "note.txt").write_text("not code")
    assert machine.code_hash.__wrapped__(tmp_path) == before
    (tmp_path / "research" / "a.py").write_text("x = 2\n")
    assert machine.code_hash.__wrapped__(tmp_path) != before
    monkeypatch.setenv("XLA_FLAGS", "--some_flag")
    fingerprint = machine.fingerprint(threads=1)
    assert fingerprint["xla_flags"] == "--some_flag" and fingerprint["threads"] == 1
    assert fingerprint["device"] == machine.cpu_model() and fingerprint["jaxlib"] == machine.versions()["jaxlib"]
