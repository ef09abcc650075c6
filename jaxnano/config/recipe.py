"""A recipe: what is claimed to be better. It holds no seed, no horizon, no device."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import jax.numpy as jnp
import numpy as np
from pydantic import ValidationInfo, field_validator, model_validator

from jaxnano.config import schedule
from jaxnano.config.base import (
    ConfigError,
    Node,
    Range,
    digest,
    dump,
    dump_full,
    fields,
    finite,
    leaves,
    name_of,
    refuse,
    traced_range,
    validate,
    walk,
)
from jaxnano.config.data import Data, Embedded
from jaxnano.config.model import Model
from jaxnano.config.optimizer import Optimizer
from jaxnano.config.partial import overlay, partial, pruned, settings


class Train(Node):
    """dtype: of activations; `auto` is bfloat16 where the device has it. remat: recompute blocks going back."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    remat: bool = False


class EvaluationTree(Node):
    """What evaluation sees otherwise."""

    model: Model


class Evaluation(Node):
    """How the trained model is evaluated and sampled from where that differs: attention's windows alone.

    The loss is always next-token cross entropy in float32 on the track's data, length and tokens.
    """

    set: partial(EvaluationTree)  # type: ignore[valid-type]


class Recipe(Node):
    """{model, optimizer, data, train}. evaluation: what is otherwise when the trained model is evaluated."""

    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    data: Data = Embedded(kind="embedded")
    train: Train = Train()
    evaluation: Evaluation | None = None

    @field_validator("evaluation")
    @classmethod
    def _shortest(cls, evaluation: Evaluation | None, info: ValidationInfo) -> Evaluation | None:
        """None where it changes nothing: it would be another name for the same recipe."""
        if evaluation is None or "model" not in info.data:
            return evaluation
        change = pruned(evaluation.set, SimpleNamespace(model=info.data["model"]))
        return None if change is None else evaluation.model_copy(update={"set": change})

    @model_validator(mode="after")
    def _evaluates(self) -> Recipe:
        if self.evaluation is None:
            return self
        names = [diff.name for diff in self.model.blocks]
        windows = ["model.attention.window", *(f"model.blocks.{name}.set.attention.window" for name in names)]
        for path, value in settings(self.evaluation.set).items():
            if path not in windows:
                raise refuse(f"evaluation.set.{path}", dump(value) if isinstance(value, Node) else value,
                             f"attention's windows alone may differ: {', '.join(windows)}")
        try:
            validate(Model, dump(shipped(self).model))
        except ConfigError as error:
            problem = error.problems[0]
            raise refuse(f"evaluation.set.model.{problem.path}", problem.value, problem.rule) from None
        return self

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        if self.model.vocab < (least := self.data.vocab):
            raise refuse("model.vocab", self.model.vocab, f"{self.data.kind} data has {least} tokens; {least} would do")
        if self.model.init.zero_projections:
            for group in self.optimizer.groups:
                if "matrix" in group.roles and any(item.kind == "hyperball" for item in group.chain):
                    raise refuse("model.init.zero_projections", True,
                                 f"group {group.name!r} keeps norms, so nothing may start at 0; false would do")
        return self


def shipped(recipe: Recipe) -> Recipe:
    """The recipe as its trained model is evaluated and sampled from; resolved or not."""
    if recipe.evaluation is None:
        return recipe
    tree = overlay(EvaluationTree.model_construct(model=recipe.model), recipe.evaluation.set)
    return recipe.model_copy(update={"model": tree.model, "evaluation": None})


def recipe_id(recipe: Recipe) -> str:
    """Sixteen hex digits that name the claim; a new field with a default changes no old id."""
    return digest(dump(recipe))


def structure_id(recipe: Recipe) -> str:
    """Names what is compiled: the recipe with every traced number masked."""
    found: list[tuple[str, Any]] = []
    for path, value, field in walk(recipe):
        if traced_range(field) and (finite(value) or isinstance(value, dict)):
            found.append((path, sorted(value) if isinstance(value, dict) else "number"))
        elif not any(isinstance(item, Node) for item in (value if isinstance(value, tuple) else (value,))):
            found.append((path, value))
    return digest(found)


def hypers(recipe: Recipe, total_steps: int) -> dict[str, np.ndarray]:
    """The traced numbers of a recipe as arguments of the compiled step: {path: float32[]} and "total_steps"."""
    values = {leaf.path: np.float32(leaf.value) for leaf in leaves(recipe)}
    return {**values, "total_steps": np.float32(total_steps)}  # type: ignore[dict-item]


T = TypeVar("T", bound=Node)


def at(node: T, hypers: Mapping[str, Any], progress: Any, path: str = "") -> T:
    """The tree with each traced field replaced by its float32 scalar at `progress`.

    Runs once, inside the step: model and optimizer then read plain scalars (`cfg.lr`), whatever stood there. A
    schedule that leaves the field's range is held at its end: a softcap that decays to 0 would divide by it.
    """
    update: dict[str, Any] = {}
    for name, value, field in fields(node):
        here = f"{path}.{name}" if path else name
        if (span := traced_range(field)) and isinstance(value, dict):
            update[name] = {key: _traced(item, span, hypers, progress, f"{here}.{key}") for key, item in value.items()}
        elif span:
            update[name] = _traced(value, span, hypers, progress, here)
        elif isinstance(value, Node):
            update[name] = at(value, hypers, progress, here)
        elif isinstance(value, dict):
            update[name] = {key: at(item, hypers, progress, f"{here}.{key}") if isinstance(item, Node) else item
                            for key, item in value.items()}
        elif isinstance(value, tuple):
            update[name] = tuple(
                at(item, hypers, progress, f"{here}.{name_of(item)}") if isinstance(item, Node) else item
                for item in value
            )
    return node.model_copy(update=update)


def _traced(value: Any, span: Range, hypers: Mapping[str, Any], progress: Any, path: str) -> Any:
    """A traced field's value; what is no number and no schedule (an absence, a name) stays."""
    if finite(value):
        return hypers[path]
    if isinstance(value, Node):
        scheduled = schedule.evaluate(at(value, hypers, progress, path), jnp.asarray(progress, jnp.float32))  # type: ignore[arg-type]
        return jnp.clip(scheduled, span.low, span.high)
    return value


__all__ = ["Recipe", "Train", "at", "dump", "dump_full", "hypers", "recipe_id", "structure_id"]
