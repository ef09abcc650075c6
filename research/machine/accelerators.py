"""The accelerators of this machine, found without JAX: asking it would take hold of them.

Not run on hardware: the files and the outputs that are read here are those that drivers' sources and manuals describe.
"""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

from jaxnano.cgroup import read
from jaxnano.cli import UserError
from research.machine import output

GOOGLE = "0x1ae0"  # PCI's number of the vendor
TPU_MODELS = {"0x0027": "v3", "0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e", "0x0076": "tpu7x"}
HIDDEN = re.compile(r"|-\d+.*|NoDevFiles.*|void|none")  # what schedulers and people write for: no device
CUDA_13_DRIVER = 580  # the first driver that runs CUDA 13
METADATA_S = 2.0  # for an answer of Google's metadata server


@dataclass(frozen=True)
class Accelerators:
    """The devices of one kind that this process may use.

    kind: cuda, rocm or tpu. model: as people call it. ids: as the kind's own variable names them. total: how many the
    machine has, others' too. problem: why they cannot be used, if so. hosts: of the TPU slice that this one belongs to.
    """

    kind: str
    model: str
    ids: tuple[str, ...]
    total: int
    problem: str = ""
    hosts: int = 1

    def __str__(self) -> str:
        return f"{self.total} {self.kind} device{'s' * (self.total != 1)} ({self.model})"


def accelerators(root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> list[Accelerators]:
    """The accelerators that are here and that nobody has hidden, the kinds in the order in which they are preferred.

    Args: root: the folder that stands for `/`; environ: variables, os.environ by default; both for tests.
    Raises: UserError for a variable that names devices which are not there.
    """
    kinds: tuple[Callable[[Path, Mapping[str, str]], Accelerators | None], ...] = (_cuda, _rocm, _tpu)
    found = (kind(root, os.environ if environ is None else environ) for kind in kinds)
    return [each for each in found if each is not None and (each.ids or each.problem)]


@dataclass
class _Gpu:
    """An NVIDIA device: what nvidia-smi calls it, and the instances that it is cut into."""

    uuid: str
    model: str
    instances: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return self.instances or [self.uuid]


def _cuda(root: Path, environ: Mapping[str, str]) -> Accelerators | None:
    gpus = _of_nvidia_smi() or _of_driver(root)
    if not gpus:
        return None
    ids = _visible(environ.get("CUDA_VISIBLE_DEVICES"), gpus)
    newest = re.search(r"\b(\d{3})\.\d+", read(root / "proc/driver/nvidia/version"))
    extra = "cuda13" if newest and int(newest[1]) >= CUDA_13_DRIVER else "cuda12"
    total = sum(len(gpu.ids) for gpu in gpus)
    return Accelerators("cuda", gpus[0].model, tuple(ids), total, "" if _plugin("xla_cuda") else _install(extra))


def _of_nvidia_smi() -> list[_Gpu]:
    """What the driver's tool lists; nothing if it is not there, fails, or hangs, as it does when a device is lost."""
    gpus: list[_Gpu] = []
    for line in output(["nvidia-smi", "-L"]).splitlines() if shutil.which("nvidia-smi") else ():
        if whole := re.match(r"GPU \d+: (.*?) \(UUID: (\S+)\)", line):
            gpus.append(_Gpu(whole[2], whole[1]))
        elif gpus and (instance := re.match(r"\s+MIG .*\(UUID: (\S+)\)", line)):
            gpus[-1].instances.append(instance[1])
    return gpus


def _of_driver(root: Path) -> list[_Gpu]:
    """What the kernel's driver says, in the order of PCI: by UUID, or by number where it does not tell them."""
    gpus: list[_Gpu] = []
    for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*")):
        said = dict(re.findall(r"^([^:\n]+):\s*(.*?)\s*$", read(folder / "information"), re.MULTILINE))
        if (root / f"dev/nvidia{said.get('Device Minor', '')}").exists():  # a container is given some of them
            uuid = said.get("GPU UUID", "?")
            gpus.append(_Gpu(str(len(gpus)) if "?" in uuid else uuid, said.get("Model", "NVIDIA")))
    return gpus


def _visible(value: str | None, gpus: Sequence[_Gpu]) -> list[str]:
    """The devices of CUDA_VISIBLE_DEVICES as CUDA reads it: up to the first name that is none; numbers in PCI's order.

    A UUID's beginning will do, and a device that is cut into instances stands for the first.
    """
    if value is None:
        return [name for gpu in gpus for name in gpu.ids]
    names, found = [name.strip() for name in value.split(",")], []
    for name in names:
        if name.isdigit():
            some = [gpus[int(name)].ids[0]] if int(name) < len(gpus) else []
        else:
            some = [gpu.ids[0] for gpu in gpus if name.startswith("GPU-") and gpu.uuid.startswith(name)]
            some += [one for gpu in gpus for one in gpu.instances if name.startswith("MIG-") and one.startswith(name)]
        if len(some) != 1:
            break
        if some[0] in found:
            raise _unknown("CUDA_VISIBLE_DEVICES", value, f"names {some[0]} twice", [str(i) for i in range(len(gpus))])
        found += some
    if not found and not HIDDEN.fullmatch(names[0]):
        raise _unknown("CUDA_VISIBLE_DEVICES", value, "names no device", [str(i) for i in range(len(gpus))])
    return found


def _rocm(root: Path, environ: Mapping[str, str]) -> Accelerators | None:
    """Nodes of AMD's kernel driver that compute; a container is given the render nodes of some."""
    models: list[str] = []
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("*")
    for node in sorted(nodes, key=lambda node: int(node.name) if node.name.isdigit() else -1):
        said = dict(line.split(None, 1) for line in read(node / "properties").splitlines() if " " in line)
        minor = said.get("drm_render_minor", "0")
        there = minor == "0" or (root / f"dev/dri/renderD{minor}").exists()
        if int(said.get("simd_count", 0)) > 0 and there:
            version = int(said.get("gfx_target_version", 0))
            models.append(f"gfx{version // 10000}{version // 100 % 100}{version % 100:x}")
    if not models:
        return None
    ids = [str(i) for i in range(len(models))]
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):  # the second counts what the first has left
        chosen = _chosen(variable, environ.get(variable), [str(i) for i in range(len(ids))])
        ids = [ids[int(i)] for i in chosen]
    return Accelerators("rocm", models[0], tuple(ids), len(models), "" if _plugin("xla_rocm") else _install("rocm"))


