"""A text of one's own: trained on through the same functions as every other corpus, and read back in its own words."""

import pytest

from jaxnano import train
from jaxnano.config.base import ConfigError
from jaxnano.config.data import Bpe, Text
from jaxnano.data import tokenizer_of
from tests.jaxnano.data.test_text import library
from tests.jaxnano.recipes import TINY, edited


def test_a_folder_of_text_is_trained_on_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXNANO_CACHE", str(tmp_path / "cache"))
    library(tmp_path / "books")
    node = Text(kind="text", path=str(tmp_path / "books"), tokenizer=Bpe(kind="bpe", vocab=300), length=16, batch=8)
    with pytest.raises(ConfigError, match="model.vocab: 256: text data has 300 tokens; 300 would do"):
        edited(TINY, {"data": node.model_dump()})
    recipe = edited(TINY, {"data": node.model_dump(), "model.vocab": 300, "model.depth": 1})
    summary = train.fit(train.Training(recipe, 12))
    assert 3 < summary["search_loss"] < 6  # log(300) = 5.7 at first
    tokenizer = tokenizer_of(recipe.data)
    assert tokenizer.vocab == 300 and tokenizer.decode(tokenizer.encode("strean kick")) == b"strean kick"
