"""What a machine must have before a night is spent on it; each row that will not do says what would mend it."""

import argparse
import json
import os
import socket
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from jaxnano.cli import UserError, report_errors
from research import doctor, loop
from research.contract.track import load_track
from research.execute import ready
from research.ledger.registry import Registry

LOCAL = argparse.Namespace(executor="local", devices_per_trial=None, platform="cpu", workers=None)


def test_a_machine_that_will_do(tmp_path, capsys):
    assert report_errors(lambda: doctor.main(["--platform", "cpu", "--folder", str(tmp_path / "runs"), "--json"])) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"versions", "devices", "others", "data", "disk", "registry", "clock", "keys", "ray", "time"} == set(found)
    assert not [row for row in found.values() if row["mend"] and row["hard"]]
    assert " s a run" in found["time"]["found"] and " heldout" in found["data"]["found"]
    for columns in (80, 120):
        lines = doctor.told([ready.Row(**row) for row in found.values()], columns)
        whole = [line for line in lines if str(tmp_path) not in line]  # a path is not broken
        assert max(map(len, whole)) <= columns and lines[0].startswith("ok    versions  Python")


def test_data_that_is_not_there(tmp_path, capsys):
    track = load_track("laptop", [f"data.path={tmp_path / 'none'}"])
    row = ready.text(track)
    assert row.mend and "data.path=DIR" in row.mend and str(tmp_path / "none") in row.found
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text("one line, of a few words\n" * 30)
    assert "too few lines" in ready.text(track).found
    (tmp_path / "none" / "a.txt").write_text("\n".join(f"line {i} of a text that is small" for i in range(2000)))
    assert "a batch, would do" in ready.text(track).mend  # the splits are there, and too short to be evaluated on
    rng = np.random.default_rng(0)
    for i in range(100):  # what the row says would do, does
        lines = rng.choice(list("etaoin shrdlu"), (200, 60))
        (tmp_path / "none" / f"{i}.txt").write_text("\n".join(map("".join, lines)))
    assert not ready.text(track).mend


def test_a_disk_that_is_full(tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(ready.shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, 5 << 20))
    assert "5 MiB free" in ready.disk(tmp_path).found and "--session DIR" in ready.disk(tmp_path).mend
    assert report_errors(lambda: loop.run(loop.parse(["--session", str(tmp_path / "s"), "--platform", "cpu",
                                                      "--registry", str(tmp_path / "r.sqlite")]))) == 2
    assert "disk: " in capsys.readouterr().err and not (tmp_path / "s").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_disk_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    for row in (ready.disk(tmp_path / "runs"), ready.registry(tmp_path / "data" / "r.sqlite")):
        assert "not yours to write to" in row.found and f"chmod u+w {tmp_path}" in row.mend
    tmp_path.chmod(0o700)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_a_disk_that_cannot_be_written(capsys):
    """/proc takes no file, whoever asks."""
    there = Path("/proc/runs")
    assert ready.disk(there).mend == "research.loop --session DIR on another disk"
    assert ready.registry(there / "r.sqlite").mend == "--registry FILE elsewhere"
    assert report_errors(lambda: loop.run(loop.parse(["--registry", str(there / "r.sqlite")]))) == 2
    assert "registry: /proc: " in capsys.readouterr().err


def test_a_registry_is_opened_where_it_is_there(tmp_path):
    path = tmp_path / "r.sqlite"
    assert "will be made" in ready.registry(path).found and not path.exists()
    with Registry(path) as made:
        assert made.name in ready.registry(path).found
    path.write_text("no database")
    assert "not a database" in ready.registry(path).found and "--registry FILE" in ready.registry(path).mend


def test_a_clock_that_is_wrong(tmp_path, monkeypatch):
    assert not ready.clock(tmp_path).mend
    monkeypatch.setattr(ready.time, "time", lambda: 0.0)
    assert ready.clock(tmp_path).hard and "set-ntp" in ready.clock(tmp_path).mend


def test_keys_are_named_and_never_shown(monkeypatch):
    for name in ready.KEYS:
        monkeypatch.delenv(name, raising=False)
    assert "none set" in ready.keys().found
    monkeypatch.setenv("GEMINI_API_KEY", "abc123secret")
    assert "GEMINI_API_KEY" in ready.keys().found and "secret" not in ready.keys().found


def test_a_model_that_is_not_there(monkeypatch):
    asked = doctor.PARSER.parse_args(["--lanes", "llm"])
    for name in ready.KEYS:
        monkeypatch.delenv(name, raising=False)
    assert "OPENAI_BASE_URL" in doctor.model(asked).mend
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}/v1")
        assert doctor.model(asked).mend.startswith("the name of a model")
        asked.llm_model = "small"
        assert doctor.model(asked).mend.startswith("start that server")
        server.listen()
        assert not doctor.model(asked).mend


def test_a_port_and_a_cluster_that_are_taken_or_gone(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert doctor.port(number).mend
        asked = argparse.Namespace(executor="ray", ray_address=f"127.0.0.1:{number}")
        assert "answers" in ready.ray(asked).found
    assert not doctor.port(number).mend and f"ray start --head --port={number}" in ready.ray(asked).mend
    assert ready.ray(argparse.Namespace(executor="ray", ray_address="nowhere")).mend
    assert report_errors(lambda: doctor.main(["--port", "99999", "--platform", "cpu"])) == 2


def test_devices_that_are_not_there():
    row = ready.places(load_track("tiny"), argparse.Namespace(**vars(LOCAL) | {"platform": "cuda"}))
    assert row.mend and "--platform: cuda" in row.found
    with pytest.raises(UserError, match="devices: --platform: cuda"):
        ready.refuse([row, ready.keys()])
