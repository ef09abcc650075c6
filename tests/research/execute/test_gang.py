"""Gangs on a real cluster: two raylets on this machine, one process of four virtual devices on each."""

import os
import signal
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest
from executor_contract import wait_for, wait_until
from ray_nodes import FORKS, head
from stand_in import MICRO

from jaxnano import checkpoint, data, train
from jaxnano.config.base import dump
from research.contract.track import load_track
from research.execute import ExecutorError, trial
from research.execute.gang import SLICE, TOPOLOGY, gangs
from research.execute.node import RANK, Slot
from research.execute.ray import connect
from research.execute.trial import TARGET, WARM
from research.machine import process_identity

pytestmark = FORKS
STEPS = 25


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of four devices."""
    with head(4) as nodes:
        nodes.add_node(num_cpus=4)
        yield nodes


@pytest.fixture(scope="module")
def executor(cluster):
    offered = connect(cluster.address, devices="slice", platform="virtual")
    assert (offered.workers, offered.place.devices, offered.place.processes) == (1, 8, 2)
    with closing(offered.start(Path(), WARM)) as started:
        wait_for(started, "ready")
        yield started


@pytest.fixture(scope="module")
def args():
    recipe = load_track(MICRO).base_recipe
    return {"recipe": dump(recipe), "total_steps": STEPS, "seed": 3, "splits": {"search": 512},
            "data_hash": data.load(recipe.data).data_hash, "checkpoint": None}


def ranks(executor):
    """The members' processes."""
    found = [process.pid for process in psutil.process_iter(["cmdline"]) if "--join" in (process.info["cmdline"] or ())]
    assert len(found) == 2 and executor.pid(0) in found
    return set(found)


def trained(executor, tmp_path, args, key="trial"):
    folder = tmp_path / key / "checkpoint"
    executor.submit(0, {"id": key, "attempt": 1, "dir": str(tmp_path / key), "target": TARGET,
                        "args": args | {"checkpoint": str(folder)}})
    return wait_for(executor, "result", 0)[-1].body


def test_two_processes_of_four_devices_train_like_one_of_eight(executor, args, tmp_path):
    found = trained(executor, tmp_path, args)
    assert found["outcome"] == "completed", found
    whole = trial.run_job(args, lambda values: None, jax.devices()[:8])
    assert found["topology"]["processes"] == 2 and found["topology"]["devices"] == 8
    assert found["topology"]["mesh"] == whole["topology"]["mesh"]
    assert found["loss"]["search"] == pytest.approx(whole["loss"]["search"], abs=1e-5)
    assert found["curve"] == [[at, pytest.approx(loss, abs=1e-5)] for at, loss in whole["curve"]]
    assert (tmp_path / "trial/metrics.jsonl").read_text().count("\n") == 3, "one process's reports"
    again = trained(executor, tmp_path, args, "again")
    assert again["loss"] == found["loss"] and again["curve"] == found["curve"], "to the bit"

    recipe, params, about = checkpoint.load(tmp_path / "trial")
    train.fit(train.Training(recipe, STEPS, 3, tmp_path / "alone"))
    _, expected, _ = checkpoint.load(tmp_path / "alone")
    assert about["total_steps"] == STEPS and params.keys() == expected.keys()
    for name, x in params.items():
        np.testing.assert_allclose(x, expected[name], atol=1e-5, err_msg=name)


def test_all_stop_at_one_report(executor, job):
    """Were one process to go on, it would wait for the other for ever, and so would the next job."""
    for attempt in (1, 2):
        executor.submit(0, job("spin", attempt=attempt))
        wait_for(executor, "progress", 0)
        executor.cancel(0, "enough")
        stopped = wait_for(executor, "result", 0)[-1].body
        assert (stopped["outcome"], stopped["reason"], stopped["attempt"]) == ("killed", "enough", attempt)


def test_a_lost_process_takes_all_with_it_and_a_gang_comes_back(executor, job):
    executor.submit(0, job("hang"))
    wait_for(executor, "progress", 0)
    before = ranks(executor)
    (other,) = before - {executor.pid(0)}
    os.kill(other, signal.SIGKILL)
    died = wait_for(executor, "died", 0)[-1]
    assert (died.id, died.attempt, died.body["exit"], died.body["lost"]) == ("trial", 1, -signal.SIGKILL, True)
    assert "process 1 of 2: the process ended by signal 9" in died.body["reason"]
    wait_until(lambda: not any(map(process_identity, before)), "no process is left")
    assert not executor.present(0)

    wait_for(executor, "ready", 0)
    executor.submit(0, job("hang", attempt=2))
    wait_for(executor, "progress", 0)
    executor.kill(0)
    died = wait_for(executor, "died", 0)[-1]
    assert (died.id, died.attempt) == ("trial", 2) and "lost" not in died.body, "it was the loop's will"


def test_a_slice_is_asked_for_by_its_name(cluster, executor):
    """Two nodes that pose as hosts of one: that they have no chips is found out there, once both have their place."""
    executor.close()
    for rank in ("1", "0"):
        labels = {SLICE: "pod", TOPOLOGY: "2x2x2", RANK: rank}
        cluster.add_node(num_cpus=0, resources={"TPU": 4, "accelerator_type:TPU-V5P": 1}, labels=labels)
    offered = connect(cluster.address, devices="slice", platform="tpu")
    assert (offered.workers, offered.place.devices, offered.place.processes) == (1, 8, 2)
    with (closing(offered.start(Path(), warm=())) as posing,
          pytest.raises(ExecutorError, match="Ray offers a TPU on .*, but none can be found there")):
        wait_for(posing, "ready")


def host(kind, amount, name="", model="", topology=""):
    """A node as Ray tells of it."""
    labels = {SLICE: name, TOPOLOGY: topology} if name else {}
    models = {f"accelerator_type:{model}": 1.0} if model else {}
    return {"NodeID": f"{kind}{amount}", "Labels": labels,
            "Resources": {kind: amount, "CPU": 8.0, "memory": 4e9} | models}


@pytest.mark.parametrize(("nodes", "kind", "slots"), [
    ([host("TPU", 4.0, "a", "TPU-V5P", "2x2x2")] * 2 + [host("TPU", 4.0, "b", "TPU-V5P", "2x2x2")] * 2, "TPU",
     [Slot("TPU", 4.0, 4 * 10**9, "TPU-V5P", 4, 2, name) for name in "ab"]),
    ([host("TPU", 4.0, "a", "TPU-V5P", "2x2x2")] * 2 + [host("TPU", 4.0, "b", "TPU-V5P", "2x2x2")], "TPU",
     [Slot("TPU", 4.0, 4 * 10**9, "TPU-V5P", 4, 2, "a")]),
    ([host("TPU", 8.0)], "TPU", [Slot("TPU", 8.0, 4 * 10**9, "", 8, 1)]),
    ([host("GPU", 8.0, model="H100")] * 3 + [host("GPU", 4.0, model="A100"), host("CPU", 8.0)], "GPU",
     [Slot("GPU", 8.0, 4 * 10**9, "H100", 8, 3)]),
    ([host("CPU", 8.0)], "GPU", []),
])
def test_the_gangs_of_a_cluster(nodes, kind, slots):
    assert list(gangs(nodes, kind)) == slots


def test_what_a_member_asks_for_is_in_its_room():
    """Ray would wait for ever for what the placement group does not hold."""
    slot = Slot("GPU", 8.0, 0, "H100", 8, 2)
    assert slot.bundle == {"GPU": 8.0, "accelerator_type:H100": 0.001}
    assert slot.options == {"num_gpus": 8.0, "num_cpus": 0, "accelerator_type": "H100"}
