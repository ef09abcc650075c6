"""A place: the devices that one worker owns. This file alone knows the variables by which a process is kept to them.

The variables of TPUs are libtpu's and those of JAX's own tests. Not run on hardware.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxnano.cli import UserError
from research import machine
from research.machine.accelerators import Accelerators, accelerators

Platform = Literal["cpu", "cuda", "rocm", "tpu", "virtual"]  # the last for tests: a place of several CPU devices
PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "rocm", "tpu", "virtual")
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
SINGLE_THREAD = {"XLA_FLAGS": ONE_THREAD, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
COUNT = "--xla_force_host_platform_device_count={}"  # before ONE_THREAD: after what is no flag XLA reads no more
GPU_SHARE = 0.92  # of a GPU's memory for those who work on it: what is left is the driver's, and a process's context
MOST_SHARERS = 8  # workers on one GPU
BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # chips of a TPU host that a process may own, as a box
TYPES = {"v5e": "v5litepod-{chips}", "v6e": "v6e-{chips}"}  # Google's names of one host; others count two cores a chip
UNSET = ("TPU_VISIBLE_DEVICES", "TPU_VISIBLE_DEVICE_PATHS", "TPU_CHIPS_PER_HOST_BOUNDS", "TPU_HOST_BOUNDS")


@dataclass(frozen=True)
class Place:
    """Where one worker runs, and all the devices that it has.

    Args: cores: the cores it is pinned to (empty: not pinned). kind: see PLATFORMS. ids: its devices, as the kind's
    own variable names them; a CPU has one device and no name. hosts: its processes, one a host. model: of the devices.
    sharers: workers on the same devices. part: whether the host has more chips. alone: whether it is one of several
    hosts of a TPU slice, without the others.
    """

    cores: tuple[int, ...] = ()
    kind: Platform = "cpu"
    ids: tuple[str, ...] = ()
    hosts: int = 1
    model: str = ""
    sharers: int = 1
    part: bool = False
    alone: bool = False

    def __str__(self) -> str:
        if self.accelerated:
            return f"{self.kind} {','.join(self.ids)}"
        return f"core {','.join(map(str, self.cores))}" if self.cores else "any core"

    @property
    def devices(self) -> int:
        """Devices on this host. A chip of TPU v3 or tpu7x counts as one here and as two to JAX."""
        return max(1, len(self.ids))

    @property
    def accelerated(self) -> bool:
        """Whether its devices are other than the CPU."""
        return self.kind not in ("cpu", "virtual")

    def environment(self, port: int = 0, user: Mapping[str, str] | None = None) -> dict[str, str | None]:
        """The variables that keep a process to these devices, None for one that must not be set.

        JAX is given one platform and no list of them: where it fails, the process says so and does not go to the CPU.

        Args: port: of this machine, nobody else's, which a part of a TPU host asks for. user: the variables that the
        process would have, os.environ by default.
        """
        user = os.environ if user is None else user
        match self.kind:
            case "cpu" | "virtual":
                flags = " ".join([user.get("XLA_FLAGS", ""), COUNT.format(self.devices), ONE_THREAD]).lstrip()
                return {"JAX_PLATFORMS": "cpu", **SINGLE_THREAD, "XLA_FLAGS": flags}
            case "cuda":
                return {"JAX_PLATFORMS": "cuda", "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
                        "CUDA_VISIBLE_DEVICES": ",".join(self.ids), **self._memory(user)}
            case "rocm":
                mine = ",".join(map(str, range(self.devices)))  # HIP counts what ROCr has left
                return {"JAX_PLATFORMS": "rocm", "ROCR_VISIBLE_DEVICES": ",".join(self.ids),
                        "HIP_VISIBLE_DEVICES": mine, "CUDA_VISIBLE_DEVICES": None, **self._memory(user)}
            case "tpu":
                return {"JAX_PLATFORMS": "tpu", **self._chips(port), **self._alone()}

    def _memory(self, user: Mapping[str, str]) -> dict[str, str | None]:
        """The share of a GPU's memory that one of its workers takes at its start; what the user chose, divided."""
        name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
        chosen = user.get("XLA_CLIENT_MEM_FRACTION") or user.get(name) or GPU_SHARE
        return {name: f"{float(chosen) / self.sharers:.4g}", "XLA_CLIENT_MEM_FRACTION": None}

    def _chips(self, port: int) -> dict[str, str | None]:
        """A box of chips, by itself. A process that has a whole single-host VM is told nothing: so libtpu takes it."""
        if not self.part and not self.alone:
            return {}
        return {"TPU_VISIBLE_CHIPS": ",".join(self.ids), "TPU_CHIPS_PER_PROCESS_BOUNDS": BOUNDS[self.devices],
                "TPU_PROCESS_BOUNDS": "1,1,1", "CLOUD_TPU_TASK_ID": "0", "TPU_PROCESS_PORT": str(port),
                "TPU_PROCESS_ADDRESSES": f"localhost:{port}", **dict.fromkeys(UNSET)}

    def _alone(self) -> dict[str, str | None]:
        """One host of a slice, which would wait for the others."""
        if not self.alone:
            return {}
        kind = TYPES.get(self.model, self.model + "-{cores}").format(chips=self.devices, cores=2 * self.devices)
        return {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
                "TPU_ACCELERATOR_TYPE": kind}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def places(workers: int | None = None, devices: int | str = 1, platform: str | None = None, *,
           root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> list[Place]:
    """The places of this machine's accelerators, or, where it has none, of its cores.

    Args: workers: how many places; by default as many as the devices make. Several workers may share a GPU. devices:
    of each place, neighbours by number; "host": all. platform: one of PLATFORMS; by default what is here. root,
    environ: see `accelerators`.
    Raises: UserError, in one line, if the machine does not have them, or has them and JAX cannot use them.
    """
    if platform in ("cpu", "virtual"):
        return _of_cores(workers, devices, platform)
    found = usable(platform, root, environ)
    return _of_cores(workers, devices, "cpu") if found is None else _of_devices(found, workers, devices)


def usable(platform: str | None = None, root: Path = Path("/"), environ: Mapping[str, str] | None = None
           ) -> Accelerators | None:
    """The accelerators to work on; None where there are none. Args: see `places`. Raises: UserError, as there."""
    found = accelerators(root, environ)
    known = next((each for each in found if platform in (None, each.kind)), None)
    if known is None and platform is not None:
        there = ", ".join(map(str, found)) or "no accelerator"
        raise UserError(f"--platform: {platform}: this machine offers {there}; leaving it out would do, or cpu")
    if known is not None and known.problem:
        raise UserError(f"this machine has {known}, which cannot be used: {known.problem}, or --platform cpu")
    return known


def _of_cores(workers: int | None, devices: int | str, kind: Literal["cpu", "virtual"]) -> list[Place]:
    """One place a core; virtual ones may be more than the cores, and then share them."""
    available = machine.cores()
    if kind == "virtual":
        ids = tuple(map(str, range(1 if devices == "host" else int(devices))))
        each = [(available[i % len(available)],) for i in range(workers or len(available))]
        return [Place(cores, kind, ids, model=machine.cpu_model()) for cores in each]
    if devices != 1:
        raise UserError(f"--devices-per-trial: {devices}: a worker on a CPU has one device; 1 would do")
    count = len(available) if workers is None else workers
    if not 1 <= count <= len(available):
        raise UserError(f"workers: {count} asked for, but this machine offers {len(available)} cores; 1 to "
                        f"{len(available)} would do")
    return [Place((core,), model=machine.cpu_model()) for core in available[:count]]


def _of_devices(found: Accelerators, workers: int | None, devices: int | str) -> list[Place]:
    each, ids = len(found.ids) if devices == "host" else int(devices), found.ids
    able = [k for k in range(1, len(ids) + 1) if found.kind != "tpu" or k in BOUNDS and len(ids) % k == 0]
    if any(name.startswith("MIG-") for name in ids):
        able = [1]  # CUDA gives a process one instance
    if each not in able:
        raise UserError(f"--devices-per-trial: {devices}: this machine offers {len(ids)} of {found}; "
                        f"{', '.join(map(str, able))} would do")
    boxes = [ids[i : i + each] for i in range(0, len(ids) - each + 1, each)]
    sharers, rest = divmod(len(boxes) if workers is None else workers, len(boxes))
    if workers is not None and workers < len(boxes):
        boxes, sharers, rest = boxes[: max(0, workers)], 1, 0
    most = 1 if found.kind == "tpu" else MOST_SHARERS
    if not boxes or rest or sharers > most:
        more = f", or {len(boxes)} times 2 to {most} that share them" if most > 1 else ""
        raise UserError(f"workers: {workers} asked for, but this machine offers {len(ids)} {found.kind} devices, "
                        f"{each} a worker; 1 to {len(ids) // each} would do{more}")
    spread = _dealt(machine.cores(), len(boxes) * sharers)
    part, alone = each < found.total, found.kind == "tpu" and found.hosts > 1
    return [Place(cores, found.kind, box, model=found.model, sharers=sharers, part=part, alone=alone)  # type: ignore
            for cores, box in zip(spread, boxes * sharers, strict=True)]


def _dealt(cores: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Cores for so many workers: each its own, or, where they are too few, each one of them."""
    return [tuple(cores[i::count]) or (cores[i % len(cores)],) for i in range(count)]
