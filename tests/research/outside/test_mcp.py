"""A real MCP client and a loop that runs: ten experiments, one refused and repaired; bad calls; HTTP on loopback."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from sitting import LR, looping

from jaxnano.cli import report_errors
from research.contract.idea import ideas, part
from research.contract.track import load_track
from research.ledger.session import Session
from research.ledger.state import fold
from research.machine import ROOT
from research.mcp import ABSENT, main
from research.outside.inbox import Inbox

DEADLINE_S = 300.0
TOOLS = ("rules", "schema", "state", "trials", "explain", "propose", "wait")
HOSTILE = ("[" * 100_000, '[{"path": "x", "new": ' + "[" * 5_000 + "]" * 5_000 + "}]", "[NaN]")  # lists as text


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A session whose loop runs beside the tests."""
    with looping(tmp_path_factory.mktemp("mcp") / "s") as folder:
        yield folder


def over_stdio(session, visit):
    """What `visit(client)` returns, of a client that has started the server."""
    command = StdioServerParameters(command=sys.executable, args=["-m", "research.mcp", str(session)], cwd=ROOT,
                                    env={**os.environ, "PYTHONWARNINGS": "ignore"})

    async def run():
        with anyio.fail_after(DEADLINE_S):
            async with Client(command) as client:
                return await visit(client)

    return anyio.run(run)


def edits(value):
    return [{"path": LR, "new": value}]


async def told(client, name, **arguments):
    """The structured answer of a tool that was asked properly."""
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result.content[0].text
    assert name in ("schema", "explain") or json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


async def refused(client, name, **arguments):
    """The error's text."""
    result = await client.call_tool(name, arguments)
    assert result.is_error
    return result.content[0].text


async def research(client):
    """Ten experiments: verdicts and outcomes."""
    rules = await told(client, "rules")
    assert rules["frozen"] == ["data", "model.vocab", "train"] and "vocab" not in rules["base"]["model"]
    verdicts = []
    for i in range(10):
        proposal = {"edits": edits(99.0 if i == 4 else 0.001 + 0.0007 * i), "why": f"step {i}", "on": "base"}
        while True:
            verdict = await told(client, "propose", **proposal)
            verdicts.append(verdict)
            if verdict["accepted"]:
                break
            (refusal,) = verdict["refusals"]
            passes = re.search(r"; (\S+) would do", refusal["rule"])[1]  # "between 0 and 10; 10 would do"
            proposal["edits"] = edits(float(passes))
        await told(client, "state")
    outcomes = [await told(client, "wait", number=v["number"], timeout_s=DEADLINE_S) for v in verdicts]
    return verdicts, outcomes


@pytest.fixture(scope="module")
def visited(session):
    """What one client got out of one server."""
    async def visit(client):
        return await research(client), await reading(client)

    return over_stdio(session, visit)


def test_ten_experiments_one_refused_and_repaired(session, visited):
    verdicts, outcomes = visited[0]
    assert [v["accepted"] for v in verdicts].count(False) == 1 and len(verdicts) == 11
    for verdict, outcome in zip(verdicts, outcomes, strict=True):
        found = outcome["outcome"]
        assert outcome["over"] and found["accepted"] == verdict["accepted"]
        if verdict["accepted"]:
            assert found["runs"][verdict["trial"]]["outcome"] == "completed"
    with Inbox(session) as inbox:
        state = fold(inbox.session.ledger.events())
        lanes = [state.proposals[v["recipe_id"]].proposal for v in verdicts if v["accepted"]]
    assert {p.lane for p in lanes} == {"inbox"} and {p.origin[:4] for p in lanes} == {"mcp:"}


