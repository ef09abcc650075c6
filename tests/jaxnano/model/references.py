"""The architecture once more, in float64 NumPy, written from the definitions; it shares no code with the package.

A recipe comes as plain data with every field present, parameters as {path: array}, and numbers as they stand at one
progress. Batch and position are explicit loops where that says most plainly what is meant.
"""

from __future__ import annotations

import math
import re
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
    "c": lambda c: c,
    "1": lambda: 1.0,
    "0.5": lambda: 0.5,
    "c + 2": lambda c: c + 2,
    "1 - c": lambda c: 1 - c,
    "f / 2 + a": lambda f, a: f / 2 + a,
    "1 / sqrt(2 * depth)": lambda depth: (2 * depth) ** -0.5,
    "c * sigmoid(z)": lambda c, z: c / (1 + np.exp(-z)),
    "2 * c * sigmoid(z)": lambda c, z: 2 * c / (1 + np.exp(-z)),
    "2 * sigmoid(z)": lambda z: 2 / (1 + np.exp(-z)),
    "c * cos(z)": lambda c, z: c * np.cos(z),
    "c + a * tanh(z) * (block + 1)": lambda c, z, block, a: c + a * np.tanh(z) * (block + 1),
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
    first, last = value["between"] or (0.0, 1.0)
    progress = min(max((progress - first) / (last - first), 0.0), 1.0)
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


DEFAULTS = {  # of kinds that a block changes to
    "glu": {"ratio": 8 / 3, "activation": {"kind": "silu"}, "reads": "stream", "writes": ["stream"]},
    "alibi": {"reach": 8.0}, "vectors": {"rank": 1, "channels": 12, "hidden": 0, "window": 0},
}


def merged(tree: Any, change: Any) -> Any:
    """A tree of plain data with a partial one laid over it."""
    if not isinstance(tree, dict) or not isinstance(change, dict):
        return change
    if change.get("kind", tree.get("kind")) != tree.get("kind"):
        tree = DEFAULTS.get(change["kind"], {})
    return tree | {key: merged(tree.get(key), value) for key, value in change.items()}


def blocks(at: Any, depth: int) -> list[int]:
    """The blocks of places."""
    if at == "all":
        return list(range(depth))
    found: list[int] = []
    for p in at:
        if p["share"] is not None:
            found.append(int(p["share"] * depth))
        elif p["block"] is not None:
            found.append(p["block"] % depth)
        else:
            found += range(p["first"] or 0, depth if p["last"] is None else p["last"] % depth + 1, p["every"] or 1)
    return found


def sign(vector: int, channel: int, channels: int) -> float:
    """A bit of MurmurHash3's finaliser, in whole numbers of any size."""
    h = (vector * channels + channel) % 2**32
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    return -1.0 if (h ^ h >> 16) & 1 else 1.0


def tree(model: dict[str, Any], block: int) -> dict[str, Any]:
    """The model as one block has it; a branch that it lacks is None."""
    depth, found = model["depth"], dict(model)
    pattern = model["attention"]["windows"]
    if pattern:
        found["attention"] = model["attention"] | {"window": pattern[block % len(pattern)]}
    found |= {name: None for name in ("attention", "ffn") if block in model[name]["dropped"]}
    for diff in model["blocks"]:
        found = merged(found, diff["set"]) if block in blocks(diff["at"], depth) else found
    return found


