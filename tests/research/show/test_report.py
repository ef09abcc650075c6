"""The report in every situation a session can be in, and nothing from outside taken for markup."""

import html
import json
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise

import matplotlib
import pytest
from sessions import EVIL, Story, changes, unfenced
from starlette.testclient import TestClient

from research import report, status
from research.contract.idea import ideas, part
from research.contract.trial import Trial
from research.outside.desk import Desk
from research.outside.inbox import Inbox
from research.outside.page.app import application
from research.outside.page.reader import Shelf
from research.review import _lines
from research.show import plots
from research.show.candidates import candidates
from research.show.card import card, change, page
from research.show.facts import Facts
from research.show.pages import environment
from research.show.report import write_report
from research.show.verdict import summary
from research.text import clean

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers ids, targets and what would be fetched or run."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.targets, self.foreign, self.text = [], [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open += [tag] if tag not in VOID else []
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.targets += [values["href"]] if tag == "a" else []
        self.foreign += [tag] if tag in ("script", "img", "link", "iframe") or "src" in values else []

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def proven(path):
    return Story(path, bytes_per_token=1.0).search().nominate().seal().beside().end()


def refuted(path):
    story = Story(path, bytes_per_token=1.0).search().nominate()
    story.worth[story.best] = 0.0
    return story.seal().end()


def unproven(path):
    return Story(path).search().nominate().end()


def not_nominated(path):
    return Story(path).search().end()


def hopeless(path):
    story = Story(path)
    story.base = story.propose()
    return story.end()


def young(path):
    return Story(path).close()


def interrupted(path):
    story = Story(path).search()
    story.start(Trial(story.base, 0.5, 0), "base")
    return story.close()


SITUATIONS = {
    proven: "Improvement proven",
    refuted: "was tested on fresh seeds and failed",
    unproven: "the session ended before the proof did",
    not_nominated: "ended before anything was tested",
    hopeless: "Nothing has run yet",
    young: "Nothing has run yet",
    interrupted: "Not ended yet: searching",
}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """situation -> a session's folder with its report in it, made once, and its state."""
    @cache
    def made(situation):
        path, state = situation(tmp_path_factory.mktemp(situation.__name__) / "session")
        write_report(path)
        return path, state

    return made


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda f: f.__name__)
def test_report_in_every_situation(situation, reported):
    path, state = reported(situation)
    html, markdown = (path / "report.html").read_text(), (path / "report.md").read_text()
    page = Page(html)
    assert SITUATIONS[situation] in page.text and SITUATIONS[situation] in markdown
    assert page.foreign == [] and len(page.ids) == len(set(page.ids))
    inner = {target[1:] for target in page.targets if target.startswith("#")}
    assert inner <= set(page.ids)
    outer = {target for target in page.targets if not target.startswith("#")}
    assert all(t.startswith(("https://arxiv.org/abs/", "trials/")) for t in outer)
    assert {f"trial-{key}" for key in state.trials} <= set(page.ids)
    for figure in re.findall(r"\]\((plots/\S+\.svg)\)", markdown):
        ElementTree.parse(path / figure)
    assert len(html) < 500_000


