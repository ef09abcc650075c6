"""What holds of every recipe that there is."""

from __future__ import annotations

import yaml
from hypothesis import HealthCheck, given, settings
from strategies import recipes

from jaxnano.config.base import dump, dump_full, validate
from jaxnano.config.edit import apply, diff, invert
from jaxnano.config.recipe import Recipe, recipe_id
from jaxnano.cost import preflight
from tests.jaxnano.recipes import model

SHALLOW = model(depth=1)
any_recipe = settings(max_examples=40, deadline=None, derandomize=True, database=None,
                      suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@any_recipe
@given(recipes(SHALLOW))
def test_plain_data_says_all_of_a_recipe(recipe: Recipe) -> None:
    for data in (dump(recipe), dump_full(recipe), yaml.safe_load(yaml.safe_dump(dump(recipe)))):
        again = validate(Recipe, data)
        assert again == recipe and recipe_id(again) == recipe_id(recipe)


@any_recipe
@given(recipes(SHALLOW), recipes(SHALLOW))
def test_a_diff_leads_from_any_recipe_to_any_other_and_back(a: Recipe, b: Recipe) -> None:
    change = diff(a, b)
    assert apply(a, change) == b and apply(b, invert(a, change)) == a
    assert bool(change.edits) == (recipe_id(a) != recipe_id(b))


@any_recipe
@given(recipes(SHALLOW))
def test_every_recipe_has_a_price_and_a_batch_in_pieces_is_no_dearer(recipe: Recipe) -> None:
    whole, pieces = preflight(recipe), preflight(recipe, accumulate=recipe.data.batch)
    assert 0 < whole.flops_per_step == pieces.flops_per_step and whole.optimizer_flops_per_step > 0
    assert 0 < pieces.activation_bytes <= whole.activation_bytes
