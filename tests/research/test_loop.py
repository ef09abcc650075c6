"""A real session on the smallest track, stopped by Ctrl-C and resumed, from the first run to the report."""

import itertools
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from sessions import forge
from sitting import created, drive
from stand_in import MICRO

from jaxnano import checkpoint, data, evaluate
from jaxnano.cli import report_errors
from jaxnano.config.edit import diff
from jaxnano.config.file import load
from jaxnano.config.recipe import recipe_id
from research import loop
from research.contract.track import load_track
from research.contract.trial import FRESH
from research.decide.belief import Belief
from research.decide.choose import decide
from research.decide.claims import violations
from research.decide.price import Prices
from research.learn.anytime import alpha_for_attempt
from research.ledger.events import FILE, Ledger, node_of
from research.ledger.placed import Placed
from research.ledger.registry import Registry
from research.ledger.session import Session
from research.ledger.state import fold
from research.machine import ROOT, process_identity

DEADLINE_S = 300.0
TRIALS = 6


SPIED = """
import atexit, os, runpy
from jax._src import xla_bridge
def tell():
    with open(os.environ["SPIED"], "a") as file:
        file.write(f"{sorted(xla_bridge._backends)}\\n")
atexit.register(tell)
runpy.run_module("research.loop", run_name="__main__", alter_sys=True)
"""


def start(folder, *options):
    """The loop; what it says comes by lines, a line a run. At its end it writes which backends it has initialised."""
    command = [sys.executable, "-u", "-c", SPIED, "--session", str(folder), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=os.environ | {"SPIED": str(folder.with_suffix(".backends"))})


def seals(folder):
    """The registry of a session's own."""
    return folder.with_suffix(".seals")


@contextmanager
def too_long(process):
    """Kills a loop that does not end, so that whoever reads what it says does."""
    killer = threading.Timer(DEADLINE_S, process.kill)
    killer.start()
    try:
        yield
    finally:
        killer.cancel()


def completed(folder):
    """Completed runs in the ledger of a session that may not be there yet."""
    try:
        with Ledger(folder / FILE) as ledger:
            return sum(e.body.outcome == "completed" for e in ledger.events("result"))
    except ValueError:
        return 0


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A session that Ctrl-C ended in the middle of its search: its folder and the loop's exit status."""
    folder = tmp_path_factory.mktemp("loop") / "session"
    process = start(folder, "--track", MICRO, "--max-trials", str(TRIALS), "--minutes", "20", "--workers", "1",
                    "--lanes", "tuner,recombine", "--flat-priors", "--registry", str(seals(folder)))
    with too_long(process):
        said = list(itertools.islice((line for line in process.stdout if re.search(r" \d\.\d{4} ", line)), 2))
        assert len(said) == 2, "it ended before"
        process.send_signal(signal.SIGINT)
        process.communicate()
    with Session.open(folder) as session:
        return folder, process.returncode, session.ledger.events(), list(violations(session.ledger, folder))


@pytest.fixture(scope="module")
def ended(stopped):
    """The same session, resumed to its end: folder, exit status, events, violations. A tenth is the card's."""
    folder = stopped[0]
    with too_long(process := start(folder, "--resume", "--minutes", "2", "--registry", str(seals(folder)))):
        process.communicate()
    with Session.open(folder) as session:
        return folder, process.returncode, session.ledger.events(), list(violations(session.ledger, folder))


ON_A_TERMINAL = ("import fcntl, os, signal, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
                 "signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # the tests themselves may run under nohup
                 "os.execv(sys.executable, [sys.executable, '-m', 'research.loop', *sys.argv[1:]])")


