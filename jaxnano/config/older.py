"""What versions up to 0.4 wrote, in the words of this one: `model.residual` and `embedding.smear` became wires."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

PATTERNS = (  # of parameters' paths, in groups and rules too
    (r"^value_embeddings/(.*)$", r"tables/\1"),
    (r"^embedding/smear/scale$", "embedding/wire_smear_add"), (r"^embedding/smear/weight$", "embedding/gate_smear_add"),
    (r"^(.*)/attention_stream$", r"\1/wire_attend_keep"), (r"^(.*)/attention_branch$", r"\1/wire_attend_add"),
    (r"^(.*)/ffn_stream$", r"\1/wire_feed_keep"), (r"^(.*)/ffn_branch$", r"\1/wire_feed_add"),
    (r"^(.*)/attention/mix_(.*)_value$", r"\1/wire_\2_mix_keep"),
    (r"^(.*)/attention/mix_(.*)_table$", r"\1/wire_\2_mix_add"),
)


def is_older(recipe: Mapping[str, Any]) -> bool:
    """Whether plain data of a recipe is in the words of an earlier version."""
    model = recipe.get("model") or {}
    return isinstance(model, dict) and ("residual" in model or "smear" in (model.get("embedding") or {}))


def translated(text: str | bytes | bytearray) -> str | bytes | bytearray:
    """JSON of a recipe of any version in the words of this one; what is no recipe stays as it is."""
    told = text if isinstance(text, str) else text.decode("utf-8", "replace")
    if '"residual"' not in told and '"smear"' not in told:
        return text
    data = json.loads(told)
    try:
        return json.dumps(_recipe(data)) if isinstance(data, dict) and is_older(data) else text
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return text  # whatever it is, it was never valid


def parameter(path: str, depth: int) -> str:
    """What a parameter of an earlier version is called now."""
    if found := re.match(r"^inject_(.*)_(\d+)/(scale|weight)$", path):
        name, block, kind = found[1], int(found[2]), "wire" if found[3] == "scale" else "gate"
        end = block == depth
        return f"blocks_{block - end}/{kind}_{_end(name) if end else name}_add"
    for pattern, new in PATTERNS:
        path = re.sub(pattern, new, path)
    return path


def _end(name: str) -> str:
    return f"{name[:27]}_end"


def _recipe(data: dict[str, Any]) -> dict[str, Any]:
    model = {name: value for name, value in data["model"].items() if name != "residual"}
    residual, depth = dict(data["model"].get("residual") or {}), model.get("depth", 3)
    taps, tables, wires = [], [], []
    if (smear := (model.get("embedding") or {}).get("smear")) is not None:
        wires.append({"name": "smear", "source": "self", "to": "embedding", "shift": 1, "add": {
            "code": "c * sigmoid(z)", "channels": smear.get("channels", 12), "init": smear.get("init", 0.0)}})
    if "embedding" in model:
        model["embedding"] = {name: value for name, value in model["embedding"].items() if name != "smear"}
    saved = {save["name"]: save["after"] for save in residual.pop("saves", ())}
    taps += [{"name": name, "after": {"block": after - 1} if after else "embedding"} for name, after in saved.items()]
    ends = []
    for wire in residual.pop("injections", ()):
        add, before = _coefficient(wire.get("coefficient") or {"kind": "scalar"}), wire["before"]
        if inner := [{"block": block} for block in before if block < depth]:
            wires.append({"name": wire["name"], "source": wire["source"], "at": inner, "add": add})
        if depth in before:
            source = "self" if saved[wire["source"]] == depth else wire["source"]
            ends.append({"name": _end(wire["name"]), "source": source, "site": "after", "at": [{"block": -1}],
                         "add": add})
    for table in residual.pop("value_embeddings", ()):
        init = table.get("init", 0.5)
        tables.append({"name": table["name"]})
        if table["blocks"]:
            wires.append({"name": f"{table['name']}_mix", "source": table["name"], "to": "value",
                          "at": [{"block": block} for block in table["blocks"]],
                          "keep": {"init": 1.0 - init}, "add": {"init": init}})
    if (scalars := residual.pop("scalars", None)) is not None:
        for name, branch, site in (("attend", "attention", "between"), ("feed", "ffn", "after")):
            wires.append({"name": name, "source": branch, "site": site, "keep": {"init": scalars.get("stream", 1.0)},
                          "add": {"init": scalars.get("branch", 1.0)}})
    norm = model.get("norm") or {}
    if residual.pop("branch", "plain") == "depth_scaled" and norm.get("placement") != "sandwich":  # which undoes it
        wires.append({"name": "depth_scaled", "to": "branch", "keep": {"code": "1 / sqrt(2 * depth)"}})
    if residual:
        raise KeyError
    told = {"taps": taps, "tables": tables, "wires": wires + ends}
    model |= {name: [*(model.get(name) or ()), *items] for name, items in told.items() if items}
    new = data | {"model": model}
    if "rules" in (model.get("init") or {}):
        model["init"] = model["init"] | {"rules": [_patterns(rule, "of") for rule in model["init"]["rules"]]}
    if "groups" in (data.get("optimizer") or {}):
        groups = [_patterns(group, "paths") for group in data["optimizer"]["groups"]]
        new["optimizer"] = data["optimizer"] | {"groups": groups}
    return new


def _coefficient(old: dict[str, Any]) -> dict[str, Any]:
    if old["kind"] == "scalar":
        return {"init": old.get("init", 0.0)}
    return {"code": "2 * c * sigmoid(z)", "init": old.get("init", 0.5), "channels": old.get("channels", 12)}


def _patterns(item: dict[str, Any], field: str) -> dict[str, Any]:
    """A group or rule whose patterns name parameters."""
    if field not in item:
        return item
    found = [re.sub(r"^inject_([^/]*)/(scale|weight)$", r"blocks_*/*_\1", pattern) for pattern in item[field]]
    return item | {field: [parameter(pattern, -1) for pattern in found]}