def _tpu(root: Path, environ: Mapping[str, str]) -> Accelerators | None:
    """Chips on PCI, cut to those that there are device files of: a container may have none."""
    folders = sorted((root / "sys/bus/pci/devices").glob("*"))
    models = [TPU_MODELS.get(read(folder / "device")) for folder in folders if read(folder / "vendor") == GOOGLE]
    known = [model for model in models if model]
    if not known:
        return None
    groups = [path.name for path in (root / "dev/vfio").glob("[0-9]*")]
    ours = [group for group in groups if any(
        read(path) == GOOGLE for path in (root / "sys/kernel/iommu_groups" / group / "devices").glob("*/vendor"))]
    files = [path for path in (root / "dev").glob("accel[0-9]*") if not path.is_dir()] or ours
    ids = [str(i) for i in range(min(len(known), len(files)))]
    problem = ""
    if not ids:
        problem = "neither /dev/accel* nor /dev/vfio has them here: a container started with --privileged would do"
    elif not (importlib.util.find_spec("libtpu") or os.path.isfile(environ.get("TPU_LIBRARY_PATH", ""))):
        problem = _install("tpu")
    variable = next((v for v in ("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES") if v in environ), "")
    ids = _chosen(variable, environ.get(variable), ids)
    return Accelerators("tpu", known[0], tuple(ids), max(len(files), len(ids)), problem, _slice_hosts(environ))


def _slice_hosts(environ: Mapping[str, str]) -> int:
    """Hosts of the slice: of Kubernetes' variable, or else of Google's metadata, as JAX asks for them."""
    names = environ.get("TPU_WORKER_HOSTNAMES")
    if names is None and "TPU_SKIP_MDS_QUERY" not in environ:
        server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
        about = f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            request = urllib.request.Request(about, headers={"Metadata-Flavor": "Google"})
            with opener.open(request, timeout=METADATA_S) as answer:
                names = answer.read(1 << 20).decode(errors="replace")
        except (OSError, ValueError):  # no such server: then it is no slice of Google's
            names = None
    return len([name for name in (names or "").split(",") if name.strip()]) or 1


def _chosen(variable: str, value: str | None, ids: Sequence[str]) -> list[str]:
    """Of ids, those that a variable names by number; all without it."""
    if value is None or not ids:
        return list(ids)
    names = [name.strip() for name in value.split(",") if name.strip()]
    if any(name not in ids for name in names) and not HIDDEN.fullmatch(value.strip()):
        raise _unknown(variable, value, f"names {', '.join(n for n in names if n not in ids)}, which is not here", ids)
    if len(set(names)) < len(names):
        raise _unknown(variable, value, "names one twice", ids)
    return [name for name in names if name in ids]


def _unknown(variable: str, value: str, what: str, ids: Iterable[str]) -> UserError:
    return UserError(f"{variable}: {value!r}: {what}; of {', '.join(ids)} would do, or --platform cpu")


def _plugin(name: str) -> bool:
    """Whether a package is installed that JAX finds such a backend in."""
    here = importlib.util.find_spec("jax_plugins")
    found = [module.name for module in pkgutil.iter_modules(here.submodule_search_locations or () if here else ())]
    return any(name in one for one in (*found, *(entry.value for entry in entry_points(group="jax_plugins"))))


def _install(extra: str) -> str:
    return f'JAX lacks its plugin: pip install "jaxnano[{extra}]" would do'
