"""What an outsider may ask of a session and what is answered, as plain data: the tools of research/mcp.py.

They read and propose; the loop decides. Everything here is folded from the ledger as outsiders see it, without the
protected and the held-out split.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jaxnano.cli import Failure, UserError
from jaxnano.config.base import ConfigError, Problem
from jaxnano.config.edit import changed
from research.contract.schema import describe
from research.decide.plan import resuming
from research.ledger.state import TrialRecord
from research.outside.forms import (
    Awaited,
    Judged,
    Lines,
    Nothing,
    Outcome,
    Row,
    Rules,
    RunRow,
    Runs,
    SealedRow,
    Standing,
    Subject,
    Where,
    Which,
)
from research.outside.inbox import Ask, Inbox, visible
from research.show.explain import explain
from research.show.facts import NORMAL_95, Facts
from research.show.verdict import stage
from research.text import beginning

FRONTIER = 8
KEEP_UP_S = 1.0
GONE = "its loop is gone without an end"
HOW = (
    "An experiment is a list of edits, {path, new}, on a recipe that is known: on = best (the default), base, or a "
    "recipe's id. Edits that only make sense together belong to one proposal; each proposal is one idea.",
    "path is dotted, an item of a list is addressed by its name or kind (optimizer.groups.matrices.chain.adam.b1). new "
    "replaces what stands there, a node as a whole with its kind. To add to a list, give the path the item will have "
    "and the item; before or after names its neighbour. new = {absent: true} removes an item.",
    "The gate judges at once. A refusal names path, value and rule, mostly with a value that would pass: mend and "
    "propose again. Recipes that are known, or train alike, are refused.",
    "An accepted proposal gets a first run at the shortest horizon; more runs only if they tell something. The loop "
    "decides what runs, is proven and crowned; a promise (effect) moves its prior by two epsilons at most.",
    "An effect is the base's loss less the recipe's on the same seed, in the unit of losses: positive is better. "
    "Differences below epsilon do not matter, and one run is noise: look at intervals.",
    "A record is sealed first, then run on fresh seeds and tested once on a protected split. Of that split you see "
    "pass or fail and no number.",
)


class Desk:
    """Answers of one open session; every method is a tool and its docstring what the tool says of itself."""

    def __init__(self, inbox: Inbox):
        self.inbox, self._lock = inbox, threading.Lock()
        self._best: str | None = None  # what `best` stood for a moment ago, while keeping up

    @contextmanager
    def keeping_up(self) -> Iterator[None]:
        """Take in what happens while nobody asks, so that who proposes does not wait for it.

        A new recipe costs 2 ms and the belief 20 to 80; the belief has an inbox and a thread of its own.
        """
        over = threading.Event()

        def follow() -> None:
            with suppress(UserError, Failure, OSError), Inbox(self.inbox.session.path) as own:
                while not over.wait(KEEP_UP_S):
                    own.refresh()
                    self._best = own.parts_on("best")[0]
                    with self._lock:
                        self.inbox.refresh()
            self._best = None  # whoever asks next works it out, and is told what is wrong

        thread = threading.Thread(target=follow, name="keeping up", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def rules(self, asked: Nothing) -> Rules:
        """The game: track, objective, limits, what is frozen, the base recipe, and how to write edits. Ask it first."""
        track, cost = self.inbox.track, self.inbox.track.base_cost
        limits = {"parameters": int(cost.parameters * track.limits.parameters), "base_parameters": cost.parameters,
                  "step_flops": cost.flops_per_step * track.limits.step_flops, "base_step_flops": cost.flops_per_step,
                  "memory_gib": track.limits.memory_gib}
        return Rules(track.name, track.summary, track.objective.model_dump(), Facts(self.inbox.snapshot).unit,
                     track.epsilon, list(track.horizons), track.full_steps, limits, list(track.frozen),
                     track.free(track.base_recipe), list(HOW))

    def schema(self, asked: Where) -> Lines:
        """What may be changed and what it may become: fields, ranges and defaults at a path and below."""
        return Lines(describe(asked.path, self.inbox.track.frozen))

    def state(self, asked: Nothing) -> Standing:
        """Where the session stands: stage, time left, champion, best candidate as a diff, frontier, counts."""
        with self._lock:
            self.inbox.refresh()
            return self._standing(Facts(self.inbox.snapshot))

    def _standing(self, facts: Facts) -> Standing:
        state, running, best = facts.state, self.inbox.running, self.inbox.parts_on("best")[0]
        rows = [self._row(facts, row) for row in facts.frontier(len(facts.snapshot.arms))]
        by_id = {row.recipe_id: row for row in rows}
        spoken = {e.body.nomination: e.body.passed for e in state.verifications}
        attempts = [SealedRow(e.subject, facts.name(e.subject), e.body.attempt, spoken.get(e.body.nomination),
                            state.review(e.subject)) for e in state.sealed]
        ended = state.end.reason if state.end else None if running else GONE
        return Standing(stage(facts.snapshot) if running else "ended", running, ended,
                        self._seconds_left(), facts.unit, facts.base or "", by_id.get(state.champion or ""),
                        by_id.get(best or ""), rows[:FRONTIER], attempts, state.counts(),
                        {name: state.verdicts[name] for name in ("accepted", "refused")},
                        dict(state.refusals.most_common(FRONTIER)))

    def _seconds_left(self) -> float:
        """Of the session's minutes; an event of the loop is the last that is known to have used them."""
        state = self.inbox.state
        since = time.time() - state.stretches[-1].end if self.inbox.running else 0.0
        return round(max(0.0, 60 * state.session.minutes - state.wall_s - since), 1)

    def _row(self, facts: Facts, row: dict[str, Any]) -> Row:
        changes = [changed(**edit) for edit in facts.edits(row["recipe_id"])]
        half = NORMAL_95 * row["sd"]
        return Row(row["recipe_id"], row["name"], row["lane"], changes, row["mean"], row["sd"],
                   [row["mean"] - half, row["mean"] + half], {str(s): gain for s, gain in row["gains"].items()},
                   row["over_leader"], row["runs"])

    def trials(self, asked: Which) -> Runs:
        """Runs so far, filtered and sorted. Gains compare within one seed and horizon; effects always do."""
        with self._lock:
            self.inbox.refresh()
            facts = Facts(self.inbox.snapshot)
            _check(asked, facts)
            runs = [self._run(facts, trial) for trial in facts.state.trials.values() if trial.attempts]
        wanted = [run for run in runs if run.recipe_id.startswith(asked.recipe)
                  and asked.lane in ("", run.lane) and asked.outcome in ("", run.outcome)
                  and asked.horizon in (None, run.horizon) and asked.seed in (None, run.seed)]
        wanted.reverse()
        last = float("inf")
        match asked.sort:
            case "effect":
                wanted.sort(key=lambda run: -run.effect[0] if run.effect else last)
            case "gain":
                wanted.sort(key=lambda run: (-run.horizon, run.seed, -run.gain if run.gain is not None else last))
            case "loss":
                wanted.sort(key=lambda run: (-run.horizon, run.seed, run.loss if run.loss is not None else last))
        return Runs(len(wanted), wanted[: asked.limit])

    def _run(self, facts: Facts, trial: TrialRecord) -> RunRow:
        at = facts.snapshot.index.get(trial.recipe_id, 0)
        effect = [float(values[at]) for values in facts.snapshot.effects] if at else None
        return RunRow(key=trial.key, recipe_id=trial.recipe_id, name=facts.name(trial.recipe_id),
                   lane=facts.proposal(trial.recipe_id).lane, purpose=trial.attempts[0].purpose,
                   effect=effect, device_s=trial.result.device_s if trial.result else None, **facts.run(trial))

    def explain(self, asked: Subject) -> Lines:
        """Why a trial was run, what came out and what it taught; or the same of a recipe."""
        return Lines(explain(list(visible(self.inbox.session.ledger.events(), self.inbox.track)), asked.id))

    def _asleep(self) -> str:
        with self._lock:
            return f"no loop is running; {resuming(self.inbox.snapshot)} takes it in"

    def propose(self, asked: Ask, origin: str) -> Judged:
        """Propose an experiment: edits on a known recipe, with a reason. The gate's verdict comes back at once."""
        start = time.perf_counter()
        if asked.on == "best" and self._best is not None:
            asked = asked.model_copy(update={"on": self._best})
        with self._lock:
            found = self.inbox.submit(asked, origin=origin)
            running = self.inbox.running
        note = "" if running else self._asleep()
        on = next(iter(found.proposal.parents), None)
        verdict = found.verdict
        return Judged(verdict.accepted, found.number, found.recipe_id, found.trial, found.proposal.name, on,
                       verdict.as_dict()["refusals"], verdict.notes, note, 1e3 * (time.perf_counter() - start))

    def wait(self, asked: Awaited) -> Outcome:
        """What came of a proposal: the loop's verdict, its runs with loss and gains, and what is believed of it now."""
        with self._lock:
            found, running = self.inbox.outcome(asked.number), self.inbox.running
            answer = self.inbox.state.answers.get(asked.number)
        if found is not None:
            note = "its first run is over" if found["accepted"] else "refused by the loop"
        elif not running:
            note = self._asleep()
        else:
            note = "accepted; its first run is not over" if answer else "the loop has not judged it yet"
        return Outcome(asked.number, found is not None or not running, note, found)


def _check(asked: Which, facts: Facts) -> None:
    """Raises: ConfigError for a filter that nothing could pass: it says what there is."""
    state = facts.state
    known = {"lane": {body.proposal.lane for body in state.proposals.values()}, "horizon": facts.track.horizons,
             "seed": {trial.seed for trial in state.trials.values() if trial.attempts}}
    problems = [Problem(name, value, f"{', '.join(map(str, sorted(there))) or 'nothing yet'} would do")
                for name, there in known.items() if (value := getattr(asked, name)) not in ("", None, *there)]
    if asked.recipe and not beginning(asked.recipe, state.proposals):
        problems.append(Problem("recipe", asked.recipe, "no recipe begins with it; one of those in `state` would do"))
    if problems:
        raise ConfigError(problems)
