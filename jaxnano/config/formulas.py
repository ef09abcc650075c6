"""Where a formula stands in a model: {code, params}, the names in scope there, and what they are."""

from __future__ import annotations

import fnmatch
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from jaxnano.config import expression
from jaxnano.config.base import Node, Range, refuse
from jaxnano.config.expression import Signature
from jaxnano.config.schedule import Traced, formula
from jaxnano.config.transforms import FREE, NAME

ANY = Signature(None)  # whatever names a checked formula has


@lru_cache(maxsize=4096)
def _plain(code: str, values: tuple[tuple[str, float], ...]) -> float:
    return float(expression.evaluate(code, dict(values)))


@lru_cache(maxsize=1 << 14)
def _matched(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


class Formula(Node):
    """A formula of a place. needed: the names that it must use; the first of them alone would change nothing."""

    place: ClassVar[Signature]
    needed: ClassVar[tuple[str, ...]] = ()

    params: Annotated[dict[str, Traced], FREE] = Field(default_factory=dict)
    code: str

    @field_validator("code")
    @classmethod
    def _canonical(cls, code: str, info: ValidationInfo) -> str:
        return formula(code, info, cls.place, cls.needed)

    def apply(self, **values: Any) -> Any:
        """The formula's value, whose shape may be smaller than its place's. values: by name in scope."""
        return expression.evaluate(self.code, {**self.params, **values}, self.place.reduces, self.place.axes)

    @model_validator(mode="after")
    def _changes(self) -> Formula:
        if self.needed == (self.code,) and not getattr(self, "gain", False):
            raise refuse("code", self.code, f"it leaves {self.code} as it is; null, for no formula, would do")
        return self


class Logit(Formula):
    """Logits from s, the scaled score, distance to the key, head 0.., heads, depth (0..1). No fused kernel."""

    place = Signature(("s", "distance", "head", "heads", "depth"))
    needed = ("s",)


class Output(Formula):
    """A head's output from y and v, the token's own value; reductions run over the head's channels."""

    place = Signature(("y", "v"), reduces=True, axes=1)
    needed = ("y",)


class HeadInput(Formula):
    """What each head's vectors x become, after qk_norm and before rotary; gain: times a trained vector."""

    place = Signature(("x",), reduces=True, axes=1)
    needed = ("x",)
    gain: bool = False


class Frequency(Formula):
    """Rotary's radians per position from f, those of its base, for each pair that turns. YaRN is one."""

    place = Signature(("f",))
    needed = ("f",)


class Logits(Formula):
    """Logits from z, elementwise; softcap is a preset of it."""

    place = Signature(("z",))
    needed = ("z",)


class InitRule(Formula):
    """Initial values of parameters whose path matches `of`, or whose role is in it; the first rule that does wins.

    code: of depth (how many blocks), block, fan_in, fan_out, and std, which stands without the rule: the standard
    deviation of normal and uniform, the size of the others. mean is added. key: parameters of one block with the same
    key share a draw. draw same: what stands by the other rules, of another size; such rules come last, each on top.
    """

    place = Signature(("depth", "block", "fan_in", "fan_out", "std"))
    params: Annotated[dict[str, float], FREE] = Field(default_factory=dict)
    name: str = Field(pattern=NAME)
    of: tuple[str, ...]
    draw: Literal["normal", "uniform", "sign", "constant", "identity", "same"]
    mean: Annotated[float, Range(-10.0, 10.0)] = 0.0
    key: str | None = Field(default=None, pattern=NAME)

    def size(self, depth: int, block: int, fan_in: int, fan_out: int, std: Any) -> Any:
        """The formula's value for one parameter: a number, traced if one of `params` is, or std."""
        stands = {"std": std} if "std" in expression.names(self.code, ANY) else {}  # which may be traced
        values = {**self.params, "depth": depth, "block": block, "fan_in": fan_in, "fan_out": fan_out, **stands}
        if all(type(value) in (int, float) for value in values.values()):  # a table has hundreds of alike
            return _plain(self.code, tuple(values.items()))
        value = expression.evaluate(self.code, values)
        return float(value) if isinstance(value, np.generic | np.ndarray | float) else value

    def matches(self, path: str, role: str) -> bool:
        """Whether the parameter at `path` with `role` starts so, unless a rule before this one says otherwise."""
        return role in self.of or _matched(path, self.of)
