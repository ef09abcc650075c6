"""Records of the speedruns as lineages of diffs: configs/records/track*.yaml, each record as edits of its parent.

A record is a concrete recipe, so its edits hold numbers and no shares. How many steps it took is said beside it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from jaxnano.config.base import ConfigError, Node, Problem, dump, refuse, validate
from jaxnano.config.edit import Diff, Edit, apply, read
from jaxnano.config.file import load
from jaxnano.config.recipe import Recipe, recipe_id
from jaxnano.config.text import read_yaml, to_yaml
from jaxnano.cost import Cost, preflight
from research.contract.part import IdeaEdit
from research.contract.track import CONFIGS

FOLDER = CONFIGS / "records"


class Record(Node):
    """One record. parent: the one it grew from. edits: of the parent's recipe. steps: of its runs, loss: their mean.

    systems: what made it faster alone, or is fp8; a recipe says nothing of either. near: by name, what differs by a few
    percent or in one step. missing: what a recipe cannot say. Both are the children's too, but for what `gone` names.
    """

    number: int = Field(ge=1)
    date: str
    value: float
    steps: int | None = None
    loss: float | None = None
    source: str = ""
    what: str
    parent: int | None = None
    edits: tuple[IdeaEdit, ...] = ()
    systems: tuple[str, ...] = ()
    near: dict[str, str] = Field(default_factory=dict)
    missing: dict[str, str] = Field(default_factory=dict)
    gone: tuple[str, ...] = ()


class Lineage(Node):
    """A track's records, parents first. base: the recipe, below configs/, that the first is an edit of. written: the
    records that configs/records holds as whole recipes too."""

    track: int
    what: str
    source: str
    unit: Literal["minutes", "steps"]
    base: str
    written: tuple[int, ...]
    records: tuple[Record, ...]

    @model_validator(mode="after")
    def _ordered(self) -> Lineage:
        seen: set[int] = set()
        for i, record in enumerate(self.records):
            if record.number in seen or (record.parent not in seen and (i or record.parent is not None)):
                raise refuse(f"records.{i}.parent", record.parent, f"record {record.number} stands once, after the "
                             "record it grew from; the first has none")
            seen.add(record.number)
        if unknown := sorted(set(self.written) - seen):
            raise refuse("written", unknown[0], "no such record")
        return self


class Built(NamedTuple):
    """A record as a recipe; recipe and cost are None where it does not build, for the reason given."""

    record: Record
    recipe: Recipe | None
    cost: Cost | None
    near: Mapping[str, str]
    missing: Mapping[str, str]
    reason: str = ""

    @property
    def state(self) -> Literal["exact", "near", "lacking", "fails"]:
        """Whether it trains as the record did."""
        if self.recipe is None:
            return "fails"
        return "lacking" if self.missing else "near" if self.near else "exact"


@cache
def lineages(folder: Path = FOLDER) -> tuple[Lineage, ...]:
    """The lineages there are. Raises: ConfigError for a malformed file."""
    return tuple(validate(Lineage, read_yaml(path), path.name) for path in sorted(folder.glob("track?.yaml")))


def build(lineage: Lineage) -> dict[int, Built]:
    """Every record of a lineage, by number: its edits applied to its parent, validated, and its cost computed."""
    built: dict[int, Built] = {}
    base = load(CONFIGS / lineage.base)
    for record in lineage.records:
        above = built[record.parent] if record.parent is not None else Built(record, base, None, {}, {})
        near, missing = ({name: why for name, why in {**old, **new}.items() if name not in record.gone or name in new}
                         for old, new in ((above.near, record.near), (above.missing, record.missing)))
        try:
            if above.recipe is None:
                raise ValueError(f"its parent, {record.parent}, does not build")
            recipe = edited(above.recipe, record)
            built[record.number] = Built(record, recipe, preflight(recipe), near, missing)
        except ValueError as error:
            problem = error.problems[0] if isinstance(error, ConfigError) else error
            built[record.number] = Built(record, None, None, near, missing, str(problem))
    return built


def edited(recipe: Recipe, record: Record) -> Recipe:
    """A recipe with a record's edits. Raises: ConfigError where one does not apply, or says what stands there."""
    edits = []
    for edit in record.edits:
        old = read(recipe, edit.path)
        if old == edit.new:
            raise ConfigError([Problem(edit.path, edit.new, "it stands there already; without the edit would do")])
        edits.append(Edit(old=old, **dict(edit)))
    return apply(recipe, Diff(name=str(record.number), edits=tuple(edits)))


def row(lineage: Lineage, built: Built) -> dict[str, Any]:
    """A built record as plain data."""
    record, cost = built.record, built.cost
    return {"track": lineage.track, "number": record.number, "date": record.date, "value": record.value,
            "unit": lineage.unit, "parent": record.parent, "what": record.what, "state": built.state,
            "told": {**built.near, **built.missing, **({"reason": built.reason} if built.reason else {})},
            "id": built.recipe and recipe_id(built.recipe), "parameters": cost and cost.parameters,
            "tokens_per_step": cost and cost.tokens_per_step, "flops_per_token": cost and round(cost.flops_per_token)}


def name_of(lineage: Lineage, record: Record) -> str:
    """The name of its file."""
    return f"track{lineage.track}-{record.number:03}.yaml"


def text(lineage: Lineage, built: Built) -> str:
    """A built record as a file: what it is, what it lacks, and the recipe."""
    record = built.record
    assert built.recipe is not None
    loss = f" (loss {record.loss:g})" if record.loss else ""
    lines = [f"{lineage.what}, record {record.number}, {record.date}: {record.what}",
             f"Published: {record.value:g} {lineage.unit}"
             + (f", {record.steps:,} steps" if record.steps and lineage.unit != "steps" else "")
             + f"{loss}. Source: modded-nanogpt, {lineage.source}/{record.source}."]
    for word, told in (("Differs", built.near), ("Missing", built.missing)):
        lines += [f"{word}: {name.replace('_', ' ')}: {why}." for name, why in told.items()]
    lines.append(f"From track{lineage.track}.yaml, by `python -m research.ideas --records --write configs/records`.")
    head = "\n".join(textwrap.fill(line, 118, initial_indent="# ", subsequent_indent="#   ") for line in lines)
    return f"{head}\n{to_yaml(dump(built.recipe))}"


def write(lineage: Lineage, built: Mapping[int, Built], folder: Path) -> None:
    """Write the records that a lineage names as whole recipes, those that build."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in lineage.written:
        if built[number].recipe is not None:
            (folder / name_of(lineage, built[number].record)).write_text(text(lineage, built[number]))
