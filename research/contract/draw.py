"""Random recipes from the whole space of the tree, driven by a generator of random numbers.

The tree is walked by its types, so a new node is drawn from without a word here; only what depends on another field
(lists of blocks, wires, groups and their chains, formulas) is drawn by hand.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np

from jaxnano.config import block, expression, formulas, model, optimizer, presets, schedule, transforms, wires
from jaxnano.config.base import ConfigError, Node, Range, dump, traced_range, validate
from jaxnano.config.recipe import Recipe
from jaxnano.model.specs import specs
from jaxnano.optim.build import update_cost
from jaxnano.phases import checked

ACTIVATIONS = (
    ("x * sigmoid(a * x)", ("a",)), ("relu(x) ** 2 + a * x", ("a",)), ("tanh(x) + sin(a * x) / b", ("a", "b")),
    ("minimum(exp(x), 4.0) - 1", ()), ("x / (1 + abs(a * x))", ("a",)), ("softplus(x) * erf(x / 2)", ()),
)
FORMULAS: dict[type[formulas.Formula], tuple[str, ...]] = {
    formulas.Logit: ("a * tanh(s / a)", "s - a * log1p(distance) * (1 + head) / heads", "s * (1 + a * depth)",
                     "where(distance - 4 * a, s, b * s)"),
    formulas.Output: ("y - a * dot(y, v) / maximum(dot(v, v), 1e-6) * v", "y + a * v", "y / (a + norm(y))",
                      "y * (1 + a * cos(y, v)) + b * mean(y)"),
    formulas.Frequency: ("f * (a + b * clip(f, 0, 1)) / 4", "pow(f, a / 3)"),
    formulas.HeadInput: ("a * x / (b + norm(x))", "x - a * mean(x)", "x / (1 + a * abs(x))"),
    wires.Coefficient: ("c", "2 * c * sigmoid(z)", "1 + a * tanh(z + c)", "a - block / depth / 4", "c * sigmoid(z)"),
    formulas.Logits: ("a * sigmoid((z + b) / a)", "10 * a * tanh(z / a / 10)", "z / (1 + abs(z) / (10 * a))"),
}
OF_MATRICES = (transforms.Muon, transforms.Soap)
DIRECTIONS = (transforms.Sgd, transforms.Adam, transforms.Lion, transforms.Ademamix, *OF_MATRICES)
DIRECTED = (
    ("brake", "u - a * minimum(dot(u, W) / maximum(dot(W, W), 1e-30), 0) * W"), ("mixed", "u + a * sign(u) * norm(u)"),
    ("floor", "u * maximum(1, a * norm(W) / maximum(norm(u), 1e-30))"), ("bound", "u / maximum(1, a * norm(u))"),
    ("agree", "u * where(u * g, 1, a)"), ("jitter", "u + 0.01 * a * norm(u) * noise()"),
)
SHAPES = (schedule.Constant, schedule.Linear, schedule.Cosine, schedule.Trapezoid, schedule.PowerCool)
SCHEDULES = ("a * (1 - progress)", "a * exp(-3 * progress ** 2)", "maximum(a - progress, a / 2)")


class Draw:
    """Draws plain data of nodes. widest, deepest: bounds of the model; heads divide the width."""

    def __init__(self, rng: np.random.Generator, widest: int, deepest: int):
        self.rng = rng
        self.width, self.depth = 8 * int(rng.integers(1, widest // 8 + 1)), int(rng.integers(1, deepest + 1))
        self.special: dict[tuple[type[Node], str], Callable[[], Any] | None] = {  # None: not here
            (model.Model, "width"): lambda: self.width,
            (model.Model, "depth"): lambda: self.depth,
            (block.Attention, "heads"): lambda: self.pick([h for h in (1, 2, 4, 6, 8) if self.width % (2 * h) == 0]),
            (block.Attention, "kv_heads"): lambda: self.pick([None, 1, 2]),
            (block.Attention, "head_dim"): lambda: self.pick([None, None, 4, 8, 10]),
            (block.Attention, "interleaved"): lambda: self.pick((1, 1, 1, 2)),
            (block.Attention, "window_block"): lambda: self.pick((1, 1, 2, 4)),
            **dict.fromkeys([(block.Attention, "mix_scores"), (block.Attention, "mix_weights")], self.mix),
            (block.HeadVectors, "window"): lambda: 0,  # see `mix`
            (block.Attention, "windows"): lambda: self.integers(0, 12, int(rng.integers(0, 4))),
            **dict.fromkeys([(block.Attention, "dropped"), (block.Mlp, "dropped"), (block.Glu, "dropped")],
                            lambda: self.blocks(self.depth, 0.15)),
            **dict.fromkeys([(model.Model, "taps"), (model.Model, "tables"), (model.Model, "wires"),
                             *((node, name) for node in (block.Attention, block.Mlp, block.Glu)
                               for name in ("reads", "writes"))], None),
            (block.Attention, "window"): lambda: 0,  # where there are no windows, see `diffs`
            (model.Model, "blocks"): self.diffs,
            (model.Head, "targets"): self.targets,
            (model.Init, "rules"): self.init_rules,
            **{(kind, "between"): lambda: self.pick((None, None, [0.2, 0.7])) for kind in SHAPES},
            (wires.Coefficient, "channels"): lambda: int(rng.integers(1, 5)),
            (wires.Coefficient, "reads"): lambda: self.pick((["here"], ["here"], ["source"], ["here", "source"])),
            (wires.Coefficient, "per"): lambda: self.pick(("one", "one", "channel")),
            (wires.Coefficient, "key"): lambda: None,
            (wires.HashIndex, "of"): lambda: self.pick(([0, 1], [0, 1], [0], [1, 2], [0, 1, 2])),
            (wires.HashIndex, "rows"): lambda: int(rng.integers(2, 300)),
            (wires.HashIndex, "signs"): lambda: self.pick((0, 0, 7)),
            (wires.Table, "channels"): lambda: self.pick((None, None, 4)),
            (optimizer.Optimizer, "groups"): self.groups,
            **{(optimizer.Optimizer, name): lambda: None for name in ("gradient", "evaluated")},  # see `memories`
        }

    def pick(self, items: Iterable[Any]) -> Any:
        """One of the items."""
        items = list(items)
        return items[int(self.rng.integers(len(items)))]

    def chance(self, share: float) -> bool:
        """True in this share of calls."""
        return bool(self.rng.random() < share)

    def integers(self, low: int, high: int, count: int) -> list[int]:
        """`count` integers from low to high, both included."""
        return [int(i) for i in self.rng.integers(low, high + 1, count)]

    def blocks(self, end: int, share: float, start: int = 0) -> list[int]:
        """Each block of start..end-1 with probability `share`."""
        return [block for block in range(start, end) if self.chance(share)]

    def number(self, span: Range) -> float:
        """A number of the range; on a logarithmic scale at most six decades below its end."""
        if span.scale == "log":
            low = max(span.low, span.high * 1e-6)
            return float(f"{math.exp(self.rng.uniform(math.log(low), math.log(span.high))):.4g}")
        return min(max(float(f"{self.rng.uniform(span.low, span.high):.4g}"), span.low), span.high)

    def traced(self, span: Range) -> Any:
        """A number, or now and then a schedule around one."""
        if not self.chance(0.2):
            return self.number(span)
        if self.chance(0.2):
            return {"kind": "expression", "code": self.pick(SCHEDULES), "params": {"a": self.number(span)}}
        return self.node(self.pick(SHAPES)) | {"value": self.number(span)}

    def node(self, kind: type[Node]) -> dict[str, Any]:
        """A node: required fields always, the others in half of the cases."""
        if kind is block.FormulaActivation:
            code, names = self.pick(ACTIVATIONS)
            params = {name: self.number(Range(0.1, 3.0)) for name in names}
            return {"kind": "expression", "code": code, "params": params}
        data: dict[str, Any] = {}
        if issubclass(kind, formulas.Formula):
            data["code"] = self.pick(FORMULAS[kind])
            used = expression.names(data["code"], kind.place._replace(names=None)) - {*(kind.place.names or ())}
            data["params"] = {name: self.traced(Range(0.1, 3.0)) for name in sorted(used)}
        for name, field in kind.model_fields.items():
            if name in data:
                continue
            if (kind, name) in self.special:
                if (special := self.special[kind, name]) is not None:
                    data[name] = special()
            elif field.is_required() or name != "vocab" and self.chance(0.5):
                span, optional = traced_range(field), types.NoneType in get_args(field.annotation)
                if span and optional and self.chance(0.5):
                    data[name] = None
                elif span:
                    plain = field.annotation in (float, float | None)
                    data[name] = self.number(span) if plain else self.traced(span)
                else:
                    data[name] = self.value(field.annotation, field.metadata)
        if kind is model.Model:
            data |= self.wires(data.get("blocks", []))
        if kind is optimizer.Optimizer:
            data |= self.memories(data)
        return data

    def value(self, hint: Any, bounds: Iterable[Any] = ()) -> Any:
        """Plain data of a static type."""
        if get_origin(hint) is Annotated:
            return self.value(get_args(hint)[0], hint.__metadata__)
        if get_origin(hint) in (Union, types.UnionType):
            members = sorted(get_args(hint), key=lambda member: member is not types.NoneType)
            return self.value(self.pick(members), bounds)
        if get_origin(hint) is Literal:
            return self.pick(get_args(hint))
        if hint is types.NoneType:
            return None
        if hint is bool:
            return self.chance(0.5)
        if isinstance(hint, type) and issubclass(hint, Node):
            return self.node(hint)
        if hint is str:
            return "name"
        if get_origin(hint) is tuple:
            return []
        low = max(getattr(b, "ge", getattr(b, "gt", -math.inf)) for b in bounds if hasattr(b, "ge") or hasattr(b, "gt"))
        high = min(getattr(b, "le", math.inf) for b in bounds if hasattr(b, "le"))
        if hint is int:
            return self.integers(int(low), int(min(high, low + 7)), 1)[0]
        return float(f"{math.exp(self.rng.uniform(math.log(max(low, 0.05)), math.log(high))):.4g}")

    def wires(self, blocks: list[dict[str, Any]], tries: int = 20) -> dict[str, Any]:
        """Taps, tables and wires that fit each other, and now and then a block whose FFN reads a tap."""
        for _ in range(tries):
            found = self.wiring()
            if found["taps"] and self.chance(0.3):
                lane = {"name": "lane", "at": [{"block": -1}], "set": {"ffn": {"reads": "tap0"}}}
                found["blocks"] = [*blocks, lane]
            try:
                validate(model.Model, {"width": self.width, "depth": self.depth, **found})
                return found
            except ConfigError:
                continue
        return {}

    def targets(self) -> list[dict[str, Any]]:
        """Now and then tokens further on."""
        return [] if self.chance(0.7) else [
            {"name": f"ahead{shift}", "shift": shift, "weight": self.traced(Range(0.1, 1.0))} for shift in (1, 2)]

    def mix(self) -> dict[str, Any] | None:
        """Now and then what heads share."""
        return None if self.chance(0.7) else self.node(self.pick((block.HeadMatrix, block.HeadVectors)))

    def wiring(self) -> dict[str, Any]:
        """Taps, tables, and wires of them to wherever they may go."""
        taps = [{"name": f"tap{i}", "after": self.pick(("embedding", {"block": 0}, {"share": 0.4})),
                 "of": self.pick(("stream", "stream", "attention", "ffn", "value"))}
                for i in range(self.pick((0, 0, 1, 1, 2)))]
        tables = [self.node(wires.Table) | {"name": f"table{i}"} for i in range(self.pick((0, 0, 0, 1, 2)))]
        sources = ["self", "attention", "ffn", None, *(item["name"] for item in (*taps, *tables) * 3)]
        targets = [*wires.INSIDE, "stream", "stream", "value", *(tap["name"] for tap in taps)]
        found = []
        for i in range(self.pick((0, 0, 1, 2, 3)) if not tables else 2):
            source, to = self.pick(sources), self.pick(targets)
            site = "before" if to in wires.INSIDE else self.pick(("before", "between", "after"))
            at = "all" if to in ("embedding", "head") else self.pick(("all", [{"block": -1}], [{"share": 0.5}]))
            wire = {"name": f"wire{i}", "source": source, "to": to, "at": at, "site": site,
                    "shift": self.pick((0, 0, 0, 1, 3))}
            keep = self.node(wires.Coefficient) if source is None or self.chance(0.3) else None
            found.append(wire | {"keep": keep} | ({"add": self.node(wires.Coefficient)} if source else {}))
        return {"taps": taps, "tables": tables, "wires": found}

    def init_rules(self) -> list[dict[str, Any]]:
        """Now and then other initial values of some maps."""
        code = self.pick(("a / sqrt(3 * fan_in)", "a * (1 - block / (2 * depth)) / sqrt(fan_out)", "a / 10"))
        rule = {"name": "drawn", "of": self.pick((["blocks_*/ffn/*"], ["matrix"], ["*/q", "*/k"])), "code": code,
                "draw": self.pick(("normal", "uniform", "sign")), "params": {"a": self.number(Range(0.1, 1.0))}}
        return [rule] if self.chance(0.2) else []

    def groups(self) -> list[dict[str, Any]]:
        """Roles dealt into two or three groups; matrix optimizers only where all roles are matrices."""
        tables = [role for role in ("embedding", "head") if self.chance(0.5)]
        parts = [["matrix", *tables], [role for role in optimizer.ROLES if role != "matrix" and role not in tables]]
        if self.chance(0.3):
            parts[1:] = [parts[1][:2], parts[1][2:]]
        found = [{"name": f"group{i}", "roles": roles, "lr": self.traced(Range(1e-5, 1.0, "log")), **self.clock(),
                  "chain": self.chain(set(roles) <= {"matrix", "embedding", "head"})} for i, roles in enumerate(parts)]
        return [*self.circuit(), *found]

    def circuit(self) -> list[dict[str, Any]]:
        """Now and then values and outputs of attention that see each other."""
        code = self.pick(("u * norm(o_W) / maximum(norm(W), 1e-30)", "u + a * (o_u - u)", "u + a * sign(o_g)"))
        step = {"name": "pair", "code": code} | ({"params": {"a": 0.1}} if " a " in code else {})
        step |= self.pick(({}, {"pieces": {"axis": "heads", "count": 2}}))
        return self.pick(([],) * 5 + ([{
            "name": "circuit", "paths": ["*/attention/v", "*/attention/o"], "lr": self.traced(Range(1e-5, 1.0, "log")),
            "partners": [{"name": "o", "pairs": [["v", "o"]], "transposed": True}],
            "chain": [self.node(self.pick(DIRECTIONS)), step]}],))

    def clock(self) -> dict[str, Any]:
        """Now and then a group that rests."""
        return self.pick(([{}] * 7) + [{"every": 2}, {"every": 2, "accumulate": True}, {"frozen": [[0.0, 0.3]]}])

    def diffs(self) -> list[dict[str, Any]]:
        """Now and then some blocks that differ."""
        found = []
        for i in range(self.pick((0, 0, 1, 2))):
            at = self.pick(([{"block": -1}], [{"share": 0.0}], [{"first": 0, "every": 2}], "all"))
            ffn = self.node(self.pick((block.Mlp, block.Glu))) | {"dropped": []}
            change = self.pick((
                {"attention": {"window": int(self.rng.integers(1, 13))}}, {"attention": {"qk_norm": self.chance(0.5)}},
                {"ffn": {"ratio": float(self.pick((0.5, 1.0, 2.0)))}}, {"ffn": ffn},
                {"attention": {"output": self.node(formulas.Output)}},
                {"attention": {"mix_weights": self.node(block.HeadVectors) | {"window": self.pick((0, 3))}}},
                {"attention": None}, {"norm": self.node(block.RmsNorm)}, {"bias": self.chance(0.5)},
                {"position": {"kind": "none"}},
                {"attention": {"scale": {"kind": "constant", "value": 0.2}}}))
            found.append({"name": f"diff{i}", "at": at, "set": change})
        return found

    def memories(self, data: dict[str, Any]) -> dict[str, Any]:
        """Now and then an average that is evaluated or looked ahead along, and an outer step."""
        found: dict[str, Any] = {"memory": [], "moves": []}
        if data.get("wrapper") is None and self.chance(0.2):
            found["memory"].append({"name": "drift", "of": "W - W0", "decay": self.number(Range(0.5, 0.99))})
            found["gradient"] = {"code": "W + a * drift", "params": {"a": self.number(Range(0.0, 0.5))}}
        if self.chance(0.2):
            found["memory"] += [{"name": "anchor", "keep": "copy", "every": 2},
                                {"name": "pushed", "of": "anchor - W", "keep": "sum", "every": 2, "decay": 0.5}]
            found["moves"].append({"name": "outer", "every": 2, "code": "anchor - 0.7 * (anchor - W + 0.5 * pushed)"})
        return found

    def chain(self, matrices: bool) -> list[dict[str, Any]]:
        """A direction and what may follow it, now and then with a formula of its own or written out step by step."""
        first = self.pick([kind for kind in DIRECTIONS if matrices or kind not in OF_MATRICES])
        chain = [first] + [transforms.Normuon] * (first is transforms.Muon and self.chance(0.4))
        ends = [[], [transforms.Decay], [transforms.CautiousDecay], *([[transforms.Hyperball]] if matrices else [])]
        end = [self.node(kind) for kind in self.pick(ends)]
        steps = [self.node(kind) for kind in chain]
        if self.chance(0.3):
            name, code = self.pick(DIRECTED)
            steps.append({"name": name, "code": code, "params": {"a": self.number(Range(0.05, 1.0))}})
        if self.chance(0.2):
            kind = type(validate(optimizer.Group, {"name": "g", "lr": 0.1, "chain": steps[:1]}).chain[0])
            steps[:1] = [dump(step) for step in presets.expand(validate(kind, steps[0]))]
        for step in steps if matrices else ():
            if "code" in step or step["kind"] == "polar":
                step |= self.pick(({}, {}, {"pieces": {"axis": self.pick(("in", "out")), "count": 2}}))
        return steps + end


    def phase(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Now and then something that is otherwise from a share of the run on."""
        tied = data["model"].get("embedding", {}).get("tied", True)
        group = self.pick(data["optimizer"]["groups"])["name"]
        change: dict[str, Any] = self.pick((
            {"model": {"ffn": {"ratio": 1.5}}}, {"model": {"attention": {"softcap": self.pick((None, 9.0))}}},
            {"model": {"embedding": {"tied": not tied}}}, {"optimizer": {"clip": self.number(Range(0.1, 10.0, "log"))}},
            {"optimizer": {"groups": {group: {"lr": self.traced(Range(1e-5, 1.0, "log"))}}}}))
        carry = {"head/weight": "embedding/token"} if "embedding" in change.get("model", {}) and tied else {}
        return [{"name": "later", "start": self.number(Range(0.1, 0.9)), "set": change, "carry": carry}]


def random_recipe(rng: np.random.Generator, base: Recipe, tries: int = 200) -> Recipe:
    """A recipe from the whole core space on `base`'s data; what breaks a rule across fields is drawn again."""
    for _ in range(tries):
        draw = Draw(rng, base.model.width, base.model.depth + 1)
        try:
            seen = {"set": {"model": {"attention": {"window": int(rng.integers(0, 13))}}}}
            data = {"evaluation": seen if draw.chance(0.1) else None,
                    "model": draw.node(model.Model) | {"vocab": base.model.vocab},
                    "optimizer": draw.node(optimizer.Optimizer)}
            data["phases"] = draw.phase(data) if draw.chance(0.15) else []
            recipe = validate(Recipe, dump(base) | data)
            for part in checked(recipe):
                update_cost(part.recipe.optimizer, specs(part.recipe))  # says whether chains fit the parameters
            return recipe
        except ConfigError:
            continue
    raise RuntimeError(f"no valid recipe in {tries} draws")
