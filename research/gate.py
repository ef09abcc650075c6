"""The gate: refuses a recipe in milliseconds, before any compute, with path, value, rule and what would pass."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxnano import preflight
from jaxnano.config.base import ConfigError, Problem, validate
from jaxnano.config.edit import Diff, apply, diff, is_under, show
from jaxnano.config.recipe import Recipe, recipe_id
from research.behaviour import behaviour, idle, needless
from research.propose import Part, build, dead
from research.track import Track


@dataclass(frozen=True)
class Verdict:
    """recipe: None if refused. problems: why. ms: how long it took."""

    recipe: Recipe | None
    problems: list[Problem] = field(default_factory=list)
    ms: float = 0.0

    @property
    def accepted(self) -> bool:
        """Whether the recipe may be run."""
        return self.recipe is not None

    def as_dict(self) -> dict[str, Any]:
        """The body of a `verdict` event."""
        refusals = [{"path": p.path, "value": p.value, "rule": p.rule} for p in self.problems]
        return {"accepted": self.accepted, "refusals": refusals, "ms": self.ms}


class Gate:
    """Judges recipes for one track; remembers what it has accepted, so that nothing runs twice.

    device_bytes: memory of one device; the track's own limit may be tighter.
    """

    def __init__(self, track: Track, device_bytes: int | None = None):
        self.track = track
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
        try:
            problems, recipe = dead(self.track.base_recipe, parts), build(self.track.base_recipe, parts)
        except ConfigError as error:
            return Verdict(None, error.problems)
        return Verdict(None, problems) if problems else self.judge(recipe)

    def _recipe(self, proposal: Recipe | Diff | Mapping[str, Any]) -> Recipe:
        if isinstance(proposal, Recipe):
            return proposal
        if isinstance(proposal, Diff):
            return apply(self.track.base_recipe, proposal)
        return validate(Recipe, proposal)

    def _frozen(self, recipe: Recipe):
        for edit in diff(self.track.base_recipe, recipe).edits:
            for path in self.track.frozen:
                if is_under(edit.path, path) or is_under(path, edit.path):
                    yield Problem(edit.path, edit.new, f"frozen by track {self.track.name}; {show(edit.old)} would do")

    def _idle(self, recipe: Recipe):
        for name, why in needless(recipe).items():
            yield Problem(f"optimizer.groups.{name}", name, f"{why}; without it would do")
        edits = {edit.path: edit.new for edit in diff(self.track.base_recipe, recipe).edits}
        for path, why in idle(recipe, edits).items():
            yield Problem(path, edits[path], f"nothing reads it: {why}")

    def _limits(self, recipe: Recipe):
        cost, base, limits = preflight.preflight(recipe), self.track.base_cost, self.track.limits
        most = int(base.parameters * limits.parameters)
        if cost.parameters > most:
            yield Problem("model", cost.parameters, f"parameters are at most {most:,}, "
                          f"{limits.parameters:g} x the base's")
        if cost.flops_per_step > base.flops_per_step * limits.step_flops:
            yield Problem("optimizer", round(cost.flops_per_step), "training FLOPs of a step are at most "
                          f"{base.flops_per_step * limits.step_flops:.4g}, {limits.step_flops:g} x the base's")
        if cost.total_bytes > self.memory_bytes:
            yield Problem("model", cost.total_bytes, f"bytes of a training step are at most {self.memory_bytes:.4g}")

    def _duplicate(self, recipe: Recipe):
        known = self.known.get(behaviour(recipe))
        if known is not None:
            same = "the same recipe" if known == recipe_id(recipe) else "another spelling"
            yield Problem("", recipe_id(recipe), f"{same} as {known}, which is known; change something that matters")