@pytest.mark.parametrize("situation", [proven, refuted, not_nominated, young], ids=lambda f: f.__name__)
def test_all_faces_tell_the_same_figures(situation, reported, capsys):
    """Terminal, `status --json`, page, report and what agents are told; these of the proof its outcome alone."""
    path, _ = reported(situation)
    terminal, told = ((status.main([str(path), *form]), capsys.readouterr().out)[1] for form in ((), ("--json",)))
    told = json.loads(told)
    with closing(Shelf(path)) as shelf, Inbox(path) as inbox:
        client = TestClient(application(shelf, "secret", ("localhost",), None), base_url="http://localhost")
        assert client.get("/s/session/facts.json?token=secret").json() == told
        views = [Page(client.get(f"/s/session/{view}").text).text for view in ("overview", "proof", "recipes")]
        agent = Desk(inbox).state()
    written, markdown = ((path / f"report.{form}").read_text() for form in ("html", "md"))
    people = [" ".join(text.split()) for text in (terminal, " ".join(views), Page(written).text,
                                                  html.unescape(re.sub(r"\\(.)", r"\1", markdown)))]
    champion, tested = told["champion"], [row for row in told["verifications"] if row["comparisons"]]
    figures = [told["verdict"]["text"], *(f"{row['mean']:+.4f} ± {row['sd']:.4f}" for row in told["frontier"])]
    figures += [told[side]["measure"] for side in ("base", "champion") if told[side] and told[side]["measure"]]
    assert len(figures) == {proven: 8, refuted: 7, not_nominated: 6, young: 1}[situation]
    assert [(figure, i) for figure in figures for i, text in enumerate(people) if clean(figure) not in text] == []
    for test in (row["comparisons"]["incumbent"] for row in tested):  # in the verdict, and again where the proof stands
        assert f"p = {test['p_value']:.2g}" in figures[0] and re.search(rf"\b{test['n']} (fresh )?seeds", figures[0])
        rounded = (f"{test['effect']:+.4f}", "{:+.4f} … {:+.4f}".format(*test["interval"]), f"{test['p_value']:.2g}")
        assert all(figure in text for figure in rounded for text in people[1:])
    if champion:
        assert champion["measure"] == f"{champion['loss']['search']['mean'] / math.log(2):.4f} bits per byte"
        low, high = champion["interval"]
        assert f"{champion['effect']:.3f}" in figures[0] and f"{low:.3f} to {high:.3f}" in figures[0]
        assert f"(n = {champion['n_seeds']})" in terminal
        assert all(f"{told['beside'][bits]:.4f}" in text for bits in ("bits", "champion") for text in people[1:])
    rows, mine = ({row["recipe_id"]: row for row in found} for found in (
        told["frontier"], (row.model_dump() for row in agent.frontier)))
    assert {rid: (row["runs"], row["gains"]) for rid, row in rows.items()} == {
        rid: (row["runs"], row["gains"]) for rid, row in mine.items()}
    assert [row.passed for row in agent.attempts] == [row["passed"] for row in told["verifications"]]
    assert agent.trials == told["trials"] and agent.proposals == {n: told["proposals"][n] for n in agent.proposals}
    if not tested:  # runs on fresh seeds teach the belief what agents may not know
        assert all((row["mean"], row["sd"]) == (mine[rid]["effect"], mine[rid]["sd"]) for rid, row in rows.items())


def test_text_from_outside_stays_text(reported):
    path, _ = reported(proven)
    html, markdown = (path / "report.html").read_text(), (path / "report.md").read_text()
    assert "first ```\n<script>" in markdown and "first ```" not in unfenced(markdown)
    assert "\x1b" not in html + markdown and "<script" not in html + unfenced(markdown)
    assert "first ```\n<script>" in Page(html).text and EVIL.split()[0] in Page(html).text
    tables = [(a, b) for a, b in pairwise(markdown.splitlines()) if a.startswith("| ") and b.startswith("| ")]
    bars = re.compile(r"(?<!\\)\|")
    assert tables and all(len(bars.findall(a)) == len(bars.findall(b)) for a, b in tables)


def test_the_subject_of_a_review_that_anybody_may_append_is_text_too(tmp_path):
    story = Story(tmp_path / "session").search()
    story.write("review", f"x\n\n{EVIL} (a)", {"decision": "veto", "reviewer": EVIL, "note": EVIL})
    path, _ = story.end()
    write_report(path)
    for name in ("report.html", "report.md"):
        text = (path / name).read_text()
        assert "<script" not in text and "\x1b" not in text
    assert "[x](y)" not in text  # the Markdown's


def test_numbers_of_the_proof_are_the_ledgers(reported):
    path, state = reported(proven)
    text = Page((path / "report.html").read_text()).text
    facts = Facts.of(state)
    body = state.verifications[-1].body
    test = body.comparisons["incumbent"]
    for losses in body.losses.values():
        for loss in losses.values():
            assert f"{loss:.4f}" in text
    assert f"{test['effect']:+.4f}" in text and f"{test['p_value']:.2g}" in text and f"{body.alpha:.2g}" in text
    parts = facts.parts(state.champion)
    assert parts == sorted(parts, key=lambda row: -row["ablation"]["effect"])
    for row in parts:
        assert row["source"] in text and f"{row['ablation']['effect']:+.4f}" in text


