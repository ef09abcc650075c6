"""Where a champion is carried over to: longer runs, a wider model, other batches, another text; and beside what.

A setting is a changed track: of its base, and of every recipe, it changes the same. What a run may cost there the track
says as ever, of its changed base: the base trains on as many tokens as at home (a longer run on more), for as many
steps, and everybody gets its FLOPs, its steps or, as at home, the track's seconds. Learning rates stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxnano.config.base import ConfigError, Problem, dump_full, validate
from jaxnano.config.data import GPT2_VOCAB, Bytes, Code, Data, Embedded, Text, Tfds
from jaxnano.config.file import load
from jaxnano.config.recipe import Recipe
from jaxnano.cost import preflight
from jaxnano.data.corpus import PACKAGES
from jaxnano.data.source import parsed
from research.contract.track import CONFIGS, Track

PRESET, FAR = "modern-tiny", 4.0  # by hand, what speedruns found; a model so many times larger compares with none
HOME, HELD_OUT, TEXT = "at home", "held-out split", "another text"  # names; in the first two nothing is changed
BESIDE = f"at home, beside {PRESET}"  # nor here: the preset stands in the base's place
Factors = Mapping[tuple[str, str], float]


class Setting(NamedTuple):
    """What is otherwise. horizon: of the track's full one. width: times the model's, by as many times the heads, each
    as wide as before. batch: times the data's. data: with rows like the track's."""

    name: str
    horizon: float = 1.0
    width: int = 1
    batch: float = 1.0
    data: Data | None = None

    @property
    def factors(self) -> Factors:
        """By how much numbers grow, by their node's and their own name."""
        return {("model", "width"): self.width, ("attention", "heads"): self.width,
                ("attention", "kv_heads"): self.width, ("data", "batch"): self.batch}


def settings(track: Track, text: Data | None = None) -> list[Setting]:
    """Where a track's champion is carried over to. text: for the one that changes it, where the track has no other."""
    data = text or other_text(track.base_recipe.data)
    return [Setting("2x horizon", horizon=2.0), Setting("2x width", width=2), Setting("1/2 batch", batch=0.5),
            Setting("2x batch", batch=2.0), Setting(f"text: {text_of(data)}" if data else TEXT, data=data)]


def other_text(data: Data) -> Data | None:
    """The embedded text that the data are not, in rows like theirs; None where tokens are no bytes."""
    if data.vocab != Bytes(kind="bytes").vocab:
        return None
    rows = {"length": data.length, "batch": data.batch, "documents": data.documents}
    return Code(kind="code", **rows) if isinstance(data, Embedded) else Embedded(kind="embedded", **rows)


def preset(track: Track) -> Recipe:
    """The preset's model and optimizer, on the data of a track. Raises: ConfigError where they do not fit it."""
    found, base = load(CONFIGS / f"{PRESET}.yaml"), track.base_recipe
    if found.model.vocab != base.model.vocab:
        raise ConfigError([Problem("model.vocab", base.model.vocab, f"{PRESET} has {found.model.vocab}")])
    own, theirs = preflight(found).parameters, track.base_cost.parameters
    if not 1 / FAR <= own / theirs <= FAR:
        raise ConfigError([Problem("model", f"{theirs:,} parameters", f"{PRESET} has {own:,}")])
    return validate(Recipe, dump_full(found) | {name: dump_full(getattr(base, name)) for name in ("data", "train")})


def brought(home: Data, text: str) -> Data:
    """A text that a person names, see jaxnano.data.source, in rows like the track's and, where it is no shards, in
    tokens of their kind.

    Raises: ValueError if it is none.
    """
    known = {Bytes(kind="bytes").vocab: {"kind": "bytes"}, GPT2_VOCAB: {"kind": "gpt2"}}
    own = dump_full(home.tokenizer) if isinstance(home, Text | Tfds) else known.get(
        home.vocab, {"kind": "bpe", "vocab": home.vocab})
    rows = {"length": home.length, "batch": home.batch}
    return parsed(text, rows | {"tokenizer": own}).model_copy(update=rows | {"documents": home.documents})


def text_of(data: Data) -> str:
    """A text by name."""
    if isinstance(data, Embedded | Code):
        name = "docstrings" if isinstance(data, Embedded) else "code"
        return f"{name} of {', '.join(PACKAGES[name])}"
    return data.name if isinstance(data, Tfds) else data.path


def changed(recipe: Recipe, setting: Setting) -> Recipe:
    """A recipe as it is there.

    Raises: ConfigError for one that cannot be.
    """
    if setting.name == TEXT:
        raise ConfigError([Problem("data.kind", recipe.data.kind, "there is no other text of such tokens here; --text "
                                   "FOLDER would do")])
    if setting.data is None and set(setting.factors.values()) == {1.0}:
        return recipe
    tree = dump_full(recipe)
    if setting.data is not None:
        tree["data"] = dump_full(setting.data)
    return validate(Recipe, _grown(tree, setting.factors))


def abroad(track: Track, setting: Setting) -> Track:
    """The track as it is there. Raises: ConfigError if its base cannot be."""
    found = track.model_copy(update={"full_steps": max(1, round(track.full_steps / setting.batch))})
    vars(found).pop("base_cost", None)  # cached, of the track's own base
    vars(found)["base_recipe"] = changed(track.base_recipe, setting)
    return found


def _grown(tree: Any, factors: Factors, path: str = "", name: str = "") -> Any:
    """Plain data of a recipe with each number that stands in the factors multiplied, in diffs too."""
    if isinstance(tree, dict):
        return {key: _grown(value, factors, f"{path}.{key}" if path else key, key) if not isinstance(value, int) else
                _times(value, factors.get((name, key), 1.0), f"{path}.{key}") for key, value in tree.items()}
    return [_grown(item, factors, path) for item in tree] if isinstance(tree, list) else tree


def _times(value: int, factor: float, path: str) -> int:
    if factor == 1.0:  # most numbers, and what is true or false
        return value
    if value * factor % 1:
        raise ConfigError([Problem(path, value, f"{factor:g} times it is no whole number; an even one would do")])
    return int(value * factor)
