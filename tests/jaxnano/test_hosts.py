"""Real processes that train together: the loss of one process, and how they end when one is killed or asked to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxnano import hosts, train
from jaxnano.cli import report_errors
from jaxnano.config.file import save
from tests.jaxnano.processes import ALONE
from tests.jaxnano.recipes import TINY, edited

RECIPE = edited(TINY, {"data.batch": 8, "model.depth": 1})
DEADLINE_S = 300
# Sends itself signal number argv[1] once step argv[2] is in the journal.
SIGNALLED = """
import os, sys
from jaxnano import cli, train
number, last, write = int(sys.argv[1]), int(sys.argv[2]), train.Journal.write
def signalled(self, rows):
    global last
    write(self, rows)
    if rows[-1]["step"] >= last:
        last = float("inf")
        os.kill(os.getpid(), number)
train.Journal.write = signalled
raise SystemExit(cli.report_errors(lambda: train.main(sys.argv[3:])))
"""


def launch(folder: Path, steps: int, number: int = 0, at_step: int = 0,
           save_every: int = 20) -> list[tuple[int, str, str]]:
    """Two processes of one device each; the second gets a signal if `number` is one. Returns: code, stdout, stderr."""
    save(RECIPE, folder / "small.yaml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = ["--config", str(folder / "small.yaml"), "--steps", str(steps), "--seed", "3",
              "--save-every", str(save_every), "--out", str(folder / "run"), "--resume", "--json",
              "--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process"]
    started = []
    for process in range(2):
        script = ["-c", SIGNALLED, str(number), str(at_step)] if process and number else ["-m", "jaxnano.train"]
        started.append(subprocess.Popen([sys.executable, *script, *common, str(process)], env=os.environ | ALONE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=DEADLINE_S) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


def losses(folder: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row.get("loss", row.get(f"{train.SPLIT}_loss"))) for row in rows]


def test_two_processes_outlive_a_kill_and_train_to_the_loss_of_one(tmp_path: Path) -> None:
    (left, _, said), (killed, _, last_word) = launch(tmp_path, 60, signal.SIGKILL, 30)
    assert killed == -signal.SIGKILL and left != 0
    assert hosts.LOST in said.splitlines()[-1] and hosts.LOST in last_word
    assert max(step for step, _ in losses(tmp_path / "run")) < 60

    resumed = launch(tmp_path, 60)
    assert [code for code, _, _ in resumed] == [0, 0], resumed
    summary = json.loads(resumed[0][1])  # the first process speaks for all
    assert summary["steps"] == 60 and resumed[1][1] == ""

    alone = train.fit(train.Training(RECIPE, 60, 3, tmp_path / "alone"))
    assert losses(tmp_path / "run") == [(step, pytest.approx(loss, abs=1e-5)) for step, loss in
                                        losses(tmp_path / "alone")]
    assert summary["search_loss"] == pytest.approx(alone["search_loss"], abs=1e-5)
    assert losses(tmp_path / "alone")[0][1] - alone["search_loss"] > 0.5


def test_a_signal_to_one_process_stops_all_after_the_same_call(tmp_path: Path) -> None:
    ended = launch(tmp_path, 20_000, signal.SIGTERM, 10, save_every=20_000)
    assert [code for code, _, _ in ended] == [128 + signal.SIGTERM] * 2, ended
    steps = json.loads(ended[0][1])["steps"]
    assert 10 < steps < 20_000 and losses(tmp_path / "run")[-1][0] == steps
    assert (tmp_path / "run" / "checkpoint" / str(steps)).is_dir()


@pytest.mark.parametrize(("options", "reason"), [
    (["--coordinator", "127.0.0.1:80"], "one without the others"),
    (["--processes", "2", "--process", "0"], "one without the others"),
    (["--coordinator", "here", "--processes", "2", "--process", "0"], "'here' is no HOST:PORT"),
    (["--coordinator", "h:99999", "--processes", "2", "--process", "0"], "'h:99999' is no HOST:PORT"),
    (["--coordinator", "h:80", "--processes", "2", "--process", "2"], "2 of 2; 0 to 1 would do"),
    (["--coordinator", "h:80", "--processes", "2", "--process", "-1"], "-1 of 2"),
    (["--distributed", "--processes", "2"], "finds the others by itself"),
])
def test_options_that_do_not_fit_are_one_line_and_code_2(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_errors(lambda: train.main(options)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and reason in error
