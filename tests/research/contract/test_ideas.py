"""The catalogue: every idea can be run on track tiny, and every mechanism of the tree is in some idea."""

import re
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from stand_in import MICRO

from jaxnano.config.base import ConfigError, Node
from jaxnano.config.file import load
from jaxnano.config.model import Model
from jaxnano.config.optimizer import Optimizer
from jaxnano.config.recipe import Recipe, stages
from jaxnano.config.text import read_yaml
from jaxnano.model.specs import specs
from research.contract import idea
from research.contract import techniques as listed
from research.contract.gate import Gate
from research.contract.idea import Idea, families, ideas, part
from research.contract.part import IdeaEdit, Part
from research.contract.proposal import build
from research.contract.relative import resolved
from research.contract.techniques import standings, techniques
from research.contract.track import CONFIGS, load_track
from research.lanes.catalogue import left_out

Choice = tuple[str, str, Any]  # node, field, what stands there


@pytest.fixture(scope="module")
def track():
    return load_track("tiny")


@pytest.fixture(scope="module")
def recipes(track) -> dict[str, Recipe]:
    return {name: build(track.base_recipe, [part(idea, track.base_recipe)]) for name, idea in ideas().items()}


def test_every_idea_is_accepted_and_behaves_like_no_other(track, recipes):
    """But for those in classic.yaml, which are for bases that lack what this one has, or has settled."""
    classic = {one["name"] for one in read_yaml(idea.FOLDER / "classic.yaml")["ideas"]}
    gate, refused = Gate(track), {}
    for name, recipe in recipes.items():
        verdict = gate.judge(recipe)
        if verdict.accepted:
            gate.remember(recipe)
        else:
            refused[name] = [str(problem) for problem in verdict.problems]
    assert refused.keys() <= classic, refused
    assert len(classic - refused.keys()) == 1  # AdamW at a rate of its own


@pytest.mark.parametrize("base", ["gpt2-tiny", "gpt2-124m", "track3-124m"])
def test_every_idea_fits_every_base(base):
    """It changes how the base trains, or the base has it; and each does the former somewhere."""
    recipe = load(CONFIGS / f"{base}.yaml")
    found = standings(ideas().values(), recipe, None)
    assert {name: s.reason for name, s in found.items() if s.state == "refused"} == {}
    held = {name for name, s in found.items() if s.state == "held"}
    assert len(held) < 23
    other = load(CONFIGS / ("gpt2-tiny.yaml" if base == "track3-124m" else "track3-124m.yaml"))
    there = standings((ideas()[name] for name in held), other, None)
    everywhere = {name for name in held if there[name].state == "held"}
    assert everywhere <= {"full-attention", "biases", "padded-vocab", "cosine-to-zero"}  # both bases are of one school


def test_relative_edits_are_numbers_of_the_base():
    tiny, large = (load(CONFIGS / f"{name}.yaml") for name in ("gpt2-tiny", "track3-124m"))

    def one(base, path, new):
        return [(e.path, e.new) for e in resolved(IdeaEdit(path=path, new=new), base)]

    heads = "model.attention.heads"
    assert (one(tiny, heads, {"times": 0.5}), one(large, heads, {"times": 0.5})) == ([(heads, 2)], [(heads, 3)])
    assert one(large, "a", [{"times": 0.34, "of": "model.depth"}]) == [("a", [4])]
    assert one(large, "a", {"from": 0.5, "times": 1, "of": "model.depth", "more": 1}) == [("a", [*range(6, 13)])]
    assert one(large, "a", {"from": 10, "times": 1, "of": "model.depth"}) == [("a", [10, 11])]
    assert one(large, "a", {"b": {"times": 0.5, "of": "model.depth", "more": -1}}) == [("a", {"b": 5})]
    assert one(tiny, "model.vocab", {"times": 1.1, "multiple": 128}) == [("model.vocab", 384)]
    assert one(tiny, "a", {"times": 2, "of": "model.head_dim"}) == [("a", 32)]
    rate = "optimizer.groups.*.lr"
    assert one(tiny, rate, {"kind": "linear", "value": {"times": 0.5}}) == [
        (f"optimizer.groups.{name}.lr", {"kind": "linear", "value": 0.002}) for name in ("matrices", "rest")]
    assert [path for path, _ in one(large, "optimizer.groups.*.chain.adam.b1", 0.5)] == [
        f"optimizer.groups.{name}.chain.adam.b1" for name in ("embedding", "head", "rest")]
    assert one(large, f"{rate}.kind", "linear")[0] == (  # a cooldown is nothing that a straight line has
        "optimizer.groups.matrices.lr", {"kind": "linear", "value": 0.025})
    faster = {"peak": 5, "of": "optimizer.groups.rest.lr"}
    assert one(large, "a", faster) == [("a", {"kind": "trapezoid", "value": 0.05, "cooldown": 0.7})]
    flat = build(tiny, [Part(name="flat", edits=(IdeaEdit(path="optimizer.groups.rest.lr", new=0.25),))])
    assert one(flat, "a", {"b": faster}) == [("a", {"b": 1.25})]
    for path, new in (("a", {"peak": 2, "of": "model.norm"}), ("optimizer.groups.*.chain.lion.b1", 0.5),
                      ("model.norm", {"times": 2})):
        with pytest.raises(ConfigError):
            one(tiny, path, new)


