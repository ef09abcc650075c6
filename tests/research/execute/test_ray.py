"""A real cluster of two nodes on this machine: two raylets, each with its own workers, of which one gets killed."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from executor_contract import ExecutorContract, wait_for, wait_until
from ray_nodes import FORKS, HERE, head
from stand_in import MICRO

from jaxnano import data
from jaxnano.cli import Failure, report_errors
from jaxnano.curves import EVENTS
from research import loop, machine
from research.contract.track import load_track
from research.decide.claims import violations
from research.decide.scheduler import Scheduler
from research.execute import ExecutorError
from research.execute.node import Slot
from research.execute.ray import connect, offered, placed
from research.execute.trial import WARM
from research.lanes import lanes as known_lanes
from research.lanes import lanes_of
from research.ledger.session import Session, read_result
from research.machine import ROOT, process_identity
from research.machine.accelerators import Accelerators
from tests.jaxnano import events

pytestmark = FORKS
TRIALS, BEFORE = 12, 3  # in all, and before the loss of a node


@pytest.fixture(scope="module")
def cluster():
    """A node of two slots."""
    with head(2) as nodes:
        yield nodes


@pytest.fixture
def executor(cluster):
    with closing(connect(cluster.address).start(Path(), warm=(), tensorboard=True)) as started:
        yield started


class TestRay(ExecutorContract):
    """On the cluster."""


def test_a_job_comes_back_with_its_files(executor, job, tmp_path):
    executor.submit(0, job("leave_files", folder=str(tmp_path / "trial" / "checkpoint"), loss=2.5))
    messages = wait_for(executor, "result", 0)
    assert [m.kind for m in messages] == ["ready", "progress", "result"]
    result = messages[-1].body
    assert (result["outcome"], result["attempt"], result["loss"]) == ("completed", 1, {"search": 2.5})
    assert read_result(tmp_path / "trial", 1) == result
    assert not result["here"].startswith(str(tmp_path)), "the job should have run in a folder of its node"
    files = {p.relative_to(tmp_path / "trial").as_posix() for p in (tmp_path / "trial").rglob("*") if p.is_file()}
    files = {path for path in files if not path.startswith(EVENTS)}
    assert files == {"metrics.jsonl", "log.txt", "result.json", "checkpoint/deep/weights", "checkpoint/empty"}
    assert events.scalars(events.read_events(tmp_path / "trial")) == {"final_loss/search": [(1, 2.5)]}
    assert (tmp_path / "trial/checkpoint/deep/weights").read_bytes() == bytes(range(256)) * result["repeats"]
    assert json.loads((tmp_path / "trial/metrics.jsonl").read_text()) == {"step": 1, "loss": None}
    assert "left something" in (tmp_path / "trial/log.txt").read_text()


def test_a_worker_is_single_threaded_and_on_one_core(executor, job):
    pinned = []
    for worker in (0, 1):
        executor.submit(worker, job("answer", key=f"job-{worker}", loss=1.0))
        result = wait_for(executor, "result", worker)[-1].body
        assert "device_count=1 --xla_cpu_multi_thread_eigen=false" in result["xla_flags"]
        assert result["pid"] == executor.pid(worker)
        pinned.append(result["cores"])
    if hasattr(os, "sched_setaffinity"):
        assert all(len(cores) == 1 and set(cores) <= set(machine.cores()) for cores in pinned)


def ancestors(pid):
    return {process.pid for process in psutil.Process(pid).parents()}


def all_present(executor):
    """Wait until each worker is."""
    while not all(map(executor.present, range(executor.workers))):
        executor.poll(0.5)


def outcomes(events):
    """Results of search runs, but for those of attempts that were interrupted."""
    searched = {e.subject for e in events if e.kind == "decision" and e.body.purpose in ("search", "base")}
    return [e for e in events
            if e.kind == "result" and e.subject in searched and e.body.outcome != "interrupted"]


def test_twelve_trials_and_the_loss_of_a_node(cluster, tmp_path, monkeypatch):
    """Real training, the real scheduler; a node is lost early on with a trial that its stopped worker never began."""
    doomed = cluster.add_node(num_cpus=1)
    raylet = doomed.all_processes["raylet"][0].process.pid
    track = load_track(MICRO)
    executor = connect(cluster.address, workers=9).start(tmp_path, WARM)
    assert executor.workers == 3
    all_present(executor)
    submit, ended, held, removed = executor.submit, [], [], []

    def submit_or_stop(worker, job):
        if len(ended) >= BEFORE and not held and raylet in ancestors(executor.pid(worker)):
            os.kill(executor.pid(worker), signal.SIGSTOP)
            held.append(job["id"])
        submit(worker, job)

    def step(scheduler):
        ended[:] = [e.subject for e in outcomes(scheduler.session.ledger.events())]
        if held and not removed:
            removed.append(cluster.remove_node(doomed, allow_graceful=False))
        if len(ended) >= TRIALS:
            scheduler.stop()

    monkeypatch.setattr(executor, "submit", submit_or_stop)
    with Session.create(tmp_path / "session") as session, closing(executor):
        session.ledger.append("session", "", {
            "track": track.name, "track_hash": track.identity, "seed": 0, "workers": 3, "lanes": ["tuner"],
            "data_hash": data.load(track.base_recipe.data).data_hash})
        lanes = lanes_of(["tuner"], known_lanes())
        Scheduler(session, track, executor, lanes, budget_s=600.0, max_trials=TRIALS, on_change=step).run()
        assert not list(violations(session.ledger, session.path))
        assert len(ended) == TRIALS == len(set(ended))
        lost = {e.subject for e in session.ledger.events("result") if e.body.lost}
        assert held and set(held) <= lost <= set(ended), "what was lost was run once more"


def test_a_lost_slot_waits_for_room_and_comes_back(cluster, job, tmp_path):
    doomed = cluster.add_node(num_cpus=1)
    raylet = doomed.all_processes["raylet"][0].process.pid
    with closing(connect(cluster.address, workers=3).start(tmp_path, warm=())) as executor:
        all_present(executor)
        (there,) = [worker for worker in range(3) if raylet in ancestors(executor.pid(worker))]
        executor.submit(there, job("hang"))
        wait_for(executor, "progress", there)
        cluster.remove_node(doomed, allow_graceful=False)
        died = wait_for(executor, "died", there)[-1]
        assert (died.id, died.attempt, died.body["exit"], died.body["lost"]) == ("trial", 1, -signal.SIGKILL, True)
        assert [executor.present(worker) for worker in range(3)] == [worker != there for worker in range(3)]
        cluster.add_node(num_cpus=1)
        wait_for(executor, "ready", there)
        executor.submit(there, job("answer", attempt=2, loss=1.0))
        assert wait_for(executor, "result", there)[-1].body["attempt"] == 2


def test_no_worker_outlives_a_killed_loop(cluster, tmp_path):
    path = os.pathsep.join([str(ROOT), str(HERE)])
    command = [sys.executable, str(HERE / "loop_process.py"), str(tmp_path / "session"), cluster.address]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True) as loop:
        workers = json.loads(loop.stdout.readline())
        assert all(process_identity(pid) for pid in workers)
        loop.kill()
    wait_until(lambda: not any(map(process_identity, workers)), "workers of the killed loop are gone")


def test_a_node_of_another_version_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(machine, "code_hash", lambda: "0" * 16)
    with (closing(connect(cluster.address).start(Path(), warm=())) as executor,
          pytest.raises(ExecutorError, match="the same version on all nodes would do")):
        wait_for(executor, "ready")


def test_a_worker_that_cannot_start_is_reported(cluster):
    with (closing(connect(cluster.address).start(Path(), warm=("no_such_module",))) as executor,
          pytest.raises(ExecutorError, match="No module named 'no_such_module'")):
        wait_for(executor, "ready")


@pytest.mark.parametrize(("nodes", "kinds"), [
    ([{"CPU": 2.0, "memory": 4e9}, {"CPU": 3.5, "memory": 9e9}], [("CPU", 1.0, 2e9)] * 2 + [("CPU", 1.0, 3e9)] * 3),
    ([{"CPU": 8.0, "GPU": 2.0, "memory": 4e9}, {"CPU": 8.0}], [("GPU", 1.0, 2e9)] * 2),
    ([{"CPU": 8.0, "TPU": 4.0, "memory": 4e9}] * 2, [("TPU", 1.0, 1e9)] * 8),
    ([{"CPU": 0.5}, {}], []),
])
def test_what_a_cluster_offers(nodes, kinds):
    found = offered([{"Resources": node} for node in nodes])
    assert [(slot.kind, slot.amount, slot.share_bytes) for slot in found] == kinds


@pytest.mark.parametrize(("devices", "platform", "slots"), [
    (1, None, [("GPU", "H100", 1)] * 8), (2, "cuda", [("GPU", "H100", 2)] * 4),
    ("host", None, [("GPU", "H100", 4)] * 2), (8, None, []),
    (1, "cpu", [("CPU", "", 1)] * 16), (4, "virtual", [("CPU", "", 4)] * 16), (4, "tpu", [])])
def test_a_cluster_s_workers_are_alike(devices, platform, slots):
    """Results of two models are not compared: the one that makes more workers counts."""
    node = {"CPU": 4.0, "memory": 8e9}
    nodes = [node | {"GPU": 4.0, "accelerator_type:H100": 1.0}, node | {"GPU": 3.0, "accelerator_type:A100": 1.0},
             node | {"GPU": 4.0, "accelerator_type:H100": 1.0}, node]
    found = list(offered([{"Resources": node} for node in nodes], devices=devices, platform=platform))
    assert [(slot.kind, slot.model, slot.devices) for slot in found] == slots
    assert all(slot.options.get("accelerator_type") == (slot.model or None) for slot in found)


@pytest.mark.parametrize(("slot", "here", "platform", "place"), [
    (Slot("GPU", 1.0, 0, "A100"), ("cuda", "NVIDIA A100-SXM4-40GB"), None, ("cuda", "NVIDIA A100-SXM4-40GB", 1)),
    (Slot("GPU", 2.0, 0, "AMD-Instinct-MI300X-OAM", 2), ("rocm", "gfx942"), None, ("rocm", "gfx942", 2)),
    (Slot("TPU", 4.0, 0, "TPU-V6E", 4), ("tpu", "v6e"), None, ("tpu", "v6e", 4)),
    (Slot("GPU", 1.0, 0, "AMD-Instinct-MI300X-OAM"), None, None, ("rocm", "AMD-Instinct-MI300X-OAM", 1)),
    (Slot("GPU", 1.0, 0, "A100", 1, 3), None, None, ("cuda", "A100", 3)),
    (Slot("TPU", 1.0, 0, ""), None, None, ("tpu", "", 1)),
    (Slot("CPU", 1.0, 0), ("cuda", "L4"), None, ("cpu", "", 1)), (Slot("CPU", 1.0, 0, "", 4), None, "virtual", (
        "virtual", "", 4))])
def test_a_ray_of_this_machine_s_own_calls_its_devices_as_the_local_executor_does(slot, here, platform, place):
    there = here and Accelerators(*here, ids=("0",), total=1)
    found = placed(slot, there, platform)
    assert (found.kind, found.model, found.devices) == place


def test_what_a_cpu_is_not():
    with pytest.raises(ValueError, match="--devices-per-trial: 2: a worker on a CPU has one device"):
        list(offered([{"Resources": {"CPU": 4.0}}], devices=2))


def test_a_worker_may_be_half_a_core():
    half = offered([{"Resources": {"CPU": 1.0, "memory": 4e9}}], cpus=0.5)
    assert [slot.options for slot in half] == [{"num_cpus": 0.5}] * 2


@pytest.mark.parametrize(("argv", "words"), [
    (("--executor", "ray", "--ray-address", "nonsense"), "--ray-address: nonsense: no HOST:PORT"),
    (("--executor", "ray", "--ray-address", "ray://a:1"), "that of the cluster's head, or auto, would do"),
    (("--ray-address", "auto"), "--executor ray would use it"),
    (("--executor", "ray", "--ray-cpus", "0"), "--ray-cpus: 0.0: above 0"),
])
def test_bad_options_are_one_line(capsys, argv, words):
    assert report_errors(lambda: loop.run(loop.parse(list(argv)))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err


def test_nobody_at_the_address_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, but nobody listens
        with pytest.raises(Failure, match="no Ray answers there"):
            connect(f"127.0.0.1:{free.getsockname()[1]}")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'pip install "jaxnano\[ray\]" would do'):
        connect()
