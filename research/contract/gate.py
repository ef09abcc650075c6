"""The gate: refuses a recipe in milliseconds, before any compute, with path, value, rule and what would pass."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from jaxnano.config.base import ConfigError, Problem, finite, is_under, kind_of, validate
from jaxnano.config.edit import Diff, apply, diff, differences, show
from jaxnano.config.recipe import Recipe, beside, recipe_id, shipped, stages
from jaxnano.config.schedule import Schedule
from jaxnano.cost import Cost, stage_costs
from jaxnano.layout import layout
from research.contract.behaviour import SHOWN, behaviour, idle, needless, stuck
from research.contract.part import Part
from research.contract.proposal import build, dead
from research.contract.track import Track
from research.text import listed

SCHEDULES = {kind_of(node) for node in get_args(Schedule)}  # their kinds


@dataclass(frozen=True)
class Verdict:
    """recipe: None if refused. problems: why. ms: how long it took. notes: what an accepted one may not have meant."""

    recipe: Recipe | None
    problems: list[Problem] = field(default_factory=list)
    ms: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        """Whether the recipe may be run."""
        return self.recipe is not None

    def as_dict(self) -> dict[str, Any]:
        """The body of a `verdict` event."""
        found = {"accepted": self.accepted, "refusals": [problem._asdict() for problem in self.problems], "ms": self.ms}
        return found | ({"notes": self.notes} if self.notes else {})


class Gate:
    """Judges recipes for one track; remembers what it has accepted, so that nothing runs twice.

    device_bytes: memory of one device; the track's own limit may be tighter. devices: of a place, over which a trial is
    laid; on one of them a batch is to fit whole, on several as `jaxnano.layout` takes it.
    """

    def __init__(self, track: Track, device_bytes: int | None = None, devices: int = 1):
        self.track, self.devices = track, devices
        limit = track.limits.memory_gib * 2**30
        self.memory_bytes = min(limit, device_bytes) if device_bytes else limit
        self.known: dict[str, str] = {}
        self.remember(track.base_recipe)

    def remember(self, recipe: Recipe) -> None:
        """Count a recipe as known: it, and whatever behaves the same, is refused from now on."""
        self.known[behaviour(recipe)] = recipe_id(recipe)

    def judge(self, proposal: Recipe | Diff | Mapping[str, Any]) -> Verdict:
        """Judge a recipe, plain data of one, or a diff to the base. Never raises."""
        start = time.perf_counter()
        try:
            recipe = self._recipe(proposal)
            problems = [*self._frozen(recipe), *self._idle(recipe), *self._limits(recipe), *self._duplicate(recipe)]
        except ConfigError as error:
            recipe, problems = None, error.problems
        return Verdict(None if problems else recipe, problems, 1e3 * (time.perf_counter() - start))

    def judge_parts(self, parts: Sequence[Part]) -> Verdict:
        """Judge what the parts make of the base; each of their edits has to change something. Never raises."""
        base = self.track.base_recipe
        try:
            problems, recipe = dead(base, parts), build(base, parts)
        except ConfigError as error:
            return Verdict(None, error.problems)
        found = Verdict(None, problems) if problems else self.judge(recipe)
        return replace(found, notes=replaced_schedules(build(base, parts[:-1]), recipe)) if found.accepted else found

    def _recipe(self, proposal: Recipe | Diff | Mapping[str, Any]) -> Recipe:
        if isinstance(proposal, Recipe):
            return proposal
        if isinstance(proposal, Diff):
            return apply(self.track.base_recipe, proposal)
        return validate(Recipe, proposal)

    def _frozen(self, recipe: Recipe):
        found = [("", edit) for edit in diff(self.track.base_recipe, recipe).edits]
        pairs = beside(self.track.base_recipe, recipe)
        for _, old, new in pairs if len(pairs) > 1 else ():  # frozen in every phase
            found += [(f"phases.{new.name}.set." * bool(new.name), e) for e in differences(old.recipe, new.recipe, "")]
        models = [(old.recipe.model, new.recipe.model) for _, old, new in pairs]
        for base, model in [*models, (models[-1][0], shipped(recipe).model)]:  # and in every block, evaluated too
            if base.blocks or model.blocks or model is not recipe.model:
                found += [("", edit) for block in range(model.depth) for edit in differences(
                    base.block(min(block, base.depth - 1)), model.block(block), "model")]
        for place, edit in {edit.path: (place, edit) for place, edit in reversed(found)}.values():
            for path in self.track.frozen:
                if is_under(edit.path, path) or is_under(path, edit.path):
                    yield Problem(place + edit.path, edit.new, f"frozen by track {self.track.name}; {show(edit.old)} "
                                  "would do")

    def _idle(self, recipe: Recipe):
        for name, why in needless(recipe).items():
            yield Problem(f"optimizer.groups.{name}", name, f"{why}; without it would do")
        for name, paths in stuck(recipe).items():
            yield Problem(f"optimizer.groups.{name}.chain", listed(paths, SHOWN), "what starts at 0 stays there by "
                          "this chain; another start, or another group, would do")
        edits = {edit.path: edit.new for edit in diff(self.track.base_recipe, recipe).edits}
        for path, why in idle(recipe, edits).items():
            yield Problem(path, edits.get(path), f"nothing reads it: {why}")

    def _limits(self, recipe: Recipe):
        for stage, cost in zip(stages(recipe), stage_costs(recipe), strict=True):  # each phase keeps them
            for problem in self._limited(cost):
                yield problem._replace(path=f"phases.{stage.name}.set." * bool(stage.name) + problem.path)
        if self.devices > 1:
            try:
                layout(recipe, self.devices, int(self.memory_bytes), "gpu", self.track.mesh)
            except ConfigError as error:
                yield from error.problems

    def _limited(self, cost: Cost):
        base, limits = self.track.base_cost, self.track.limits
        most = int(base.parameters * limits.parameters)
        if cost.parameters > most:
            yield Problem("model", cost.parameters, f"parameters are at most {most:,}, {limits.parameters:g} x the "
                          f"base's; {_fewer(cost.parameters, most)} would do")
        if cost.flops_per_step > (allowed := base.flops_per_step * limits.step_flops):
            yield Problem("optimizer", round(cost.flops_per_step), f"training FLOPs of a step are at most {allowed:.4g}"
                          f", {limits.step_flops:g} x the base's; {_fewer(cost.flops_per_step, allowed)} would do")
        if self.devices == 1 and cost.total_bytes > self.memory_bytes:
            yield Problem("model", cost.total_bytes, f"bytes of a training step are at most {self.memory_bytes:.4g}; "
                          f"{_fewer(cost.total_bytes, self.memory_bytes)} would do")

    def _duplicate(self, recipe: Recipe):
        known = self.known.get(behaviour(recipe))
        if known is not None:
            same = "the same recipe" if known == recipe_id(recipe) else "another spelling"
            yield Problem("", recipe_id(recipe), f"{same} as {known}, which is known; change something that matters")


def _fewer(value: float, most: float) -> str:
    """By how much a cost is too high."""
    gap = value - most
    return f"{f'{math.ceil(gap):,}' if gap < 1e7 else f'{gap:.4g}'} fewer ({1 - most / value:.1%})"


def replaced_schedules(before: Recipe, after: Recipe) -> list[str]:
    """Where a bare number took the place of a schedule: its decay is gone, which who wrote the number may not mean."""
    found = []
    for edit in diff(before, after).edits:
        kind = edit.old.get("kind") if isinstance(edit.old, dict) else None
        if kind in SCHEDULES and finite(edit.new):
            kept = f"; {edit.path}.value would keep the schedule" if "value" in edit.old else ""
            found.append(f"{edit.path}: {show(edit.new)} replaces {show(edit.old)}: the number holds for the whole "
                         f"run{kept}")
    return found