def test_a_closed_terminal_ends_a_session_cleanly(tmp_path):
    folder, (ours, theirs) = tmp_path / "session", os.openpty()
    command = [sys.executable, "-c", ON_A_TERMINAL, "--session", str(folder), "--track", MICRO, "--minutes", "20",
               "--lanes", "tuner", "--workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
                               env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    deadline, shown = time.monotonic() + DEADLINE_S, b""
    try:
        while completed(folder) < 1:
            if select.select([ours], [], [], 0.1)[0]:
                shown += os.read(ours, 1 << 16)
            assert process.poll() is None and time.monotonic() < deadline, shown.decode(errors="replace")[-2000:]
        os.close(ours)  # the kernel sends SIGHUP to all on the terminal, and whoever writes to it gets an error
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
    with Session.open(folder) as session:
        events = session.ledger.events()
        assert events[-1].kind == "end" and events[-1].body.reason == "stopped"
        assert list(violations(session.ledger, folder)) == []
        assert not session.ledger.held()
    assert fold(events).counts().keys() <= {"completed", "interrupted", "killed", "diverged"}
    assert (folder / "report.html").is_file()


def test_ctrl_c_ends_cleanly(stopped):
    folder, status, events, found = stopped
    assert status == 0 and found == []
    assert events[-1].kind == "end" and events[-1].body.reason == "stopped"
    state = fold(events)
    assert state.counts().keys() <= {"completed", "interrupted"} and state.counts()["completed"] >= 2
    assert all(process_identity(e.body.pid) is None for e in events if e.kind == "attempt")
    assert (folder / "report.html").is_file()


def test_a_stopped_session_is_resumed_to_its_end(stopped, ended):
    _, status, events, found = ended
    assert status == 0 and found == [] and events[-1].body.reason == "finished"
    assert events[: len(stopped[2])] == stopped[2]
    assert [e.kind for e in events if e.kind in ("session", "resume", "end")] == ["session", "end", "resume", "end"]
    searched = {e.subject for e in events if e.kind == "decision" and e.body.purpose in ("search", "base")}
    assert len(searched) == TRIALS and fold(events).flat


def test_the_loop_has_no_device_from_the_first_run_to_the_crown(ended):
    """Not even the CPU: what it computes it computes in NumPy."""
    folder, _, events, _ = ended
    assert any(e.kind == "crowned" for e in events)
    assert folder.with_suffix(".backends").read_text() == "[]\n[]\n"


def test_the_crowned_recipe_is_the_sealed_one(ended):
    folder, _, events, _ = ended
    state = fold(events)
    (crowned,), seal = state.crowned, state.sealed[-1]
    assert crowned.subject == seal.subject == state.verifications[-1].subject
    assert state.verifications[-1].body.passed
    assert recipe_id(load(folder / "champion" / "recipe.yaml")) == seal.subject
    assert seal.body.alpha == alpha_for_attempt(seal.body.attempt, 0.2)
    with Registry(seals(folder)) as registry:  # where --registry said, and the user's own knows nothing of it
        assert [row["number"] for row in registry.rows()] == [e.body.attempt for e in state.sealed]
        assert {row["session"] for row in registry.rows()} == {str(folder)}
        assert {e.body.registry for e in state.sealed} == {registry.name}


def test_what_of_the_card_has_fitted_is_on_the_seed_that_ships(ended):
    folder, _, events, _ = ended
    runs, state = [e.body for e in events if e.kind == "transfer"], fold(events)  # none where the machine is busy
    base = state.losses(Belief(load_track(MICRO)).at(state).arms[0].recipe_id, 1.0)
    assert all(run.outcome == "completed" and run.seed == state.crowned[-1].body.seed for run in runs)
    for run in runs:
        if "heldout" in run.loss:  # the base's run again, to the bit
            assert run.role == "base" and run.loss["search"] == base[run.seed]
    assert "held-out split" in (folder / "report.md").read_text()


def test_verification_seeds_are_fresh(ended):
    events = ended[2]
    seal = next(e.seq for e in events if e.kind == "sealed")
    attempts = [e for e in events if e.kind == "attempt"]
    verify = [e for e in attempts if e.body.purpose == "verify"]
    fresh = {e.body.seed for e in verify}
    assert len(fresh) in (3, 4) and min(fresh) >= FRESH and all(e.seq > seal for e in verify)
    assert all(e.body.seed < FRESH for e in attempts if e not in verify)
    protected = [e for e in events if e.kind == "result" and "protected" in e.body.loss]
    assert {e.subject for e in protected} <= {e.subject for e in verify}


def test_the_checkpoint_reproduces_the_verified_loss(ended):
    folder, _, events, _ = ended
    state, track = fold(events), load_track(MICRO)
    recipe, params, about = checkpoint.load(folder / "champion")
    verified = state.trials[state.crowned[-1].body.trial]
    assert (recipe_id(recipe), about["seed"]) == (verified.recipe_id, verified.seed)
    changed = (folder / "champion" / "diff.md").read_text()
    edits = diff(track.base_recipe, recipe).edits
    assert edits and all(f"\n- {edit.path}: " in changed and f"\n+ {edit.path}: " in changed for edit in edits)
    corpus = data.load(recipe.data)
    for split, tokens in (("protected", track.proof_tokens), ("search", track.eval_tokens)):
        windows = evaluate.eval_windows(corpus, split, recipe, tokens)
        assert evaluate.evaluate(recipe, params, windows) == pytest.approx(verified.loss[split], abs=1e-6)


def test_every_decision_follows_from_the_ledger_before_it(ended):
    events, track = ended[2], load_track(MICRO)
    made = [e for e in events if e.kind == "decision" and e.body.eig is not None]
    assert len(made) >= TRIALS
    for event in made:
        state = fold(e for e in events if e.seq <= event.body.as_of)
        worker = {"worker": event.body.worker, "priced": event.body.priced}
        prices, seed, left_s = Prices(Belief(track).at(state)), state.session.seed, event.body.left_s
        trial, body = decide(prices, seed, worker["priced"], left_s)
        assert trial.key == event.subject
        assert node_of("decision", body.model_copy(update=worker)) == event.body


def elsewhere(folder, **place):
    """The session as if it had begun on another place; returns the ledger's first event as it is now."""
    forge(folder, "session", lambda body, _: body.update(place=body["place"] | place))
    with Session.open(folder) as session:
        return session.ledger.events("session")[0].body


@pytest.mark.parametrize(("place", "words"), [
    ({"kind": "cuda", "model": "NVIDIA H100"}, r"it began on 1 x NVIDIA H100, .* \(here is 1 x .*\); that place would"),
    ({"kind": "tpu", "model": "v6e", "devices": 4}, r"it began on 4 x v6e, .* \(--devices-per-trial: 4: a worker on"),
    ({"kind": "virtual", "devices": 2, "processes": 2}, "it began on 2 x .* in 2 processes, ")])
def test_a_session_is_resumed_on_its_own_place_and_its_champion_begins_anew_on_another(
        ended, capsys, tmp_path, place, words):
    folder = Path(shutil.copytree(ended[0], tmp_path / "session"))
    begun = elsewhere(folder, **place)
    code, line = refusal(capsys, "--session", str(folder), "--resume", "--minutes", "20")
    assert code == 2 and re.search(words, line) and f"--from {folder}, which runs its champion anew" in line
    with Session.open(folder) as session:
        assert not session.ledger.held() and len(session.ledger.events("resume")) == 1
    code, line = refusal(capsys, "--session", str(folder), "--resume", "--minutes", "20", "--platform", "cpu")
    assert code == 2 and "it began on " in line
    here = begun.model_copy(update={"place": Placed()})
    inherited = loop.inherit(folder, here)
    assert inherited.place == Placed() and inherited.incumbent == fold(ended[2]).champion


@pytest.mark.parametrize(("kind", "mine", "theirs", "same"), [
    ("cpu", "EPYC", "Xeon", True), ("cuda", "NVIDIA A100-SXM4-40GB", "A100", True),
    ("cuda", "NVIDIA H100 80GB HBM3", "H100", True), ("cuda", "NVIDIA RTX PRO 6000 Blackwell", "RTX-PRO-6000", True),
    ("cuda", "NVIDIA GeForce RTX 4090", "GeForce-RTX-4090", True), ("cuda", "Tesla V100-SXM2-16GB", "V100", True),
    ("tpu", "v6e", "TPU-V6E", True), ("tpu", "v5e", "TPU-V5LITEPOD", True), ("tpu", "tpu7x", "TPU-V7X", True),
    ("cuda", "NVIDIA A100-SXM4-40GB", "H100", False), ("cuda", "A100", "H100", False), ("tpu", "v5e", "TPU-V5P", False),
    ("cuda", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3", False), ("rocm", "gfx942", "gfx90a", False)])
def test_a_place_is_the_same_by_its_driver_s_name_and_by_ray_s(kind, mine, theirs, same):
    here, there = Placed(kind=kind, model=mine), Placed(kind=kind, model=theirs)
    assert here.like(there) == there.like(here) == same
    for other in ({"devices": 2}, {"processes": 2}, {"kind": "virtual"}):
        assert not here.like(there.model_copy(update=other))


def test_seconds_are_of_so_many_devices(capsys, tmp_path):
    track = {**yaml.safe_load((ROOT / MICRO).read_text()), "base": str(ROOT / MICRO.replace("micro", "micro-base")),
             "objective": {"kind": "loss_at_seconds", "seconds": 5.0}, "devices": 1}
    (tmp_path / "timed.yaml").write_text(yaml.safe_dump(track))
    code, line = refusal(capsys, "--track", str(tmp_path / "timed.yaml"), "--platform", "virtual",
                         "--devices-per-trial", "2")
    assert code == 2 and "--devices-per-trial: 2: track micro counts seconds of 1; that would do" in line


def refusal(capsys, *argv):
    """Exit code and the one line of a command that is refused."""
    code = report_errors(lambda: loop.run(loop.parse(list(argv))))
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if not line.startswith("preparing")]  # on a fresh machine
    assert out == "" and len(said) == 1, err
    return code, said[0]


def test_a_session_in_use_is_refused(capsys, tmp_path):
    with Session.create(tmp_path / "s") as session:
        session.ledger.append("session", "", {"track": "micro", "data_hash": "d", "seed": 0, "workers": 1})
        code, line = refusal(capsys, "--session", str(session.path), "--resume")
        assert code == 2 and "in use by process" in line
        code, line = refusal(capsys, "--session", str(session.path), "--track", MICRO)
        assert code == 2 and "--resume goes on with it" in line


@pytest.mark.parametrize(("argv", "words"), [
    (("--track", "huge"), '--track: "huge": no such track; '),
    (("--set", "model.depth"), "written as path=value"),
    (("--set", "data.lenght=8"), "data.lenght"),
    (("--track", "laptop", "--minutes", "600", "--set", "data.path=nowhere"), "data.path: nowhere: no such file or"),
    (("--minutes", "-1"), "--minutes: -1.0: above 0 would do"),
    (("--minutes", "nan"), "--minutes: nan: above 0 would do, and finite"),
    (("--minutes", "inf"), "--minutes: inf: above 0 would do, and finite"),
    (("--minutes", "0.5", "--track", MICRO), "--minutes: 0.5: too short for a run on track micro, the base's before it "
                                             "and the report; --minutes "),
    (("--seed", "-1"), "--seed: -1: 0 or more would do"),
    (("--max-trials", "0"), "--max-trials: 0: above 0"),
    (("--workers", "999"), "workers: 999 asked for"),
    (("--devices-per-trial", "2"), "--devices-per-trial: 2: a worker on a CPU has one device; 1 would do"),
    (("--devices-per-trial", "slice"), "--devices-per-trial: slice: this machine is one host"),
    (("--platform", "rocm"), "--platform: rocm: this machine offers no accelerator; leaving it out would do, or cpu"),
    (("--lanes", "tuner,dream"), "'dream': no such lane; catalogue"),
    (("--resume",), "--session SESSION names the folder"),
    (("--resume", "--session", "nowhere"), "no session there"),
    (("--from", "nowhere"), "no session there"),
    (("--session", "pyproject.toml"), "already exists and is no session"),
])
def test_bad_options_are_one_line(capsys, monkeypatch, argv, words):
    monkeypatch.chdir(ROOT)
    code, line = refusal(capsys, *argv)
    assert code == 2 and words in line


def test_a_short_session_leaves_no_folder(capsys, tmp_path):
    for option in (("--minutes", "0.5"), ("--minutes", "nan"), ("--minutes", "5", "--seed", "-1")):
        assert refusal(capsys, "--track", MICRO, "--session", str(tmp_path / "s"), *option)[0] == 2
        assert not (tmp_path / "s").exists()


def test_a_session_that_ended_is_resumed_with_time(capsys, tmp_path):
    found = data.load(load_track(MICRO).base_recipe.data).data_hash
    with created(tmp_path / "s", minutes=0.1, data_hash=found) as session:
        drive(session)
        assert fold(session.ledger.events()).end
    code, line = refusal(capsys, "--session", str(tmp_path / "s"), "--resume")
    assert code == 2 and "--resume: minutes left: 0" in line and re.search(r"--minutes \d\S* would do", line)
    code, line = refusal(capsys, "--session", str(tmp_path / "s"), "--resume", "--minutes", "0.2")
    assert code == 2 and "--minutes: 0.2: too short" in line
    with Session.open(tmp_path / "s") as session:
        assert not session.ledger.events("resume")


def test_a_session_of_another_contract_is_refused(capsys, tmp_path):
    with Session.create(tmp_path / "s") as session:
        session.ledger.append("session", "", {"track": "micro", "source": MICRO, "track_hash": "0" * 64,
                                              "data_hash": "0" * 64, "seed": 0, "workers": 1})
    code, line = refusal(capsys, "--session", str(tmp_path / "s"), "--resume")
    assert code == 2 and "another track or data" in line
