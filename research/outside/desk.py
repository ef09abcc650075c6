"""What an outsider may ask of a session and what is answered, as plain data: what tools.py offers.

They read and propose; the loop decides. Everything here is folded from the ledger as outsiders see it, without the
protected and the held-out split.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Literal

from pydantic import Field

from jaxnano.cli import Failure, UserError
from jaxnano.config.base import PATH, ConfigError, Problem
from jaxnano.config.edit import changed
from research.contract.schema import describe
from research.decide.plan import resuming
from research.outside.forms import Judged, Lines, Outcome, Row, Rules, Runs, SealedRow, Standing
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
    "A record is sealed first, then run on fresh seeds and tested on a protected split. Of that split you see "
    "pass or fail and no number.",
)

Place = Annotated[str, Field(max_length=300, description="of an edit: model.position, optimizer.groups.matrices.lr; "
                             "empty for the whole tree", json_schema_extra={"pattern": f"^$|{PATH}"})]
Known = Annotated[str, Field(max_length=64, description="a recipe's id, or its beginning")]
Lane = Annotated[str, Field(max_length=64, description="one that has proposed something")]
Ending = Literal["", "completed", "killed", "diverged", "failed", "timeout", "interrupted", "running"]
Horizon = Annotated[float, Field(gt=0, le=1, description="one of the track's")]
Seed = Annotated[int, Field(ge=0, strict=True, description="one that was run")]
Sort = Annotated[Literal["latest", "effect", "gain", "loss"], Field(
    description="latest first; best effect of the recipe, as it is believed, first; or best gain over the base, or "
                "lowest loss, first in each cell (horizon and seed), the longest horizon first: those of different "
                "cells do not compare")]
Limit = Annotated[int, Field(ge=1, le=200, strict=True)]
Subject = Annotated[str, Field(min_length=1, max_length=100, description="a trial's key or a recipe's id, or its "
                               "beginning")]
Number = Annotated[int, Field(ge=1, strict=True, description="of a submission")]
Seconds = Annotated[float, Field(ge=0, le=600, description="to wait at most")]


class Desk:
    """Answers of one open session; a method is a tool and its docstring what the tool says of itself."""

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

    def rules(self) -> Rules:
        """The game: track, objective, limits, what is frozen, the base recipe, and how to write edits. Ask it first."""
        track, cost = self.inbox.track, self.inbox.track.base_cost
        limits = {"parameters": int(cost.parameters * track.limits.parameters), "base_parameters": cost.parameters,
                  "step_flops": cost.flops_per_step * track.limits.step_flops, "base_step_flops": cost.flops_per_step,
                  "memory_gib": track.limits.memory_gib}
        return Rules(track=track.name, summary=track.summary, objective=track.objective.model_dump(),
                     unit=Facts(self.inbox.snapshot).unit, epsilon=track.epsilon, horizons=list(track.horizons),
                     base_steps=track.full_steps, limits=limits, frozen=list(track.frozen),
                     base=track.free(track.base_recipe), how=list(HOW))

    def schema(self, path: Place = "") -> Lines:
        """What may be changed and what it may become: fields, ranges and defaults at a path and below."""
        return Lines(lines=describe(path, self.inbox.track.frozen))

    def state(self) -> Standing:
        """Where the session stands: stage, time left, champion, best candidate as a diff, frontier, counts."""
        with self._lock:
            self.inbox.refresh()
            facts, running, best = Facts(self.inbox.snapshot), self.inbox.running, self.inbox.parts_on("best")[0]
            state, rows = facts.state, [self._row(facts, row) for row in facts.frontier(len(facts.snapshot.arms))]
            by_id = {row.recipe_id: row for row in rows}
            spoken = {e.body.nomination: e.body.passed for e in state.verifications}
            attempts = [SealedRow(recipe_id=e.subject, name=facts.name(e.subject), attempt=e.body.attempt,
                                  passed=spoken.get(e.body.nomination), review=state.review(e.subject))
                        for e in state.sealed]
            return Standing(stage=stage(facts.snapshot) if running else "ended", running=running,
                            ended=state.end.reason if state.end else None if running else GONE,
                            seconds_left=self._seconds_left(), unit=facts.unit, base=facts.base or "",
                            champion=by_id.get(state.champion or ""), best=by_id.get(best or ""),
                            frontier=rows[:FRONTIER], attempts=attempts, trials=state.counts(),
                            proposals={name: state.verdicts[name] for name in ("accepted", "refused")},
                            refusals=dict(state.refusals.most_common(FRONTIER)))

    def _seconds_left(self) -> float:
        """Of the session's minutes; an event of the loop is the last that is known to have used them."""
        state = self.inbox.state
        since = time.time() - state.stretches[-1].end if self.inbox.running else 0.0
        return round(max(0.0, 60 * state.session.minutes - state.wall_s - since), 1)

    def _row(self, facts: Facts, row: dict[str, Any]) -> Row:
        changes = [changed(**edit) for edit in facts.edits(row["recipe_id"])]
        half, mean = NORMAL_95 * row["sd"], row["mean"]
        same = {name: row[name] for name in ("recipe_id", "name", "lane", "sd", "over_leader", "runs")}
        return Row(changes=changes, effect=mean, interval=[mean - half, mean + half],
                   gains={str(seed): gain for seed, gain in row["gains"].items()}, **same)

    def trials(self, recipe: Known = "", lane: Lane = "", outcome: Ending = "", horizon: Horizon | None = None,
               seed: Seed | None = None, sort: Sort = "latest", limit: Limit = 20) -> Runs:
        """Runs so far, filtered and sorted. Gains compare within one seed and horizon; effects always do."""
        with self._lock:
            self.inbox.refresh()
            facts = Facts(self.inbox.snapshot)
            _check(facts, recipe, lane=lane, horizon=horizon, seed=seed)
            runs = [facts.run(trial) for trial in reversed(facts.state.trials.values()) if trial.attempts]
        wanted = [run for run in runs if run.recipe_id.startswith(recipe) and lane in ("", run.lane)
                  and outcome in ("", run.outcome) and horizon in (None, run.horizon) and seed in (None, run.seed)]
        last = float("inf")
        match sort:
            case "effect":
                wanted.sort(key=lambda run: -run.effect[0] if run.effect else last)
            case "gain":
                wanted.sort(key=lambda run: (-run.horizon, run.seed, -run.gain if run.gain is not None else last))
            case "loss":
                wanted.sort(key=lambda run: (-run.horizon, run.seed, run.loss if run.loss is not None else last))
        return Runs(found=len(wanted), runs=wanted[:limit])

    def explain(self, id: Subject) -> Lines:
        """Why a trial was run, what came out and what it taught; or the same of a recipe."""
        return Lines(lines=explain(list(visible(self.inbox.session.ledger.events(), self.inbox.track)), id))

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
        return Judged(accepted=verdict.accepted, number=found.number, recipe_id=found.recipe_id, trial=found.trial,
                      name=found.proposal.name, on=on, refusals=verdict.as_dict()["refusals"], notes=verdict.notes,
                      note=note, ms=1e3 * (time.perf_counter() - start))

    def wait(self, number: Number) -> Outcome:
        """What came of a proposal: the loop's verdict, its runs with loss and gains, and what is believed of it now."""
        with self._lock:
            found, running = self.inbox.outcome(number), self.inbox.running
            answer = self.inbox.state.answers.get(number)
        if found is not None:
            note = "its first run is over" if found.accepted else "refused by the loop"
        elif not running:
            note = self._asleep()
        else:
            note = "accepted; its first run is not over" if answer else "the loop has not judged it yet"
        return Outcome(number=number, over=found is not None or not running, note=note, outcome=found)


def _check(facts: Facts, recipe: str, **filters: Any) -> None:
    """Raises: ConfigError for a filter that nothing could pass: it says what there is."""
    state = facts.state
    known = {"lane": {body.proposal.lane for body in state.proposals.values()}, "horizon": facts.track.horizons,
             "seed": {trial.seed for trial in state.trials.values() if trial.attempts}}
    problems = [Problem(name, value, f"{', '.join(map(str, sorted(there))) or 'nothing yet'} would do")
                for name, there in known.items() if (value := filters[name]) not in ("", None, *there)]
    if recipe and not beginning(recipe, state.proposals):
        problems.append(Problem("recipe", recipe, "no recipe begins with it; one of those in `state` would do"))
    if problems:
        raise ConfigError(problems)
