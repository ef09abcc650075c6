"""The rules every session's ledger keeps, whatever was killed when.

What is claimed is computed again from the results (research/decide/claims.py). Results that were rewritten as a whole,
in the ledger and in their files, keep every rule: only running them again would tell.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxnano.config.base import digest, validate
from jaxnano.config.older import is_older
from jaxnano.config.recipe import Recipe, recipe_id
from research.contract.trial import PROOF
from research.ledger.events import Event, Ledger, SessionError, encode, read
from research.ledger.kinds import KINDS, LOOP_KINDS
from research.ledger.session import read_result
from research.ledger.state import BROKEN

OUTCOMES = frozenset({"completed", "killed", "diverged", "failed", "interrupted", "timeout"})


def violations(ledger: Ledger, session: Path, identify: Callable[[Mapping[str, Any]], str] | None = None
               ) -> Iterator[str]:
    """Yield one line for each violated rule.

    Args: session: the folder with trials/. identify: recipe as JSON data -> recipe id; by default that of
    jaxnano.config.
    """
    yield from ledger.integrity()
    events, unreadable = readable(ledger)
    yield from unreadable
    yield from _order(events)
    yield from _attempts(events)
    yield from _proof(events)
    yield from _files(events, session)
    yield from _recipes(events, identify or _recipe_id)


def readable(ledger: Ledger) -> tuple[list[Event[Any]], list[str]]:
    """The events up to the first gap that hold what their kind has to hold, and a line for each of the others."""
    events: list[Event[Any]] = []
    faults: list[str] = []
    for place, (seq, time, kind, subject, text, fence) in enumerate(ledger.raw(), start=1):
        if seq != place:
            faults.append(f"event {seq}: seq is not contiguous, {place} was expected")
            break
        try:
            events.append(Event(seq, time, kind, subject, read(kind, text, f"event {seq}"), fence))
        except SessionError as error:
            faults.append(str(error))
    return events, faults


def _order(events: list[Event[Any]]) -> Iterator[str]:
    """Known kinds, one session event before the loop's others, growing fences, no work after the end."""
    fence, sessions, ended = 0, 0, False
    for event in events:
        where = f"event {event.seq} ({event.kind} {event.subject})".replace(" )", ")")
        if event.kind not in KINDS:
            yield f"{where}: unknown kind"
        if event.kind in LOOP_KINDS:
            if event.fence is None or event.fence < fence:
                yield f"{where}: fence {event.fence}, but {fence} was in force"
            sessions += event.kind == "session"
            if sessions != 1:
                yield f"{where}: " + ("comes before the session event" if sessions == 0 else "a second session event")
                sessions = 1
            if ended and event.kind not in ("resume", "transfer"):  # a card is completed afterwards
                yield f"{where}: comes after the end"
            ended = event.kind == "end" or (ended and event.kind != "resume")
        fence = max(fence, event.fence or 0)


def _attempts(events: list[Event[Any]]) -> Iterator[str]:
    """Decision -> attempts 1, 2, ... -> one result each; one completed result a trial; none left open by an end; none
    after a run has failed, unless a person asked for it."""
    decided: set[str] = set()
    open_attempts: dict[str, int] = {}
    started: dict[str, int] = defaultdict(int)
    completed: set[str] = set()
    broken: dict[str, str] = {}
    for event in events:
        key, body = event.subject, event.body
        if event.kind == "decision":
            decided.add(key)
        elif event.kind == "attempt":
            if key not in decided:
                yield f"event {event.seq}: attempt at {key} without a decision"
            if key in open_attempts:
                yield f"event {event.seq}: attempt {body.attempt} at {key} while attempt {open_attempts[key]} is open"
            if body.attempt != started[key] + 1:
                yield f"event {event.seq}: attempt {body.attempt} at {key}, {started[key] + 1} was expected"
            if key in broken:
                yield f"event {event.seq}: attempt {body.attempt} at {key}, which {broken[key]}; nobody asked for it"
            started[key] = max(started[key] + 1, body.attempt)
            open_attempts[key] = started[key]
        elif event.kind == "result":
            if open_attempts.pop(key, None) != body.attempt:
                yield f"event {event.seq}: result of {key} for attempt {body.attempt}, which is not open"
            if body.outcome not in OUTCOMES:
                yield f"event {event.seq}: result of {key} with unknown outcome {body.outcome!r}"
            if body.outcome == "completed":
                if key in completed:
                    yield f"event {event.seq}: a second completed result of {key}"
                completed.add(key)
            if body.outcome in BROKEN:
                broken[key] = "failed" if body.outcome == "failed" else "ran out of time"
        elif event.kind == "ask" and body.want == "retry":
            broken = {one: said for one, said in broken.items()
                      if key not in ("", one) and not one.startswith(f"{key}-")}
        elif event.kind == "end":
            for trial, attempt in open_attempts.items():
                yield f"event {event.seq}: the end leaves attempt {attempt} at {trial} open"


