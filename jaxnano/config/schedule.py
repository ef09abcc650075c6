"""Schedules of any traced value. All are in progress units (0..1), so they scale with the horizon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from jaxnano.config import expression
from jaxnano.config.base import Node, Range, refuse

_ANY = Range(-1e7, 1e7)  # the field it stands in is narrower
_SHARE = Range(0.0, 1.0)
PLACE = expression.Signature(("progress", "horizon"))


class _Shape(Node):
    """What every schedule has: a peak, a linear warm-up, and a floor as a share of the peak.

    between: shares of the run, [from, to], that it runs between; before and after it is as at their ends.
    """

    value: Annotated[float, _ANY]
    warmup: Annotated[float, Range(0.0, 0.9)] = 0.0
    floor: Annotated[float, _SHARE] = 0.0
    between: tuple[float, float] | None = None

    @field_validator("between")
    @classmethod
    def _in_order(cls, between: tuple[float, float] | None) -> tuple[float, float] | None:
        if between is not None and not 0 <= between[0] < between[1] <= 1:
            raise refuse("", between, "shares of the run, the first below the second; [0.0, 0.5] would do")
        return None if between == (0.0, 1.0) else between


class Constant(_Shape):
    """The peak after the warm-up."""

    kind: Literal["constant"]


class Linear(_Shape):
    """From the peak to the floor in a straight line."""

    kind: Literal["linear"]


class Cosine(_Shape):
    """From the peak to the floor along half a cosine. Source: Loshchilov & Hutter 2016, arXiv:1608.03983."""

    kind: Literal["cosine"]


class Trapezoid(_Shape):
    """Warm-up, stable, linear decay over the last `cooldown` of the run (WSD). Source: Hu et al. 2024."""

    kind: Literal["trapezoid"]
    cooldown: Annotated[float, Range(0.01, 1.0)] = 0.5


class PowerCool(_Shape):
    """min(peak, peak * (remaining / cooldown) ** power). Source: modded-nanogpt track 3, power_cool."""

    kind: Literal["power_cool"]
    cooldown: Annotated[float, Range(0.01, 1.0)] = 0.8
    power: Annotated[float, Range(0.1, 4.0)] = 1.2


def formula(code: str, info: ValidationInfo, place: expression.Signature, needed: tuple[str, ...] = ()) -> str:
    """Validates the `code` of a node that may have `params`; returns its one spelling. needed: names it must use."""
    try:
        return expression.canonical(code, info.data.get("params", {}), place, needed)
    except expression.ExpressionError as error:
        raise refuse("", code, str(error)) from None


class FormulaSchedule(Node):
    """An expression in progress and named parameters; in the optimizer also in horizon, the run's steps.

    A parameter that is called horizon, as in recipes of old, is one.
    """

    kind: Literal["expression"]
    params: Annotated[dict[str, float], _ANY] = Field(default_factory=dict)
    code: str

    @field_validator("code")
    @classmethod
    def _canonical(cls, code: str, info: ValidationInfo) -> str:
        own = "horizon" in info.data.get("params", {})
        found = formula(code, info, PLACE._replace(names=("progress",)) if own else PLACE)
        if not expression.names(found, PLACE._replace(names=None)) & {"progress", *(() if own else ("horizon",))}:
            raise refuse("", code, "column 1: progress is not used")
        return found

    @property
    def needs_horizon(self) -> bool:
        """Whether its value depends on the run's steps."""
        return "horizon" in expression.names(self.code, PLACE._replace(names=None)) - self.params.keys()


Schedule = Constant | Linear | Cosine | Trapezoid | PowerCool | FormulaSchedule


def _tag(value: Any) -> str | None:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", "number")


if TYPE_CHECKING:
    Traced = NamedTraced = Any  # once resolved (`recipe.at`) the field holds a scalar of the compiled step
else:
    _Traced = (
        Annotated[float, Tag("number")]
        | Annotated[Constant, Tag("constant")]
        | Annotated[Linear, Tag("linear")]
        | Annotated[Cosine, Tag("cosine")]
        | Annotated[Trapezoid, Tag("trapezoid")]
        | Annotated[PowerCool, Tag("power_cool")]
        | Annotated[FormulaSchedule, Tag("expression")]
    )
    Traced = Annotated[_Traced, Discriminator(_tag)]
    NamedTraced = Annotated[  # or the name of such a value
        _Traced | Annotated[str, Tag("name")],
        Discriminator(lambda value: "name" if isinstance(value, str) else _tag(value)),
    ]


def evaluate(schedule: Schedule, progress: Any, horizon: Any = None) -> Any:
    """The scheduled value at `progress` (0..1, traced); the node's numbers may be traced too. NumPy's alone stay so.

    horizon: the run's steps, where the schedule may read them.
    """
    xp: Any = np if isinstance(progress, np.ndarray) else jnp
    if isinstance(schedule, FormulaSchedule):
        values = {**({} if horizon is None else {"horizon": horizon}), **schedule.params, "progress": progress}
        value = expression.evaluate(schedule.code, values)
        return value if xp is np else jnp.asarray(value, jnp.float32)
    if schedule.between is not None:
        first, last = schedule.between
        progress = xp.clip((progress - first) / (last - first), 0.0, 1.0)
    warm = xp.where(progress < schedule.warmup, progress / xp.maximum(schedule.warmup, 1e-6), 1.0)
    after = xp.clip((progress - schedule.warmup) / xp.maximum(1.0 - schedule.warmup, 1e-6), 0.0, 1.0)
    left = xp.maximum(1.0 - progress, 0.0)
    match schedule:
        case Constant():
            shape = xp.ones_like(progress)
        case Linear():
            shape = 1.0 - after
        case Cosine():
            shape = 0.5 * (1.0 + xp.cos(xp.pi * after))
        case Trapezoid():
            shape = xp.minimum(1.0, left / schedule.cooldown)
        case PowerCool():
            shape = xp.minimum(1.0, (left / schedule.cooldown) ** schedule.power)
    return schedule.value * warm * (schedule.floor + (1.0 - schedule.floor) * shape)
