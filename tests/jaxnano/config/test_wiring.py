"""What taps, tables and wires may not say: each refusal names the place, the value and what would do."""

from __future__ import annotations

from typing import Any

import pytest

from jaxnano.config.base import ConfigError, dump, validate
from jaxnano.config.recipe import Recipe
from tests.jaxnano.recipes import model

X0, LATE = {"name": "x0"}, {"name": "late", "after": {"block": 0}}
WIRE = {"name": "w", "source": "self"}


@pytest.mark.parametrize(("changes", "message"), [
    ({"taps": [X0, X0]}, 'taps.x0: "x0": names in a list are unique'),
    ({"taps": [X0], "tables": [X0]}, 'tables.x0: "x0": names in a list are unique'),
    ({"tables": [{"name": "self"}]}, 'tables.self: "self": the name means something; my_self would do'),
    ({"taps": [X0 | {"after": {"block": 2}}]}, "taps.x0.after: {\"block\": 2}: no block of a model of depth 2"),
    ({"taps": [X0 | {"after": {"every": 1}}]}, "taps.x0.after: {\"every\": 1}: one block would do"),
    ({"taps": [X0 | {"of": "value"}]}, 'taps.x0.of: "value": stream would do there'),
    ({"taps": [LATE, X0 | {"of": "late"}]}, 'taps.x0.of: "late": stream would do there'),
    ({"taps": [LATE | {"of": "ffn"}], "ffn__dropped": [0]}, 'taps.late.of: "ffn": stream, attention, value would do'),
    ({"tables": [{"name": "t", "index": {"kind": "hash", "rows": 9, "of": [1, 0]}}]},
     "[1, 0]: rising, each once; [0, 1]"),
    ({"tables": [{"name": "t", "index": {"kind": "hash", "rows": 9, "of": [0, -1]}}]},
     "index.of.1: -1: at least 0 would"),
    ({"wires": [WIRE | {"shift": -1}]}, "wires.w.shift: -1: at least 0 would do"),
    ({"wires": [WIRE | {"source": "a"}]}, 'wires.w.source: "a": self, attention, ffn would do'),
    ({"wires": [WIRE | {"to": "v"}]},
     'wires.w.to: "v": stream, embedding, attention, ffn, value, branch, head would do'),
    ({"wires": [{"name": "w"}]}, "wires.w.source: null: a source to add or a coefficient to keep; self would do"),
    ({"taps": [LATE], "wires": [WIRE | {"source": "late"}]},
     "wires.w.at: \"late\": looks ahead at block 0: 'late' is kept after block 0; blocks 1..1, or a wire to head"),
    ({"taps": [LATE], "wires": [WIRE | {"source": "late", "to": "late", "at": [{"block": 0}], "site": "after"}]},
     "wires.w.at: \"late\": looks ahead at block 0"),
    ({"taps": [LATE | {"after": {"block": 1}}], "wires": [WIRE | {"source": "late", "at": [{"block": 1}]}]},
     "'late' is kept after block 1; a wire to head would do"),
    ({"taps": [X0], "wires": [WIRE | {"source": "x0", "to": "embedding"}]},
     "'x0' is kept after the embedding; a block"),
    ({"wires": [WIRE | {"source": "attention"}]}, 'wires.w.site: "before": between or after would do'),
    ({"wires": [WIRE | {"source": "ffn", "site": "between"}]}, 'wires.w.site: "between": after would do'),
    ({"wires": [WIRE | {"source": "ffn", "to": "value"}]}, 'wires.w.source: "ffn": not known yet in value; a tap'),
    ({"wires": [WIRE | {"to": "value", "site": "after"}]}, 'wires.w.site: "after": before would do'),
    ({"wires": [WIRE | {"to": "head", "at": [{"block": 1}]}]},
     'wires.w.at: "blocks": head is no block\'s; all would do'),
    ({"wires": [WIRE | {"at": [{"block": 5}]}]}, "wires.w.at: {\"block\": 5}: no block of a model of depth 2"),
    ({"wires": [WIRE | {"add": {"per": "head"}}]}, 'wires.w.add.per: "head": only values have heads; one or channel'),
    ({"wires": [WIRE | {"add": {"code": "z", "channels": 17}}]}, "wires.w.add.channels: 17: at most the 16 of here"),
    ({"wires": [WIRE | {"add": {"code": "z", "reads": ["x0"]}}]}, 'wires.w.add.reads: "x0": here, source would do'),
    ({"wires": [WIRE | {"add": {"code": "y"}}]},
     "wires.w.add.code: \"y\": column 1: unknown name 'y'; known: block, c, "),
    ({"tables": [{"name": "t", "channels": 17}], "wires": [WIRE | {"source": "t"}]},
     'wires.w.to: "stream": t has 17 channels and stream only 16'),
    ({"wires": [WIRE | {"add": {"key": "k", "per": "channel"}, "keep": {"key": "k"}}]},
     "wires.w.add.key: \"k\": per, reads and channels are those of the others with this key"),
    ({"attention__reads": "x0"}, 'attention.reads: "x0": stream would do'),
    ({"taps": [LATE], "ffn__writes": ["late"]}, "ffn.writes: \"late\": looks ahead at block 0"),
    ({"ffn__writes": ["stream", "stream"]}, 'ffn.writes: ["stream", "stream"]: each stream once'),
    ({"taps": [LATE | {"of": "value"}], "blocks": [{"name": "b", "at": [{"block": 1}], "set": {
        "attention": {"reads": "late"}}}]}, 'attention.reads: "late": stream would do'),
])
def test_what_does_not_fit_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [
    {"wires": {"w": None}}, {"wires": {"w": {"shift": 0}}}, {"wires": {"w": {"add": {"params": {"a": 2.0}}}}},
    {"taps": {"x0": {"after": {"block": 1}}}}, {"tables": {"t": {"channels": 4}}}, {"attention": {"reads": "x0"}},
    {"ffn": {"writes": []}},
])
def test_what_is_evaluated_has_the_wires_that_were_trained(change: dict[str, Any]) -> None:
    wired = model(taps=[X0], tables=[{"name": "t"}], wires=[
        WIRE | {"source": "t", "shift": 1, "add": {"code": "a * c", "params": {"a": 1.0}}},
        {"name": "x", "source": "x0"}])
    with pytest.raises(ConfigError, match=r"evaluation\.set\.model\..*attention's windows alone may differ"):
        validate(Recipe, dump(wired) | {"evaluation": {"set": {"model": change}}})
