"""A champion goes from a real session to whoever opens it, with the loss that the ledger holds, or not at all."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_server import TOKEN, HubServer
from huggingface_hub import ModelCard
from sessions import EVIL, Story, forge, unfenced

import jaxnano
from jaxnano import checkpoint, data, evaluate, step
from jaxnano.cli import report_errors
from jaxnano.config.base import dump_full
from jaxnano.config.file import load
from jaxnano.config.recipe import hypers, recipe_id
from research import share
from research.decide.belief import Belief
from research.decide.claims import violations
from research.decide.proof import Proof
from research.ledger.events import FILE
from research.ledger.names import handle
from research.ledger.registry import Registry
from research.ledger.session import Session, read_result, write_result
from research.ledger.state import fold
from research.machine import ROOT
from research.machine.place import Place
from research.show.card import card, change, model_card
from research.show.facts import Facts

DEADLINE_S = 300.0
MEASURE = """
import json, os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as a worker is pinned
import jax, jaxnano
from jaxnano import data, evaluate
from research.machine import fingerprint
recipe, params, about = jaxnano.load(sys.argv[1])
corpus = data.load(recipe.data)
losses = {split: evaluate.evaluate(recipe, params, evaluate.eval_windows(corpus, split, recipe, tokens))
          for split, tokens in json.loads(sys.argv[2]).items()}
backend = jax.default_backend()
device = None if backend == "cpu" else jax.local_devices()[0].device_kind
print(json.dumps([losses, fingerprint(backend, device) | {"data": corpus.data_hash}]))
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A real session on a track whose base is evaluated with an average of its weights, not with the last ones."""
    folder = tmp_path_factory.mktemp("share")
    base, track = (yaml.safe_load((ROOT / "tests/research" / name).read_text()) for name in ("micro-base.yaml",
                                                                                            "micro.yaml"))
    base["optimizer"]["readout"] = {"kind": "tail_ema", "start": 0.2, "weight": 0.9}
    tuned = "optimizer.groups.all.lr"
    track |= {"base": str(folder / "base.yaml"), "full_steps": 40, "horizons": [1.0], "frozen": [
        "data", "train", "model", "optimizer.clip", "optimizer.readout", "optimizer.groups.all.chain",
        f"{tuned}.warmup", f"{tuned}.floor"],  # the rate is left, and it is far too low
              "proof_tokens": 1024, "significance": {"n": 3, "alpha": 0.5}}  # as many as eval_tokens: compiled once
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    (folder / "track.yaml").write_text(yaml.safe_dump(track))
    command = [sys.executable, "-m", "research.loop", "--session", str(folder / "session"), "--track",
               str(folder / "track.yaml"), "--minutes", "2", "--max-trials", "5", "--workers", "1", "--lanes", "tuner"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0 and (folder / "session" / "champion").is_dir(), done.stdout + done.stderr
    return folder / "session"


@pytest.fixture(scope="module")
def facts(session):
    with Session.open(session) as opened:
        return Facts.of(fold(opened.ledger.events()))


def published_from(session, target, **options):
    with Registry(session.parent / "seals.sqlite") as registry:
        return share.share(session, str(target), registry, **options)


@pytest.fixture(scope="module")
def shared(session):
    """The published champion's folder, and what the command returned."""
    target = session.parent / "shared"
    return target, published_from(session, target)


@pytest.fixture
def copy(session, tmp_path):
    """The session again, to be damaged."""
    return Path(shutil.copytree(session, tmp_path / "session"))


def tokens(facts):
    splits, track = facts.track.splits, facts.track
    return {splits.search: track.eval_tokens, splits.protected: track.proof_tokens, splits.heldout: track.proof_tokens}


def expected(facts):
    """The ledger's losses of the run that ships, and of its one opening of the held-out split."""
    crowned = facts.state.crowned[-1].body
    return facts.state.trials[crowned.trial].loss | {"heldout": crowned.heldout}


