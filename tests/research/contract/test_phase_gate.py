"""Phases before the gate: what is frozen and limited holds in each, attacks on the evaluation, behaviour, features."""

import pytest

from jaxnano.config.base import ConfigError, dump, validate
from jaxnano.config.recipe import Recipe
from jaxnano.cost import preflight, run_flops
from research.contract.behaviour import behaviour, idle, needless, pruned, unread
from research.contract.gate import Gate
from research.contract.track import load_track
from research.learn.features import features

TRACK = load_track("tiny")
BASE = TRACK.base_recipe
UNTIED = {"model": {"embedding": {"tied": False}}}


def phased(*phases, base=BASE, **changes):
    data = dump(base) | changes
    return validate(Recipe, {**data, "phases": [{"name": f"p{i}", "start": start, "set": change, **carry} for i, (
        start, change, *more) in enumerate(phases) for carry in (more or [{}])]})


def windows(*ends):
    """Of attention, from a quarter, a half and so on."""
    return phased(*(((i + 1) / 4, {"model": {"attention": {"window": end}}}) for i, end in enumerate(ends)))


def refused(recipe, track=TRACK):
    verdict = Gate(track).judge(recipe)
    assert not verdict.accepted
    return {problem.path: problem.rule for problem in verdict.problems}


@pytest.mark.parametrize(("change", "path"), [
    ({"data": {"batch": 16}}, "data.batch"), ({"data": {"length": 32, "batch": 16}}, "data.length"),
    ({"model": {"vocab": 512}}, "model.vocab"), ({"train": {"remat": True}}, "train.remat"),
    ({"train": {"dtype": "bfloat16"}}, "train.dtype"),
])
def test_what_a_track_freezes_no_phase_may_change(change, path):
    """However short it is: a base of fewer tokens, another loss, would be compared with what it is not."""
    if "data" in change:  # learned positions are as many as the recipe's
        change = change | {"model": {"position": {"kind": "rotary"}}}
    assert "frozen by track tiny" in refused(phased((0.98, change)))[f"phases.p0.set.{path}"]


def test_frozen_parts_of_the_model_stay_in_every_phase_and_in_its_blocks():
    frozen = TRACK.model_copy(update={"frozen": (*TRACK.frozen, "model.attention.heads", "model.ffn")})
    for change in ({"attention": {"heads": 2}}, {"ffn": {"ratio": 2.0}}, {"blocks": {"d": {"set": {"ffn": None}}}}):
        base = validate(Recipe, dump(BASE) | {"model": dump(BASE)["model"] | {"blocks": [
            {"name": "d", "at": [{"block": 1}], "set": {"attention": {"qk_norm": True}}}]}})
        recipe = phased((0.5, {"model": change}), base=base)
        assert any("frozen by track tiny" in rule for rule in refused(recipe, frozen).values())
    assert Gate(frozen).judge(phased((0.5, {"model": {"attention": {"qk_norm": True}}}))).accepted
    closed = TRACK.model_copy(update={"frozen": (*TRACK.frozen, "phases")})
    assert "frozen by track tiny" in refused(windows(16), closed)["phases.p0"]


@pytest.mark.parametrize("change", [
    {"data": {"kind": "text", "path": "mine.txt"}}, {"data": {"tokenizer": {"kind": "bytes"}}}, {"data": {"vocab": 2}},
    {"evaluation": {"set": {"model": {"attention": {"window": 4}}}}}, {"model": {"vocab": 32}}, {"phases": []},
])
def test_what_is_evaluated_is_no_phases_business(change):
    with pytest.raises(ConfigError, match=r"phases\.p0\.set\.(data|evaluation|model\.vocab|phases)"):
        phased((0.5, change))