def test_what_an_ablation_leaves_claims_the_reasons_of_its_parts(tmp_path):
    """The last to propose it says `without silu`; a person's reason stays with the part through all lanes."""
    story = Story(tmp_path / "session").search()
    own = changes("calm", {"optimizer.clip": 0.7}, why="its gradients are wild")
    parts = (part(ideas()["rotary"]), own)
    story.best = story.propose(parts, 0.4, lane="ablation", origin="ablation", hypothesis="without silu")
    for horizon in (0.25, 1.0):
        story.run(Trial(story.best, horizon, 0))
    path, state = story.nominate().seal().end()
    facts = Facts.of(state)
    reasons = [ideas()["rotary"].why, "its gradients are wild"]
    assert state.champion == story.best and {p["why"] for p in facts.parts(story.best)} == {*reasons}
    about = card(facts)
    (row,) = [row for row in candidates(facts) if row.recipe_id == story.best]
    write_report(path)
    texts = [page(about), change(about), (path / "report.md").read_text(), "\n".join(_lines(row))]
    for text in texts:
        assert all(reason.replace("'", "") in text.replace("'", "") for reason in reasons), text
    assert "without silu" not in about["hypothesis"] + row.hypothesis


def test_two_processes_write_the_same_bytes(tmp_path):
    path, _ = proven(tmp_path / "session")
    written = []
    salt = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # other than this process's
    command = [sys.executable, "-m", "research.report", path]
    for write in (lambda: write_report(path),
                  lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL,
                                         env=os.environ | {"PYTHONHASHSEED": salt})):
        write()
        written.append({p.name: p.read_bytes() for p in [*path.glob("report.*"), *path.glob("plots/*.svg")]})
    assert len(written[0]) == 7 and written[0] == written[1]


def test_what_was_never_tried_is_told_by_family_and_so_are_flat_priors(tmp_path):
    told = {"position": ["rotary", "alibi"], "norm": ["rmsnorm"], "ffn": ["relu-squared"]}
    path, state = Story(tmp_path / "s", flat_priors=True, ideas=told).search().end()
    write_report(path)
    for form in ("html", "md"):
        text = (path / f"report.{form}").read_text()
        listed = text[text.index("What was never tried"):]
        assert "Of the 4 ideas" in " ".join(listed.split()) and "2 ran in no" in " ".join(listed.split())
        table = listed[listed.index("<details>"): listed.index("</details>")]
        assert "alibi" in table and "rmsnorm" in table and "rotary" not in table and "relu-squared" not in table
        assert "Nothing that is promised of an idea counted" in " ".join(text.split())
    found = summary(Facts.of(state))
    assert found["never_tried"] == 2 and found["flat_priors"] is True


def test_barnacles_are_listed(tmp_path):
    story = Story(tmp_path / "session").search().nominate()
    ablation = story.snapshot().state.ablations[story.best]
    story.write("ablation", story.best, ablation.model_copy(update={
        "removed": ("relu-squared",), "kept": ("rotary",), "recipe_id": story.singles["rotary"]}))
    path, _ = story.end()
    write_report(path)
    assert "Barnacles" in (path / "report.md").read_text()


def test_command_reports_what_is_wrong_in_one_line(tmp_path, capsys):
    from jaxnano.cli import report_errors

    assert report_errors(lambda: report.main([str(tmp_path)])) == 2
    assert capsys.readouterr().err.count("\n") == 1
    path, _ = young(tmp_path / "session")
    assert report.main([str(path)]) == 0


SAME = """{% call p() %}{{ name }}{{ code("x | `y`" | clean) }} {{ link("see", "#z") }}{% endcall %}
{% call(cell, n) table(["h", "n"], "lr", rows) %}{{ cell }} {{ td }} {{ n }}{% endcall %}
{{ diff([{"path": "a.b", "old": name, "new": 1}]) }}"""


