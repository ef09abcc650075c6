"""A recipe: what is claimed to be better. It holds no seed, no horizon, no device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from jaxnano.config import older, schedule
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
    unique_names,
    validate,
    walk,
)
from jaxnano.config.block import Learned
from jaxnano.config.data import Batch, Data, Documents, Embedded, Length
from jaxnano.config.model import Model
from jaxnano.config.optimizer import Optimizer
from jaxnano.config.partial import overlay, partial, pruned, settings, strangers
from jaxnano.config.transforms import NAME

STEPS_PER_CALL = 10  # of the compiled program; phases begin with a call


class Train(Node):
    """dtype: of activations; `auto` is bfloat16 where the device has it. remat: recompute blocks going back.

    loss_dtype: of logits and their log-softmax in training; losses that are told are in float32. weights: what the
    model sees of matrices and tables: upper_half, the upper 16 bits, while updates see all 32 (track 1, record 57);
    bfloat16, which they are rounded to after each update, what the optimizer keeps being float32 (record 56).
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    remat: bool = False
    loss_dtype: Literal["float32", "bfloat16"] = "float32"
    weights: Literal["float32", "upper_half", "bfloat16"] = "float32"


class Rows(Node):
    """What of the data a phase may change."""

    length: Length
    batch: Batch
    documents: Documents | None


class PhaseTree(Node):
    """What a phase may change."""

    model: Model
    optimizer: Optimizer
    data: Rows
    train: Train


class Phase(Node):
    """What is otherwise from a share of the run on: of model, optimizer, train, and data's batch, length, documents.

    Parameters go on by path, with all that is kept of them. One that is new, or of another shape, begins with its
    initial values, or as another was or its transpose where carry says so: {head/weight: embedding/token}.
    """

    name: str = Field(pattern=NAME)
    start: Annotated[float, Range(0.001, 0.999)]
    set: partial(PhaseTree)  # type: ignore[valid-type]
    carry: dict[str, str] = Field(default_factory=dict)


class EvaluationTree(Node):
    """What evaluation sees otherwise."""

    model: Model


class Evaluation(Node):
    """How the trained model is evaluated and sampled from where that differs: attention's windows alone.

    The loss is always next-token cross entropy in float32 on the track's data, length and tokens.
    """

    set: partial(EvaluationTree)  # type: ignore[valid-type]