async def reading(client):
    """The tools, what each says, and what each says to nonsense."""
    tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == list(TOOLS)
    assert all(tool.description and tool.output_schema["type"] == "object" for tool in tools)
    assert [tool.annotations.read_only_hint for tool in tools].count(False) == 1
    schema = await told(client, "schema", path="model.norm")
    assert schema["lines"][0].startswith("norm: one of these = layernorm")
    runs = await told(client, "trials", sort="gain", limit=3, outcome="completed")
    assert len(runs["runs"]) == 3 and {run["outcome"] for run in runs["runs"]} == {"completed"}
    first = [run for run in runs["runs"] if (run["horizon"], run["seed"]) == (1.0, 0) and run["gain"] is not None]
    assert [run["gain"] for run in first] == sorted((run["gain"] for run in first), reverse=True)
    (edit,) = [tool.input_schema["$defs"]["IdeaEdit"] for tool in tools if tool.name == "propose"]
    base = load_track("tiny").base_recipe
    places = ["model.norm", LR, *(e.path for idea in ideas().values() for e in part(idea, base).edits)]
    assert all(re.fullmatch(edit["properties"]["path"]["pattern"], place) for place in places)
    lines = (await told(client, "explain", id=runs["runs"][0]["key"]))["lines"]
    assert lines[0].startswith("trial ") and any("decision" in line for line in lines)
    nonsense = [("propose", {"edits": [], "why": "x"}, "edits"), ("propose", {"edits": edits(1.0)}, "why"),
                ("propose", {"edits": edits(1.0), "why": "x", "base": "y"}, "base"),
                ("propose", {"edits": edits(1.0), "why": "x", "on": "zzz"}, "best, base or the id"),
                ("schema", {"path": "model.nothing"}, "no such place"),
                ("trials", {"limit": 1e9}, "limit: 1000000000.0: a whole number; 200 would do"),
                ("trials", {"lane": "nobody"}, "tuner would do"), ("trials", {"colour": 1}, "no such field"),
                ("explain", {"id": "nothing"}, "nothing"), ("wait", {"number": 10**6}, "no such submission"),
                ("wait", {"number": "7"}, "number"), ("crown", {}, "rules, schema"),
                *(("propose", {"edits": text, "why": "x"}, "edits") for text in HOSTILE)]
    for name, arguments, words in nonsense:
        text = await refused(client, name, **arguments)
        assert words in text and "Traceback" not in text, (name, text)
    text = await told(client, "propose", edits=json.dumps(edits(0.0033)), why="a list as text", on="base")
    assert text["accepted"]
    waited = await told(client, "wait", number=text["number"], timeout_s=0)
    assert waited["number"] == text["number"]
    return (await told(client, "state"))


def test_every_tool_answers_and_nonsense_gets_a_clear_line(visited):
    state = visited[1]
    assert state["running"] and state["frontier"] and 0 < state["seconds_left"] < 600
    row = state["frontier"][0]
    assert row["interval"][0] < row["effect"] < row["interval"][1] and row["changes"]


def test_over_http_on_the_loopback_address_alone(session):
    server = subprocess.Popen([sys.executable, "-m", "research.mcp", str(session), "--http"], cwd=ROOT,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:") and address.endswith("/mcp")

        async def run():
            with anyio.fail_after(DEADLINE_S):
                async with Client(address) as client:
                    verdict = await told(client, "propose", edits=edits(0.0077), why="over HTTP", on="base")
                    return verdict, await told(client, "state")

        verdict, state = anyio.run(run)
        assert verdict["accepted"] and state["running"]
        for header, value, code in (("Host", "evil.example", 421), ("Origin", "http://evil.example", 403)):
            request = urllib.request.Request(address, b"{}", {"Content-Type": "application/json", header: value})
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=DEADLINE_S)
            assert caught.value.code == code
            caught.value.close()
    finally:
        server.terminate()
        _, errors = server.communicate(timeout=DEADLINE_S)
    assert "Traceback" not in errors


def test_without_the_sdk_one_line_says_what_to_install(monkeypatch, capsys, session):
    monkeypatch.setitem(sys.modules, "mcp_types", None)
    monkeypatch.delitem(sys.modules, "research.outside.tools", raising=False)
    assert report_errors(lambda: main([str(session)])) == 2
    assert capsys.readouterr().err == f"error: {ABSENT}\n"


@pytest.mark.parametrize(("argv", "words"), [
    (["nowhere"], "no session there"), (["SESSION", "--port", "80"], "--port: 80: 0 to 65535, with --http"),
    (["EMPTY"], "nothing has happened"),
])
def test_bad_options_are_one_line(tmp_path, capsys, session, argv, words):
    Session.create(tmp_path / "empty").close()
    places = {"SESSION": str(session), "EMPTY": str(tmp_path / "empty")}
    code = report_errors(lambda: main([places.get(word, word) for word in argv]))
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1 and words in err
