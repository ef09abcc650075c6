"""YAML text to plain data and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from jaxnano.config.base import ConfigError, Problem


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as text and takes the last of two equal keys; researchers do neither."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if (name := str(key.value)) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, source: str = "") -> Any:
    """Read YAML text; raises ConfigError that names the line."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date, a nesting bomb
        mark = getattr(error, "problem_mark", None)
        lines = text.splitlines() or [""]
        last = min(mark.line, len(lines) - 1) if mark else 0  # what is missing at the end is marked below the last line
        place, shown = (f"line {last + 1}", lines[last]) if mark else ("", text[:40])
        reason = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigError([Problem(place, shown, f"not YAML: {reason}")], source) from None


def read_yaml(path: Path, place: str = "") -> Any:
    """Read a YAML file, for an option `place` if one named it; raises ConfigError that names file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        shown = str(path) if place else path.name
        raise ConfigError([Problem(place or str(path), shown, f"cannot be read: {reason}")]) from None
    return parse_yaml(text, str(path))


def to_yaml(data: Any) -> str:
    """YAML text of plain data, keys in their own order."""
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=110)
