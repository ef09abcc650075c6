"""A track: a benchmark's contract. What a recipe may change, what it may cost, and what counts as better."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from jaxnano.cli import UserError
from jaxnano.config.base import ConfigError, Node, Problem, digest, dump, dump_full, validate
from jaxnano.config.file import load
from jaxnano.config.recipe import Recipe
from jaxnano.config.text import read_yaml
from jaxnano.cost import Cost, preflight, steps_for
from jaxnano.layout import layout

ENDLESS = 1 << 62  # bytes: whether a step fits is the gate's question
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Measured(NamedTuple):
    """Mean losses of a recipe by horizon, and what they are told in: None until it is known."""

    losses: Mapping[float, float]
    bytes_per_token: float | None
    base_step_s: float | None

    @property
    def bits_per_byte(self) -> float | None:
        """At the full horizon; None until that is known."""
        if 1.0 not in self.losses or not self.bytes_per_token:
            return None
        return self.losses[1.0] / math.log(2) / self.bytes_per_token


class _Objective(Node):
    """What counts as better, and so what every run gets: here the training FLOPs of the base.

    waits_for_base: the base's steps set everybody's time, so it runs first, and keeps its steps.
    """

    waits_for_base: ClassVar[bool] = False

    def steps(self, track: Track, recipe: Recipe, horizon: float) -> int:
        """Steps of a run; where its budget is time, those expected before the worker has timed one."""
        return steps_for(recipe, track.budget(horizon))

    def flops(self, track: Track, step_flops: float, horizon: float) -> float:
        """FLOPs of a run, but for what is less than a step."""
        return track.budget(horizon)

    def time_s(self, track: Track, horizon: float, base_step_s: float | None) -> float | None:
        """Time a run may train for, where its budget is time and is known. base_step_s: None until it is measured."""
        return None

    def met(self, losses: Iterable[float]) -> bool | None:
        """Whether validation losses of independent runs keep the official rule; None where there is no such rule."""
        return None

    def measure(self, track: Track, found: Measured) -> str | None:
        """A recipe in the objective's own terms, None where that says no more than its losses."""
        return None


class LossAtFlops(_Objective):
    """Lowest loss for one training budget in FLOPs, the optimizer's counted: cheaper steps buy more of them."""

    kind: Literal["loss_at_flops"]

    def measure(self, track: Track, found: Measured) -> str | None:
        """Bits per byte at the end."""
        return None if (bits := found.bits_per_byte) is None else f"{bits:.4f} bits per byte"


class LossAtSeconds(_Objective):
    """Lowest loss after so many seconds of training, compiling not counted: faster steps buy more."""

    kind: Literal["loss_at_seconds"]
    seconds: float = Field(gt=0)

    def time_s(self, track: Track, horizon: float, base_step_s: float | None) -> float | None:
        """The track's time, shared by horizon."""
        return self.seconds * horizon

    def measure(self, track: Track, found: Measured) -> str | None:
        """Bits per byte at the end."""
        bits = found.bits_per_byte
        return None if bits is None else f"{bits:.4f} bits per byte after {self.seconds:g} s"


class _Target(_Objective):
    """A loss to be reached, nats. margin: (target - mean) * sqrt(n) of independent runs must reach it."""

    target: float
    margin: float = 0.004

    def met(self, losses: Iterable[float]) -> bool:
        """The official rule of modded-nanogpt, on validation losses of independent runs."""
        values = list(losses)
        return bool(values) and (self.target - sum(values) / len(values)) * math.sqrt(len(values)) >= self.margin

    def reached(self, losses: Mapping[float, float]) -> float | None:
        """Share of the full budget at which the loss falls to the target, None if it does not.

        Args: losses: by horizon. Between two of them it falls along a straight line in the budget's logarithm.
        """
        points = sorted(losses.items())
        for (low, above), (high, below) in itertools.pairwise(points):
            if above > self.target >= below:
                return low * (high / low) ** ((above - self.target) / (above - below))
        return points[0][0] if points and points[0][1] <= self.target else None


class StepsToTarget(_Target):
    """Fewest steps to a loss, whatever a step costs."""

    kind: Literal["steps_to_target"]

    def steps(self, track: Track, recipe: Recipe, horizon: float) -> int:
        """As many as the base's."""
        return max(1, round(track.full_steps * horizon))

    def flops(self, track: Track, step_flops: float, horizon: float) -> float:
        """Those of as many steps as the base's."""
        return step_flops * track.full_steps * horizon

    def measure(self, track: Track, found: Measured) -> str | None:
        """Steps to the target."""
        share = self.reached(found.losses)
        return None if share is None else f"loss {self.target:g} after about {share * track.full_steps:,.0f} steps"


class TimeToTarget(_Target):
    """Least training time to a loss: everybody gets the time that the base's full run takes on this very machine."""

    kind: Literal["time_to_target"]
    waits_for_base: ClassVar[bool] = True

    def time_s(self, track: Track, horizon: float, base_step_s: float | None) -> float | None:
        """The time of the base's steps."""
        return None if base_step_s is None else track.full_steps * horizon * base_step_s

    def measure(self, track: Track, found: Measured) -> str | None:
        """Time to the target."""
        share = self.reached(found.losses)
        if share is None or not found.base_step_s:
            return None
        return f"loss {self.target:g} after about {share * track.full_steps * found.base_step_s:,.0f} s"


Objective = Annotated[LossAtFlops | LossAtSeconds | StepsToTarget | TimeToTarget, Field(discriminator="kind")]


class Limits(Node):
    """parameters, step_flops: at most so many times the base's. memory_gib: of one device, for a training step."""

    parameters: float = Field(default=1.05, gt=0)
    step_flops: float = Field(default=2.0, gt=0)
    memory_gib: float = Field(default=4.0, gt=0)


