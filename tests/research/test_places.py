"""Which devices a machine offers, by a made root folder and a made nvidia-smi, and what a worker's process is told."""

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from research import machine
from research.execute import executors
from research.machine import accelerators as found_by
from research.machine.accelerators import accelerators
from research.machine.place import BOUNDS, GPU_SHARE, MOST_SHARERS, Place, places

A, B = "GPU-aa000000-1111", "GPU-bb000000-2222"
PLAIN = f"GPU 0: NVIDIA H200 (UUID: {A})\nGPU 1: NVIDIA H200 (UUID: {B})\n"
CUT = f"""GPU 0: NVIDIA A100-SXM4-40GB (UUID: {A})
  MIG 3g.20gb     Device  0: (UUID: MIG-c1)
  MIG 3g.20gb     Device  1: (UUID: MIG-c2)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: {B})
"""
CHIPS = {"v3": ("0x0027", 4), "v4": ("0x005e", 4), "v5p": ("0x0062", 4), "v5e": ("0x0063", 8), "v6e": ("0x006f", 8),
         "tpu7x": ("0x0076", 4)}


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    """All of JAX's plugins are installed; nothing of this machine's own is seen."""
    monkeypatch.setattr(found_by, "_plugin", lambda name: True)
    monkeypatch.setattr(found_by.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(machine, "cores", lambda: [0, 1, 2, 3, 4])
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Makes an nvidia-smi that runs a script of the shell."""

    def make(script):
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}:/bin:/usr/bin")

    return make


def said(text):
    return f"cat <<'END'\n{text}END"


def put(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def driver(root, *uuids, version="580.65.06"):
    """What NVIDIA's kernel driver shows, with a device file each."""
    about = "Model: \t\t NVIDIA L4\nIRQ:   \t\t 183\nGPU UUID: \t {}\nBus Type: \t PCIe\nDevice Minor: \t {}\n"
    gpus = {f"proc/driver/nvidia/gpus/0000:0{i + 1}:00.0/information": about.format(uuid, i)
            for i, uuid in enumerate(uuids)}
    return put(root, gpus | {f"dev/nvidia{i}": "" for i in range(len(uuids))} | {
        "proc/driver/nvidia/version": f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release\n"})


def tpu(root, model, files=None):
    """Google's chips on PCI, beside another card, with device files of the older kind."""
    number, chips = CHIPS[model]
    pci = {f"sys/bus/pci/devices/0000:00:0{i}.0/{name}": f"{value}\n" for i in range(chips)
           for name, value in (("vendor", "0x1ae0"), ("device", number))}
    other = {"sys/bus/pci/devices/0000:01:00.0/vendor": "0x8086\n", "dev/accel/notes": ""}
    return put(root, pci | other | {f"dev/accel{i}": "" for i in range(chips if files is None else files)})


def test_a_machine_without_accelerators_has_a_place_a_core(tmp_path):
    assert accelerators(tmp_path, {}) == []
    found = places(root=tmp_path, environ={})
    assert [(place.cores, place.kind, place.ids, place.devices) for place in found] == [
        ((i,), "cpu", (), 1) for i in range(5)]
    assert len(places(2, root=tmp_path, environ={})) == 2
    for workers in (0, 6):
        with pytest.raises(ValueError, match=f"workers: {workers} asked for, but this machine offers 5 cores; 1 to 5 "):
            places(workers, root=tmp_path, environ={})
    with pytest.raises(ValueError, match="--devices-per-trial: 2: a worker on a CPU has one device; 1 would do"):
        places(None, 2, root=tmp_path, environ={})


def test_gpus_are_those_of_nvidia_smi(tmp_path, smi):
    smi(said(PLAIN))
    (found,) = accelerators(tmp_path, {})
    assert (found.kind, found.model, found.ids, found.total) == ("cuda", "NVIDIA H200", (A, B), 2)
    smi(said(CUT))
    (found,) = accelerators(tmp_path, {})
    assert found.ids == ("MIG-c1", "MIG-c2", B)


@pytest.mark.parametrize("script", ["exec sleep 600", "echo NVIDIA-SMI has failed; exit 9", "true", "kill -9 $$"])
def test_where_the_tool_does_not_answer_the_driver_does(tmp_path, smi, monkeypatch, script):
    monkeypatch.setattr(machine, "ANSWER_S", 0.2)
    smi(script)
    root = driver(tmp_path, A, B)
    (found,) = accelerators(root, {})
    assert (found.model, found.ids) == ("NVIDIA L4", (A, B))
    (root / "dev/nvidia0").unlink()  # a container was given the other
    assert accelerators(root, {})[0].ids == (B,)


def test_a_driver_that_does_not_tell_uuids_gives_numbers(tmp_path):
    (found,) = accelerators(driver(tmp_path, "GPU-????????-????", "GPU-????????-????"), {})
    assert found.ids == ("0", "1")


@pytest.mark.parametrize(("value", "ids"), [
    ("0,-1,1", [A]), ("0,1,99", [A, B]), ("NoDevFiles", []), ("", []), ("-1", []), (f"{B},GPU-aa", [B, A]),
    (" 1 , 0 ", [B, A]), ("1", [B]), ("1,other,0", [B]),
    ("0,0", "names GPU-aa000000-1111 twice"), (f"0,{A}", "twice"), ("99", "names no device"),
    ("GPU-cc", "names no device"), ("GPU-", "names no device"), ("MIG-c1", "names no device")])
def test_cuda_visible_devices_is_read_as_cuda_reads_it(tmp_path, smi, value, ids):
    smi(said(PLAIN))
    environ = {"CUDA_VISIBLE_DEVICES": value}
    if isinstance(ids, str):
        with pytest.raises(ValueError) as raised:
            places(root=tmp_path, environ=environ)
        line = str(raised.value)
        assert line.startswith(f"CUDA_VISIBLE_DEVICES: {value!r}: ") and ids in line and "0, 1 would do" in line
    elif ids:
        assert [place.ids for place in places(root=tmp_path, environ=environ)] == [(one,) for one in ids]
    else:  # hidden: somebody's word, so the CPU is no surprise
        assert {place.kind for place in places(root=tmp_path, environ=environ)} == {"cpu"}


@pytest.mark.parametrize(("value", "ids"), [("MIG-c2,MIG-c1", ["MIG-c2", "MIG-c1"]), ("0", ["MIG-c1"]), ("1", [B]),
                                            ("0,MIG-c2", ["MIG-c1", "MIG-c2"])])
def test_instances_are_devices(tmp_path, smi, value, ids):
    smi(said(CUT))
    assert [place.ids[0] for place in places(root=tmp_path, environ={"CUDA_VISIBLE_DEVICES": value})] == ids
    with pytest.raises(ValueError, match=r"--devices-per-trial: 2: .* 1 would do"):
        places(None, 2, root=tmp_path, environ={})


def test_amd_gpus_are_the_kernel_s_nodes_that_compute(tmp_path):
    node = "sys/class/kfd/kfd/topology/nodes/{}/properties"
    gpu = "cpu_cores_count 0\nsimd_count 304\ngfx_target_version 90402\ndrm_render_minor {}\n"
    root = put(tmp_path, {node.format(0): "cpu_cores_count 96\nsimd_count 0\n", node.format(10): gpu.format(130),
                          node.format(1): gpu.format(128), node.format(2): gpu.format(129)}
               | {f"dev/dri/renderD{i}": "" for i in (128, 129, 130)})
    (found,) = accelerators(root, {})
    assert (found.kind, found.model, found.ids) == ("rocm", "gfx942", ("0", "1", "2"))
    (root / "dev/dri/renderD129").unlink()
    assert accelerators(root, {})[0].ids == ("0", "1")
    assert accelerators(root, {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"})[0].ids == ("1",)
    with pytest.raises(ValueError, match="HIP_VISIBLE_DEVICES: '1': names 1, which is not here; of 0 would do"):
        accelerators(root, {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"})


@pytest.mark.parametrize("model", CHIPS)
def test_chips_are_those_on_pci_that_have_a_device_file(tmp_path, model):
    (found,) = accelerators(tpu(tmp_path, model), {"TPU_SKIP_MDS_QUERY": "1"})
    ids = tuple(map(str, range(CHIPS[model][1])))
    assert (found.kind, found.model, found.ids, found.hosts) == ("tpu", model, ids, 1)
    (tmp_path / "dev/accel0").unlink()
    assert accelerators(tmp_path, {"TPU_SKIP_MDS_QUERY": "1"})[0].ids == ids[:-1]


def test_chips_behind_vfio_are_those_of_google_s_groups(tmp_path):
    root = tpu(tmp_path, "v5p", files=0)
    groups = {f"sys/kernel/iommu_groups/{i}/devices/0000:00:0{i}.0/vendor": vendor
              for i, vendor in enumerate(("0x1ae0", "0x1ae0", "0x10de"))}
    put(root, groups | {f"dev/vfio/{i}": "" for i in range(3)} | {"dev/vfio/vfio": ""})
    assert accelerators(root, {"TPU_SKIP_MDS_QUERY": "1"})[0].ids == ("0", "1")


def test_what_is_there_and_cannot_be_used_is_one_line_and_never_a_cpu(tmp_path, smi, monkeypatch):
    root = tpu(tmp_path / "container", "v6e", files=0)
    with pytest.raises(ValueError, match=r"has 0 tpu devices \(v6e\), which cannot be used: .*--privileged would do"):
        places(root=root, environ={"TPU_SKIP_MDS_QUERY": "1"})
    assert places(1, platform="cpu", root=root)[0].kind == "cpu"
    with pytest.raises(ValueError, match=r"--platform: cuda: this machine offers 0 tpu devices \(v6e\); leaving it"):
        places(platform="cuda", root=root, environ={"TPU_SKIP_MDS_QUERY": "1"})
    monkeypatch.setattr(found_by, "_plugin", lambda name: False)
    monkeypatch.setattr(found_by.importlib.util, "find_spec", lambda name: None)
    kfd = {"sys/class/kfd/kfd/topology/nodes/1/properties": "simd_count 304\ngfx_target_version 90010\n"}
    old = driver(tmp_path / "old", A, version="550.54")
    for root, extra in ((driver(tmp_path / "new", A), "cuda13"), (old, "cuda12"),
                        (put(tmp_path / "amd", kfd), "rocm"), (tpu(tmp_path / "google", "v5e"), "tpu")):
        with pytest.raises(ValueError, match=rf'pip install "jaxnano\[{extra}\]" would do, or --platform cpu'):
            places(root=root, environ={"TPU_SKIP_MDS_QUERY": "1"})


@pytest.mark.parametrize(("workers", "devices", "ids", "sharers"), [
    (None, 1, ["0", "1", "2", "3"], 1), (2, 1, ["0", "1"], 1), (None, 2, ["01", "23"], 1), (None, 3, ["012"], 1),
    (None, "host", ["0123"], 1), (1, 2, ["01"], 1), (8, 1, ["0", "1", "2", "3"] * 2, 2), (4, 2, ["01", "23"] * 2, 2),
    (5, 1, "1 to 4 would do, or 4 times 2 to 8", 0), (3, "host", ["0123"] * 3, 3), (999, 1, "workers: 999 asked", 0),
    (None, 5, "--devices-per-trial: 5: this machine offers 4 of 4 cuda devices .* 1, 2, 3, 4 would do", 0)])
def test_gpus_are_dealt_to_workers(tmp_path, smi, workers, devices, ids, sharers):
    smi(said("".join(f"GPU {i}: NVIDIA L4 (UUID: GPU-{i})\n" for i in range(4))))
    if isinstance(ids, str):
        with pytest.raises(ValueError, match=ids):
            places(workers, devices, root=tmp_path, environ={})
        return
    found = places(workers, devices, root=tmp_path, environ={})
    assert ["".join(one[4:] for one in place.ids) for place in found] == ids
    assert {place.sharers for place in found} == {sharers}
    cores = [core for place in found for core in place.cores]
    assert all(place.cores for place in found) and set(cores) == {0, 1, 2, 3, 4}
    assert len(cores) == max(5, len(found))  # each worker's own, while there are enough


@pytest.mark.parametrize("model", CHIPS)
def test_chips_are_dealt_in_boxes(tmp_path, model):
    root, chips, environ = tpu(tmp_path, model), CHIPS[model][1], {"TPU_SKIP_MDS_QUERY": "1"}
    for each in (1, 2, 4, 8):
        if each <= chips:
            boxes = [place.ids for place in places(None, each, root=root, environ=environ)]
            assert sum(boxes, ()) == tuple(map(str, range(chips))) and {len(box) for box in boxes} == {each}
    for wrong in (3, 5, 6, 7, 9):
        able = "1, 2, 4" + ", 8" * (chips == 8)
        with pytest.raises(ValueError, match=f"--devices-per-trial: {wrong}: .* {able} would do"):
            places(None, wrong, root=root, environ=environ)
    with pytest.raises(ValueError, match=f"1 to {chips} would do$"):  # no two on a chip
        places(2 * chips, root=root, environ=environ)
    some = places(root=root, environ=environ | {"TPU_VISIBLE_CHIPS": "2,3"})
    assert [place.ids for place in some] == [("2",), ("3",)] and all(place.part for place in some)
    (two,) = places(None, "host", root=root, environ=environ | {"TPU_VISIBLE_CHIPS": "2,3"})
    assert two.environment(7)["TPU_VISIBLE_CHIPS"] == "2,3"
    with pytest.raises(ValueError, match="TPU_VISIBLE_CHIPS: '9': names 9, which is not here"):
        places(root=root, environ=environ | {"TPU_VISIBLE_CHIPS": "9"})


ALONE = {"v3": "v3-8", "v4": "v4-8", "v5p": "v5p-8", "v5e": "v5litepod-8", "v6e": "v6e-8", "tpu7x": "tpu7x-8"}


@pytest.mark.parametrize(("model", "each"), [(m, k) for m in CHIPS for k in (1, 2, 4, 8) if k <= CHIPS[m][1]])
def test_what_a_process_on_chips_is_told(tmp_path, model, each):
    chips = CHIPS[model][1]
    for environ in ({"TPU_SKIP_MDS_QUERY": "1"}, {"TPU_WORKER_HOSTNAMES": "a,b"}):
        place = places(None, each, root=tpu(tmp_path, model), environ=environ)[-1]
        told, alone = place.environment(8476), "TPU_WORKER_HOSTNAMES" in environ
        assert told.pop("JAX_PLATFORMS") == "tpu"
        if alone:
            said = {name: told.pop(name) for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID",
                                                      "TPU_ACCELERATOR_TYPE")}
            assert said == {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
                            "TPU_ACCELERATOR_TYPE": re.sub(r"\d+$", lambda m: str(int(m[0]) * each // chips),
                                                           ALONE[model])}
        if each == chips and not alone:
            assert told == {}  # a whole VM: libtpu knows it
            continue
        assert {name for name, value in told.items() if value is None} == {
            "TPU_VISIBLE_DEVICES", "TPU_VISIBLE_DEVICE_PATHS", "TPU_CHIPS_PER_HOST_BOUNDS", "TPU_HOST_BOUNDS"}
        assert {name: value for name, value in told.items() if value is not None} == {
            "TPU_VISIBLE_CHIPS": ",".join(map(str, range(chips - each, chips))), "TPU_PROCESS_BOUNDS": "1,1,1",
            "TPU_CHIPS_PER_PROCESS_BOUNDS": {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}[each],
            "CLOUD_TPU_TASK_ID": "0", "TPU_PROCESS_PORT": "8476", "TPU_PROCESS_ADDRESSES": "localhost:8476"}
    assert BOUNDS.keys() == {1, 2, 4, 8}


def test_what_a_process_on_gpus_is_told():
    told = Place((0,), "cuda", (A, B)).environment(user={})
    assert told == {"JAX_PLATFORMS": "cuda", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": f"{A},{B}",
                    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "XLA_CLIENT_MEM_FRACTION": None} and GPU_SHARE == 0.92
    share = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    assert Place((0,), "cuda", (A,), sharers=2).environment(user={})[share] == "0.46"
    assert Place((0,), "cuda", (A,), sharers=2).environment(user={"XLA_CLIENT_MEM_FRACTION": "0.5"})[share] == "0.25"
    told = Place((0,), "rocm", ("4", "6")).environment(user={share: "0.7"})
    assert (told["JAX_PLATFORMS"], told["ROCR_VISIBLE_DEVICES"], told["HIP_VISIBLE_DEVICES"]) == ("rocm", "4,6", "0,1")
    assert told[share] == "0.7" and told["CUDA_VISIBLE_DEVICES"] is None
    assert MOST_SHARERS * 0.05 < GPU_SHARE


def test_hosts_of_a_slice_are_asked_of_the_metadata_server(tmp_path):
    with metadata("10.0.0.1,10.0.0.2") as server:
        (found,) = accelerators(tpu(tmp_path, "v5p"), {"GCE_METADATA_IP": server})
    assert found.hosts == 2
    assert accelerators(tmp_path, {"GCE_METADATA_IP": server})[0].hosts == 1  # nobody answers there any more


@contextmanager
def metadata(endpoints):
    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path.endswith("/worker-network-endpoints") and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(endpoints.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("localhost", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_virtual_devices_are_of_the_cpu_and_their_places_may_share_cores():
    found = places(8, 4, "virtual")
    assert [place.cores for place in found] == [(i % 5,) for i in range(8)] and not any(p.accelerated for p in found)
    told = {name: value for name, value in found[0].environment().items() if value is not None}
    assert told["XLA_FLAGS"].startswith(os.environ["XLA_FLAGS"].strip())  # what the user chose stays
    script = "import jax, json; print(json.dumps([jax.device_count(), jax.default_backend()]))"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | told, capture_output=True, text=True)
    assert json.loads(done.stdout) == [4, "cpu"], done.stderr


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_devices_are_counted_in_whole_numbers(capsys, text):
    import argparse

    parser = argparse.ArgumentParser()
    executors.add_options(parser)
    assert parser.parse_args(["--devices-per-trial", "host"]).devices_per_trial == "host"
    with pytest.raises(SystemExit):
        parser.parse_args(["--devices-per-trial", text])
    assert "is not a whole number of 1 or more" in capsys.readouterr().err


def test_a_slice_asks_for_an_executor_that_reaches_it(capsys):
    options = type("Options", (), {"executor": "local", "devices_per_trial": "slice", "platform": None})
    with pytest.raises(ValueError, match="--devices-per-trial: slice: .*--executor ray would reach the others"):
        executors.offer(options, None)
