"""What a ledger claims follows from its results: ablations, seals, verifications and crowns, computed again.

Each is what the loop's own code makes of the events before it. What no check can see is a ledger whose results, with
their files, were rewritten as a whole: `research.replay` runs a trial again, and `research.share` evaluates what it
publishes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxnano.config.base import ConfigError, validate
from jaxnano.config.recipe import Recipe
from research.contract.proposal import dead
from research.decide.ablation import Ablation
from research.decide.belief import Belief, Snapshot
from research.decide.book import track_of
from research.decide.proof import Proof, proofs
from research.learn.compare import compared
from research.ledger import invariants
from research.ledger.events import Event, Ledger, encode
from research.ledger.kinds import Body, Crowned
from research.ledger.registry import Entry
from research.ledger.state import State

CLOSE = 1e-6  # relative: another processor, or another SciPy, ends in other digits
ROWS = ("effect", "interval", "p_value", "n")  # of an ablation's row, what comes of the losses


def violations(ledger: Ledger, session: Path) -> Iterator[str]:
    """One line for each rule that a ledger breaks, the claims and the dead edits in it too.

    Args: session: the folder with trials/.
    """
    yield from invariants.violations(ledger, session)
    events, _ = invariants.readable(ledger)
    yield from broken_claims(events)
    yield from _dead_edits(events)


def broken_claims(events: Iterable[Event[Any]]) -> Iterator[str]:
    """One line for each event that claims what does not follow from the events before it."""
    checks = {"ablation": _ablation, "futile": _futile, "sealed": _sealed, "verification": _verification,
              "crowned": _crowned}
    state, belief = State(), None
    for event in events:
        if event.kind in checks:
            try:
                belief = belief or Belief(track_of(state))
                found = list(checks[event.kind](belief.at(state), event))
            except (KeyError, TypeError, ValueError, AttributeError, AssertionError, LookupError) as error:
                found = [f"cannot be computed again ({type(error).__name__}: {error})"]
            yield from (f"event {event.seq} ({event.kind} {event.subject}): {line}" for line in found)
        state.apply(event)


def _ablation(snapshot: Snapshot, event: Event[Any]) -> Iterator[str]:
    """What is tried, removed and kept follows too, but not what was believed first; nor in a ledger of an earlier
    version, which decided otherwise. Its rows were true when they were written first: later runs of the same recipes
    do not change them."""
    if event.body.rule:
        found = Ablation(snapshot, event.subject)
        yield from _unlike(found.settle() if found.begun else found.planned(event.body.believed), event.body)
        return
    def told(row: Mapping[str, Any]) -> list[Any]:
        return [row.get(name) for name in ("part", "recipe_id", "of", *ROWS)]

    before = snapshot.state.ablations.get(event.subject)
    known = [told(row) for row in before.rows] if before is not None else []
    for row in event.body.rows:
        if told(row) not in known:
            less, full = row["recipe_id"], row.get("of", event.subject)
            gains = snapshot.state.gains(full, less, 1.0, snapshot.track.splits.search).values()
            found = {name: value for name, value in compared(snapshot.losses(less), snapshot.losses(full)).items()
                     if name in ROWS}
            expected = {"effect": sum(gains) / len(gains) if gains else None} | found
            yield from _differences(expected, row, f"part {row['part']}: ")


def _futile(snapshot: Snapshot, event: Event[Any]) -> Iterator[str]:
    found = _proof(snapshot, event).futility(event.body.level).settle()
    if found is None:
        yield "an attempt was worth it"
    else:
        yield from _unlike(found, event.body)


def _sealed(snapshot: Snapshot, event: Event[Any]) -> Iterator[str]:
    identity, said = snapshot.track.identity, snapshot.state.session.track_hash
    if identity != said:
        yield f"the session's contract is {identity[:12]}, its track_hash says {said[:12]}"
    proof, body, earlier = _proof(snapshot, event), event.body, [e.body.attempt for e in snapshot.state.sealed]
    if not body.rule:
        yield from _unlike(proof.seal_of_0_2(snapshot.incumbent, body.best_single), body)
    else:
        entry = Entry(body.attempt, body.split, body.opened, body.registry)
        yield from _unlike(proof.seal(snapshot.incumbent, body.best_single, entry), body)
        if body.attempt <= max(earlier, default=0) or not (body.registry or body.attempt == len(earlier) + 1):
            yield f"attempt {body.attempt} comes after {earlier}"
        if body.split not in snapshot.track.splits.all_protected:
            yield f"split {body.split!r} is not a protected one of the track"
    if proof.final != event.subject:
        yield f"the ablation ended in {proof.final}"


def _verification(snapshot: Snapshot, event: Event[Any]) -> Iterator[str]:
    proof = _proof(snapshot, event)
    assert proof.sealed is not None
    yield from _unlike(proof.verify(), event.body)
    if proof.sealed.subject != event.subject:
        yield f"{proof.sealed.subject} was sealed"


def _crowned(snapshot: Snapshot, event: Event[Any]) -> Iterator[str]:
    passed = [e for e in snapshot.state.verifications if e.subject == event.subject and e.body.passed]
    if not passed:
        return  # the order of events is looked at elsewhere
    proof = _proof(snapshot, passed[-1])
    assert proof.sealed is not None and proof.shipped is not None
    seed = proof.shipped.seed if event.body.seed is not None else None
    yield from _unlike(Crowned(trial=proof.shipped.key, seed=seed), event.body)
    if proof.sealed.body.incumbent != snapshot.incumbent:
        yield f"it beat {proof.sealed.body.incumbent}, but {snapshot.incumbent} was to be beaten"


def _proof(snapshot: Snapshot, event: Event[Any]) -> Proof:
    """The proof that a `futile`, `sealed` or `verification` event belongs to."""
    return [proof for proof in proofs(snapshot) if proof.nominated.number == event.body.nomination][0]


def _unlike(expected: Body, found: Body) -> Iterator[str]:
    """Where an event is not what was expected, as JSON."""
    yield from _differences(json.loads(encode(expected)), json.loads(encode(found)))


def _differences(expected: Any, found: Any, path: str = "") -> Iterator[str]:
    """Where what was written is not what was expected; more than that may be there."""
    if isinstance(expected, Mapping):
        for name, value in expected.items():
            there = found.get(name) if isinstance(found, Mapping) else None
            yield from _differences(value, there, f"{path}.{name}" if path and path[-1] != " " else f"{path}{name}")
    elif isinstance(expected, list | tuple) and isinstance(found, list) and len(expected) == len(found):
        for place, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from _differences(one, other, f"{path}.{place}")
    elif type(expected) is not type(found) or expected != found and not (
            isinstance(expected, float) and isinstance(found, float)
            and math.isclose(expected, found, rel_tol=CLOSE, abs_tol=1e-12)):
        yield f"{path} is {found!r}, from the results it is {expected!r}"


def _dead_edits(events: list[Event[Any]]) -> Iterator[str]:
    """What was accepted changes how the base trains, edit by edit."""
    accepted = {event.subject for event in events if event.kind == "verdict" and event.body.accepted}
    base = None
    for event in (e for e in events if e.kind == "proposal" and e.subject in accepted):
        try:
            parts = event.body.proposal.parts
            if not parts and base is None:
                base = validate(Recipe, event.body.recipe)
            for problem in dead(base, parts) if base is not None else ():
                yield f"event {event.seq}: proposal {event.subject} has a dead edit, {problem}"
        except (ConfigError, KeyError):
            continue  # what is wrong with it is another rule's finding