OPENINGS = 20  # of a protected split, by seals and publications, before the next one takes its place


class Significance(Node):
    """A record: at most n fresh seeds on the protected split. alpha: what all attempts on this track and data spend."""

    n: int = Field(default=15, ge=2)
    alpha: float = Field(default=0.001, gt=0, lt=1)


class Splits(Node):
    """Which split decides what; heldout is opened once per champion. spare: protected ones that take the place of the
    first, one after the other, when it was opened OPENINGS times."""

    search: str = "search"
    protected: str = "protected"
    heldout: str = "heldout"
    spare: tuple[str, ...] = ()

    @property
    def all_protected(self) -> tuple[str, ...]:
        """In the order in which they are used up."""
        return (self.protected, *self.spare)


class Grid(Node):
    """The paired grid that tuned the base: `research.qualify` runs it again. values: all `paths` get, over `seeds`."""

    paths: tuple[str, ...]
    values: tuple[float, ...]
    seeds: int = Field(default=4, ge=2)


class Track(Node):
    """The contract. base: a recipe file below configs/ or beside the track's. full_steps: its at the full horizon.

    set: what is otherwise in the base, as `--set` takes it. frozen: paths nobody may touch. needs: what a machine must
    have. horizons: fractions of the full budget, 1.0 last. epsilon: nats that do not matter. devices: that a run trains
    on; the user may say otherwise, but where seconds count. mesh: their axes, as `--mesh` takes them; by default
    `jaxnano.layout` chooses.
    """

    name: str
    summary: str
    base: str
    set: tuple[str, ...] = ()
    full_steps: int = Field(ge=1)
    frozen: tuple[str, ...]
    horizons: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.125, 0.25, 0.5, 1.0)
    epsilon: float = 0.005
    eval_tokens: int = Field(default=1 << 16, ge=1)
    proof_tokens: int = Field(default=1 << 17, ge=1)
    objective: Objective = LossAtFlops(kind="loss_at_flops")
    limits: Limits = Limits()
    significance: Significance = Significance()
    splits: Splits = Splits()
    grid: Grid
    needs: str = ""
    devices: int = Field(default=1, ge=1)
    mesh: str | None = None

    @cached_property
    def base_recipe(self) -> Recipe:
        """The recipe everything is measured against."""
        return load(CONFIGS / self.base, self.set)

    @cached_property
    def base_cost(self) -> Cost:
        """What the base costs."""
        return preflight(self.base_recipe)

    def free(self, recipe: Recipe) -> dict[str, Any]:
        """A recipe as plain data with all defaults, without what is frozen."""
        tree = dump_full(recipe)
        for path in self.frozen:
            *parents, last = path.split(".")
            here = tree
            for part in parents:
                here = here.get(part, {})
            here.pop(last, None)
        return tree

    @property
    def identity(self) -> str:
        """Hash of the contract and its base; sessions of different contracts are never compared."""
        return digest({"track": dump(self), "base": dump(self.base_recipe)})

    def steps(self, recipe: Recipe, horizon: float) -> int:
        """Steps of a run (`_Objective.steps`)."""
        return self.objective.steps(self, recipe, horizon)

    def budget(self, horizon: float) -> float:
        """Training FLOPs of the base's run."""
        return self.base_cost.flops_per_step * self.full_steps * horizon

    def flops(self, step_flops: float, horizon: float) -> float:
        """Training FLOPs of a run whose steps take so many."""
        return self.objective.flops(self, step_flops, horizon)

    def seconds(self, horizon: float, base_step_s: float | None) -> float | None:
        """Time a run may train for, where the budget is time. base_step_s: of the base's step here, once measured."""
        return self.objective.time_s(self, horizon, base_step_s)

    @property
    def timed(self) -> bool:
        """Whether a run's budget is time, which is that of so many devices."""
        return self.seconds(1.0, 1.0) is not None

    def admit(self, devices: int) -> None:
        """Raises: UserError, in one line, if its runs cannot have so many devices each."""
        if self.timed and devices != self.devices:
            raise UserError(f"--devices-per-trial: {devices}: track {self.name} counts seconds of {self.devices}; that "
                            "would do, or a track whose `devices` says otherwise")
        if devices > 1 or self.mesh is not None:
            layout(self.base_recipe, devices, ENDLESS, "gpu", self.mesh)


def tracks() -> dict[str, Path]:
    """The tracks there are, by name."""
    return {path.stem: path for path in sorted((CONFIGS / "tracks").glob("*.yaml"))}


def load_track(name: str, changes: Iterable[str] = ()) -> Track:
    """Read a track by name, or from a YAML file. changes: of its base, beside the track's own.

    Raises: UserError with what would do.
    """
    path = tracks().get(name, Path(name))
    if not path.is_file():
        raise ConfigError([Problem("--track", name, f"no such track; {', '.join(tracks())} would do")])
    data = read_yaml(path)
    base = data.get("base") if isinstance(data, dict) else None
    if isinstance(base, str) and not (CONFIGS / base).is_file() and (beside := path.parent / base).is_file():
        data["base"] = str(beside.resolve())
    found = validate(Track, data, str(path))
    if found.timed and "devices" not in found.model_fields_set:
        raise ConfigError([Problem("devices", None, "how many its seconds are of; 1 would do")], str(path))
    if new := [change for change in changes if change not in found.set]:
        told = f"{found.summary}; {', '.join(new)}"
        found = found.model_copy(update={"set": (*found.set, *new), "summary": told})
    found.admit(found.devices)
    return found