def test_what_a_phase_sets_is_relative_to_the_same_places_of_the_base():
    tiny, large = (load(CONFIGS / f"{name}.yaml") for name in ("gpt2-tiny", "track3-124m"))
    change = {"optimizer": {"groups": {"*": {"lr": {"peak": 1.5}}}}, "data": {"batch": {"times": 2}},
              "model": {"attention": {"window": {"times": 0.5, "of": "data.length"}}}}
    edit = IdeaEdit(path="phases.late", new={"name": "late", "start": 0.5, "set": change})
    (one,), (other,) = ([e.new for e in resolved(edit, base)] for base in (tiny, large))
    rates = {group.name: group.lr.value for group in large.optimizer.groups}
    assert list(rates) == ["matrices", "embedding", "head", "rest"]
    assert other["set"] == {"data": {"batch": 1024}, "model": {"attention": {"window": 512}}, "optimizer": {"groups": {
        name: {"lr": {"kind": "trapezoid", "value": 1.5 * rate, "cooldown": 0.7}} for name, rate in rates.items()}}}
    assert one["set"]["data"] == {"batch": 16} and one["set"]["optimizer"]["groups"].keys() == {"matrices", "rest"}
    plain = build(tiny, [Part(name="flat", edits=(IdeaEdit(path="optimizer.groups.matrices.lr", new=0.25),))])
    (flat,) = resolved(edit, plain)
    assert flat.new["set"]["optimizer"]["groups"]["matrices"] == {"lr": 0.375}


def test_every_technique_names_ideas_or_what_is_missing(tmp_path, monkeypatch):
    assert len(techniques()) == 133 and sum(bool(t.ideas) for t in techniques()) >= 92
    for text, expected in (("ideas: [nothing]", "no such idea"), ("ideas: []", "ideas that say it"),
                           ("ideas: [muon], missing: much", "ideas that say it")):
        (tmp_path / "techniques.yaml").write_text(f"techniques: [{{name: a, what: b, source: c, {text}}}]")
        monkeypatch.setattr(listed, "FILE", tmp_path / "techniques.yaml")
        with pytest.raises(ConfigError, match=rf"techniques\.yaml.*{expected}"):
            techniques.__wrapped__()


@pytest.mark.parametrize("depth", [2, 3, 4, 10, 24])
def test_a_second_stream_is_a_copy_of_the_first_where_the_two_part(depth):
    track3 = load(CONFIGS / "track3-124m.yaml")
    deep = build(track3, [Part(name="deep", edits=(IdeaEdit(path="model.depth", new=depth),))])
    model = build(deep, [part(ideas()["two-lanes"], deep)]).model
    (first,) = {wire.at[0].first for wire in model.wires if wire.source in ("attention", "ffn")}
    assert model.taps[0].after.block == first - 1
    assert [m.ffn.reads for m in map(model.block, range(depth))] == ["stream"] * first + ["lane"] * (depth - first)


def test_biases_start_from_zero_whatever_the_base_says():
    def largest(name):
        recipe = build(large, [part(ideas()[name], large)])
        return max(spec.init.value for spec in specs(recipe).values() if spec.role == "bias")

    large = load(CONFIGS / "track3-124m.yaml")
    assert largest("biases") > 0 and largest("biases-from-zero") == 0


def test_a_frozen_place_is_told_from_one_that_does_not_fit(track):
    def stands(path, new):
        one = Idea(name="a", why="w", source="s", prior="none", edits=(IdeaEdit(path=path, new=new),))
        return standings([one], track.base_recipe, Gate(track))["a"]

    assert stands("data.batch", 4)[:2] == ("frozen", "track tiny has settled data.batch")
    assert stands("model.norm", {"kind": "rmsnorm"}).state == "applies"
    assert stands("model.norm", {"kind": "layernorm"}).state == "held"
    assert stands("model.width", 1024).reason.startswith("model: ")
    assert stands("model.positoin", 1)[::2] == ("refused", None)


def test_every_mechanism_is_in_an_idea(track, recipes):
    assert unreached([track.base_recipe, *recipes.values()]) == set()


def test_coverage_notices_a_mechanism_that_no_idea_has(track, recipes):
    node = "jaxnano.config.block.Alibi"
    others = [recipe for name, recipe in recipes.items() if not name.startswith("alibi")]
    assert unreached([track.base_recipe, *others]) == {("jaxnano.config.model.Model", "position", node)}


