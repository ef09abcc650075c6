"""Plain data in, a node or a list of problems out: every problem on one line with path, value and rule."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from jaxnano.config.base import ConfigError, digest, dump, dump_full, validate
from jaxnano.config.file import load
from jaxnano.config.recipe import Recipe
from jaxnano.config.text import parse_yaml, to_yaml
from tests.jaxnano.recipes import RECIPES


def problem(data: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Recipe, data)
    assert "\n" not in str(caught.value.problems[0])
    return str(caught.value)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_yaml_round_trip_is_exact(recipe: Recipe) -> None:
    for form in (dump, dump_full):
        assert validate(Recipe, parse_yaml(to_yaml(form(recipe)))) == recipe


NESTED: list = []
for _ in range(500):
    NESTED = [NESTED]


@pytest.mark.parametrize(("data", "message"), [
    ({"model": {"width": "64"}}, 'model.width: "64": a whole number; 64 would do'),
    ({"model": {"width": 64.0}}, "model.width: 64.0: a whole number; 64 would do"),
    ({"model": {"depth": "-3"}}, 'model.depth: "-3": a whole number; 1 would do'),
    ({"model": {"width": True}}, "model.width: true: a whole number would do"),
    ({"model": {"bias": 1}}, "model.bias: 1: true or false would do"),
    ({"model": {"widht": 64}}, "model.widht: 64: no such field; width would do"),
    ({"model": {"norm": {"kind": "rmsnorm", "colour": 1}}},
     "model.norm.colour: 1: no such field; kind, gain, placement, eps would do"),
    ({"model": {"depth": 0}}, "model.depth: 0: at least 1 would do"),
    ({"model": {"taps": [{"name": "My Save", "after": {"block": 1}}]}}, "]{0,30}$; my_save would do"),
    ({"optimizer": {"clip": "fast"}}, 'optimizer.clip: "fast": a number or a schedule would do'),
    ({"model": {"position": {"kind": "rope"}}},
     "model.position.kind: \"rope\": one of 'learned', 'rotary', 'alibi', 'none'"),
    ({"model": {"ffn": {"ratio": 4.0}}}, 'model.ffn.kind: "absent": needed'),
    ({"model": {"init": {"std": float("nan")}}}, "model.init.std: NaN: a finite number would do"),
    ({"model": {"init": {"std": float("inf")}}}, "model.init.std: Infinity: a finite number would do"),
    ({"model": {"init": {"std": 3.0}}}, "model.init.std: 3.0: between 0 and 2; 2 would do"),
    ({"optimizer": {"clip": {"kind": "cosine", "value": 2e3}}}, "optimizer.clip: 2000.0: between 0.001 and 1000"),
    ({"optimizer": {"clip": {"kind": "cosine", "value": 1.0, "warmup": 0.95}}},
     "optimizer.clip.warmup: 0.95: between 0 and 0.9"),
    ({"optimizer": {"clip": {"kind": "step"}}}, "optimizer.clip.kind: \"step\": one of 'constant', 'linear', 'cosine', "
                                                "'trapezoid', 'power_cool', 'expression'"),
    ({"model": {"width": datetime.date(2026, 1, 1)}}, 'model.width: "2026-01-01": not plain data'),
    ({"model": {1: 2}}, "model.1: 1: a name is text"),
    ({"model": {"width": 10**5000}}, 'model.width: "16610 bits": a whole number has at most 63 bits'),
    ({"data": {"kind": "shards", "path": "\ud800"}}, 'data.path: "\\ud800": text is Unicode'),
    ({"optimizer": {"groups": [{"name": "rest", "lr": {"kind": "expression", "code": "a\0b"}}]}},
     "optimizer.groups.rest.lr.code: "),
    ({"data": {"kind": "shards", "path": "a\0b"}}, 'data.path: "a\\u0000b": text is Unicode'),
    ({"data": {"kind": "shards", "path": "x" * 5000}}, "text is Unicode of at most 4096 characters"),
    ({"model": {"width": NESTED}}, "a config has at most 10000 places, 32 deep"),
    ([], "(top): []: a map of its fields would do"),
])
def test_problems_name_path_value_and_rule(data: Any, message: str) -> None:
    assert message in problem(data)


def test_all_problems_are_told_at_once() -> None:
    assert len(problem({"model": {"width": 1, "depth": "x"}, "train": {"remat": 3}}).splitlines()) == 3


def test_items_of_a_list_are_named_in_paths() -> None:
    groups = dump_full(Recipe())["optimizer"]["groups"]
    groups[1]["chain"][0]["b2"] = 2.0
    told = problem({"optimizer": {"groups": groups}})
    assert told.startswith("optimizer.groups.rest.chain.adam.b2: 2.0: between 0 and")


def test_aliases_that_stand_for_a_billion_places_are_refused_before_they_are_walked() -> None:
    text = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    assert "10000 places" in problem(parse_yaml(text))


@pytest.mark.parametrize(("text", "message"), [
    ("model:\n  width: 16\n  width: 32\n", "line 3: \"  width: 32\": not YAML: 'width' stands there twice"),
    ("model: {width: 16", 'line 1: "model: {width: 16": not YAML'),
    ("a: 1\nb: [1, 2\n", 'line 2: "b: [1, 2": not YAML: expected'),  # marked below the last line
    ("[", 'line 1: "[": not YAML'),
    ("{\n", 'line 1: "{": not YAML'),
    ("a: b: c", 'line 1: "a: b: c": not YAML: mapping values are not allowed here'),
    ("[" * 1500, "not YAML: maximum recursion depth"),
    ("a: 2001-99-99", "not YAML: month must be in 1..12"),
    ("a: \x00", "not YAML: unacceptable character"),
    ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
])
def test_what_is_not_yaml_is_told_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "file.yaml")
    assert message in str(caught.value) and str(caught.value).startswith("file.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["1e-3", "1.e-3", "+.5e2", "-2E+4"])
def test_numbers_with_exponents_are_numbers(text: str) -> None:
    assert parse_yaml(f"x: {text}") == {"x": float(text)}


def test_a_file_and_its_overrides(tmp_path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("model: {width: 32}\noptimizer: {clip: 5e-1}\n")
    recipe = load(path, ("model.depth=5", "optimizer.groups.matrices.lr={kind: cosine, value: 0.01}"))
    assert (recipe.model.width, recipe.model.depth, recipe.optimizer.clip) == (32, 5, 0.5)
    assert recipe.optimizer.groups[0].lr.kind == "cosine"
    path.write_text("model: {widht: 32}\n")
    for call, message in (
        (lambda: load(path), f"{path}: model.widht: 32: no such field"),
        (lambda: load(tmp_path / "b.yaml"), "cannot be read: No such file"),
        (lambda: load(tmp_path), "cannot be read: Is a directory"),
    ):
        with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
            call()
    path.write_text("")
    assert load(path) == Recipe()
    for override, message in (("model.width", "written as path=value"), ("model.wide=3", "known: vocab, width"),
                              ("model.width=[", "not YAML")):
        with pytest.raises(ConfigError, match=message):
            load(path, (override,))


def test_the_digest_sees_values_and_not_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    assert len(digest({})) == 16
