"""The command research.ideas: once as a process, then as a function."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxnano.cli import report_errors
from research import ideas as command

ROOT = Path(__file__).parents[2]
MICRO = str(ROOT / "tests/research/micro-base.yaml")


def test_an_idea_is_trained_and_everything_is_told():
    argv = [sys.executable, "-m", "research.ideas", "--json", "--check", "rmsnorm", "--steps", "11"]
    found = json.loads(subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert len(found["techniques"]) == 133 and all(bool(t["ideas"]) != bool(t["missing"]) for t in found["techniques"])
    assert {idea["state"] for idea in found["ideas"].values()} >= {"applies", "held", "frozen"}
    assert [name for name, idea in found["ideas"].items() if "loss" in idea] == ["rmsnorm"]
    idea = found["ideas"]["rmsnorm"]
    assert 2.0 < idea["loss"] < 5.5 and idea["seconds"] > 0 and idea["failure"] == ""
    assert found["checked"] | {"seconds": 0} == {"steps": 11, "trained": 1, "failed": [], "techniques": 1, "seconds": 0}
    assert not found["trained_at"]["shrunk"]


@pytest.fixture
def told(capsys, monkeypatch):
    """What the command prints in this process, whose environment and folder it gets back."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.chdir(ROOT)

    def run(*options: str, code: int = 0) -> tuple[str, str]:
        assert report_errors(lambda: command.main(list(options))) == code
        return capsys.readouterr()

    return run


def test_a_technique_trains_its_ideas_on_a_base_that_is_shrunk(told):
    lines = told("--base", "configs/track3-124m.yaml", "--check", "qk_norm", "--steps", "3")[0].splitlines()
    (at,) = [line for line in lines if line.startswith("a step of the base is large, so it is shrunk: ")]
    assert "data.length 64, data.batch 8, model.width 96" in at
    assert any(line.startswith("  qk-norm: loss ") for line in lines)
    assert lines[-1].startswith("1 trained for 3 steps") and "0 failed" in lines[-1]


def test_what_diverges_is_told_and_is_the_exit_code(tmp_path, told):
    base, calm = tmp_path / "wild.yaml", "[{kind: adam, b1: 0.9, b2: 0.95}]"
    assert calm in (text := Path(MICRO).read_text())
    base.write_text(text.replace(calm, "[{name: wild, code: g * exp(30) ** 4}]"))
    lines = told("--base", str(base), "--check", "rmsnorm", "--steps", "3", code=1)[0].splitlines()
    assert any(line.startswith("  rmsnorm: FAILED: not finite") for line in lines)
    assert "1 failed: rmsnorm" in lines[-1]


@pytest.mark.parametrize(("options", "words"), [
    (("--check", "no-such-idea"), "no-such-idea: no such idea or technique; all would do"),
    (("--check", "max_seq_len_schedule"), "max_seq_len_schedule: no idea says it: "),
    (("--base", "nowhere.yaml"), "nowhere.yaml"),
])
def test_a_mistake_is_one_line(told, options, words):
    out, err = told(*options, code=2)
    assert err.count("\n") == 1 and words in err and out == ""
