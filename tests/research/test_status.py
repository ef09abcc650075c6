"""What status says is what the ledger holds."""

import json
import math
import statistics
from pathlib import Path

import pytest
from sessions import PROTECTED, Story

from jaxnano.cli import report_errors
from research import status
from research.contract.track import load_track
from research.contract.trial import Trial
from research.learn.anytime import alpha_for_attempt, sealed_test
from research.learn.compare import compare
from research.ledger.names import handle
from research.show.facts import Facts
from research.show.report import write_report


def run(capsys, *arguments):
    assert status.main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def test_json_has_the_promised_fields(tmp_path, capsys):
    path, state = Story(tmp_path / "session").search().nominate().seal().end()
    found = json.loads(run(capsys, path, "--json"))
    assert found["trials"] == state.counts() and found["decisions"] == len(state.decisions)
    assert found["device_seconds"] == state.device_s and found["wall_seconds"] == state.wall_s
    assert found["idle_fraction"] == state.shares()["idle"]
    assert {"compile_share", "replicate_share", "kill_share", "verification_share"} <= found.keys()
    champion, base = found["champion"], found["base"]
    names = {"recipe_id", "name", "loss", "n_seeds", "effect", "interval", "p_value", "p_adjusted", "diff"}
    assert names <= champion.keys() and names <= base.keys()
    assert champion["n_seeds"] == 6 and champion["loss"]["heldout"]["mean"] == 1.9
    assert {e["path"]: e["new"]["kind"] for e in champion["diff"]} == {
        "model.position": "rotary", "model.ffn.activation": "relu2"}
    assert base["diff"] == [] and base["effect"] is None
    assert {part["name"] for part in champion["parts"]} == {"rotary", "relu-squared"}
    assert found["audit"][0]["predicted"] == 3.3 and found["proposals"]["refused"] == 1
    assert found["purposes"]["search"]["killed"] == 1
    home, held_out, *elsewhere = found["transfer"]
    assert home["gain"] == base["loss"]["search"]["by_seed"][str(home["seed"])] - champion["loss"]["search"]["by_seed"][
        str(home["seed"])] and held_out["champion"] == 1.9
    assert len(elsewhere) == 6 and all("research.transfer SESSION" in line["why"] for line in elsewhere)


def test_effect_is_the_paired_comparison_of_the_losses_shown(tmp_path, capsys):
    path, _ = Story(tmp_path / "session").search().nominate().seal().end()
    found = json.loads(run(capsys, path, "--json"))
    losses = [side["loss"][PROTECTED]["by_seed"] for side in (found["base"], found["champion"])]
    assert losses[0].keys() == losses[1].keys() and len(losses[0]) == 6
    rule = load_track("tiny").significance
    expected = sealed_test(*losses, list(losses[0]), rule.n, alpha_for_attempt(1, rule.alpha), rule.alpha)
    assert expected["effect"] == pytest.approx(compare(*losses).effect)
    for name in ("effect", "interval", "p_value", "p_adjusted"):
        assert found["champion"][name] == pytest.approx(expected[name])
    assert found["champion"]["effect"] == pytest.approx(
        found["base"]["loss"][PROTECTED]["mean"] - found["champion"]["loss"][PROTECTED]["mean"])
    assert found["champion"]["over_base"]["effect"] == pytest.approx(found["champion"]["effect"])
    assert found["best_single"]["name"] == "#1 = base + rotary" and found["best_single"]["effect"] > 0


def test_what_a_dead_loop_ran_does_not_run(tmp_path, capsys):
    story = Story(tmp_path / "session").search()
    story.start(Trial(story.base, 1.0, 2))
    alive = json.loads(run(capsys, story.session.path, "--json"))
    assert alive["running"] and alive["trials"]["running"] == 1
    assert "running" in run(capsys, story.session.path).split("state", 1)[1].splitlines()[0]
    before = alive["trials"].get("interrupted", 0)
    path, _ = story.close()
    dead = json.loads(run(capsys, path, "--json"))
    assert not dead["running"] and dead["trials"].get("running") is None
    assert dead["trials"]["interrupted"] == before + 1
    assert f"Its loop died before its end; python -m research.loop --resume --session {path}" in run(capsys, path)


