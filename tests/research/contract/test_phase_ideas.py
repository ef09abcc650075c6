"""Ideas with phases are what they are called, by their definitions alone, on each of the bases."""

import math

import numpy as np
import pytest

from jaxnano.config.file import load
from jaxnano.config.recipe import at, beside, hypers, stages
from jaxnano.model.position import frequencies
from research.contract.idea import ideas, part
from research.contract.proposal import build
from research.contract.track import CONFIGS

BASES = {name: load(CONFIGS / f"{name}.yaml") for name in ("gpt2-tiny", "gpt2-124m", "track3-124m")}


@pytest.fixture(params=BASES)
def base(request):
    return BASES[request.param]


def along(name, base):
    """The starts of an idea's stages, and the recipe in each."""
    parts = stages(build(base, [part(ideas()[name], base)]))
    return [one.start for one in parts], [one.recipe for one in parts], parts[-1].carry


def yarn(f, scale, before, after):
    """A pair's frequency and the softmax scale once a window has grown. Source: arXiv:2309.00071, alpha 1, beta 32."""
    turns = before * f / (2 * math.pi)
    gamma = min(max((turns - 1) / (32 - 1), 0.0), 1.0)
    return f * (before / after + gamma * (1 - before / after)), scale * (1 + 0.2 * math.log(after / before))


def test_yarn_follows_the_window_at_each_growth(base):
    _, recipes, _ = along("windows-grow-yarn", base)
    length, dim = base.data.length, recipes[0].model.head_dim
    windows = [recipe.model.window(length) or length for recipe in recipes]
    assert windows == [length // 4, length // 2, length]
    expected = [10000.0 ** (-2 * i / dim) for i in range(dim // 2)]
    scale = 0.1
    for stage, recipe in enumerate(recipes):
        if stage:
            scale = yarn(1.0, scale, *windows[stage - 1 : stage + 1])[1]
            expected = [yarn(f, 1.0, *windows[stage - 1 : stage + 1])[0] for f in expected]
        model = at(recipe, hypers(recipe, 100), 0.5).model
        np.testing.assert_allclose(frequencies(model.position, dim), expected, rtol=2e-5)
        assert float(model.attention.scale.value) == pytest.approx(scale, rel=1e-6)


def test_windows_grow_to_all_at_thirds(base):
    starts, recipes, _ = along("windows-grow", base)
    length = base.data.length
    assert starts == [0.0, 0.33, 0.66]
    assert [recipe.model.window(length) for recipe in recipes] == [length // 8, length // 2, None]


@pytest.mark.parametrize(("name", "factors"), [("batch-grows", (1, 1, 1)), ("batch-and-rates-grow", (1, 1.52, 1.73))])
def test_a_batch_grows_twofold_and_threefold_and_rates_with_it(name, factors, base):
    starts, recipes, _ = along(name, base)
    first = recipes[0].data.batch
    assert starts == [0.0, 0.333, 0.667] and [r.data.batch for r in recipes] == [first, 2 * first, 3 * first]
    for recipe, factor in zip(recipes, factors, strict=True):
        for group, was in zip(recipe.optimizer.groups, base.optimizer.groups, strict=True):
            assert group.lr.value == pytest.approx(factor * was.lr.value) and group.lr.kind == was.lr.kind


def test_a_table_is_shared_until_two_thirds_of_the_run(base):
    starts, (tied, untied), carry = along("tied-then-untied", base)
    assert starts == [0.0, 0.667] and carry == {"head/weight": "embedding/token"}
    assert tied.model.embedding.tied and not untied.model.embedding.tied
    assert untied.model == tied.model.model_copy(update={"embedding": untied.model.embedding})


def test_documents_are_cut_shorter_in_the_first_third(base):
    starts, recipes, _ = along("documents-cut-shorter-at-first", base)
    assert starts == [0.0, 0.333] and all(recipe.data.documents.mask for recipe in recipes)
    assert [recipe.data.documents.most for recipe in recipes] == [int(896 / 2048 * base.data.length), None]
    assert len(beside(base, build(base, [part(ideas()["documents-cut-shorter-at-first"], base)]))) == 2
