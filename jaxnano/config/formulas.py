"""Where a formula stands in a model: {code, params}, the names in scope there, and what they are."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from jaxnano.config import expression
from jaxnano.config.base import Node, refuse
from jaxnano.config.expression import Signature
from jaxnano.config.schedule import Traced, formula
from jaxnano.config.transforms import FREE


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

    def of(self, **values: Any) -> Any:
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


class Logits(Formula):
    """Logits from z, elementwise; softcap is a preset of it."""

    place = Signature(("z",))
    needed = ("z",)