def test_young_sessions_have_a_status(tmp_path, capsys):
    path, _ = Story(tmp_path / "session").close()
    found = json.loads(run(capsys, path, "--json"))
    assert (found["base"], found["champion"], found["trials"], found["frontier"]) == (None, None, {}, [])
    assert "Nothing has run yet" in run(capsys, path)


def test_table_names_the_champion(tmp_path, capsys):
    path, state = Story(tmp_path / "session").search().nominate().seal().end()
    text = run(capsys, path)
    assert state.champion in text and "model.position: learned() -> rotary()" in text and "\x1b[2J" not in text


def test_losses_are_also_said_in_the_objectives_terms(tmp_path):
    story = Story(tmp_path / "session").search()
    _, state = story.close()
    quarter, full = (statistics.mean(state.losses(story.base, h, "search").values()) for h in (0.25, 1.0))
    found = {}
    for name, objective in {"seconds": {"kind": "loss_at_seconds", "seconds": 300.0},
                            "steps": {"kind": "steps_to_target", "target": (quarter + full) / 2},
                            "time": {"kind": "time_to_target", "target": (quarter + full) / 2},
                            "flops": {"kind": "loss_at_flops"}}.items():
        contract = state.session.contract | {"objective": objective}
        state.begun = state.session.model_copy(update={"contract": contract, "bytes_per_token": 4.0})
        found[name] = Facts.of(state).measure(story.base)
    assert found["seconds"] == f"{full / math.log(2) / 4:.4f} bits per byte after 300 s"
    assert found["steps"].endswith(f"after about {story.track.full_steps / 2:,.0f} steps")  # halfway in the logarithm
    step_s = story.track.base_cost.tokens_per_step / 5e4  # the story's runs make 5e4 tokens a second
    assert found["time"].endswith(f"after about {story.track.full_steps / 2 * step_s:,.0f} s")
    assert found["flops"] == f"{full / math.log(2) / 4:.4f} bits per byte"


def test_no_session_is_one_line_and_code_2(tmp_path, capsys):
    assert report_errors(lambda: status.main([str(tmp_path / "nowhere")])) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("number", [10**400, 1e308, float("inf"), -1e308, True, "7", [1]])
def test_no_number_of_a_call_that_anybody_may_append_ends_the_report(tmp_path, capsys, number):
    story = Story(tmp_path / "session")
    story.search()
    for _ in range(2):
        story.write("call", "", dict.fromkeys(("tokens_in", "tokens_out", "cost", "wall_s", "proposals"), number)
                    | {"outcome": "x" * 10_000, "model": {"a": 1}})
    path, _ = story.end()
    write_report(path)
    assert "llm" in run(capsys, path) and "Infinity" not in run(capsys, path, "--json")
    assert "x" * 100 not in (path / "report.md").read_text()


def test_the_sessions_of_a_folder(tmp_path, capsys):
    with (story := Story(tmp_path / "old")).session:
        story.search().nominate().seal()
        story.end()
    with (young := Story(tmp_path / "young")).session:
        young.propose()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ledger.sqlite").write_bytes(b"none" * 999)
    rows = {Path(row["session"]).name: row for row in json.loads(run(capsys, tmp_path, "--json"))}
    assert rows["old"]["verdict"].startswith("proven +0.4") and rows["old"]["state"] == "ended: finished"
    assert rows["young"]["verdict"] == "" and rows["young"]["state"] in ("running", "loop died")
    assert "not a database" in rows["broken"]["state"] and rows["broken"]["runs"] is None
    text = run(capsys, tmp_path)
    assert "nothing proven" in text and handle(story.best) in text
    (tmp_path / "empty").mkdir()
    assert report_errors(lambda: status.main([str(tmp_path / "empty")])) == 2
    assert "python -m research.loop makes one" in capsys.readouterr().err
