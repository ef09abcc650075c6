"""What a machine must have before a night is spent on it; each row that will not do says what would mend it."""

import argparse
import json
import os
import socket
from collections import namedtuple

import numpy as np
import pytest

from jaxnano.cli import UserError, report_errors
from research import doctor, loop
from research.contract.track import load_track
from research.execute import ready

LOCAL = argparse.Namespace(executor="local", devices_per_trial=None, platform="cpu", workers=None)


def test_a_machine_that_will_do(tmp_path, capsys):
    assert report_errors(lambda: doctor.main(["--platform", "cpu", "--folder", str(tmp_path / "runs"), "--json"])) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"versions", "devices", "others", "data", "disk", "clock", "keys", "ray", "time"} == set(found)
    assert not [row for row in found.values() if row["mend"] and row["hard"]]
    assert "minutes a run" in found["time"]["found"] and " heldout" in found["data"]["found"]


def test_data_that_is_not_there(tmp_path, capsys):
    track = load_track("laptop", [f"data.path={tmp_path / 'none'}"])
    row = ready.text(track)
    assert row.mend and "data.path=DIR" in row.mend and str(tmp_path / "none") in row.found
    (tmp_path / "none").mkdir()
    rng = np.random.default_rng(0)
    for i in range(100):  # what the row says would do, does
        lines = rng.choice(list("etaoin shrdlu"), (200, 60))
        (tmp_path / "none" / f"{i}.txt").write_text("\n".join(map("".join, lines)))
    assert not ready.text(track).mend


def test_a_disk_that_is_full(tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(ready.shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, 5 << 20))
    assert "0.0 GiB free" in ready.disk(tmp_path).found and "--session DIR" in ready.disk(tmp_path).mend
    assert report_errors(lambda: loop.run(loop.parse(["--session", str(tmp_path / "s"), "--platform", "cpu",
                                                      "--registry", str(tmp_path / "r.sqlite")]))) == 2
    assert "disk: " in capsys.readouterr().err and not (tmp_path / "s").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_disk_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    assert "not writable" in ready.disk(tmp_path / "runs").found
    tmp_path.chmod(0o700)


def test_a_clock_that_is_wrong(tmp_path, monkeypatch):
    assert not ready.clock(tmp_path).mend
    monkeypatch.setattr(ready.time, "time", lambda: 0.0)
    assert ready.clock(tmp_path).hard and "set-ntp" in ready.clock(tmp_path).mend


def test_keys_are_named_and_never_shown(monkeypatch):
    for name in (name for names in ready.KEYS.values() for name in names):
        monkeypatch.delenv(name, raising=False)
    assert "none set" in ready.keys().found
    monkeypatch.setenv("GEMINI_API_KEY", "abc123secret")
    assert "GEMINI_API_KEY" in ready.keys().found and "secret" not in ready.keys().found


def test_a_port_and_a_cluster_that_are_taken_or_gone(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert doctor.port(number).mend
        asked = argparse.Namespace(executor="ray", ray_address=f"127.0.0.1:{number}")
        assert "answers" in ready.ray(asked).found
    assert not doctor.port(number).mend and "ray start --head" in ready.ray(asked).mend
    assert report_errors(lambda: doctor.main(["--port", "99999", "--platform", "cpu"])) == 2


def test_devices_that_are_not_there():
    row = ready.places(load_track("tiny"), argparse.Namespace(**vars(LOCAL) | {"platform": "cuda"}))
    assert row.mend and "--platform: cuda" in row.found
    with pytest.raises(UserError, match="devices: --platform: cuda"):
        ready.refuse([row, ready.keys()])
