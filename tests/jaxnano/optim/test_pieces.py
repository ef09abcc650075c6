"""Lines of a chain that see a matrix in pieces, against NumPy in float64 that cuts it by hand."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import assert_all_close, directions, group, optimizer, random_tree
from polynomials import orthogonalized

from jaxnano.config.base import ConfigError
from jaxnano.model.specs import Initial, Spec
from jaxnano.optim.build import update_cost
from jaxnano.optim.chain import build_chain, costs_of
from tests.jaxnano.optim.test_chain import grouped

quintic = partial(orthogonalized, kind="quintic")
SHAPES = {"square": (6, 6), "tall": (12, 6), "wide": (6, 12)}


def by_piece(x, axis, count, act):
    along = {"in": 0, "out": 1}[axis]
    return np.concatenate([act(part) for part in np.split(x, count, along)], along)


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("count", [2, 3])
def test_each_piece_is_orthogonalised_on_its_own(axis, count):
    grads = random_tree(0, SHAPES, 1)
    got = directions(grads, {"kind": "polar", "pieces": {"axis": axis, "count": count}})
    expected = {path: by_piece(g[0].astype(np.float64), axis, count, quintic)[None] for path, g in grads.items()}
    assert_all_close(got, expected, 2e-5)
    whole = directions(grads, {"kind": "polar"})
    assert all(np.abs(whole[path] - got[path]).max() > 0.05 for path in SHAPES)


@pytest.mark.parametrize("axis", ["in", "out"])
def test_a_formulas_reductions_and_fans_are_of_a_piece_and_its_value_is_the_whole(axis):
    grads, pieces = random_tree(0, SHAPES, 1), {"axis": axis, "count": 3}
    got = directions(grads, {"name": "size", "into": "s", "code": "norm(g) * fan_in", "pieces": pieces},
                     {"name": "long", "code": "u * rows(u) / s + mean(s)", "pieces": pieces},
                     {"name": "all", "code": "u + norm(g) * s"})
    expected = {}
    for path, g in grads.items():
        x = g[0].astype(np.float64)

        def act(part):
            size = np.linalg.norm(part) * part.shape[0]
            return part * np.linalg.norm(part, axis=0) / size + size

        size = by_piece(x, axis, 3, lambda part: np.full_like(part, np.linalg.norm(part) * part.shape[0]))
        expected[path] = (by_piece(x, axis, 3, act) + np.linalg.norm(x) * size)[None]
    assert_all_close(got, expected, 1e-5)


def test_heads_are_where_the_table_has_them():
    """Along the outputs of the queries, along the inputs of what projects back."""
    shapes, axes = {"q": (6, 12), "o": (12, 6)}, {"q": "DH", "o": "HD"}
    grads = random_tree(0, shapes)
    node = group({"kind": "polar", "pieces": {"axis": "heads", "count": 2}})
    chain = build_chain(node.steps, {"lr": 1.0, "progress": 0.5}, axes)
    zero = {path: jnp.zeros(shape) for path, shape in shapes.items()}
    moved, _ = chain.update(grads, chain.init(zero), zero)
    for path, axis in (("q", "out"), ("o", "in")):
        expected = by_piece(grads[path].astype(np.float64), axis, 2, quintic)
        np.testing.assert_allclose(-moved[path], expected, atol=2e-5, err_msg=path)


def test_the_cost_is_that_of_the_pieces():
    def flops(**fields):
        (one, _) = (cost.flops for _, cost in costs_of(group({"kind": "polar", **fields}).steps, (8, 32), ("lr",)))
        return one

    square = 5 * (4 * 8**3 + 2 * 8**3) + 4 * 8 * 8
    assert flops(pieces={"count": 4}) == 4 * square and flops() == 5 * (4 * 8 * 8 * 32 + 2 * 8**3) + 4 * 8 * 32


@pytest.mark.parametrize(("path", "pieces", "rule"), [
    ("up", {"count": 3}, "mix: pieces.count 3 does not divide a length of 8; 2 would do"),
    ("up", {"axis": "heads", "count": 2}, "mix: pieces.axis heads: the parameter has no axis of heads; in or out"),
    ("bias", {"count": 2}, "mix: pieces are of a matrix; (8,) is the shape of none"),
])
def test_a_cut_that_a_parameter_does_not_take_is_refused(path, pieces, rule):
    table = {"up": Spec((4, 8), "matrix", Initial("zeros"), "DF"), "bias": Spec((8,), "bias", Initial("zeros"), "F")}
    step = {"name": "mix", "code": "2 * u", "pieces": pieces}
    with pytest.raises(ConfigError) as caught:
        update_cost(grouped({"name": "cut", "paths": [path], "lr": 0.1, "chain": [step]}), table)
    assert f'optimizer.groups.cut.chain: "{path}": {rule}' in str(caught.value)


@pytest.mark.parametrize(("pieces", "rule"), [
    ({"count": 1}, "chain.mix.pieces.count: 1: at least 2"), ({"axis": "rows", "count": 2}, "chain.mix.pieces.axis"),
    ({}, "count"),
])
def test_pieces_that_make_no_sense_are_refused(pieces, rule):
    with pytest.raises(ConfigError) as caught:
        optimizer({}, 0.5, 10, chain=[{"name": "mix", "code": "2 * u", "pieces": pieces}])
    assert rule in str(caught.value) and "\n" not in str(caught.value)
