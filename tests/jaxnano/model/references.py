"""The architecture once more, in float64 NumPy, written from the definitions; it shares no code with the package.

A recipe comes as plain data with every field present, parameters as {path: array}, and numbers as they stand at one
progress. Batch and position are explicit loops where that says most plainly what is meant.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import erf, logsumexp, softmax

Array = np.ndarray
FORMULAS = {
    "x * sigmoid(a * x)": lambda x, a: x / (1 + np.exp(-a * x)),
    "minimum(relu(x) ** 3, 4 * abs(x)) + 1 / 8 * tanh(x)":
        lambda x: np.minimum(np.clip(x, 0, None) ** 3, 4 * np.abs(x)) + np.tanh(x) / 8,
    "a * progress": lambda progress, a: a * progress,
    "a * x / maximum(norm(x), 1e-06)": lambda x, a: a * x / max(math.sqrt(x @ x), 1e-6),
    "x / sqrt(mean(x * x) + 1e-06)": lambda x: x / math.sqrt((x * x).mean() + 1e-6),
    "x": lambda x: x,
    "s + distance * a": lambda s, distance, a, **_: s + distance * a,
    "a * sigmoid((z + b) / c)": lambda z, a, b, c: a / (1 + np.exp(-(z + b) / c)),
    "c * tanh(s / c) - a * log1p(distance) * (1 + head) / heads + depth * s / 2":
        lambda s, distance, head, heads, depth, a, c:
            c * np.tanh(s / c) - a * math.log(1 + distance) * (1 + head) / heads + s * depth / 2,
    "y - a * dot(y, v) / maximum(dot(v, v), 1e-06) * v + mean(y) / 4":
        lambda y, v, a: y - a * (y @ v) / max(v @ v, 1e-6) * v + y.mean() / 4,
}


def number(value: Any, progress: float) -> float:
    """What a traced field holds at `progress`."""
    if not isinstance(value, dict):
        return value
    if value["kind"] == "expression":
        return FORMULAS[value["code"]](progress=progress, **value["params"])
    warmup, floor = value["warmup"], value["floor"]
    rise = progress / warmup if progress < warmup else 1.0
    done = max(0.0, (progress - warmup) / (1 - warmup))
    fall = {
        "constant": lambda: 1.0,
        "linear": lambda: 1 - done,
        "cosine": lambda: (1 + math.cos(math.pi * done)) / 2,
        "trapezoid": lambda: min(1.0, (1 - progress) / value["cooldown"]),
        "power_cool": lambda: min(1.0, ((1 - progress) / value["cooldown"]) ** value["power"]),
    }[value["kind"]]()
    return value["value"] * rise * (floor + (1 - floor) * fall)


def value_of(node: dict[str, Any], progress: float, **scope: Any) -> Any:
    """What a formula's node makes of one number, or of the vectors of one head."""
    return FORMULAS[node["code"]](**scope, **{name: number(p, progress) for name, p in node["params"].items()})


def activate(x: Array, node: dict[str, Any]) -> Array:
    match node["kind"]:
        case "gelu" if node["approximate"]:
            return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case "gelu":
            return x * (1 + erf(x / math.sqrt(2))) / 2
        case "relu2":
            return np.where(x > 0, x, 0) ** 2
        case "silu":
            return x / (1 + np.exp(-x))
    return FORMULAS[node["code"]](x, **node["params"])


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


DEFAULTS = {"glu": {"ratio": 8 / 3, "activation": {"kind": "silu"}}}  # of kinds that a block changes to


def merged(tree: Any, change: Any) -> Any:
    """A tree of plain data with a partial one laid over it."""
    if not isinstance(tree, dict) or not isinstance(change, dict):
        return change
    if change.get("kind", tree.get("kind")) != tree.get("kind"):
        tree = DEFAULTS.get(change["kind"], {})
    return tree | {key: merged(tree.get(key), value) for key, value in change.items()}


def tree(model: dict[str, Any], block: int) -> dict[str, Any]:
    """The model as one block has it; a branch that it lacks is None."""
    depth, found = model["depth"], dict(model)
    pattern = model["attention"]["windows"]
    if pattern:
        found["attention"] = model["attention"] | {"window": pattern[block % len(pattern)]}
    found |= {name: None for name in ("attention", "ffn") if block in model[name]["dropped"]}
    for diff in model["blocks"]:
        places = [int(p["share"] * depth) if p["share"] is not None else p["block"] % depth for p in diff["at"]]
        found = merged(found, diff["set"]) if block in places else found
    return found


