"""Presets of the chain: what each stands for, and the way back from an unmodified expansion to its preset."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError

from jaxnano.config import transforms as t
from jaxnano.config.base import Node, kind_of, name_of, refuse


def expand(item: Node) -> tuple[t.Step, ...]:
    """The steps that a preset stands for; a step stands for itself. Its numbers may be traced."""
    match item:
        case t.Sgd():
            code = "g + m_decay * m" if item.nesterov else "m"
            return _average("m", "g", item.momentum, sum=True), _formula("momentum", code)
        case t.Adam():
            ahead = "m_decay * m + (1 - m_decay) * g"
            if item.bias_correction:  # each by the weight it will hold, or holds
                ahead = "m_decay * m * m_weight / (m_decay * m_weight + 1 - m_decay) + (1 - m_decay) * g / m_weight"
            mean = f"({ahead})" if item.nesterov else "m"
            return (_average("m", "g", item.b1, debias=item.bias_correction),
                    _average("v", "g * g", item.b2, debias=item.bias_correction),
                    _formula("ratio", f"{mean} / (sqrt(v) + eps)", eps=item.eps))
        case t.Lion():
            return (_average("m", "g", item.b2),
                    _formula("signs", "sign(b1 * m_old + (1 - b1) * g)", b1=item.b1))
        case t.Ademamix():
            return (_average("m", "g", item.b1, debias=True), _average("slow", "g", item.b3),
                    _average("v", "g * g", item.b2, debias=True),
                    _formula("ratio", "(m + alpha * slow) / (sqrt(v) + eps)", alpha=item.alpha, eps=item.eps))
        case t.Muon():
            scale = {"aspect": "sqrt(maximum(1, fan_out / fan_in)) * u",
                     "spectral_rms": "0.2 * sqrt(maximum(fan_in, fan_out)) * u"}.get(item.scale)
            return (_average("m", "g", item.momentum),
                    _build(t.Polar, of="m_decay * m + (1 - m_decay) * g" if item.nesterov else "m",
                           coefficients=item.orthogonalizer),
                    *([_formula("scale", scale)] if scale else []))
        case t.Normuon():
            return (_average("square", "neurons(u) ** 2 / minimum(fan_in, fan_out)", item.b2),
                    _formula("even", "u / sqrt(maximum(square, eps))", into="even", eps=item.eps),
                    _formula("length", "even * (norm(u) / maximum(norm(even), 1e-30))"))
        case t.Soap():
            return (_build(t.Factors, name="q", decay=item.shampoo_beta, every=item.refresh_every),
                    _build(t.Rotate, name="turn", by="q", of="g", into="p"),
                    _average("m", "g", item.b1, debias=item.bias_correction),
                    _average("v", "p * p", item.b2, debias=item.bias_correction, basis="q"),
                    _build(t.Rotate, name="turned", by="q", of="m"),
                    _formula("ratio", "u / (sqrt(v) + eps)", eps=item.eps),
                    _build(t.Rotate, name="back", by="q", back=True))
        case t.Decay():
            return (_formula("decay", "u + rate * W", rate=item.rate),)
        case t.CautiousDecay():
            return (_formula("decay", "u + rate * W * positive(u * W)", rate=item.rate),)
        case t.Hyperball():
            return (_formula("angle", "norm(W) * (u / maximum(norm(u), 1e-30))"), t.TakeStep(kind="step"),
                    _formula("pin", "W * (norm(W0) / maximum(norm(W), 1e-30))", into="W"))
    if isinstance(item, t.Step):
        return (item,)
    raise ValueError(f"{item!r}: no such transform")


def _build(step: type[Any], **fields: Any) -> Any:
    """A step whose numbers may be traced, and whose formulas have their one spelling."""
    for name in step.formulas:
        fields |= {name: t.spelled(fields[name])} if name in fields else {}
    return step.model_construct(**{"kind": kind_of(step)} | fields)


def _average(name: str, of: str, decay: Any, **fields: Any) -> t.Average:
    return _build(t.Average, name=name, of=of, decay=decay, **fields)


def _formula(name: str, code: str, into: str = "u", **params: Any) -> t.FormulaStep:
    return _build(t.FormulaStep, name=name, code=code, into=into, params=params)


def steps_of(chain: Iterable[Node]) -> list[t.Step]:
    """A chain with its presets expanded and the step taken: after the last line that writes u, unless one does it."""
    found = [step for item in chain for step in expand(item)]
    if not any("W" in step.writes for step in found):
        last = max((i for i, step in enumerate(found) if "u" in step.writes), default=-1)
        found.insert(last + 1, t.TakeStep(kind="step"))
    return found


def check(chain: Sequence[Node], params: Iterable[str], partners: Iterable[str] = ()) -> None:
    """Raise where a line of a chain reads what is not there, takes a name that is taken, or does what nothing reads."""
    theirs = {name: {f"{name}_{one}" for one in t.OF_PARTNERS} for name in partners}
    known, unused = {*t.GIVEN, *params}.union(*theirs.values()), set(params)
    kept = known - {"u", "W"}
    clashes = []  # a name taken by a line, or by one that a preset stands for
    for item, step in [(one, step) for one in chain for step in expand(one)]:
        place, own = f"chain.{name_of(item)}", set(getattr(step, "params", ()))
        keeps = set(step.writes) if isinstance(step, t.KEEPS) and not isinstance(step, t.Solve) else set()
        if missing := sorted(step.reads - known):
            near = "".join(f"; {name} would do" for name in get_close_matches(missing[0], known, 1))
            raise refuse(place, missing[0], f"no such name above this line; known: {', '.join(sorted(known))}{near}")
        clashes += [(item, refuse(place, name, "the name is taken; another would do"))
                    for name in sorted(kept & set(step.writes) | known & (own | keeps))]
        known |= set(step.writes)
        kept |= keeps
        unused -= step.reads
        theirs = {name: given for name, given in theirs.items() if not given & step.reads}
    if own := [error for item, error in clashes if isinstance(item, t.Step)]:
        raise own[0]
    if sum(isinstance(step, t.TakeStep) for step in steps_of(chain)) > 1:
        raise refuse("chain", [name_of(item) for item in chain], "one line at most takes the step, as hyperball does")
    made = {step.name: type(step) for item in chain for step in expand(item) if isinstance(step, t.KEEPS)}
    for item in chain:
        for step in expand(item):
            kind = {t.Whiten: t.Triangles, t.Solve: t.Average}.get(type(step), t.Factors)
            for field in ("by", "basis"):
                if (by := getattr(step, field, None)) and made.get(by) is not kind:
                    raise refuse(f"chain.{name_of(item)}.{field}", by, f"a line of kind {kind_of(kind)} would do")
            for name in sorted(step.reads - {getattr(step, "by", None), getattr(step, "basis", None)}):
                if made.get(name) in (t.Factors, t.Triangles):
                    raise refuse(f"chain.{name_of(item)}", name, f"a line of kind {kind_of(made[name])}, which holds "
                                 "bases and no number: only by and basis may name it")
    ahead = {step.name for item in chain for step in expand(item) if isinstance(step, t.Factors) and step.ahead}
    for item in chain:
        if any(getattr(step, "basis", None) in ahead for step in expand(item)):
            raise refuse(f"chain.{name_of(item)}.basis", getattr(item, "basis", None), "an average lives in bases that "
                         "follow at the end of a step; ahead: false would do")
    _alive(chain)
    if clashes:
        raise clashes[0][1]
    if theirs:
        raise refuse(f"partners.{min(theirs)}", min(theirs), f"no line of the chain reads {min(theirs)}_W or what else "
                     "it brings")
    if unused:
        raise refuse(f"params.{min(unused)}", min(unused), "no line of the chain reads it")


def _alive(chain: Sequence[Node]) -> None:
    """Raise for an item none of whose lines reaches the parameter: two directions, a decay after the step."""
    order: list[Node | None] = [item for item in chain for _ in expand(item)]
    steps = steps_of(chain)
    if len(steps) > len(order):  # the step that is taken by itself
        order.insert(next(i for i, step in enumerate(steps) if isinstance(step, t.TakeStep)), None)
    needed, live = {"W"}, set()
    for item, step in zip(reversed(order), reversed(steps), strict=True):
        if needed & set(step.writes):
            needed = (needed - set(step.writes)) | step.reads
            live.add(id(item))
    if idle := [name_of(item) for item in chain if id(item) not in live]:
        raise refuse(f"chain.{idle[0]}", idle[0], "nothing reads what it writes, so it does nothing; without it, or "
                     "before the line that should read it, would do")


class _Hole(NamedTuple):
    """Stands for any value of a preset's field."""

    field: str