class Reference:
    """One forward pass. params: float64 by path. recipe: plain data. progress: 0..1."""

    def __init__(self, params: dict[str, Array], recipe: dict[str, Any], progress: float):
        self.p, self.progress = {k: np.asarray(v, np.float64) for k, v in params.items()}, progress
        self.m, self.data = recipe["model"], recipe["data"]

    def norm(self, x: Array, path: str) -> Array:
        node = self.m["norm"]
        if node["kind"] == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + number(node["eps"], self.progress))
        return x * self.p.get(f"{path}/gain", 1.0) + self.p.get(f"{path}/bias", 0.0)

    def linear(self, x: Array, path: str) -> Array:
        return x @ self.p[path] + self.p.get(f"{path}_bias", 0.0)

    def embed(self, tokens: Array) -> Array:
        node, x = self.m["embedding"], self.p["embedding/token"][tokens]
        x = self.wired("embedding", x, x)
        if self.m["position"]["kind"] == "learned":
            x += self.p["embedding/position"][: len(tokens)]
        return self.norm(x, "embedding/norm") if node["norm"] else x

    def rotate(self, x_LxK: Array) -> Array:
        """Pair i is the complex number x_i + j x_(i + K/2)."""
        node, pairs = self.m["position"], x_LxK.shape[1] // 2
        turning, base = round(node["fraction"] * pairs), number(node["base"], self.progress)
        last = turning - 1 if node["spacing"] == "inclusive" else turning
        speed = np.array([base ** (-i / last) for i in range(turning)])
        if node["frequency"] is not None:
            speed = np.array([value_of(node["frequency"], self.progress, f=f) for f in speed])
        speed = np.concatenate([speed, np.zeros(pairs - turning)])
        turned = (x_LxK[:, :pairs] + 1j * x_LxK[:, pairs:]) * np.exp(1j * np.outer(np.arange(len(x_LxK)), speed))
        return np.concatenate([turned.real, turned.imag], axis=1)

    def shaped(self, y: Array, name: str, part: str, block: int) -> Array:
        """A head's queries, keys or values before anything knows where they stand."""
        a = self.m["attention"]
        if a["qk_norm"] and name != "v":
            y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6)
        if a[part] is not None:
            y = np.stack([value_of(a[part], self.progress, x=x) for x in y])
            y = y * self.p.get(f"blocks_{block}/attention/{name}_gain", 1.0)
        return y

    def scores(self, q: Array, k: Array, head: int, heads: int, block: int) -> Array:
        """[L, L] of one head, or of the heads that take turns in one row, before anybody looks who sees what."""
        a, position = self.m["attention"], self.m["position"]
        if position["kind"] == "rotary":
            q, k = self.rotate(q), self.rotate(k)
        if a["key_shift"]:
            pairs, own, back = k.shape[1] // 2, k.copy(), a["interleaved"]
            for pair in range(round((1 - a["key_shift"]) * pairs), pairs):
                for t in range(back, len(k)):
                    k[t, [pair, pairs + pair]] = own[t - back, [pair, pairs + pair]]
        constant = a["scale"]["kind"] == "constant"
        scores = q @ k.T * (number(a["scale"]["value"], self.progress) if constant else q.shape[1] ** -0.5)
        if a["softcap"] is not None:
            cap = number(a["softcap"], self.progress)
            scores = cap * np.tanh(scores / cap)
        share = block / (self.m["depth"] - 1) if self.m["depth"] > 1 else 0.0
        for i in range(len(q)):
            for j in range(i + 1):
                if a["logit"]:
                    scores[i, j] = value_of(a["logit"], self.progress, s=scores[i, j], distance=i - j, head=head,
                                            heads=heads, depth=share)
                if position["kind"] == "alibi":
                    scores[i, j] -= 2 ** (-number(position["reach"], self.progress) * (head + 1) / heads) * (i - j)
        return scores

    def sees(self, i: int, j: int, tokens: Array, window: int, size: int = 1) -> bool:
        """Whether place i of a row sees place j. size: of the blocks that windows are counted in."""
        turns, documents = self.m["attention"]["interleaved"], self.data["documents"]
        if j > i or window and i // size - j // size >= math.ceil(window / size):
            return False
        if documents is None or not documents["mask"]:
            return True
        begin, piece, found = 0, 0, []  # (document, piece) of each token
        for t, token in enumerate(tokens):
            begin = t if token == (documents["separator"] or 0) else begin
            piece = (t - begin) // documents["most"] if documents["most"] else 0
            found.append((begin, piece))
        return found[i // turns] == found[j // turns]

    def weights(self, scores: Array, tokens: Array, window: int, size: int = 1) -> Array:
        places = range(len(scores[0]))
        seen = np.array([[self.sees(i, j, tokens, window, size) for j in places] for i in places])
        return softmax(np.where(seen[None], scores, -np.inf), axis=-1)

    def mixed(self, x_HxLxL: Array, name: str, features: Array, block: int) -> Array:
        """What heads add of each other's scores or weights, query by query."""
        node, path = self.m["attention"][name], f"blocks_{block}/attention/{name}"
        out, heads = np.zeros_like(x_HxLxL), len(x_HxLxL)
        for i, x in enumerate(features):
            if node["kind"] == "matrix":
                for h in range(heads):
                    out[h, i] = sum(self.p[path][g, h] * x_HxLxL[g, i] for g in range(heads))
                continue
            z = x[: node["channels"]]
            if node["hidden"]:
                z = activate(z @ self.p[f"{path}_hidden"], {"kind": "gelu", "approximate": True})
            a, b = ((z @ self.p[f"{path}_{part}"] + self.p[f"{path}_{part}_bias"]).reshape(heads, node["rank"])
                    for part in ("from", "to"))
            for r in range(node["rank"]):
                unit = a[:, r] / math.sqrt((a[:, r] ** 2).mean() + 1e-6)
                shared = sum(unit[g] * x_HxLxL[g, i] for g in range(heads))
                out[:, i] += b[:, r, None] * shared
        return out

    def attend(self, qs: list[Array], ks: list[Array], vs: list[Array], features: Array, tokens: Array,
               block: int) -> list[Array]:
        """Outputs of heads, or of rows of heads that take turns; each has its own query, key and value here."""
        a = self.m["attention"]
        scores = np.stack([self.scores(q, k, h, len(qs), block) for h, (q, k) in enumerate(zip(qs, ks, strict=True))])
        if a["mix_scores"]:
            scores = scores + self.mixed(scores, "mix_scores", features, block)
        weights = self.weights(scores, tokens, a["window"], a["window_block"])
        if (node := a["mix_weights"]) is not None:
            own = node.get("window") and self.weights(scores, tokens, node["window"])
            weights = weights + self.mixed(own if node.get("window") else weights, "mix_weights", features, block)
        return [weights[h] @ v for h, v in enumerate(vs)]

    def attention(self, x: Array, tokens: Array, block: int) -> Array:
        a, path = self.m["attention"], f"blocks_{block}/attention"
        heads, groups, n = a["heads"], a["kv_heads"] or a["heads"], a["interleaved"]
        seen = self.wired("attention", x, x, block)
        q, k, v = (self.linear(seen, f"{path}/{name}") for name in "qkv")
        self.known["value"] = v
        v = self.wired("value", v, x, block)
        q, k, v = ([self.shaped(part, name, whole, block) for part in np.split(y, count, axis=1)]
                   for y, name, whole, count in ((q, "q", "query", heads), (k, "k", "key", groups),
                                                 (v, "v", "value", groups)))
        rows = [[np.stack(y[h : h + n], axis=1).reshape(-1, y[0].shape[1]) for h in range(0, len(y), n)]
                for y in (q, k, v)]  # place n t + j is head j's at token t
        found = self.attend(rows[0], *([y[h * groups // heads] for h in range(heads // n)] for y in rows[1:]), x,
                            tokens, block)
        outputs = [row[j::n] for row in found for j in range(n)]
        if a["output"]:
            outputs = [np.stack([value_of(a["output"], self.progress, y=y[t], v=v[h * groups // heads][t])
                                 for t in range(len(y))]) for h, y in enumerate(outputs)]
        if a["gate"]:
            gate = sigmoid(x[:, : a["gate"]["channels"]] @ self.p[f"{path}/output_gate"])
            outputs = [output * gate[:, [h]] for h, output in enumerate(outputs)]
        return self.linear(np.concatenate(outputs, axis=1), f"{path}/o")

    def ffn(self, x: Array, block: int) -> Array:
        node, path = self.m["ffn"], f"blocks_{block}/ffn"
        hidden = self.linear(x, f"{path}/up")
        if node["kind"] == "glu":
            hidden = activate(self.linear(x, f"{path}/gate"), node["activation"]) * hidden
        else:
            hidden = activate(hidden, node["activation"])
        return self.linear(hidden, f"{path}/down")

    def lookup(self, table: dict[str, Any], tokens: Array) -> Array:
        """A table's rows."""
        rows, index = self.p[f"tables/{table['name']}"], table["index"]
        if index["kind"] == "token":
            return rows[tokens]
        found = []
        for t in range(len(tokens)):
            if t < max(index["of"]):
                grams, row = [int(tokens[t - k]) if k <= t else 0 for k in index["of"]], len(rows) - 1
            else:
                grams = [int(tokens[t - k]) for k in index["of"]]
                row = (36313 * grams[0] ^ 27191 * grams[1]) % (len(rows) - 1)  # no product wraps here
            vector = (grams[0] ^ grams[1]) % index["signs"] if index["signs"] else 0
            signs = [sign(vector, i, rows.shape[1]) if index["signs"] else 1.0 for i in range(rows.shape[1])]
            found.append(rows[row] * signs)
        return np.stack(found)

    def wired(self, to: str, x: Array, here: Array, block: int = -1, site: str = "before") -> Array:
        """x after the wires that go to it at a site of a block; -1 is the embedding, the depth the features."""
        depth = self.m["depth"]
        for wire in self.m["wires"]:
            inner = to not in ("embedding", "head") and block not in blocks(wire["at"], depth)
            if (wire["to"], wire["site"]) != (to, site) or inner or self.m.get(wire["source"], 0) is None:
                continue
            source = np.zeros((len(x), 1)) if wire["source"] is None else self.known.get(wire["source"], x)
            shift = wire["shift"]
            moved = np.concatenate([np.zeros((shift, source.shape[1])), source[: len(x) - shift]])
            moved = np.concatenate([moved, np.zeros((len(x), x.shape[1] - moved.shape[1]))], axis=1)
            known = {**self.known, "here": here if to in ("value", "branch") else x, "source": moved}
            y = x * (self.coefficient(wire, "keep", known, block) if wire["keep"] else 1.0)
            x = y + moved * self.coefficient(wire, "add", known, block) if wire["source"] else y
        return x

    def coefficient(self, wire: dict[str, Any], part: str, known: dict[str, Array], block: int) -> Array:
        """[L, C], or what stretches to it."""
        node, depth = wire[part], self.m["depth"]
        place = {-1: "embedding", depth: "features"}.get(block, f"blocks_{block}")
        name = node["key"] or f"{wire['name']}_{part}"
        scope: dict[str, Any] = {"depth": depth, "block": block}
        words = re.findall(r"[a-z]+", node["code"])
        if "c" in words:
            scope["c"] = self.p[f"{place}/wire_{name}"]
        if "z" in words:
            read = np.concatenate([known[other][:, : node["channels"]] for other in node["reads"]], axis=1)
            weight = self.p[f"{place}/gate_{name}"]
            scope["z"] = read @ (weight if weight.ndim == 2 else weight[:, None])
        told = {key: value for key, value in scope.items() if key in words}
        value = np.atleast_1d(value_of(node, self.progress, **told))
        if node["per"] == "head" and value.size > 1:
            value = np.repeat(value, self.width_of_a_head(), axis=-1)
        return value

    def width_of_a_head(self) -> int:
        return self.m["attention"]["head_dim"] or self.m["width"] // self.m["attention"]["heads"]

    def streams(self, block: int, site: str) -> None:
        """Wires to streams, in the order of the list."""
        whole = self.m["wires"]
        for wire in whole:
            if wire["to"] == "stream" or wire["to"] in [tap["name"] for tap in self.m["taps"]]:
                self.m["wires"] = [wire]
                if wire["to"] in self.known:
                    x = self.known[wire["to"]]
                    self.known[wire["to"]] = self.wired(wire["to"], x, x, block, site)
        self.m["wires"] = whole

    def join(self, branch: str, y: Array, h: Array, block: int, site: str) -> None:
        """What a branch put out goes to its streams, plainly where no wire of its own leads there."""
        if self.m["norm"]["placement"] == "sandwich":
            y = self.norm(y, f"blocks_{block}/{branch}_post_norm")
        self.known[branch] = y = self.wired("branch", y, h, block, site)
        own = [w["to"] for w in self.m["wires"] if w["source"] == branch and block in blocks(w["at"], self.m["depth"])]
        for name in set(self.m[branch]["writes"]) - set(own):
            self.known[name] = self.known[name] + y

    def tap(self, block: int) -> None:
        for tap in self.m["taps"]:
            after = -1 if tap["after"] == "embedding" else blocks([tap["after"]], self.m["depth"])[0]
            if after == block:
                self.known[tap["name"]] = self.known[tap["of"]]

    def logits(self, tokens: Array) -> Array:
        """[L, V] of one row of tokens [L]."""
        whole = self.m
        self.known = {table["name"]: self.lookup(table, tokens) for table in whole["tables"]}
        self.known["stream"] = self.embed(tokens)
        self.tap(-1)
        for block in range(whole["depth"]):
            path, self.m = f"blocks_{block}", tree(whole, block)
            self.streams(block, "before")
            if self.m["attention"]:
                h = self.norm(self.known[self.m["attention"]["reads"]], f"{path}/attention_norm")
                self.join("attention", self.attention(h, tokens, block), h, block, "before")
            self.streams(block, "between")
            if self.m["ffn"]:
                h = self.norm(self.known[self.m["ffn"]["reads"]], f"{path}/ffn_norm")
                self.join("ffn", self.ffn(self.wired("ffn", h, h, block), block), h, block, "between")
            self.streams(block, "after")
            self.tap(block)
            for name in ("attention", "ffn", "value"):
                self.known.pop(name, None)
        self.m = whole
        x = self.norm(self.known["stream"], "final_norm")
        x = self.wired("head", x, x, whole["depth"])
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
    reference = Reference(params, recipe, progress)
    logits = np.stack([reference.logits(row[:-1]) for row in batch])
    total, head = logsumexp(logits, axis=-1), recipe["model"]["head"]
    nats = (total - np.take_along_axis(logits, batch[:, 1:, None], axis=-1)[..., 0]).mean()
    aim = 0.0
    for target in head["targets"] or [{"shift": 1, "weight": 1.0}]:
        for row, tokens in enumerate(batch):
            for i in range(len(tokens) - target["shift"]):
                miss = total[row, i] - logits[row, i, tokens[i + target["shift"]]]
                aim += number(target["weight"], progress) * miss / total.size
    weight = 0.0 if head["z_loss"] is None else number(head["z_loss"], progress)
    return logits, nats, aim + weight * (total**2).mean()
