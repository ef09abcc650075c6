"""Each recipe of the contract, and what it did."""

from __future__ import annotations

import pytest

from jaxnano.config.recipe import Recipe
from tests.jaxnano.model.outcomes import Outcome, outcome_of
from tests.jaxnano.recipes import RECIPES


@pytest.fixture(params=list(RECIPES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def recipe(name: str) -> Recipe:
    return RECIPES[name]


@pytest.fixture
def outcome(name: str) -> Outcome:
    return outcome_of(name)
