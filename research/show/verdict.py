"""How a session came out, in a sentence or two, and what it is at: each says on how many completed runs it rests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxnano.config.base import dump_full
from research.decide.belief import Snapshot
from research.decide.proof import pending, under_way
from research.ledger.state import FINAL
from research.show.claim import scope, spared, within
from research.show.facts import Facts
from research.text import count, effect, spread


def verdict(facts: Facts) -> tuple[str, str]:
    """How the session came out, in a sentence or two. kind: proven, verified, refuted, none, open or empty."""
    state, where = facts.state, stage(facts.snapshot)
    if not state.trials:
        return "empty", "Nothing has run yet."
    champion, waiting = facts.champion(), _verified(facts)
    proven = ("proven", f"Improvement proven: {_tested(facts, champion)}") if champion else None
    kind, found = proven or waiting or _refuted(facts) or ("none", "")
    found += f" {waiting[1]}" if proven and waiting else ""
    counts = state.counts()
    ran = count(counts.get("completed", 0), "completed run")
    if state.end is None:
        return (kind if found else "open"), f"Not ended yet: {where}, after {ran}. {found}".strip()
    if found:
        return kind, found
    told = "; ".join([", ".join(f"{n} {outcome}" for outcome, n in counts.items()), state.end.reason])
    if state.futile and state.futile[-1].body.nomination == state.nominated[-1].body.number:
        body = state.futile[-1].body
        return "none", f"No improvement proven, after {ran}: {spared(body, facts.name(body.recipe_id))}."
    if state.nominated:
        return "none", ("No improvement proven: the session ended before the proof did "
                        f"({where}; after {ran}; {state.end.reason}).")
    best = facts.frontier(1)
    if best and best[0]["mean"] > facts.track.epsilon:
        gain = spread(best[0]["mean"], best[0]["sd"])
        return "none", ("No improvement proven: the session ended before anything was tested on fresh seeds, after "
                        f"{ran}; {best[0]['name']} leads, expected to gain {gain} {facts.unit}.")
    if not counts.get("completed"):
        return "none", f"Nothing found out: none of {count(len(state.trials), 'run')} was completed ({told})."
    ran += f" ({told})" if len(counts) > 1 else ""
    return "none", (f"No improvement found: after {ran} no candidate is expected to gain more than "
                    f"{facts.track.epsilon:g} {facts.unit}.")


def _tested(facts: Facts, side: Mapping[str, Any]) -> str:
    """What the test of a recipe that passed has found."""
    against = "the base" if side["against"] == facts.base else facts.name(side["against"])
    told = (f"{side['name']} lowers the loss by {side['effect']:.3f} {facts.unit} against {against} ({within(side)}; "
            f"p = {side['p_value']:.2g}, below the sealed {side['alpha']:.2g} of attempt {side['attempt']}; "
            f"{count(side['n'], 'fresh seed')}).")
    return f"{told} {side['scope']}".strip()


def _verified(facts: Facts) -> tuple[str, str] | None:
    """What passed against the incumbent and was not crowned, and at whose word."""
    waiting = facts.waiting()
    rows = [row for row in facts.verifications() if row["passed"] and row["incumbent"] == facts.snapshot.incumbent]
    if not rows:
        return None
    row = next((row for row in rows if waiting and row["recipe_id"] == waiting[0]), rows[-1])
    test = row["comparisons"]["incumbent"]
    side = row | test | {"against": row["incumbent"], "scope": scope(test)}
    return "verified", f"Verified, {facts.said(row['recipe_id']) or 'awaiting review'}: {_tested(facts, side)}"


def _refuted(facts: Facts) -> tuple[str, str] | None:
    failed = [row for row in facts.verifications() if row["passed"] is False]
    if not failed:
        return None
    test, asked = failed[-1]["comparisons"].get("incumbent") or {}, failed[-1]["n"]
    n, asked = test.get("n", 0), len(failed[-1]["seeds"]) if failed[-1]["rule"] else asked
    found = f"both runs finished on {n} of {count(asked, 'sealed seed')}, and all are needed" if n < asked else ""
    if test and not found:
        found = f"effect {effect(test['effect'])} {facts.unit}, p = {test['p_value']:.2g}, on {count(n, 'seed')}; " \
                f"the sealed alpha was {failed[-1]['alpha']:.2g}"
    return "refuted", f"No improvement proven: {failed[-1]['name']} was tested on fresh seeds and failed ({found})."


def stage(snapshot: Snapshot) -> str:
    """What the session is at: searching, or a stage of the proof with its counts."""
    state = snapshot.state
    said = (f"paused by {state.paused.body.by or 'somebody'}, " if state.paused else "") + (
        "to end after this round, " if state.asked("stop") else "")
    return said + _stage(snapshot)


def _stage(snapshot: Snapshot) -> str:
    state = snapshot.state
    if (proof := under_way(snapshot)) is None:
        names = [snapshot.names(p.sealed.subject) for p in pending(snapshot) if p.sealed]
        return f"searching; verified and not crowned: {', '.join(names)}" if names else "searching"
    nominee, seal = proof.recipe_id, proof.sealed
    started = seal.seq if seal else state.nominated[-1].seq
    purposes = ("verify",) if seal else ("replicate", "ablate")
    runs = [a for a in state.attempts() if a.seq > started and a.purpose in purposes]
    done = sum(a.result is not None and a.result.outcome in FINAL for a in runs)
    if seal:
        total = "at most " * bool(seal.body.rule) + str(len({*proof.contenders().values()}) * seal.body.n)
        return f"attempt {seal.body.attempt} sealed at alpha {seal.body.alpha:.2g}: verifying, " \
               f"{done} of {total} runs done"
    what = "trying without barnacles" if nominee in state.ablations else "replicating and ablating"
    return f"{what}, {count(done, 'run')} done"


def summary(facts: Facts) -> dict[str, Any]:
    """All facts of a session as plain data."""
    state, shares = facts.state, facts.state.shares()
    counts = {name: state.verdicts[name] for name in ("accepted", "refused")}
    return {
        "track": facts.track.name,
        "unit": facts.unit,
        "ended": state.end.reason if state.end else None,
        "verdict": dict(zip(("kind", "text"), verdict(facts), strict=True)),
        "trials": state.counts(),
        "purposes": facts.purposes(),
        "base": facts.side(facts.base, beside=state.champion) if facts.base else None,
        "champion": facts.champion(),
        "best_single": facts.best_single(),
        "verifications": facts.verifications(),
        "transfer": [dump_full(line) for line in facts.transfer()],
        "beside": facts.beside(),
        "openings": len(state.openings),
        "frontier": facts.frontier(),
        "device_seconds": state.device_s,
        "devices": facts.devices,
        "wall_seconds": state.wall_s,
        "idle_fraction": shares["idle"],
        **{f"{name}_share": shares[name] for name in ("compile", "replicate", "kill", "verification")},
        "decisions": len(state.decisions),
        "proposals": counts | {"refusals": dict(state.refusals.most_common())},
        "lanes": facts.lanes(),
        "flat_priors": state.flat,
        "never_tried": sum(map(len, facts.untried().values())),
        "llm": facts.llm(),
        "audit": facts.audit(),
    }
