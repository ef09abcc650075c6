"""The arms of the bench on CPU at a tiny size: that each runs, and computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxnano import bench, step
from jaxnano.bench_arms import ARMS, Arm
from jaxnano.cli import report_errors
from jaxnano.config.file import save
from jaxnano.config.recipe import Recipe, at, hypers
from jaxnano.model import backend, gpt
from tests.jaxnano.recipes import RECIPES, TINY, edited

PROGRAMS = {repr((dict(arm.choices), arm.remat)): arm for arms in ARMS.values() for arm in arms}  # each once


@pytest.fixture(autouse=True)
def _nothing_compiled_by_other_choices() -> Any:
    step._program.cache_clear()
    yield
    step._program.cache_clear()


@pytest.mark.parametrize("arm", PROGRAMS.values(), ids=lambda arm: arm.name)
def test_every_arm_runs(arm: Arm) -> None:
    found = bench.by_arm(arm, edited(TINY, {"model.depth": 1}), 1, 1, 1e-3)
    assert found["tokens_per_s"] > 0 and found["compile_s"] > 0 and {"mfu", "peak_bytes"} <= found.keys()
    assert backend.Choices() == backend.CHOICES


def test_arms_have_names_of_their_own_and_flags_of_their_own() -> None:
    for arms in ARMS.values():
        assert len({arm.name for arm in arms}) == len(arms) and arms[0] == Arm("plain")
        assert len({repr(arm[1:]) for arm in arms}) == len(arms)


@pytest.mark.parametrize(("recipe", "scanned"), [
    (edited(TINY, {"model.depth": 3, "model.bias": True, "model.position": {"kind": "rotary"}}), True),
    (edited(TINY, {"model.depth": 3, "train.remat": True}), True), (RECIPES["depth_diffs"], False),
], ids=["plain", "remat", "not alike"])
def test_blocks_that_are_scanned_do_the_same(recipe: Recipe, scanned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    values = hypers(recipe, 10)
    params = gpt.init(jax.random.key(0), recipe, values)
    tokens = np.random.default_rng(0).integers(0, 256, (2, recipe.data.length + 1))

    def lowered() -> Any:
        return jax.jit(jax.value_and_grad(lambda params: gpt.loss(params, tokens, at(recipe, values, 0.5))[0])).lower(
            params)

    plain = lowered()
    monkeypatch.setattr(backend, "CHOICES", backend.Choices(scan=True))
    scan = lowered()
    fewer = scan.as_text().count("dot_general") < 0.5 * plain.as_text().count("dot_general")
    assert fewer == scanned and gpt.alike(recipe.model) == scanned
    if scanned:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), scan.compile()(params),
                     plain.compile()(params))


def test_arms_run_as_processes_and_one_that_fails_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(edited(TINY, {"model.depth": 1}), tmp_path / "tiny.yaml")
    monkeypatch.setitem(ARMS, "gpu", (Arm("O1", {"JAX_OPTIMIZATION_LEVEL": "O1"}),
                                      Arm("broken", {"JAX_PLATFORMS": "abacus"})))
    assert bench.main(["--gpu", "--json", "--rounds", "1", "--seconds", "0.01", "--config",
                       str(tmp_path / "tiny.yaml")]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["arm"] == "O1" and first["tokens_per_s"] > 0
    assert second["arm"] == "broken" and second["error"]


def test_an_arm_there_is_not_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_errors(lambda: bench.main(["--tpu", "--arms", "warp"])) == 2
    assert "--arms: warp: no such arm of --tpu; plain, " in capsys.readouterr().err