class Recipe(Node):
    """{model, optimizer, data, train}. phases: what is otherwise later in the run. evaluation: what is otherwise when
    the trained model is evaluated.
    """

    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    data: Data = Embedded(kind="embedded")
    train: Train = Train()
    phases: tuple[Phase, ...] = Field(default=(), max_length=32)  # each may be a program to compile
    evaluation: Evaluation | None = None

    @field_validator("phases")
    @classmethod
    def _without_effect(cls, phases: tuple[Phase, ...], info: ValidationInfo) -> tuple[Phase, ...]:
        """Without what changes nothing: it would be another name for the same recipe."""
        if not {*PhaseTree.model_fields} <= info.data.keys():
            return phases
        unique_names(phases, "")
        found, tree = [], PhaseTree.model_construct(**info.data)
        for phase in phases:
            if (place := next(strangers(phase.set, tree), None)) is not None:
                raise refuse(f"{phase.name}.set.{place[0]}", place[1], f"no such item; {place[2]} would do")
            if (change := pruned(phase.set, tree)) is not None or phase.carry:
                found.append(phase.model_copy(update={"set": change or type(phase.set)()}))
            tree = overlay(tree, phase.set)
        return tuple(found)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **how: Any) -> Recipe:
        """A recipe as any version wrote it."""
        return super().model_validate_json(older.translated(json_data), **how)

    @field_validator("evaluation")
    @classmethod
    def _shortest(cls, evaluation: Evaluation | None, info: ValidationInfo) -> Evaluation | None:
        """None where it changes nothing: it would be another name for the same recipe."""
        if evaluation is None or not {*PhaseTree.model_fields, "phases"} <= info.data.keys():
            return evaluation
        last = stages(Recipe.model_construct(**info.data))[-1].recipe
        change = pruned(evaluation.set, SimpleNamespace(model=last.model))
        return None if change is None else evaluation.model_copy(update={"set": change})

    @model_validator(mode="after")
    def _evaluates(self) -> Recipe:
        if self.evaluation is None:
            return self
        names = [diff.name for diff in shipped(self).model.blocks]
        windows = ["model.attention.window", *(f"model.blocks.{name}.set.attention.window" for name in names)]
        for path, value in settings(self.evaluation.set).items():
            if path not in windows:
                raise refuse(f"evaluation.set.{path}", dump(value) if isinstance(value, Node) else value,
                             f"attention's windows alone may differ: {', '.join(windows)}")
        try:
            validate(Model, dump(shipped(self).model, valid=False))
        except ConfigError as error:
            problem = error.problems[0]
            raise refuse(f"evaluation.set.model.{problem.path}", problem.value, problem.rule) from None
        return self

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        if self.model.vocab < (least := self.data.vocab):
            raise refuse("model.vocab", self.model.vocab, f"{self.data.kind} data has {least} tokens; {least} would do")
        told = self.data.documents and self.data.documents.separator
        if told is not None and told >= self.model.vocab:
            raise refuse("data.documents.separator", told, f"a token, of which there are {self.model.vocab}; null, for "
                         "the data's own, would do")
        for target in self.model.head.targets:
            if target.shift > self.data.length:
                raise refuse(f"model.head.targets.{target.name}.shift", target.shift, f"rows have {self.data.length} "
                             f"tokens to predict; {self.data.length} would do")
        for path, value, _ in walk(self.model, "model"):
            if isinstance(value, schedule.FormulaSchedule) and value.needs_horizon:
                raise refuse(path, value.code, "a trained model has no horizon; progress would do")
        if self.model.init.zero_projections:
            for group in self.optimizer.groups:
                if "matrix" in group.roles and any(item.kind == "hyperball" for item in group.chain):
                    raise refuse("model.init.zero_projections", True,
                                 f"group {group.name!r} keeps norms, so nothing may start at 0; false would do")
        return self

    @model_validator(mode="after")
    def _in_phases(self) -> Recipe:
        if not self.phases:
            return self
        parts = stages(self)
        longest = max(part.recipe.data.length for part in parts)
        for before, (start, recipe, name, *_) in zip(parts, parts[1:], strict=False):
            if start <= before.start:
                raise refuse(f"phases.{name}.start", start, f"the phase before begins at {before.start:g}; more "
                             "than that would do")
            try:
                validate(Recipe, dump(recipe, valid=False))
            except ConfigError as error:
                problem = error.problems[0]
                raise refuse(f"phases.{name}.set.{problem.path}", problem.value, problem.rule) from None
            if isinstance(recipe.model.position, Learned) and recipe.data.length != self.data.length:
                raise refuse(f"phases.{name}.set.data.length", recipe.data.length, "learned positions are as "
                             f"many as the recipe's; {self.data.length}, or another model.position, would do")
        for _, recipe, name, *_ in parts:
            place = f"phases.{name}.set.data" if name else "data"
            aligned = recipe.data.aligned
            if aligned != self.data.aligned or aligned is not None and recipe.data.length != longest:
                raise refuse(f"{place}.documents.align", aligned is not None, "rows begin with documents in "
                             "every phase, all of one length, or in none")
            if longest % (length := recipe.data.length):
                raise refuse(f"{place}.length", length, f"divides the longest phase's {longest}, as windows are cut "
                             f"from those; {math.gcd(length, longest)} would do")
            if STEPS_PER_CALL * recipe.data.batch * length % longest:
                least = longest // math.gcd(STEPS_PER_CALL * length, longest)
                raise refuse(f"{place}.batch", recipe.data.batch, f"{STEPS_PER_CALL} steps fill whole windows of "
                             f"{longest}, the longest; a multiple of {least} would do")
        return self