def test_opened_as_it_was_trained_it_gives_the_ledgers_losses(shared, facts):
    environment = os.environ | Place().environment()
    done = subprocess.run([sys.executable, "-c", MEASURE, str(shared[0]), json.dumps(tokens(facts))], cwd=ROOT,
                          env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    losses, fingerprint = json.loads(done.stdout)
    made = facts.state.trials[facts.state.crowned[-1].body.trial].result.fingerprint
    assert fingerprint == made
    assert losses == pytest.approx(expected(facts), abs=1e-6) and losses.keys() == {"search", "protected", "heldout"}


@pytest.mark.parametrize("mesh", [None, "fsdp=4,tensor=2"])
def test_on_eight_devices_it_gives_them_too(shared, facts, mesh):
    recipe, params, about = jaxnano.load(shared[0], mesh, digest=shared[1]["id"])
    assert {len(p.sharding.device_set) for p in params.values()} == {8}
    corpus = data.load(recipe.data)
    for split, count in tokens(facts).items():
        windows = evaluate.eval_windows(corpus, split, recipe, count)
        assert evaluate.evaluate(recipe, params, windows) == pytest.approx(expected(facts)[split], abs=1e-5)
    assert recipe_id(recipe) == facts.state.champion == about["card"]["recipe_id"]


def test_what_opens_is_the_average_and_not_the_last_weights(shared, session):
    recipe, params, about = jaxnano.load(shared[0])
    folder = session / "champion" / "checkpoint"
    state, _ = checkpoint.Checkpoints(folder, recipe, about["seed"], about["total_steps"], about["data_hash"]).restore()
    optimizer = step.optimizer_at(recipe, 0, hypers(recipe, about["total_steps"]))[1]
    last = optimizer.grad_params(state.optimizer)["blocks_0/ffn/up"]
    average = state.optimizer.memory["tail"]["blocks_0/ffn/up"]
    weight = recipe.optimizer.readout.weight
    mixed = (1 - weight) * np.asarray(last) + weight * np.asarray(average)
    np.testing.assert_allclose(params["blocks_0/ffn/up"], mixed, rtol=0, atol=1e-6)
    assert np.abs(last - average).max() > 1e-4


def test_the_card_says_what_the_ledger_says(shared, facts):
    about = json.loads((shared[0] / "card.json").read_text())
    state, champion = facts.state, facts.champion()
    verified, crowned = state.verifications[-1].body, state.crowned[-1].body
    assert (about["title"], about["track"]["hash"]) == (crowned.name, facts.track.identity)
    assert about["test"]["effect"] == verified.comparisons["incumbent"]["effect"] > 0
    sealed = state.sealed[-1].body.written()
    assert {key: about["test"][key] for key in ("alpha", "attempt", "n")}.items() <= sealed.items()
    assert about["losses"]["champion"]["protected"]["by_seed"] == verified.losses["candidate"]
    assert about["losses"]["against"]["protected"]["by_seed"] == verified.losses["incumbent"]
    assert about["heldout"] == crowned.heldout and about["checkpoint"]["trial"] == crowned.trial
    assert about["data_hash"] == data.load(facts.track.base_recipe.data).data_hash
    assert about["diff"] == champion["diff"] != [] and about["checkpoint"]["fingerprint"]["data"] == about["data_hash"]
    assert recipe_id(load(shared[0] / "recipe.yaml")) == about["recipe_id"]
    assert about["transfer"] == [dump_full(line) for line in facts.transfer()] and len(about["transfer"]) == 8
    assert about["rerun"][0] == f"python -m research.replay SESSION {crowned.trial}"


def test_the_card_holds_nothing_of_the_machine_and_is_the_same_again(shared, session, monkeypatch):
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        again = published_from(session, "hf://me/again")
    assert again["id"] == shared[1]["id"] and again["difference_here"] <= 1e-5
    files = {str(path.relative_to(shared[0])): path.read_bytes() for path in shared[0].rglob("*") if path.is_file()}
    assert server.repos["me/again"] == files | {".gitattributes": b"*"}
    for name in ("card.json", "README.md", "diff.md", "recipe.yaml"):
        text = (shared[0] / name).read_text()
        assert str(session.parent) not in text and str(ROOT) not in text and str(Path.home()) + "/" not in text


def test_the_hub_reads_the_card_as_a_models(shared, facts):
    about = ModelCard.load(shared[0] / "README.md").data
    assert (about.library_name, about.pipeline_tag, about.license) == ("jaxnano", "text-generation", None)
    found = {result.metric_name: result.metric_value for result in about.eval_results}
    champion, rival = facts.champion(), facts.side(facts.champion()["against"])["name"]
    assert found[f"gain over {rival}, {facts.unit}"] == champion["effect"]
    assert found[f"loss, protected split, {facts.unit}"] == champion["loss"]["protected"]["mean"]
    card_of = json.loads((shared[0] / "card.json").read_text())
    assert ModelCard(model_card(card_of, "apache-2.0")).data.license == "apache-2.0"


def test_a_changed_byte_of_any_file_is_refused(shared, tmp_path):
    folder = Path(shutil.copytree(shared[0], tmp_path / "copy"))
    names = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    assert {"recipe.yaml", "card.json", "README.md", "diff.md", "manifest.json", "_METADATA"} < {p.name for p in names}
    for path in names:
        right = path.read_bytes()
        middle = len(right) // 2
        path.write_bytes(right[:middle] + bytes([right[middle] ^ 16]) + right[middle + 1 :] if right else b" ")
        with pytest.raises(ValueError, match=": changed"):
            jaxnano.load(folder)
        path.write_bytes(right)
    jaxnano.load(folder)


def refusal(capsys, session, target):
    """Exit code and the one line of the command; nothing may be left behind."""
    before = sorted(target.parent.iterdir())
    code = report_errors(lambda: share.main([str(session), str(target)]))
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    assert sorted(target.parent.iterdir()) == before
    return code, err


def test_a_session_without_a_champion_has_nothing_to_share(capsys, tmp_path):
    story = Story(tmp_path / "s")
    story.propose()
    story.end()
    code, line = refusal(capsys, tmp_path / "s", tmp_path / "out")
    assert code == 2 and "no champion was crowned" in line
    code, line = refusal(capsys, tmp_path / "nowhere", tmp_path / "out")
    assert code == 2 and "no session there" in line


def test_without_a_token_nothing_is_opened_or_sent(capsys, session, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with Session.open(session) as opened:
        before = opened.ledger.last()
        assert report_errors(lambda: share.main([str(session), "hf://me/model"])) == 2
        assert opened.ledger.last() == before
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: hf://me/model: no token: HF_TOKEN in the environment, or `hf auth login`, would "
                          "do\n")


def test_a_ledger_that_does_not_hold_is_not_published_from(capsys, copy, tmp_path):
    with sqlite3.connect(copy / FILE) as db:
        db.execute("DROP TRIGGER events_keep")
        db.execute("UPDATE events SET body = replace(body, 'completed', 'killed') WHERE kind = 'result'")
    db.close()
    code, line = refusal(capsys, copy, tmp_path / "out")
    assert code == 2 and "its ledger does not hold: " in line and "--check lists them" in line


def test_every_publication_opens_the_protected_split_and_says_so(shared, session, facts):
    with Session.open(session) as opened:
        openings = fold(opened.ledger.events()).openings
    assert openings and {e.subject for e in openings} == {facts.state.champion}
    crowned = facts.state.crowned[-1].body.trial
    assert {(e.body.split, e.body.trial) for e in openings} == {("protected", crowned)}
    with Registry(session.parent / "seals.sqlite") as registry:
        rows = registry.rows()
    assert len(rows) == len(openings) and {(row["what"], row["split"]) for row in rows} == {("publish", "protected")}


def test_results_that_were_rewritten_as_a_whole_are_not_those_of_the_checkpoint(capsys, copy, facts, tmp_path):
    """Every rule holds of them; the checkpoint does not bear them out."""
    better = 0.5

    keys = [key for key, t in facts.state.trials.items() if t.recipe_id == facts.state.champion and
            "protected" in t.loss]
    for key in keys:
        result = read_result(copy / "trials" / key)
        result["loss"]["protected"] -= better
        write_result(copy / "trials" / key, result["attempt"], result)
    losses = {key: read_result(copy / "trials" / key)["loss"] for key in keys}
    forge(copy, "result", lambda body, key: body.update(loss=losses.get(key, body["loss"])))
    with Session.open(copy) as opened:
        state = fold(opened.ledger.events())
    proof = Proof(Belief(facts.track).at(state), state.nominated[-1].subject, state.nominated[-1].body)
    forge(copy, "verification", lambda body, key: body.update(proof.verify().written()))
    with Session.open(copy) as opened:
        assert list(violations(opened.ledger, copy)) == []
    code, line = refusal(capsys, copy, tmp_path / "out")
    assert code == 1 and "its protected loss is " in line and "in the ledger; not published" in line


def test_a_folder_that_the_ledger_did_not_crown_is_refused(capsys, copy, facts, tmp_path):
    metadata = copy / "champion" / "checkpoint" / "metadata" / "_ROOT_METADATA"
    seed = str(facts.state.crowned[-1].body.seed)
    metadata.write_text(metadata.read_text().replace(seed, "7"))
    code, line = refusal(capsys, copy, tmp_path / "out")
    assert code == 2 and "seed: not that of the run the ledger crowned" in line
    shutil.rmtree(copy / "champion")
    code, line = refusal(capsys, copy, tmp_path / "out")
    assert code == 2 and "missing, although a champion was crowned" in line


def test_a_checkpoint_that_gives_another_loss_is_refused(capsys, session, monkeypatch, tmp_path):
    monkeypatch.setattr(share, "TOLERANCE", -1.0)
    code, line = refusal(capsys, session, tmp_path / "out")
    assert code == 1 and "in the ledger; not published" in line


def test_a_checkpoint_that_cannot_be_read_is_refused(copy, tmp_path):
    """In a process of its own: what Orbax leaves in its event loop when a read fails ends with it."""
    for path in copy.glob("champion/checkpoint/*/state/**/d/*"):
        path.write_bytes(bytes(path.stat().st_size))
    done = subprocess.run([sys.executable, "-m", "research.share", copy, tmp_path / "out"], cwd=ROOT,
                          capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout) == (1, "") and "cannot be read" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_loop_at_work_on_the_devices_is_left_alone(capsys, copy, monkeypatch, tmp_path):
    monkeypatch.setattr(share, "places", lambda workers, platform: [Place((0,), "cuda", ("GPU-1",))])
    with Session.open(copy, lock=True):
        code, line = refusal(capsys, copy, tmp_path / "out")
    assert code == 2 and "its loop is at work, on this machine's devices; when it has ended, or --platform cpu" in line


def test_an_existing_target_is_refused(capsys, session, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    code, line = refusal(capsys, session, tmp_path / "out")
    assert code == 2 and "is there already; a new or empty folder would do" in line


def test_names_from_outside_are_text(tmp_path):
    story = Story(tmp_path / "session").search().nominate().seal()
    about = card(Facts.of(story.snapshot().state))
    assert about["title"] == EVIL and about["name"] == handle(about["recipe_id"])
    for text in (model_card(about), change(about)):
        assert "\x1b" not in text and not re.search(r"<script|\[x\]\(y\)", unfenced(text)) and "&lt;script&gt;" in text
    story.session.close()
