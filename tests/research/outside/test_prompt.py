"""The page a model is given: what it holds, that it stays bounded as the ledger grows, and what it must not hold."""

import json

import pytest
from sessions import EVIL, PROTECTED, Story, changes

from jaxnano.config.base import Problem
from research.contract.schema import field_at
from research.contract.trial import Trial
from research.outside.inbox import Inbox
from research.outside.llm.answer import Draft, read
from research.outside.llm.fault import Fault
from research.outside.llm.prompt import FEW, LEAST, ROWS, tokens, write

BUDGET = {"seconds": 100, "tokens": 1000, "usd": None}


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A session with a proof: protected losses are in its ledger."""
    story = Story(tmp_path_factory.mktemp("prompt") / "s").search().nominate().seal()
    yield story
    story.close()


def page_of(story, limit=14_000, turn=0):
    with Inbox(story.session.path) as inbox:
        page = write(inbox, limit, BUDGET, turn=turn)
    return page, json.loads(page.user)


def test_the_page_says_what_may_change_what_leads_and_what_was_learned(story):
    page, document = page_of(story)
    best = document["incumbent"]
    assert page.places["best"].startswith(best["id"]) and best["proven"] and best["id"] == story.best[:8]
    assert any("model.position" in change for change in best["changes"])
    assert best["recipe"]["model"]["position"]["kind"] == "rotary" and "data" not in best["recipe"]
    assert document["rules"]["frozen"] == list(story.track.frozen) and any("muon" in line for line in document["tree"])
    rows = document["best"]
    assert [row["effect"] for row in rows] == sorted((row["effect"] for row in rows), reverse=True)
    assert all(row["interval"][0] <= row["effect"] <= row["interval"][1] for row in rows)
    assert [row["outcome"] for row in document["broken"]] == ["diverged", "killed"]
    assert document["refusals"][0]["path"] == "model.width"
    ideas = document["known_ideas_not_tried"]
    assert "rotary" not in ideas["names"] and ideas["count"] > 50
    assert document["budget_left"] == BUDGET and page.tokens < 14_000


def test_nothing_of_the_protected_split_is_on_the_page(story):
    page, document = page_of(story)
    losses = [loss for event in story.session.ledger.events("result") for loss in event.body.loss.items()]
    assert any(split == PROTECTED for split, _ in losses)
    for split, loss in losses:
        assert split == "search" or f"{loss:.4f}"[:6] not in page.user
    assert "heldout" not in page.user and PROTECTED not in page.user


def test_what_came_from_outside_is_text_in_json(story):
    page, document = page_of(story)
    assert page.user.isascii() and "\x1b" not in page.user and "\n" not in page.user
    assert "alert(1)" in document["incumbent"]["name"] and EVIL not in page.system


def test_the_page_stays_bounded_as_the_ledger_grows(tmp_path):
    story, sizes = Story(tmp_path / "s"), []
    story.base = story.propose()
    story.run(Trial(story.base, 0.25, 0), "base")
    for number in range(100):
        parts = [changes(f"{number} {EVIL * 3}"[:80], {"optimizer.clip": 0.5 + 0.02 * number}, effect=0.01)]
        found = story.propose(parts, 0.001 * number)
        story.run(Trial(found, 0.25, 0))
        refusal = {"path": f"model.{'x' * (number % 50)}", "value": EVIL * 9, "rule": f"no {number} {EVIL * 9}"}
        story.write("verdict", "", {"accepted": False, "refusals": [refusal], "ms": 1.0})
        if number in (49, 99):
            with Inbox(story.session.path) as inbox:
                sizes.append([write(inbox, limit, BUDGET).tokens for limit in (12_000, 60_000)])
                with pytest.raises(ValueError, match="--llm-prompt: 1000: "):
                    write(inbox, 1_000, BUDGET)
                sizes[-1].append(write(inbox, LEAST, BUDGET).tokens)
    story.close()
    assert all(small <= 12_000 and least <= LEAST for small, _, least in sizes)
    assert sizes[-1][1] < sizes[0][1] * 1.2 and sizes[-1][1] < 25_000  # even without a limit: tables are bounded


def test_a_repair_stays_bounded_too(story):
    page, _ = page_of(story)
    refused = [Draft({"name": "x" * 5_000, "edits": [EVIL] * 500}, None, [Problem("p" * 999, EVIL * 99, EVIL * 99)] * 9)
               for _ in range(8)]
    mended = page.repair(refused)
    assert mended.tokens <= mended.limit and mended.user.startswith(page.user)
    assert [json.loads(line) for line in mended.user.split("\n")][1]["refused"][7]["refusals"]


def test_a_short_page_names_places_of_the_incumbent_in_turn_and_what_may_stand_there(story):
    takes, lines = {}, []
    for turn in range(8):
        page, document = page_of(story, 4_000, turn)
        assert page.tokens < 4_000 and "tree" not in document and "recipe" not in document["incumbent"]
        legend, *places = document["places"]
        edits = page.schema["properties"]["proposals"]["items"]["properties"]["edits"]["items"]["anyOf"]
        named = {path: edit["properties"]["value"] for edit in edits for path in edit["properties"]["path"]["enum"]}
        assert sorted(named) == sorted(line.partition(" = ")[0] for line in places) and 12 < len(named) <= FEW
        takes, lines = takes | named, lines + places
    assert "model.position = rotary (learned | rotary | alibi | none)" in lines and "what stands there" in legend
    assert len(takes) == len(set(lines)) > 60
    assert all(field_at(path) and not path.startswith(tuple(story.track.frozen)) for path in takes)
    assert takes["model.position"] == {"type": "string", "enum": ["learned", "rotary", "alibi", "none"]}
    assert takes["model.width"] == {"type": "integer", "minimum": 4, "maximum": 16384}
    assert takes["model.attention.softcap"] == {"anyOf": [{"type": "number", "minimum": 0.5, "maximum": 1000.0},
                                                          {"type": "null"}]}
    assert takes["model.attention.writes"]["type"] == "array"
    assert page_of(story, LEAST)[0].tokens < LEAST


def test_an_estimate_of_tokens_is_not_below_what_it_is():
    assert tokens("abc") == 1 and tokens("\u00e9\u00e9") == 2 and set(ROWS) >= {"best", "ideas"}


def answer(**more):
    edit = {"path": "model.depth", "value": "2", "before": "", "after": ""}
    return {"name": "n", "on": "best", "edits": [edit], "hypothesis": "h", "expected_effect": 0.1, "why": "w",
            "source": ""} | more


@pytest.mark.parametrize(("text", "names"), [
    ('{"proposals": [%s, %s, {"name": "ha', ["a", "b"]), ('Sure! [%s,%s]} and more', ["a", "b"]),
    ('{"proposals": [%s %s', ["a", "b"]), ('{"proposals": [%s, NaN, %s', ["a"])])
def test_what_is_whole_in_an_answer_that_broke_off_counts(text, names):
    drafts = read(text % (json.dumps(answer(name="a")), json.dumps(answer(name="b"))), {})
    assert [draft.name for draft in drafts] == names and all(draft.ask for draft in drafts)


def test_an_answer_is_read_as_data():
    (draft,) = read('[{"name": "a", "why": "line\nbreak", "edits": [{"path": "p", "value": false}]}]', {})
    assert draft.ask.edits[0].new is False and draft.ask.why == "line break" and draft.ask.on == "best"
    twice = [{"path": "model.ffn", "value": "glu"}] * 2 + [{"path": "model.ffn.dropped", "value": "glu"}]
    (draft,) = read(json.dumps([answer(edits=twice)]), {})
    assert [edit.new for edit in draft.ask.edits] == [{"kind": "glu"}, "glu"]
    values = {"2": 2, '"x"': "x", "x y": "x y", '{"absent": true}': {"absent": True}, "NaN": "NaN", "": ""}
    for text, value in values.items():
        (draft,) = read(json.dumps({"proposals": [answer(edits=[{"path": "p", "value": text}])]}), {"best": "abc"})
        assert draft.ask is not None and draft.ask.edits[0].new == value and draft.ask.on == "abc"
    (draft,) = read("```json\n" + json.dumps([answer(name="n" * 999 + "\x1b", why="w" * 9999)]) + "\n```", {})
    assert draft.ask is not None and len(draft.ask.name) <= 80 and len(draft.ask.why) <= 2000 and not draft.problems
    assert len(read(json.dumps({"proposals": [answer()] * 30}), {})) == 8


@pytest.mark.parametrize("more", [{"edits": []}, {"edits": "x"}, {"edits": [3]}, {"on": 7}, {"edits": [{"path": 1}]},
                                  {"edits": [{"path": f"p{i}", "value": "1"} for i in range(99)]}])
def test_a_proposal_that_is_none_says_why(more):
    (draft,) = read(json.dumps({"proposals": [answer(**more)]}), {})
    assert draft.ask is None and draft.problems


@pytest.mark.parametrize(("text", "outcome"), [
    ("", "garbage"), ("{", "garbage"), ("[" * 100_000, "garbage"), ("9" * 5_000, "garbage"), ("x" * 300_000, "garbage"),
    ("{}", "wrong_schema"), ("7", "wrong_schema"), ('{"proposals": "x"}', "wrong_schema"), ("[1]", "wrong_schema"),
    ('{"proposals": []}', "empty")])
def test_text_that_is_no_answer_is_a_fault(text, outcome):
    with pytest.raises(Fault) as caught:
        read(text, {})
    assert caught.value.outcome == outcome
