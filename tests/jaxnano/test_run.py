"""The training command: its files, how it stops, and that it goes on where it was stopped, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxnano import step, train
from jaxnano.checkpoint import FOLDER
from jaxnano.cli import Failure, report_errors
from jaxnano.config.file import load, save
from jaxnano.device import peak_flops
from tests.jaxnano import events
from tests.jaxnano.processes import ALONE
from tests.jaxnano.recipes import TINY, edited

RECIPE = edited(TINY, {"data.batch": 16, "model.depth": 1})
STEPS = 40
# Dies of SIGKILL in the journal of step 50: the save at 20 is complete, the one at 40 under way.
KILLED = """
import os, signal, sys
from jaxnano import train
write = train.Journal.write
def dying(self, rows):
    write(self, rows)
    if rows[-1]["step"] >= 50:
        os.kill(os.getpid(), signal.SIGKILL)
train.Journal.write = dying
train.main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's own compilations stay out of the user's cache."""
    monkeypatch.setattr(train, "use_compile_cache", lambda: None)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    save(RECIPE, path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[train.Training, dict[str, Any]]:
    """A run from end to end in this process."""
    job = train.Training(RECIPE, STEPS, out=tmp_path_factory.mktemp("whole"), eval_every=20, save_every=20)
    return job, train.fit(job)


def rows(folder: Path | None, key: str = "loss") -> list[Any]:
    assert folder is not None
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[key]) for row in found if key in row]


def start(arguments: list[str], script: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process with one thread and one device."""
    command = [sys.executable, *(["-c", script] if script else ["-m", "jaxnano.train"]), *arguments]
    return subprocess.run(command, env=os.environ | ALONE, capture_output=True, text=True, check=False)


def test_train_kill_resume_is_train_bit_for_bit(config: Path, tmp_path: Path) -> None:
    every = ["--save-every", "20", "--eval-every", "20"]
    common = ["--config", str(config), "--steps", "60", "--seed", "3", *every]
    one, two = tmp_path / "one", tmp_path / "two"
    assert start([*common, "--out", str(one)]).returncode == 0
    assert start([*common, "--out", str(two), "--tensorboard"], KILLED).returncode == -signal.SIGKILL
    assert rows(two)[-1][0] == 50
    resumed = start(["--out", str(two), "--resume", *every, "--json", "--tensorboard"])
    assert resumed.returncode == 0, resumed.stderr
    assert rows(two) == rows(one) and len(rows(two)) == 60
    assert rows(two, "search_loss") == rows(one, "search_loss") and len(rows(two, "search_loss")) == 3
    assert json.loads(resumed.stdout)["search_loss"] == rows(one, "search_loss")[-1][1]
    lines, curves = events.rows(two), events.scalars(events.read_events(two))
    assert curves == {tag: events.of(tag, lines) for tag in ("loss", "search_loss", "tokens_per_s")}


def test_a_run_writes_recipe_metrics_and_checkpoint(whole: Any) -> None:
    job, summary = whole
    assert load(job.out / "recipe.yaml") == RECIPE
    assert [step for step, _ in rows(job.out)] == list(range(1, STEPS + 1))
    assert [step for step, _ in rows(job.out, "search_loss")] == [20, 40]
    assert summary["search_loss"] == rows(job.out, "search_loss")[-1][1] < rows(job.out)[0][1]
    assert summary["steps"] == STEPS and summary["stopped_by"] is None and summary["tokens_per_s"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_and_resume_goes_on(
    number: int, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, write, before = train.Training(RECIPE, STEPS, out=tmp_path), train.Journal.write, signal.getsignal(number)

    def interrupted(self: train.Journal, lines: list[dict[str, Any]]) -> None:
        write(self, lines)
        if lines[-1]["step"] == 10:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(train.Journal, "write", interrupted)
        first = train.fit(job)
    assert first["stopped_by"] == number and 10 < first["steps"] < STEPS
    assert signal.getsignal(number) == before
    last = train.fit(job, resume=True)
    assert last["steps"] == STEPS
    np.testing.assert_allclose(np.array(rows(tmp_path)), np.array(rows(whole[0].out)), rtol=1e-5)


def test_a_finished_run_resumes_to_its_result(whole: Any) -> None:
    job, summary = whole
    again = train.fit(job, resume=True)
    assert again["steps"] == STEPS and again["search_loss"] == pytest.approx(summary["search_loss"], rel=1e-6)
    assert len(rows(job.out)) == STEPS


def test_a_journal_forgets_what_came_after_the_checkpoint_and_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0, "elapsed_s": step / 2}) for step in range(1, 6)]
    path.write_text("\n".join([*lines, '{"step": 6, "lo']))
    journal = train.Journal(tmp_path, 4)
    journal.write([{"step": 5, "loss": 2.0, "elapsed_s": 9.0}])
    journal.close()
    assert journal.elapsed_s == 2.0 and rows(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0)]


