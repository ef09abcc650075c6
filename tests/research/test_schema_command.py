"""The schema command, and the page for people that it prints."""

import re

import pytest
import yaml

from jaxnano.cli import report_errors
from jaxnano.config.base import traced_range, validate
from jaxnano.config.recipe import Recipe
from research import schema
from research.contract.schema import describe, field_at, kinds
from research.contract.tree_page import ITEM, page
from research.machine import ROOT


@pytest.fixture(scope="module")
def text():
    return page()


def kinds_below(node, found):
    """Every kind that a recipe may hold, schedules and partial trees apart."""
    for field in node.model_fields.values():
        for kind, inner in kinds(field.annotation).items() if traced_range(field) is None else ():
            if (kind, inner) not in found and not inner.sparse:
                found.add((kind, inner))
                kinds_below(inner, found)
    return {kind for kind, _ in found}


def test_every_node_stands_on_the_page_once(text):
    for kind in kinds_below(Recipe, set()) - {""}:
        assert f"**{kind}**. " in text
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    assert len(headings) == len(set(headings)) > 40


def test_examples_are_valid_where_they_stand(text):
    shown = 0
    for section in re.split(r"^#+ ", text, flags=re.M)[3:]:
        path = section.partition("\n")[0].strip("`")
        for example in re.findall(r"^Example: `(.*)`$", section, re.M):
            value = yaml.safe_load(example)
            node = kinds(field_at(path.replace(ITEM, ".x").removesuffix(".x")).annotation)[value.get("kind", "")]
            validate(node, value)
            shown += 1
    assert shown > 40


def test_the_page_in_docs_is_of_today(text):
    assert (ROOT / "docs/tree.md").read_text() == text, "python -m research.schema --page > docs/tree.md would do"


def test_formulas_say_what_they_see(text):
    logit = text.partition("`model.attention.logit`\n\n")[2].partition("\n#")[0]
    assert "In scope: `s`, `distance`, `head`, `heads`, `depth`." in logit


def test_the_command_prints_the_tree_a_place_or_the_page(capsys, text):
    for argv, expected in (([], describe()), (["model.attention"], describe("model.attention"))):
        assert report_errors(lambda argv=argv: schema.main(argv)) == 0
        assert capsys.readouterr().out.splitlines() == expected
    assert report_errors(lambda: schema.main(["--page"])) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(("argv", "words"), [
    (["model.positoin"], "no such place"), (["model", "--page"], "--page: of model")])
def test_bad_input_is_one_line(capsys, argv, words):
    assert report_errors(lambda: schema.main(argv)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err