@cache
def _templates() -> list[tuple[type[Node], dict[str, Any], tuple[t.Step, ...]]]:
    """Every preset's expansions, longest first: its choices written out, a hole for each number."""
    found = []
    for preset in t.PRESETS:
        fields = {name: field for name, field in preset.model_fields.items() if name != "kind"}
        choices = {name: _choices(field.annotation) for name, field in fields.items()}
        for values in itertools.product(*(choices[name] or [_Hole(name)] for name in fields)):
            statics = dict(zip(fields, values, strict=True))
            found.append((preset, statics, expand(preset.model_construct(kind=kind_of(preset), **statics))))
    return sorted(found, key=lambda row: -len(row[2]))


def _choices(annotation: Any) -> list[Any]:
    """All values of a choice; none for a number."""
    if annotation is bool:
        return [True, False]
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def contract(chain: tuple[Node, ...]) -> tuple[Node, ...]:
    """The chain with each unmodified expansion put back to its preset, so that one thing has one spelling."""
    return tuple(_contracted(chain))


def _contracted(chain: tuple[Node, ...]) -> Iterator[Node]:
    spot = 0
    while spot < len(chain):
        found = next(filter(None, (_preset(row, chain[spot : spot + len(row[2])]) for row in _templates())), None)
        yield found[0] if found else chain[spot]
        spot += found[1] if found else 1


def _preset(row: tuple[type[Node], dict[str, Any], tuple[t.Step, ...]], lines: tuple[Node, ...]) -> Any:
    """The preset whose expansion these lines are, with their number, or None."""
    preset, statics, template = row
    bound: dict[str, Any] = {}
    if len(lines) != len(template) or not all(_same(a, b, bound) for a, b in zip(template, lines, strict=True)):
        return None
    try:
        return preset(kind=kind_of(preset), **statics | bound), len(lines)  # type: ignore[call-arg]
    except ValidationError:  # a number that the preset's range does not hold
        return None


def _same(a: Any, b: Any, bound: dict[str, Any]) -> bool:
    if isinstance(a, _Hole):
        return not isinstance(b, str) and bound.setdefault(a.field, b) == b
    if isinstance(a, Node):
        return type(a) is type(b) and all(_same(getattr(a, f), getattr(b, f), bound) for f in type(a).model_fields)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key], bound) for key in a)
    return a == b