def test_divergence_is_one_line_and_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    losses = np.array([3.0, 2.9, np.nan, np.nan])
    with pytest.raises(Failure, match="loss: nan at step 39 of 60"):
        train._check(losses, 40, 60)
    assert report_errors(lambda: train._check(losses, 40, 60) or 0) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_that_diverges_closes_its_files_and_keeps_what_it_saved(
        whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    class Journal(train.Journal):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            opened.append(self)

    class Checkpoints(train.Checkpoints):
        closed = False

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            opened.append(self)

        def close(self) -> None:
            super().close()
            self.closed = True

    def check(losses: np.ndarray, step: int, steps: int) -> None:
        if step > 20:
            raise Failure("loss: nan")

    for name, stand_in in (("Journal", Journal), ("Checkpoints", Checkpoints), ("_check", check)):
        monkeypatch.setattr(train, name, stand_in)
    with pytest.raises(Failure, match="loss: nan"):
        train.fit(train.Training(RECIPE, STEPS, out=tmp_path, save_every=20))
    checkpoints, journal = opened
    assert checkpoints.closed and journal._curves._file.closed
    assert (tmp_path / FOLDER / "20" / "_CHECKPOINT_METADATA").is_file() and rows(tmp_path)[-1][0] == 20


def test_evaluations_and_saves_fall_on_calls() -> None:
    job = train.Training(RECIPE, 100, eval_every=15, save_every=40)
    ends = range(step.STEPS_PER_CALL, 101, step.STEPS_PER_CALL)
    assert [step for step in ends if job.evaluates(step)] == [20, 30, 50, 60, 80, 90, 100]
    assert [step for step in ends if job.pauses(step)] == [20, 30, 40, 50, 60, 80, 90, 100]
    assert not any(train.Training(RECIPE, 100).pauses(step) for step in ends if step < 100)


@pytest.mark.parametrize(("arguments", "reason"), [
    ([], "--config: missing"), (["--resume"], "--resume: without a folder"),
    (["--config", "CONFIG", "--tensorboard"], "--tensorboard: without a folder"),
    (["--config", "nowhere.yaml"], "cannot be read"), (["--config", "CONFIG", "--mesh", "data=5"], "mesh: data=5"),
    (["--config", "CONFIG", "--set", "train.dtype=float7"], "train.dtype"),
    (["--config", "CONFIG", "--out", "WHOLE", "--steps", "40"], "--resume goes on"),
    (["--config", "CONFIG", "--out", "WHOLE", "--steps", "50", "--resume"], "made with 40"),
    (["--config", "CONFIG", "--set", "data={kind: shards}", "--set", "model.vocab=50257"], ""),
])
def test_a_users_mistake_is_one_line_and_code_2(
    arguments: list[str], reason: str, config: Path, whole: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [{"CONFIG": str(config), "WHOLE": str(whole[0].out)}.get(a, a) for a in arguments]
    if "WHOLE" in arguments:
        given += ["--mesh", "data=8"]
    assert report_errors(lambda: train.main(given)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and reason in error


def test_the_folder_in_use_holds_no_files_but_ours(whole: Any) -> None:
    assert sorted(path.name for path in whole[0].out.iterdir()) == [FOLDER, "metrics.jsonl", "recipe.yaml"]


def test_mfu_is_known_for_the_chips_we_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("TPU v6 lite") == 918e12 and peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == peak_flops("TPU v5") == 459e12 and peak_flops("cpu") is None
    recipe = load(Path(__file__).parents[2] / "configs" / "track3-124m.yaml")
    assert train.Stopwatch(train.Training(recipe, 1)).mfu(488e3) is None  # no peak is known for a CPU
    monkeypatch.setattr(train, "peak_flops", lambda kind: 989e12 / 8)  # eight virtual devices
    assert train.Stopwatch(train.Training(recipe, 1)).mfu(488e3) == pytest.approx(0.42, abs=0.005)
