"""A data node from what a person writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxnano.cli import UserError
from jaxnano.config import file
from jaxnano.config.base import Node, validate
from jaxnano.config.data import Data, Embedded, Shards
from jaxnano.config.text import parse_yaml
from jaxnano.data import shards


class Source(Node):
    """What the command describes."""

    data: Data = Embedded(kind="embedded")


def parsed(text: str, given: Mapping[str, Any] | None = None) -> Data:
    """A data node from what a person writes: a recipe's file, the node itself, or a folder or file that holds the data.

    Args: given: fields that a node of text gets where it does not say otherwise.
    Raises: ValueError if it is none of these.
    """
    path = Path(text).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return file.load(path).data
    if path.is_dir() and any(path.glob("*.bin")):
        return Shards(kind="shards", path=text, vocab=shards.manifest(path)["vocab_size"])
    if path.exists():
        return validate(Source, {"data": {"kind": "text", "path": text, **(given or {})}}).data
    node = parse_yaml(text, "data")
    if not isinstance(node, dict):
        raise UserError(f"{text}: no such file or folder; a recipe, a folder of shards or text, or a node like "
                        "'{kind: text, path: FOLDER}' would do")
    defaults = given if given and node.get("kind") in ("text", "tfds") else {}
    return validate(Source, {"data": {**defaults, **node}}).data
