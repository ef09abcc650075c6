"""Recipes as files: YAML, with overrides."""

from __future__ import annotations

from pathlib import Path

from jaxnano.config.base import ConfigError, Problem, dump, validate
from jaxnano.config.edit import Diff, Edit, apply
from jaxnano.config.recipe import Recipe
from jaxnano.config.text import parse_yaml, read_yaml, to_yaml


def load(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe from YAML; `overrides` are `path=value`, applied together.

    Raises: ConfigError with file, path, value and rule.
    """
    recipe = validate(Recipe, {} if (data := read_yaml(Path(path))) is None else data, str(path))
    edits = []
    for override in overrides:
        place, equals, value = override.partition("=")
        if not equals:
            raise ConfigError([Problem("--set", override, "written as path=value")])
        edits.append(Edit.to(recipe, place, parse_yaml(value, "--set")))
    return apply(recipe, Diff(name="overrides", edits=tuple(edits)))


def save(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe as YAML, defaults omitted."""
    Path(path).write_text(to_yaml(dump(recipe)))