def test_limits_hold_in_every_phase():
    wide = refused(phased((0.99, {"model": {"ffn": {"ratio": 16.0}}})))
    assert "parameters are at most" in wide["phases.p0.set.model"] and "model" not in wide
    costly = Gate(TRACK.model_copy(update={"frozen": ("model.vocab",)})).judge(phased((0.99, {"data": {"batch": 32}})))
    assert "training FLOPs of a step" in {p.path: p.rule for p in costly.problems}["phases.p0.set.optimizer"]
    tight = Gate(TRACK, device_bytes=preflight(BASE).total_bytes + 1000)
    problems = tight.judge(phased((0.5, {"model": {"attention": {"qk_norm": True}}}))).problems
    assert [p.path for p in problems if "bytes of a training step" in p.rule] == ["phases.p0.set.model"]


def test_a_carry_that_does_not_fit_is_refused():
    assert "no parameter of the new model" in refused(phased((0.5, UNTIED, {"carry": {"head/w": "embedding/token"}})))[
        "phases.p0.carry"]


@pytest.mark.parametrize("recipe", [windows(8, 16, 0), windows(32), phased((0.7, {"model": {"ffn": {"ratio": 3.0}}}))])
def test_cheaper_phases_buy_steps_and_every_run_keeps_the_budget(recipe):
    for horizon in TRACK.horizons:
        budget = TRACK.base_cost.flops_per_step * TRACK.full_steps * horizon
        steps = TRACK.steps(recipe, horizon)
        assert run_flops(recipe, steps) <= budget < run_flops(recipe, steps + 1)
    assert TRACK.steps(recipe, 1.0) > TRACK.full_steps == TRACK.steps(BASE, 1.0)


def by_turns(count):
    """SOAP for matrices in so many phases, each of which says that it rests in all the others."""
    def still(i):
        return {"frozen": [[start, end] for start, end in ((0.0, i / count), ((i + 1) / count, 1.0)) if start < end]}

    groups = dump(BASE)["optimizer"]["groups"]
    groups[0] |= {"roles": ["matrix"], "chain": [{"kind": "soap"}], **(still(0) if count > 1 else {})}
    groups[1] |= {"roles": ["gain", "bias", "scalar", "gate", "embedding", "head"]}
    return phased(*((i / count, {"optimizer": {"groups": {"matrices": still(i)}}}) for i in range(1, count)),
                  optimizer={"groups": groups})


def test_a_group_that_rests_in_other_phases_costs_what_it_does_in_its_own():
    """Else ten phases would hide nine tenths of what an optimizer costs, and train half as long again."""
    for horizon in (0.25, 1.0):
        assert TRACK.steps(by_turns(10), horizon) <= 1.15 * TRACK.steps(by_turns(1), horizon)
    assert preflight(by_turns(4)).flops_per_step == pytest.approx(preflight(by_turns(1)).flops_per_step)
    alone = Gate(TRACK.model_copy(update={"limits": TRACK.limits.model_copy(update={"step_flops": 1.5})}))
    assert not alone.judge(by_turns(1)).accepted and not alone.judge(by_turns(4)).accepted


def test_a_phase_that_does_as_the_one_before_is_none():
    far = {"model": {"attention": {"window": 64}}}  # as long as the text
    assert behaviour(phased((0.5, far))) == behaviour(BASE)
    assert "another spelling" in refused(phased((0.5, far)))[""]
    near, nearer = windows(16), windows(16, 0)
    assert behaviour(near) == behaviour(phased((0.25, {"model": {"attention": {"window": 16}}}), (0.6, {
        "model": {"ffn": {"ratio": 4.001}}})))
    assert len({behaviour(r) for r in (BASE, near, nearer, windows(8, 0), phased((0.3, {"model": {"attention": {
        "window": 16}}})))}) == 5
    plain, carried = phased((0.5, UNTIED)), phased((0.5, UNTIED, {"carry": {"head/weight": "embedding/token"}}))
    assert behaviour(plain) != behaviour(carried)