class Stage(NamedTuple):
    """A recipe as it trains between two shares of the run, without phases. name: of the phase, none at first."""

    start: float
    recipe: Recipe
    name: str = ""
    carry: Mapping[str, str] = MappingProxyType({})
    end: float = 1.0


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """What a recipe is from the start and in each of its phases; resolved or not. The last one is evaluated."""
    if not recipe.phases:
        return (Stage(0.0, recipe),)
    tree, now = PhaseTree.model_construct(**dict(recipe)), {"phases": (), "evaluation": None}
    ends = [*(phase.start for phase in recipe.phases), 1.0]
    found = [Stage(0.0, recipe.model_copy(update=now), end=ends[0])]
    for phase, end in zip(recipe.phases, ends[1:], strict=True):
        tree = overlay(tree, phase.set)
        if phase is recipe.phases[-1]:
            now["evaluation"] = recipe.evaluation
        found.append(Stage(phase.start, recipe.model_copy(update=dict(tree) | now), phase.name, phase.carry, end))
    return tuple(found)


def shares_of(recipe: Recipe) -> list[tuple[float, Recipe]]:
    """The share of the run that each stage lasts, and the recipe as it trains there."""
    return [(part.end - part.start, part.recipe) for part in stages(recipe)]


def beside(a: Recipe, b: Recipe) -> list[tuple[float, Stage, Stage]]:
    """Two recipes over a run: the share of it that each pair of their stages lasts; all with their evaluation."""
    ours, theirs = ([part._replace(recipe=part.recipe.model_copy(update={"evaluation": recipe.evaluation}))
                     for part in stages(recipe)] for recipe in (a, b))
    starts = sorted({part.start for part in (*ours, *theirs)})

    def now(parts: list[Stage], start: float) -> Stage:
        return [part for part in parts if part.start <= start][-1]

    return [(end - start, now(ours, start), now(theirs, start))
            for start, end in zip(starts, [*starts[1:], 1.0], strict=True)]


def first_steps(recipe: Recipe, total_steps: int) -> tuple[int, ...]:
    """The step that each stage begins with: that of a call, the last one at most. Of two at one step the later runs."""
    last = (total_steps - 1) // STEPS_PER_CALL * STEPS_PER_CALL
    return tuple(min(round(part.start * total_steps / STEPS_PER_CALL) * STEPS_PER_CALL, last)
                 for part in stages(recipe))


def trained(recipe: Recipe) -> Recipe:
    """The recipe as its last phase trains it, on the data of its start."""
    return stages(recipe)[-1].recipe.model_copy(update={"data": recipe.data}) if recipe.phases else recipe


def shipped(recipe: Recipe) -> Recipe:
    """The recipe as its trained model is evaluated and sampled from, on the data of its start; resolved or not."""
    last = trained(recipe)
    if last.evaluation is None:
        return last
    tree = overlay(EvaluationTree.model_construct(model=last.model), last.evaluation.set)
    return last.model_copy(update={"model": tree.model, "evaluation": None})


def recipe_id(recipe: Recipe) -> str:
    """Sixteen hex digits that name the claim; a new field with a default changes no old id."""
    return digest(dump(recipe))


def structure_id(recipe: Recipe) -> str:
    """Names what is compiled: the recipe with every traced number masked."""
    found: list[tuple[str, Any]] = []
    for path, value, field in walk(recipe):
        if traced_range(field) and (finite(value) or isinstance(value, dict)):
            found.append((path, sorted(value) if isinstance(value, dict) else "number"))
        elif isinstance(value, dict) and any(isinstance(item, Node) for item in value.values()):
            found.append((path, sorted(name for name, item in value.items() if item is None)))
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
        now: Any = at(value, hypers, progress, path)
        scheduled = schedule.evaluate(now, jnp.asarray(progress, jnp.float32), hypers["total_steps"])
        return jnp.clip(scheduled, span.low, span.high)
    return value


__all__ = ["Recipe", "Train", "at", "dump", "dump_full", "hypers", "recipe_id", "structure_id"]