class Reference:
    """One forward pass. params: float64 by path. model: plain data. progress: 0..1."""

    def __init__(self, params: dict[str, Array], model: dict[str, Any], progress: float):
        self.p, self.m, self.progress = {k: np.asarray(v, np.float64) for k, v in params.items()}, model, progress

    def norm(self, x: Array, path: str) -> Array:
        node = self.m["norm"]
        if node["kind"] == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + number(node["eps"], self.progress))
        return x * self.p.get(f"{path}/gain", 1.0) + self.p.get(f"{path}/bias", 0.0)

    def linear(self, x: Array, path: str) -> Array:
        return x @ self.p[path] + self.p.get(f"{path}_bias", 0.0)

    def embed(self, tokens: Array) -> Array:
        node, raw = self.m["embedding"], self.p["embedding/token"][tokens]
        x = raw.copy()
        if node["smear"]:
            weight, scale = self.p["embedding/smear/weight"], self.p["embedding/smear/scale"]
            for t in range(1, len(tokens)):
                x[t] += scale * sigmoid(raw[t, : len(weight)] @ weight) * raw[t - 1]
        if self.m["position"]["kind"] == "learned":
            x += self.p["embedding/position"][: len(tokens)]
        return self.norm(x, "embedding/norm") if node["norm"] else x

    def rotate(self, x_LxK: Array) -> Array:
        """Pair i is the complex number x_i + j x_(i + K/2)."""
        node, pairs = self.m["position"], x_LxK.shape[1] // 2
        turning, base = round(node["fraction"] * pairs), number(node["base"], self.progress)
        last = turning - 1 if node["spacing"] == "inclusive" else turning
        speed = np.array([base ** (-i / last) if i < turning else 0.0 for i in range(pairs)])
        turned = (x_LxK[:, :pairs] + 1j * x_LxK[:, pairs:]) * np.exp(1j * np.outer(np.arange(len(x_LxK)), speed))
        return np.concatenate([turned.real, turned.imag], axis=1)

    def head(self, q: Array, k: Array, v: Array, head: int, block: int) -> Array:
        """One head's output [L, K] from its query and its group's key and value."""
        a, position = self.m["attention"], self.m["position"]
        if a["qk_norm"]:
            q, k = (y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) for y in (q, k))
        path = f"blocks_{block}/attention"
        q, k, v = (y if a[part] is None else np.stack([value_of(a[part], self.progress, x=x) for x in y])
                   * self.p.get(f"{path}/{name}_gain", 1.0)
                   for y, part, name in ((q, "query", "q"), (k, "key", "k"), (v, "value", "v")))
        if position["kind"] == "rotary":
            q, k = self.rotate(q), self.rotate(k)
        if a["key_shift"]:
            pairs, own = k.shape[1] // 2, k.copy()
            for pair in range(round((1 - a["key_shift"]) * pairs), pairs):
                for t in range(1, len(k)):
                    k[t, [pair, pairs + pair]] = own[t - 1, [pair, pairs + pair]]
        constant = a["scale"]["kind"] == "constant"
        scores = q @ k.T * (number(a["scale"]["value"], self.progress) if constant else q.shape[1] ** -0.5)
        if a["softcap"] is not None:
            cap = number(a["softcap"], self.progress)
            scores = cap * np.tanh(scores / cap)
        window = a["window"]
        share = block / (self.m["depth"] - 1) if self.m["depth"] > 1 else 0.0
        for i in range(len(q)):
            for j in range(len(q)):
                if a["logit"] and j <= i:
                    scores[i, j] = value_of(a["logit"], self.progress, s=scores[i, j], distance=i - j, head=head,
                                            heads=a["heads"], depth=share)
                if position["kind"] == "alibi":
                    scores[i, j] -= 2 ** (-number(position["reach"], self.progress) * (head + 1) / a["heads"]) * (i - j)
                if j > i or (window and i - j >= window):
                    scores[i, j] = -np.inf
        y = softmax(scores, axis=1) @ v
        if a["output"]:
            y = np.stack([value_of(a["output"], self.progress, y=y[t], v=v[t]) for t in range(len(y))])
        return y

    def attention(self, x: Array, tokens: Array, block: int) -> Array:
        a, path = self.m["attention"], f"blocks_{block}/attention"
        heads, groups = a["heads"], a["kv_heads"] or a["heads"]
        q, k, v = (self.linear(x, f"{path}/{name}") for name in "qkv")
        for table in self.m["residual"]["value_embeddings"]:
            if block in table["blocks"]:
                own, other = self.p[f"{path}/mix_{table['name']}_value"], self.p[f"{path}/mix_{table['name']}_table"]
                v = own * v + other * self.p[f"value_embeddings/{table['name']}"][tokens]
        q, k, v = np.split(q, heads, axis=1), np.split(k, groups, axis=1), np.split(v, groups, axis=1)
        outputs = [self.head(q[h], k[h * groups // heads], v[h * groups // heads], h, block) for h in range(heads)]
        if a["gate"]:
            gate = sigmoid(x[:, : a["gate"]["channels"]] @ self.p[f"{path}/output_gate"])
            outputs = [output * gate[:, [h]] for h, output in enumerate(outputs)]
        y = self.linear(np.concatenate(outputs, axis=1), f"{path}/o")
        return y / math.sqrt(2 * self.m["depth"]) if self.m["residual"]["branch"] == "depth_scaled" else y

    def ffn(self, x: Array, block: int) -> Array:
        node, path = self.m["ffn"], f"blocks_{block}/ffn"
        hidden = self.linear(x, f"{path}/up")
        if node["kind"] == "glu":
            hidden = activate(self.linear(x, f"{path}/gate"), node["activation"]) * hidden
        else:
            hidden = activate(hidden, node["activation"])
        return self.linear(hidden, f"{path}/down")

    def join(self, x: Array, y: Array, path: str) -> Array:
        if self.m["norm"]["placement"] == "sandwich":
            y = self.norm(y, f"{path}_post_norm")
        return self.p.get(f"{path}_stream", 1.0) * x + self.p.get(f"{path}_branch", 1.0) * y

    def inject(self, x: Array, saved: dict[str, Array], block: int) -> Array:
        for wire in self.m["residual"]["injections"]:
            if block in wire["before"]:
                path = f"inject_{wire['name']}_{block}"
                weight, scale = self.p.get(f"{path}/weight"), self.p[f"{path}/scale"]
                share = scale if weight is None else 2 * scale * sigmoid(x[:, : len(weight)] @ weight)[:, None]
                x = x + share * saved[wire["source"]]
        return x

    def logits(self, tokens: Array) -> Array:
        """[L, V] of one row of tokens [L]."""
        x, saved, whole = self.embed(tokens), {}, self.m
        for block in range(whole["depth"] + 1):
            self.m = whole
            saved |= {save["name"]: x for save in self.m["residual"]["saves"] if save["after"] == block}
            x = self.inject(x, saved, block)
            if block == self.m["depth"]:
                break
            path, self.m = f"blocks_{block}", tree(whole, block)
            if self.m["attention"]:
                y = self.attention(self.norm(x, f"{path}/attention_norm"), tokens, block)
                x = self.join(x, y, f"{path}/attention")
            if self.m["ffn"]:
                x = self.join(x, self.ffn(self.norm(x, f"{path}/ffn_norm"), block), f"{path}/ffn")
        x = self.norm(x, "final_norm")
        tied = self.m["embedding"]["tied"]
        z = x @ (self.p["embedding/token"].T if tied else self.p["head/weight"]) + self.p.get("head/bias", 0.0)
        if cap := self.m["head"]["softcap"]:
            c = number(cap["cap"], self.progress)
            z = c * np.tanh(z / c) if cap["kind"] == "tanh" else c * z / np.sqrt(z * z + c * c)
        if self.m["head"]["logits"]:
            z = value_of(self.m["head"]["logits"], self.progress, z=z)
        return z


def forward(
    params: dict[str, Array], batch: Array, recipe: dict[str, Any], progress: float
) -> tuple[Array, float, float]:
    """Logits [B, L, V], cross entropy in nats, and what training minimises, on tokens [B, L+1]."""
    reference = Reference(params, recipe["model"], progress)
    logits = np.stack([reference.logits(row[:-1]) for row in batch])
    total = logsumexp(logits, axis=-1)
    nats = (total - np.take_along_axis(logits, batch[:, 1:, None], axis=-1)[..., 0]).mean()
    z_loss = recipe["model"]["head"]["z_loss"]
    weight = 0.0 if z_loss is None else number(z_loss, progress)
    return logits, nats, nats + weight * (total**2).mean()