def test_initial_values_in_a_phase_matter_to_what_begins_in_it():
    std = {"init": {"embedding_std": 0.5}}
    assert behaviour(phased((0.5, {"model": std}))) == behaviour(BASE)
    assert idle(phased((0.5, {"model": std})), ["phases.p0"]) == {
        "phases.p0.set.model.init.embedding_std": "no parameter begins in it"}
    assert behaviour(phased((0.5, {"model": std | UNTIED["model"]}))) != behaviour(phased((0.5, UNTIED)))
    assert not unread(phased((0.5, {"model": std | UNTIED["model"]}))).keys() & {
        "phases.p0.set.model.init.embedding_std"}


def test_what_no_phase_reads_is_dead_and_what_one_reads_is_not():
    base = validate(Recipe, dump(BASE) | {"model": dump(BASE)["model"] | {"init": {"head_std": 0.3}}})
    assert "model.init.head_std" in unread(base)
    assert "model.init.head_std" not in unread(phased((0.5, UNTIED), base=base))
    no_ffn = {"model": {"ffn": {"dropped": [0, 1, 2]}}}
    dead = unread(phased((0.4, no_ffn), (0.6, {"model": {"ffn": {"ratio": 2.0}, "attention": {"window": 8}}}), (0.8, {
        "model": {"ffn": {"ratio": 3.0, "dropped": []}}})))
    assert "phases.p1.set.model.ffn.ratio" in dead and "phases.p2.set.model.ffn.ratio" not in dead
    assert "phases.p1.set.model.attention.window" not in dead and "phases.p0.set.model.ffn.dropped" not in dead


def test_a_group_that_waits_for_its_phase_is_needed():
    groups = dump(BASE)["optimizer"]["groups"]
    waiting = [{**groups[0], "name": "heads", "roles": ["head"]}, *groups]
    base = validate(Recipe, dump(BASE) | {"optimizer": dump(BASE)["optimizer"] | {"groups": waiting}})
    assert "heads" in needless(base)
    recipe = phased((0.5, UNTIED), base=base)
    assert not needless(recipe) and pruned(recipe) == recipe and "optimizer.groups.heads.lr" not in unread(recipe)


def test_features_are_what_steps_have_by_their_share_of_the_run():
    wide, half = phased((0.25, {"model": {"ffn": {"ratio": 8.0}}})), phased((0.5, {"model": {"ffn": {"ratio": 8.0}}}))
    plain = features(BASE, validate(Recipe, dump(BASE) | {"model": dump(BASE)["model"] | {"ffn": {
        "kind": "mlp", "ratio": 8.0}}}))
    assert features(BASE, wide) == {"model.ffn.ratio": pytest.approx(0.75 * plain["model.ffn.ratio"])}
    assert features(BASE, half)["model.ffn.ratio"] == pytest.approx(0.5 * plain["model.ffn.ratio"])
    mixed = features(BASE, phased((0.5, UNTIED, {"carry": {"head/weight": "embedding/token"}}), (0.75, {
        "model": {"position": {"kind": "rotary"}}})))
    assert mixed == {"model.embedding.tied=False": pytest.approx(0.5), "model.position=rotary": pytest.approx(0.25),
                     "carry.head/weight": "embedding/token"}
    assert features(half, half) == {} and features(half, BASE)["model.ffn.ratio"] < 0
    seen = {"evaluation": {"set": {"model": {"attention": {"window": 8}}}}}
    told = features(BASE, phased((0.5, {"model": {"ffn": {"ratio": 8.0}}}), **seen))
    assert told.keys() == {"model.ffn.ratio", "evaluation"} | {name for name in told if name.startswith("evaluation")}


def test_a_half_of_the_blocks_in_half_of_the_run_is_a_quarter():
    base = validate(Recipe, dump(BASE) | {"model": dump(BASE)["model"] | {"depth": 2, "blocks": [
        {"name": "d", "at": [{"block": 1}], "set": {"attention": {"qk_norm": True}}}]}})
    recipe = phased((0.5, {"model": {"blocks": {"d": {"set": {"ffn": {"ratio": 8.0}}}}}}), base=base)
    assert features(base, recipe)["model.ffn.ratio"] == pytest.approx(0.25 * 0.6931, abs=1e-4)
