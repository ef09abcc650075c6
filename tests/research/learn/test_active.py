"""Many runs told by few: the formulas agree with FITC written plainly, and what is active is what is decided about."""

import numpy as np
import pytest

from research.learn.active import active, summary
from research.learn.kernel import rows


@pytest.fixture(scope="module")
def values():
    """Covariance of 60 runs, then 7 points elsewhere, then 14 active values; the runs' errors and outcomes."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(0, 6, 67), np.linspace(0, 6, 14)])
    whole = np.exp(-0.5 * (x[:, None] - x) ** 2) + 0.05 * np.exp(-8.0 * np.abs(x[:, None] - x))
    return whole, rng.uniform(0.01, 0.05, 60), np.sin(x[:60]) + rng.normal(0, 0.15, 60)


def told(values, at):
    """Mean and variance reduction at the other points, as whoever has the summary alone computes them."""
    whole, error, outcome = values
    outcome_m, error_mxm = summary(whole[np.ix_(at, at)], whole[at, :60], np.diag(whole)[:60], error, outcome)
    cross = whole[at, 60:67]
    inverse = np.linalg.inv(whole[np.ix_(at, at)] + error_mxm)
    return cross.T @ inverse @ outcome_m, np.diag(cross.T @ inverse @ cross)


def test_where_all_runs_are_active_nothing_is_lost(values):
    whole, error, outcome = values
    inverse, cross = np.linalg.inv(whole[:60, :60] + np.diag(error)), whole[:60, 60:67]
    mean, known = told(values, np.arange(60))
    np.testing.assert_allclose(mean, cross.T @ inverse @ outcome, atol=1e-4)
    np.testing.assert_allclose(known, np.diag(cross.T @ inverse @ cross), atol=1e-4)


def test_with_some_it_is_fitc(values):
    """The posterior of Snelson & Ghahramani, from their formulas."""
    whole, error, outcome = values
    at = np.arange(67, 81)
    small, wide, cross = whole[np.ix_(at, at)], whole[at, :60], whole[at, 60:67]
    left = np.diag(whole)[:60] - np.diag(wide.T @ np.linalg.solve(small, wide)) + error
    sigma = np.linalg.inv(small + (wide / left) @ wide.T)
    mean, known = told(values, at)
    np.testing.assert_allclose(mean, cross.T @ sigma @ (wide / left) @ outcome, atol=1e-5)
    np.testing.assert_allclose(known, np.diag(cross.T @ (np.linalg.inv(small) - sigma) @ cross), atol=1e-5)


def test_active_are_leaves_leading_recipes_origins_and_a_run_in_each_cell():
    recipes = [{}, {"a": "x"}, {"b": 1.0}, {"a": "x", "b": 1.0}, {"a": "y", "b": 0.5}]
    who, seed = np.array([0, 1, 2, 3, 4, 3, 4, 4]), [0, 0, 0, 0, 0, 1, 1, 2]
    horizon = [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
    runs = rows([recipes[i] for i in who], horizon, seed, [{"me": 0.1}] * 8)
    outcome = np.array([0.0, 0.1, 0.2, 0.9, 0.3, 0.5, 0.0, 0.0])
    found = active(runs, outcome, 99)
    told = [(found.recipes[i], float(h), int(s))
            for i, h, s in zip(found.index, found.horizon, found.seed, strict=True)]
    assert told[0] == ({}, 1.0, -1) and found.promises["me"][0] == 1.0  # what its word is worth
    effects, seen = [one for one in told[1:] if one[2] == -1], [one for one in told if one[2] >= 0]
    # the base where it ran, else the first
    assert seen[:3] == [(recipes[3], 0.5, 1), (recipes[4], 0.5, 2), ({}, 1.0, 0)]
    assert len(seen) == len(set(map(str, seen))) == 8 and not found.promises["me"][1 : 1 + len(effects)].any()
    assert (recipes[4], 0.5, -1) in effects and (recipes[3], 0.5, -1) not in effects  # what ran there twice
    assert {"a": "x"} in [f for f, *_ in effects] and {"a": "y"} in [f for f, *_ in effects]
    few = active(runs, outcome, 7)
    assert [few.recipes[i] for i in few.index][2:4] == [recipes[3], recipes[2]] and len(few) == 7