@pytest.mark.parametrize("idea", ideas().values(), ids=lambda idea: idea.name)
def test_an_idea_says_why_and_whose(idea: Idea):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", idea.name)
    assert re.fullmatch(r"[A-Z0-9].{20,130}\.", idea.why) and ". " not in idea.why  # one sentence
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|\b(19|20)\d\d\b|track 3|Gemma 2|Hyperball", idea.source)
    assert bool(idea.evidence) == (idea.prior != "none")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ideas: [{name: a, why: b, source: c, prior: small}]", "ideas.a.edits"),
        ("ideas: [{name: a, why: b, source: c, prior: much, edits: []}]", "ideas.a.prior"),
        ("ideas: [", "not YAML"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, monkeypatch, text, expected):
    (tmp_path / "new.yaml").write_text(text)
    monkeypatch.setattr(idea, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=rf"new\.yaml.*{expected}"):
        families.__wrapped__()


def test_a_name_used_twice_is_refused(tmp_path, monkeypatch):
    for file in ("one.yaml", "two.yaml"):
        (tmp_path / file).write_text("ideas: [{name: same, why: b, source: c, prior: small, edits: []}]")
    monkeypatch.setattr(idea, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="two.yaml: .same.: an idea of this name"):
        families.__wrapped__()


def test_an_idea_that_applies_nowhere_is_told_and_not_taken_for_one_of_another_track(track):
    def idea(name, path, new):
        return Idea(name=name, why="w", source="s", prior="small", edits=(IdeaEdit(path=path, new=new),))

    good = idea("good", "optimizer.groups.matrices.lr.value", 0.003)
    wrong = idea("misspelt", "model.positoin", {"kind": "rotary"}), idea("wild", "model.width", -5)
    told = list(left_out(track, [good, *wrong]))
    assert len(told) == 2 and told[0].startswith("idea misspelt is left out: model.positoin: ")
    assert told[1].startswith("idea wild is left out: model.width: -5: ")
    told = list(left_out(load_track(MICRO), [good, *wrong]))
    assert len(told) == 3 and told[2] == "1 of the ideas do not fit on track micro: good"
    assert list(left_out(track, ideas().values())) == []


def unreached(recipes: Iterable[Recipe]) -> set[Choice]:
    """Choices the tree offers below model and optimizer that none of the recipes makes."""
    offered = {choice for root in (Model, Optimizer) for choice in offers(root, set())}
    assert len(offered) > 140
    whole = [part.recipe for recipe in recipes for part in stages(recipe)]
    return offered - {choice for r in whole for root in (r.model, r.optimizer) for choice in made(root)}


def offers(node: type[Node], seen: set[type]) -> Iterator[Choice]:
    """Every choice of a node type and those below it: kinds, named options, flags, and what may be left out.

    A schedule counts once, wherever it stands.
    """
    if node in seen or node.sparse:  # a diff has the shape of the tree it changes
        return
    seen.add(node)
    for name, field in node.model_fields.items():
        kinds = list(flat(field.annotation))
        options = [option for kind in kinds for option in (get_args(kind) if get_origin(kind) is Literal else ())]
        nodes = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Node)]
        if len(options) > 1:
            yield from ((owner(node, name), name, option) for option in options)
        if bool in kinds:
            yield from ((owner(node, name), name, flag) for flag in (False, True))
        if type(None) in kinds:
            yield from ((owner(node, name), name, word) for word in ("absent", "present"))
        if () in kinds:
            yield owner(node, name), name, "filled"
        for kind in nodes:
            yield ("", "", title(kind)) if is_schedule(kind) else (owner(node, name), name, title(kind))
            yield from offers(kind, seen)


def made(node: Node) -> Iterator[Choice]:
    """The choices an instance makes, named as `offers` does."""
    for name in type(node).model_fields:
        value = getattr(node, name)
        place = owner(type(node), name), name
        yield *place, "absent" if value is None else "present"
        if isinstance(value, tuple) and value:
            yield *place, "filled"
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Node):
                yield ("", "", title(type(item))) if is_schedule(type(item)) else (*place, title(type(item)))
                yield from made(item)
            elif isinstance(item, bool | str):
                yield *place, item


def flat(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation; () says that there may be several of them in a tuple."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from flat(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from flat(member)
    elif origin is tuple:
        yield ()
        yield from flat(get_args(annotation)[0])
    else:
        yield annotation


def owner(node: type, name: str) -> str:
    """The node that brings a field: what several kinds have of one is a choice once."""
    return title(next(kind for kind in reversed(node.__mro__) if name in vars(kind).get("__annotations__", {})))


def title(node: type) -> str:
    return f"{node.__module__}.{node.__qualname__}"


def is_schedule(node: type) -> bool:
    return node.__module__ == "jaxnano.config.schedule"
