"""Where a champion is carried over to: what is changed of a recipe, and of the track's budget."""

import pytest

from jaxnano.config.base import ConfigError, dump, validate
from jaxnano.config.data import GPT2_VOCAB, Code, Shards, Text
from jaxnano.config.edit import diff
from jaxnano.config.recipe import Recipe
from research.contract.track import LossAtSeconds, StepsToTarget, load_track
from research.contract.transfer import TEXT, Setting, abroad, brought, changed, other_text, settings, text_of

TINY = load_track("tiny")
WIDER, LARGER, SMALLER = Setting("2x width", width=2), Setting("2x batch", batch=2.0), Setting("1/2 batch", batch=0.5)
BLOCKS = [{"name": "late", "at": [{"share": 0.5}], "set": {"attention": {"heads": 2, "window": 16}}}]
PHASES = [{"name": "end", "start": 0.5, "set": {"data": {"batch": 16}, "model": {"attention": {"window": 8}}}}]


def recipe(**more):
    return validate(Recipe, dump(TINY.base_recipe) | more)


def wide(**attention):
    return recipe(model={"width": 64, "attention": {"heads": 4} | attention, "blocks": BLOCKS}, phases=PHASES)


@pytest.mark.parametrize(("own", "setting", "paths"), [
    (recipe(), WIDER, {"model.width": 128, "model.attention.heads": 8}),
    (wide(kv_heads=2, head_dim=8), WIDER, {
        "model.width": 128, "model.attention.heads": 8, "model.attention.kv_heads": 4,
        "model.blocks.late.set.attention.heads": 4}),
    (wide(), LARGER, {"data.batch": 16, "phases.end.set.data.batch": 32}),
    (wide(), SMALLER, {"data.batch": 4, "phases.end.set.data.batch": 8}),
    (wide(), Setting("2x horizon", horizon=2.0), {}),
    (wide(), settings(TINY)[-1], {"data": {"kind": "code", "batch": 8}}),
])
def test_a_setting_changes_what_it_says_in_diffs_too_and_nothing_else(own, setting, paths):
    assert {edit.path: edit.new for edit in diff(own, changed(own, setting)).edits} == paths
    there = changed(own, setting).model
    assert there.width // there.attention.heads == own.model.width // own.model.attention.heads


@pytest.mark.parametrize(("own", "setting", "words"), [
    (recipe(model={"width": 256, "attention": {"heads": 256, "head_dim": 2}}), WIDER, "heads: 512: at most 256"),
    (recipe(data={"kind": "embedded", "length": 64, "batch": 3}), SMALLER, "data.batch: 3: 0.5 times it is no whole"),
    (recipe(), Setting(TEXT), "data.kind: \"embedded\": there is no other text of such tokens here; --text FOLDER"),
])
def test_what_cannot_be_is_refused_with_the_reason(own, setting, words):
    with pytest.raises(ConfigError) as refused:
        changed(own, setting)
    assert words in str(refused.value)


@pytest.mark.parametrize(("objective", "setting", "steps", "seconds"), [
    (TINY.objective, Setting("2x horizon", horizon=2.0), 1280, None),
    (TINY.objective, WIDER, 640, None), (TINY.objective, LARGER, 320, None), (TINY.objective, SMALLER, 1280, None),
    (StepsToTarget(kind="steps_to_target", target=1.0), LARGER, 320, None),
    (LossAtSeconds(kind="loss_at_seconds", seconds=9.0), Setting("2x horizon", horizon=2.0), 1280, 18.0),
    (LossAtSeconds(kind="loss_at_seconds", seconds=9.0), WIDER, 640, 9.0),
])
def test_the_base_keeps_its_tokens_and_all_get_its_budget(objective, setting, steps, seconds):
    home = TINY.model_copy(update={"objective": objective})
    assert home.base_cost.flops_per_step > 0  # which is kept, of this base
    there = abroad(home, setting)
    base = there.base_recipe
    assert abs(there.steps(base, setting.horizon) - steps) <= 1
    assert there.seconds(setting.horizon, None) == seconds
    assert there.full_steps * base.data.batch == home.full_steps * home.base_recipe.data.batch
    assert there.base_cost.flops_per_step >= home.base_cost.flops_per_step / 2 and home.full_steps == 640
    assert home.base_recipe == TINY.base_recipe


def test_another_text_is_in_the_same_tokens_and_rows(tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    home = TINY.base_recipe.data
    own = brought(home, str(tmp_path))
    assert isinstance(own, Text) and (own.vocab, own.length, own.batch) == (256, home.length, home.batch)
    code = settings(TINY)[-1].data
    assert code == Code(kind="code", length=64, batch=8) and text_of(code).startswith("code of ")
    assert other_text(code) == home
    assert settings(TINY.model_copy(update={"set": ()}), own)[-1].name == f"text: {tmp_path}"
    shards = Shards(kind="shards", length=32, batch=4)
    there = brought(shards, str(tmp_path))
    assert isinstance(there, Text) and (there.vocab, there.length, there.batch) == (GPT2_VOCAB, 32, 4)
    assert settings(load_track("one-gpu"))[-1] == Setting(TEXT)