def test_markdown_and_html_show_the_same_text():
    html, markdown = (environment(form).from_string(SAME).render(name="a <b> ", rows=[("a|b", 1), ("c\x1fd", 2)])
                      for form in ("html", "md"))
    assert "a &lt;b&gt; <code>x | `y`</code> <a href=\"#z\">see</a>" in html
    assert r"a &lt;b&gt; <code>x \| \`y\`</code> [see](#z)" in markdown and r"| a\|b | 1 |" in markdown
    assert '<td>c d</td><td class="r">2</td>' in html and "| c d | 2 |" in markdown
    assert '<span class="old">- a.b: a &lt;b&gt; </span>\n<span class="new">+ a.b: 1</span></pre>' in html
    assert "```diff\n- a.b: a <b> \n+ a.b: 1\n```" in markdown
    assert {*environment("html").globals} == {*environment("md").globals}


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0], [1e-9, 2e-9], [-5.0, 7e6], [float("nan"), 1.0]])
def test_plots_of_few_equal_and_wild_values(values):
    places = list(range(len(values)))
    for kind in ("line", "step", "dots"):
        series = plots.Series("a", places, values, kind, low=values if kind != "dots" else (),
                              high=values if kind != "dots" else ())
        for log in (False, True):
            svg = plots.xy([series], "x", "y", log_y=log)
            ElementTree.fromstring(svg)
            assert "nan" not in svg and "inf" not in svg
    finite = [v for v in values if v == v]
    ElementTree.fromstring(plots.bars([("row", [abs(v) for v in finite])], ["p"] * len(finite), "x"))
    ElementTree.fromstring(plots.intervals([plots.Whisker("w", v, 1.0) for v in finite], "x"))


@pytest.mark.parametrize("labels", [
    ["base", *(f"leader: {'W' * n}" for n in (60, 5, 40))], ["m" * 60] * 3, ["base", "b"],
], ids=["mixed", "wide", "short"])
def test_a_legend_stays_within_its_picture(labels):
    svg = plots.xy([plots.Series(label, [0.0, 1.0], [1.0, 2.0]) for label in labels], "x", "y")
    found = re.findall(r'text-anchor: start[^>]* x="([^"]+)" y="([^"]+)"[^>]*>([^<]+)', svg)
    entries = [(float(x), float(y), shown) for x, y, shown in found]
    assert len(entries) == len(labels)
    ends = [x + 12 * sum(c in "Wm" for c in shown) + 3 * sum(c not in "Wm" for c in shown)
            for x, _, shown in entries]  # a W or an m is as wide as text is high
    assert max(ends) <= plots.WIDTH and max(y for _, y, _ in entries) < 12 + 18 * len(labels)
    assert all(end < x or y - above >= 12
               for end, (_, above, _), (x, y, _) in zip(ends, entries, entries[1:], strict=False))
    assert [shown for *_, shown in entries if len(shown) < 6] == [label for label in labels if len(label) < 6]


@pytest.mark.parametrize("label", ["$x^2$", "_x", EVIL, "\u5149\u7684", "n" * 300, "a\nb"])
def test_a_name_in_a_plot_is_text(label, recwarn):
    series = plots.Series(label, [0.0, 1.0], [1.0, 2.0], "dots", titles=[label] * 2, targets=["a", "b"])
    drawn = [plots.xy([series, plots.Series(label, [0.0], [1.0])], label, label),
             plots.bars([(label, [1.0])], [label], label),
             plots.intervals([plots.Whisker(label, 1.0, 1.0)], label)]
    for svg in drawn:
        texts = [t.text for t in ElementTree.fromstring(svg).iter() if t.tag.endswith(("}text", "}title"))]
        assert clean(label) in texts and (len(label) < 99 or any("n…n" in t and len(t) < 60 for t in texts))
        assert "<script" not in svg and not any(c in svg for c in "\x1b")
    assert not recwarn


def test_a_plot_looks_the_same_whatever_a_person_has_set():
    plain = plots.xy([plots.Series("a", [0.0, 1.0], [1.0, 2.0])], "x", "y")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "black"}):
        assert plots.xy([plots.Series("a", [0.0, 1.0], [1.0, 2.0])], "x", "y") == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_a_command_starts_without_what_draws_and_what_takes_longest_to_import():
    code = "import sys, research.show.report; assert not {'matplotlib', 'scipy.stats'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_dot_is_where_its_axes_say():
    svg = plots.xy([plots.Series("a", [0.0, 10.0], [1.0, 3.0], "dots", targets="ab", titles="ab")], "x", "y")
    shapes = list(ElementTree.fromstring(svg).iter())
    links = {a.get("href"): a.find("{*}use") for a in shapes if a.tag.endswith("}a")}
    found = [(float(links[href].get("x")), float(links[href].get("y"))) for href in ("#a", "#b")]
    ticks = {t.text: t for t in shapes if t.tag.endswith("text")}
    assert found[0][0] == float(ticks["0"].get("x")) and found[1][0] == float(ticks["10"].get("x"))
    assert found[0][1] == pytest.approx(float(ticks["1"].get("y")) - 4, abs=1) and found[1][1] < found[0][1]
