"""The page: who may see it, what it shows of sessions of every kind, and what may be done from it."""

import http.client
import json
import re
import signal
import threading
from contextlib import closing, contextmanager

import numpy as np
import pytest
from sessions import EVIL, Story, changes
from starlette.testclient import TestClient

from jaxnano.cli import UserError, report_errors
from research import page
from research.contract.trial import Trial
from research.ledger.exchanges import Exchange, keep
from research.ledger.session import Session
from research.ledger.state import fold
from research.outside.loopback import listening
from research.outside.page.app import Page, application
from research.outside.page.charts import MOST, thinned
from research.outside.page.reader import Shelf
from research.show.facts import Facts
from research.show.verdict import summary
from research.status import main as status

HOST = "127.0.0.1:8765"
VIEWS = ("overview", "recipes", "lineage", "decisions", "effects", "time", "proof", "log", "propose")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of sessions: one that crowned a champion, one that has only begun, one that cannot be read."""
    folder = tmp_path_factory.mktemp("page")
    with (story := Story(folder / "proven")).session:
        story.search().nominate().seal()
    with (young := Story(folder / "young")).session:
        young.propose()
    with (asked := Story(folder / "asked")).session:
        asked.propose()
        said = "\n".join(json.dumps({name: [EVIL]}) for name in ("tree", "refused"))
        keep(asked.session, 1, Exchange(EVIL, said, EVIL))
        call = {"outcome": "ok", "model": EVIL, "proposals": 1, "accepted": 1, "tokens_in": 5}
        asked.write("call", "", call | {"kept": 1})
        asked.write("call", "", {"outcome": "timeout", "model": "m", "kept": 2})  # of which nothing lies there
        part = changes("wider", {"model.norm": {"kind": "rmsnorm"}})
        asked.write("submission", "", {"proposal": {"name": "x"}})
        asked.propose([part], lane="llm", origin=EVIL, submission=asked.session.ledger.last())
    (folder / "broken").mkdir()
    (folder / "broken" / "ledger.sqlite").write_bytes(b"no ledger at all" * 100)
    return folder


@pytest.fixture(scope="module")
def browser(folder):
    shelf = Shelf(folder)
    client = TestClient(application(shelf, "secret", (HOST,), None), base_url=f"http://{HOST}")
    assert client.get("/?token=secret").status_code == 200  # which leaves the cookie
    yield client
    shelf.close()


def text_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.text


def test_only_who_has_the_token_gets_in(folder):
    client = TestClient(application(Shelf(folder), "secret", (HOST,)), base_url=f"http://{HOST}")
    for path in ("/", "/?token=wrong", "/s/proven/overview", "/s/proven/facts.json", "/static/page.js"):
        assert client.get(path).status_code == 403
    answer = client.get("/s/proven/recipes?q=a&token=secret", follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/s/proven/recipes?q=a"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie


def test_other_names_and_origins_are_refused(browser):
    assert browser.get("/s/proven/overview", headers={"host": "evil.example:8765"}).status_code == 421
    assert browser.get("/s/proven/overview", headers={"origin": "http://evil.example"}).status_code == 403
    assert browser.post("/s/proven/act/review", headers={"origin": "null"}).status_code == 403
    assert browser.post("/s/proven/act/review", headers={"origin": f"http://{HOST}"}).status_code == 200


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["proven", "young"])
def test_every_view_of_every_session(browser, name, view):
    answer = browser.get(f"/s/{name}/{view}")
    text = text_of(answer)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    assert "<script>alert(1)" not in text and "\x1b" not in text
    assert not re.search(r"<[^>]+ style=|<style|<script(?! src=)|\son\w+=|https?://(?!arxiv|www\.w3)", text)
    part = text_of(browser.get(f"/s/{name}/{view}", headers={"hx-request": "true"}))
    assert "<html" not in part and len(part) < len(text)


@pytest.mark.parametrize(("path", "shown"), [("/", "Improvement proven"), ("/s/proven/recipes?q=silu", 'id="filter"'),
                                             ("/s/proven/nothing", "no such view")])
def test_what_takes_long_is_painted_first_and_asked_for_once(folder, monkeypatch, path, shown):
    made = []
    monkeypatch.setattr(Page, "_html", lambda *args, make=Page._html: made.append(args[2]) or make(*args))
    with TestClient(application(Shelf(folder), "secret", (HOST,), 0.0), base_url=f"http://{HOST}") as client:
        client.get("/static/page.js?token=secret")
        first = text_of(client.get(path))
        asks = re.search(r'<main id="main" hx-get="([^"]+)"', first)[1]
        assert asks == path and shown not in first and "reading" in first
        later = client.get(asks, headers={"hx-request": "true", "hx-target": "main"}).text
    assert shown in later and '<main id="main">' in later and "hx-trigger=\"load\"" not in later
    assert len(made) == (1 if path.endswith("nothing") else 2)  # the page without, and the one with


def test_a_folder_of_sessions(browser):
    text = text_of(browser.get("/"))
    assert "proven" in text and "Improvement proven" in text and "Nothing has run yet" in text
    assert "broken" in text and "not a database" in text
    assert browser.get("/s/broken/overview").status_code == 409
    chart = browser.get("/climbs.json").json()["series"]
    assert {one["label"] for one in chart} == {"proven", "young", "asked"} and max(chart[-1]["y"] + chart[0]["y"]) > 0.3
    for path in ("/s/none/overview", "/s/proven/none", "/s/proven/recipe?id=zz", "/s/proven/recipe",
                 "/s/proven/chart/none.json", "/s/proven/trial/none/log.txt", "/s/proven/trial/..%2f..%2fx/log.txt"):
        assert browser.get(path).status_code == 404, path


def test_page_status_and_facts_say_the_same(browser, folder, capsys):
    assert status([str(folder / "proven"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert browser.get("/s/proven/facts.json").json() == told
    with Session.open(folder / "proven") as session:
        facts = Facts.of(fold(session.ledger.events()))
    assert summary(facts)["champion"]["effect"] == told["champion"]["effect"]
    overview = text_of(browser.get("/s/proven/overview"))
    for row in told["frontier"]:
        assert f"{row['mean']:+.4f} ± {row['sd']:.4f}" in overview
    assert told["verdict"]["text"][:60] in overview.replace("&#39;", "'")


def test_what_a_model_was_asked_and_answered(browser, folder):
    log, told = text_of(browser.get("/s/asked/log")), text_of(browser.get("/s/asked/call?id=1"))
    assert "/s/asked/call?id=1" in log and "1 proposal, 1 accepted; 5 tokens in" in log
    with Session.open(folder / "asked") as session:
        recipe = next(e.subject for e in session.ledger.events("proposal") if e.body.proposal.lane == "llm")
    assert "/s/asked/call?id=1" in text_of(browser.get(f"/s/asked/recipe?id={recipe}"))
    assert told.count("&lt;script&gt;alert(1)") >= 4 and "<script>alert" not in told and "\x1b" not in told
    for missing in ("2", "3", "0", "x", "../1"):
        assert browser.get(f"/s/asked/call?id={missing}").status_code == 404
    (folder / "asked" / "calls" / "1.json.gz").write_bytes(b"torn")
    assert browser.get("/s/asked/call?id=1").status_code == 404


def test_recipes_are_found_sorted_and_written(browser, folder):
    with Session.open(folder / "proven") as session:
        facts = Facts.of(fold(session.ledger.events()))
    rows = text_of(browser.get("/s/proven/recipes?sort=effect"))
    shown = re.findall(r'id="r-(\w+)"', rows)
    ran = [row["recipe_id"] for row in facts.frontier(99)]
    assert shown[: len(ran)] == ran and set(shown) == set(facts.state.proposals)
    assert re.findall(r'id="r-(\w+)"', text_of(browser.get("/s/proven/recipes?sort=number&order=up"))) == [
        *facts.state.proposals]
    found = text_of(browser.get("/s/proven/recipes?q=silu&status=searched&hide-lane=1"))
    assert len(re.findall(r'id="r-(\w+)"', found)) == 1 and "device s" in found and ">lane<" not in found
    assert "no recipe is like that" in text_of(browser.get("/s/proven/recipes?q=zzz"))
    answer = browser.get("/s/proven/recipes?csv=1&all=1")
    lines = text_of(answer).splitlines()
    assert answer.headers["content-type"].startswith("text/csv") and len(lines) == 1 + len(facts.state.proposals)


def test_a_recipe_against_parent_base_and_champion(browser, folder):
    with Session.open(folder / "proven") as session:
        facts = Facts.of(fold(session.ledger.events()))
    champion = facts.state.champion
    text = text_of(browser.get(f"/s/proven/recipe?id={champion}"))
    assert facts.name(champion) in text and "against the base" in text and "model.position" in text
    other = next(rid for rid in facts.state.proposals if rid not in (champion, facts.base))
    assert "against the champion" in text_of(browser.get(f"/s/proven/recipe?id={other[:10]}"))


def test_charts_hold_what_the_ledger_does(browser, folder):
    with Session.open(folder / "proven") as session:
        facts = Facts.of(fold(session.ledger.events()))
    steps = browser.get("/s/proven/chart/staircase.json").json()
    by_label = {one["label"]: one for one in steps["series"]}
    assert by_label["proven on fresh seeds"]["links"] == [facts.state.champion]
    dots = by_label["went beyond"]["y"]
    assert dots == sorted(dots) and all(miss <= max(dots) for miss in by_label["did not"]["y"])
    curves = browser.get(f"/s/proven/chart/curves.json?id={facts.state.champion}").json()
    trial = facts.state.trials[Trial(facts.state.champion, 1.0, 0).key]
    one = next(one for one in curves["series"] if one["label"] == "1/0")
    assert [*map(list, zip(one["x"], one["y"], strict=True))] == [list(p) for p in trial.result.points]
    seen = browser.get("/s/proven/chart/evidence.json?attempt=1").json()["series"]
    test = facts.state.verifications[0].body.comparisons["incumbent"]
    assert max(seen[0]["y"]) == pytest.approx(test["e_value"])


def test_thinning_keeps_lowest_and_highest():
    rng = np.random.default_rng(0)
    y = rng.standard_normal(50_000)
    y[12_345], y[40_001] = 99.0, -99.0
    kept = thinned(range(50_000), y.tolist())
    assert len(kept) <= MOST and {0, 12_345, 40_001, 49_999} <= set(kept) and kept == sorted(kept)


def test_a_proposal_is_judged_as_it_is_typed_and_submitted(browser, folder):
    def act(name, **form):
        return text_of(browser.post(f"/s/young/act/{name}", data=form))

    assert "would take it" in act("check", on="base", edits="model.norm = {kind: rmsnorm}")
    assert "model.width" in act("check", on="base", edits="model.width = -3")
    assert "PATH = VALUE" in act("check", on="base", edits="what?")
    assert act("check", edits="  ").strip() == ""
    with Session.open(folder / "young") as session:
        before = session.ledger.last()
    assert "one of" in act("place", path="model.norm") and "no" in act("place", path="model.nothing")
    with Session.open(folder / "young") as session:
        assert session.ledger.last() == before  # to look changes nothing
    assert "accepted" in act("propose", on="base", edits="model.norm = {kind: rmsnorm}", why=EVIL)
    assert "why" in act("propose", on="base", edits="model.norm = {kind: rmsnorm}", why="")
    with Session.open(folder / "young") as session:
        (event,) = session.ledger.events("submission")
    assert event.body.proposal["hypothesis"] == EVIL and event.body.proposal["origin"].startswith("page")
    assert "<script>alert" not in text_of(browser.get("/s/young/log"))


def test_a_word_on_a_recipe(browser, folder):
    with Session.open(folder / "proven") as session:
        champion = fold(session.ledger.events()).champion
    said = browser.post("/s/proven/act/review", data={"decision": "veto", "recipe": champion, "note": "too slow"})
    assert "taken down" in text_of(said)
    for form in ({"decision": "burn", "recipe": champion}, {"decision": "veto", "recipe": "f" * 16},
                 {"decision": "veto", "recipe": champion, "note": "x" * 1001}):
        assert "fault" in text_of(browser.post("/s/proven/act/review", data=form))
    with Session.open(folder / "proven") as session:
        (event,) = session.ledger.events("review")
    assert event.subject == champion and event.body.note == "too slow"
    assert browser.post("/s/proven/act/none").status_code == 404


def test_bad_input(tmp_path, capsys):
    with pytest.raises(UserError, match="no session there"):
        Shelf(tmp_path)
    assert report_errors(lambda: page.main([str(tmp_path / "none")])) == 2
    assert report_errors(lambda: page.main(["--port", "99999"])) == 2
    assert "--port: 99999: 0 to 65535 would do" in capsys.readouterr().err


def test_ctrl_c_ends_what_is_streamed(folder, caplog, monkeypatch):
    """In the midst of an answer that goes on for as long as the page is open."""
    monkeypatch.setattr("logging.config.dictConfig", lambda config: None)  # whose absl closes what pytest captures into
    monkeypatch.setattr("secrets.token_urlsafe", lambda n: "secret")
    monkeypatch.setattr("sse_starlette.sse.AppStatus.should_exit", False)
    read = []

    def visitor(address):
        with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
            connection.request("GET", "/s/proven/events", headers={"cookie": f"page-{address.split(':')[1]}=secret"})
            answer = connection.getresponse()
            signal.raise_signal(signal.SIGINT)
            read.append((answer.status, answer.read()))  # to its end, or an IncompleteRead

    @contextmanager
    def visited(port):
        with listening(port) as (listener, names):
            thread = threading.Thread(target=visitor, args=names[:1])
            thread.start()
            yield listener, names
            thread.join()

    monkeypatch.setattr(page, "listening", visited)
    with pytest.raises(KeyboardInterrupt):
        page.main([str(folder)])
    assert read == [(200, b"")] and not [record for record in caplog.records if record.name.startswith("uvicorn")]


def test_a_loop_is_steered(browser, folder):
    def asked(**form):
        return text_of(browser.post("/s/young/act/ask", data=form))

    assert "no loop runs there" in asked(want="pause")
    with Session.open(folder / "young") as session:
        session.ledger.acquire()  # as a loop does
        assert "pause: asked" in asked(want="pause") and "minutes 5: asked" in asked(want="minutes", minutes="5")
        for form in ({"want": "burn"}, {"want": "minutes", "minutes": "many"}, {"want": "workers", "workers": "9"},
                     {"want": "retry"}):
            assert "fault" in asked(**form)
        overview = text_of(browser.get("/s/young/overview"))
        assert "paused by" in overview.lower() and ">go on<" in overview
    with Session.open(folder / "young") as session:
        assert [(e.body.want, e.body.value) for e in session.ledger.events("ask")] == [("pause", 0), ("minutes", 5)]


def test_the_log_is_read_by_the_page(browser, folder):
    with Session.open(folder / "proven") as session:
        events = session.ledger.events()
        kinds = session.ledger.kinds()
    assert kinds == {kind: sum(e.kind == kind for e in events) for kind in sorted({e.kind for e in events})}
    number = re.compile(r'<td class="r dim">(\d+)</td>')
    first, last = (number.findall(text_of(browser.get(f"/s/proven/log?page={page}"))) for page in (1, 99))
    assert [*map(int, first)] == [e.seq for e in events][::-1][:100] and int(last[-1]) == events[0].seq
    shown = number.findall(text_of(browser.get("/s/proven/log?kind=result")))
    assert [*map(int, shown)] == [e.seq for e in events if e.kind == "result"][::-1]
    assert "tbody" in text_of(browser.get("/s/proven/log?kind=nonsense"))
