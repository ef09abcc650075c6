"""No formula lets a feature depend on a later token; one that looks ahead is found."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnano.config.expression import canonical
from jaxnano.config.formulas import Logit, Output
from jaxnano.model import attention
from research.check.causality import dense, formula, judge, models, slopes


def test_of_twenty_random_formulas_none_looks_ahead() -> None:
    judged = judge(np.random.default_rng(0), 20)
    assert judged.formulas >= 20 and judged.models >= 2 and judged.ahead == []


def test_a_key_of_the_next_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def ahead(k_BxLxGxK: jax.Array, share: float, by: int = 1) -> jax.Array:
        return jnp.roll(k_BxLxGxK, -1, axis=1)

    monkeypatch.setattr(attention, "shift", ahead)
    found = slopes(next(models(np.random.default_rng(0)))[0])
    assert np.triu(found, 1).any() and np.isfinite(found).all()


def test_formulas_are_drawn_from_their_places_and_seldom_alike() -> None:
    rng = np.random.default_rng(1)
    for kind in (Logit, Output):
        drawn = [formula(rng, kind.place, kind.needed) for _ in range(50)]
        fitting = [(code, params) for code, params in drawn if len(code) < 200 and code.count("(") < 20]
        assert len({code for code, _ in drawn}) > 35 and len(fitting) > 20
        assert all(canonical(code, params, kind.place, kind.needed) for code, params in fitting)


def test_dense_models_differ_and_have_what_they_are_for() -> None:
    drawn = [dense(np.random.default_rng(seed)) for seed in range(12)]
    blocks = [block["set"]["attention"] for data in drawn for block in data["model"]["blocks"]]
    assert {block.get("interleaved", 1) for block in blocks} == {1, 2}
    assert {(block.get("mix_scores") or {}).get("kind") for block in blocks} == {None, "matrix", "vectors"}