def _proof(events: list[Event[Any]]) -> Iterator[str]:
    """Verification runs on seeds nobody saw before the sealing; only what was sealed and passed is crowned, and only
    what was crowned is carried over."""
    used: set[int] = set()
    used_before_seal: set[int] | None = None
    sealed: set[str] = set()
    passed: set[str] = set()
    crowned: set[str] = set()
    for event in events:
        if event.kind == "sealed":
            used_before_seal = set(used)
            sealed.add(event.subject)
        elif event.kind == "attempt":
            seed = event.body.seed
            if event.body.purpose in PROOF and used_before_seal is None:
                yield f"event {event.seq}: verification of {event.subject} before any recipe was sealed"
            elif event.body.purpose in PROOF and seed in (used_before_seal or ()):
                yield f"event {event.seq}: verification of {event.subject} on seed {seed}, used before the sealing"
            used.add(seed)
        elif event.kind == "verification":
            if event.subject not in sealed:
                yield f"event {event.seq}: verification of {event.subject}, which was not sealed"
            passed |= {event.subject} if event.body.passed else set()
        elif event.kind == "crowned":
            crowned.add(event.subject)
            if event.subject not in passed:
                yield f"event {event.seq}: {event.subject} crowned without a passed verification"
        elif event.kind == "transfer" and event.subject not in crowned:
            yield f"event {event.seq}: {event.subject} carried over without a crown"


def _files(events: list[Event[Any]], session: Path) -> Iterator[str]:
    """The result files of trials are whole and say what their events say."""
    latest = {session / "trials" / event.subject: event for event in events if event.kind == "result"}
    latest |= {session / "transfer" / event.body.trial: event for event in events if event.kind == "transfer"}
    for folder, event in latest.items():
        key = folder.name
        if not (folder / "result.json").is_file():
            if event.body.outcome == "completed":
                yield f"trial {key}: completed, but {folder / 'result.json'} is missing"
            continue
        result = read_result(folder)
        if result is None:
            yield f"trial {key}: {folder / 'result.json'} is damaged (its checksum does not hold)"
        elif result["attempt"] == event.body.attempt and "interrupted" not in (result["outcome"],
                event.body.outcome) and result["outcome"] != "killed":  # of these the loop knows what they mean
            told = json.loads(encode(event.body))
            for name in sorted(result.keys() & told.keys()):
                if result[name] != told[name]:
                    yield f"trial {key}: {name} differs between result.json and event {event.seq}"


def _recipes(events: list[Event[Any]], identify: Callable[[Mapping[str, Any]], str]) -> Iterator[str]:
    """A proposal's subject is the id of the recipe it holds, and a trial's key begins with its recipe's id."""
    for event in events:
        if event.kind == "proposal":
            try:
                found = identify(event.body.recipe)
            except Exception as error:  # whatever is wrong with the recipe is the finding
                found = f"no valid recipe ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            if found != event.subject:
                yield f"event {event.seq}: proposal {event.subject} holds {found}"
        elif event.kind == "attempt" and (key := event.body.trial.key) != event.subject:
            yield f"event {event.seq}: attempt at {event.subject}, but its body says {key}"


def _recipe_id(recipe: Mapping[str, Any]) -> str:
    told = recipe_id(validate(Recipe, dict(recipe)))
    return digest(dict(recipe)) if is_older(recipe) else told  # which had its own words for it
