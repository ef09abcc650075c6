"""Data nodes: what they refuse, and that names of recipes outlive new fields."""

import pytest

from jaxnano.config.base import ConfigError, dump, validate
from jaxnano.config.data import Shards
from jaxnano.config.model import Model
from jaxnano.config.recipe import Recipe, recipe_id

TEXT = {"kind": "text", "path": "books"}


def test_the_name_of_a_recipe_on_shards_is_what_it_was() -> None:
    recipe = Recipe(model=Model(vocab=50257), data=Shards(kind="shards"))
    assert recipe_id(recipe) == "283fce0495dd3ab8"
    assert dump(recipe)["data"] == {"kind": "shards"}


@pytest.mark.parametrize(("data", "vocab"), [
    ({"kind": "embedded"}, 256), ({"kind": "code"}, 256), (TEXT, 256), ({"kind": "shards"}, 50257),
    ({"kind": "shards", "vocab": 4096}, 4096),
    ({**TEXT, "tokenizer": {"kind": "gpt2"}}, 50257), ({**TEXT, "tokenizer": {"kind": "bpe"}}, 4096),
    ({"kind": "tfds", "name": "lm1b", "tokenizer": {"kind": "bpe", "vocab": 999}}, 999),
])
def test_the_model_holds_every_token_of_its_data(data: dict, vocab: int) -> None:
    recipe = validate(Recipe, {"model": {"vocab": vocab}, "data": data})
    assert recipe.data.vocab == vocab and validate(Recipe, dump(recipe)) == recipe
    message = f"model.vocab: {vocab - 1}: {data['kind']} data has {vocab} tokens; {vocab} would do"
    with pytest.raises(ConfigError, match=message):
        validate(Recipe, {"model": {"vocab": vocab - 1}, "data": data})


@pytest.mark.parametrize(("data", "separator"), [
    ({"kind": "embedded"}, 0), (TEXT, 0), ({**TEXT, "tokenizer": {"kind": "gpt2"}}, 50256), ({"kind": "shards"}, 50256),
    ({"kind": "shards", "vocab": 4097}, 4096), ({"kind": "shards", "vocab": 256}, 0),
    ({**TEXT, "tokenizer": {"kind": "bpe"}, "documents": {"separator": 77}}, 77),
])
def test_a_document_begins_with_the_datas_own_separator(data: dict, separator: int) -> None:
    recipe = validate(Recipe, {"model": {"vocab": 65536}, "data": {"documents": {"align": True}, **data}})
    assert recipe.data.separator == separator and validate(Recipe, dump(recipe)) == recipe
    assert recipe.data.aligned == (None if "separator" in data.get("documents", {}) else separator)


@pytest.mark.parametrize(("data", "message"), [
    ({"kind": "tape"}, "data.kind: \"tape\": one of 'embedded', 'code', 'shards', 'text', 'tfds'"),
    ({"kind": "text"}, "data.path: \"absent\": needed"),
    ({**TEXT, "tokenizer": {"kind": "words"}}, "data.tokenizer.kind: \"words\": one of 'bytes', 'gpt2', 'bpe'"),
    ({**TEXT, "tokenizer": {"kind": "bpe", "vocab": 100}}, "data.tokenizer.vocab: 100"),
    ({**TEXT, "tokenizer": {"kind": "bpe"}, "documents": {}}, "data.documents.separator: null: the token that begins"),
    ({**TEXT, "documents": {"mask": False}}, "data.documents.mask: false: mask or align"),
    ({**TEXT, "documents": {"mask": False, "align": True, "most": 9}}, "data.documents.most: 9: without mask"),
    ({"kind": "tfds", "name": "lm1b", "path": "a"}, 'data.path: "a": for tiny_shakespeare alone; kind: text reads'),
])
def test_what_is_no_data_is_refused_with_its_path(data: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Recipe, {"data": data, "model": {"vocab": 65536}})
    assert message in str(caught.value)


def test_a_separator_that_no_text_can_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="data.documents.separator: 300: a token, of which there are 256; null, for"):
        validate(Recipe, {"data": {"kind": "embedded", "documents": {"separator": 300}}})
