"""Why a trial was run, what it was, what came out and what it taught; or the same of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from jaxnano.config.edit import changed
from research.contract.trial import Trial
from research.decide.belief import Belief, Snapshot
from research.decide.book import track_of
from research.ledger.events import Event
from research.ledger.kinds import Competitor, Decided
from research.ledger.state import Attempt, TrialRecord, fold
from research.show.facts import Facts
from research.text import beginning, effect, loss, spread, the_one

SAMPLES = 4096  # joint draws of the candidates' effects, for the best value's uncertainty
RIVALS = 256  # candidates that may be the best


def explain(events: Sequence[Event], text: str) -> list[str]:
    """Lines about a trial or a recipe, from the ledger's events alone.

    Raises: UserError if nothing, or more than one thing, is called so; a recipe goes before its trials.
    """
    facts = Facts.of(fold(events))
    trials, recipes = facts.state.trials, facts.state.proposals
    found = the_one(repr(text), beginning(text, recipes) or beginning(text, trials),
                    "no trial or recipe of this session begins with it; its report lists them")
    return list(_trial(facts, events, trials[found]) if found in trials else _recipe(facts, found))


def _recipe(facts: Facts, recipe_id: str) -> Iterator[str]:
    """What a recipe is, what is believed of it, and its runs."""
    yield from _what(facts, recipe_id)
    if recipe_id not in facts.state.accepted:
        yield "refused by the gate; it was never run"
        return
    yield f"belief now: {_belief(facts.snapshot, recipe_id)}"
    yield ""
    yield "runs:"
    split = facts.track.splits.search
    for trial in facts.state.trials.values():
        if trial.recipe_id == recipe_id:
            found = f", {split} loss {loss(trial.loss[split])}" if split in trial.loss else ""
            yield f"  {trial.key}: {trial.outcome}{found}{_over(facts, trial)}"


def _over(facts: Facts, trial: TrialRecord) -> str:
    """A run's gains over base, parent and leader, on its own seed."""
    run, told = facts.run(trial), {}
    for name, rival, gain in (("the base", facts.base, run.gain), ("its parent", run.parent, run.gain_over_parent),
                              ("the leader", run.leader, run.gain_over_leader)):
        if gain is not None:
            told.setdefault(rival, f"{effect(gain)} over {name}")
    return f", on seed {trial.seed}: {', '.join(told.values())}" if told else ""


def _what(facts: Facts, recipe_id: str) -> Iterator[str]:
    proposal = facts.proposal(recipe_id)
    yield f"recipe {recipe_id}: {facts.name(recipe_id)}"
    if proposal.name:
        yield f"  {proposal.name}"
    yield f"  lane {proposal.lane}, from {proposal.origin or 'nowhere in particular'}"
    yield f"  hypothesis: {proposal.hypothesis}"
    for part in proposal.parts:
        why = f": {part.why}" if part.why else ""
        yield f"  part {part.name} ({part.source or 'no source'}, expected {part.effect:+.3f}){why}"
    for edit in facts.edits(recipe_id):
        yield f"    {changed(**edit)}"


def _trial(facts: Facts, events: Sequence[Event], trial: TrialRecord) -> Iterator[str]:
    """A trial from its decisions to what each attempt taught."""
    recipe_id = trial.recipe_id or Trial.of(trial.key).recipe_id
    yield f"trial {trial.key}: {trial.outcome}"
    yield from _what(facts, recipe_id)
    for decision in trial.decisions:
        yield ""
        known = decision.seq - 1 if decision.body.as_of is None else decision.body.as_of
        yield from _why(facts, before(events, known + 1), decision, recipe_id)
    for attempt in trial.attempts:
        yield ""
        yield from _outcome(facts, trial, attempt)
        end = next((e for e in events if e.kind == "result" and e.subject == trial.key
                    and e.body.attempt == attempt.number), None)
        if end is not None:
            yield from _lesson(before(events, end.seq), before(events, end.seq + 1), recipe_id)


def before(events: Sequence[Event], seq: int) -> Snapshot:
    """The belief when all events before `seq` were known, and no other."""
    state = fold(event for event in events if event.seq < seq)
    return Belief(track_of(state)).at(state)


def _why(facts: Facts, then: Snapshot, decision: Event[Decided], recipe_id: str) -> Iterator[str]:
    body = decision.body
    yield f"decision (event {decision.seq}): {body.purpose} on worker {body.worker}; {body.why}"
    yield f"  belief then: {_belief(then, recipe_id)}"
    if body.eig is None or body.winner is None:
        return
    yield (f"  promised {body.eig:.3g} nats of information about the best value and an improvement of "
           f"{body.improvement:.3g} for {body.cost_s:.1f} device-seconds")  # a new cell's price holds the base's run
    if body.winner.trial != decision.subject:
        yield f"  it came first because {body.winner.trial} ({_called(facts, body.winner)}) needs the base in its cell"
    for other in body.runners_up:
        promise = f"{other.eig:.3g} nats, {other.improvement:.3g}, {other.cost_s:.1f} s"
        yield f"  rather than {other.trial} ({_called(facts, other)}): {promise}"


def _called(facts: Facts, one: Competitor) -> str:
    return facts.name(Trial.of(one.trial).recipe_id)


def _outcome(facts: Facts, trial: TrialRecord, attempt: Attempt) -> Iterator[str]:
    result = attempt.result
    if result is None:
        yield f"attempt {attempt.number}: running on worker {attempt.worker}"
        return
    reason = f": {result.reason}" if result.reason else ""
    yield f"attempt {attempt.number}: {result.outcome}{reason}"
    for split, value in result.loss.items():
        yield f"  {split} loss {loss(value)} {facts.unit}"
    if result.outcome == "completed":
        if trial.recipe_id != facts.base:
            yield f"  gain{_over(facts, trial) or ' over the base in its cell: no base run there'}"
        yield (f"  {result.steps} steps in {result.device_s or 0.0:.1f} device-seconds, "
               f"{result.compile_s or 0.0:.1f} of them compiling")
    if predicted := result.predicted:
        yield f"  its predicted final loss was {predicted[0]:.4f} ± {predicted[1]:.4f}"
    if result.audit is not None and result.audit.predicted:
        mean, sd = result.audit.predicted
        yield f"  found hopeless and finished for the audit; its predicted final loss was {mean:.4f} ± {sd:.4f}"


def _lesson(old: Snapshot, new: Snapshot, recipe_id: str) -> Iterator[str]:
    yield f"  what it taught: before {_belief(old, recipe_id)}; after {_belief(new, recipe_id)}"
    was, now = best_sd(old), best_sd(new)
    if was is not None and now is not None:
        yield f"  uncertainty of the best candidate's value: ± {was:.4f} before, ± {now:.4f} after"


def _belief(snapshot: Snapshot, recipe_id: str) -> str:
    """Mean and standard deviation of a recipe's effect."""
    if not (at := snapshot.index.get(recipe_id)):
        return "unknown, it was not accepted yet" if at is None else "the base, whose effect is 0"
    return spread(*Facts(snapshot).effect(recipe_id))


def best_sd(snapshot: Snapshot) -> float | None:
    """Standard deviation of the best candidate's full-horizon effect, whichever it is; None without candidates."""
    if len(snapshot.arms) < 2:
        return None
    mean, sd = snapshot.effects
    rivals = np.argsort(-(mean + 3 * sd), kind="stable")[:RIVALS]
    mean, covariance = snapshot.fitted.predict([snapshot.arms[i].candidate for i in rivals])
    draws = np.random.default_rng(0).multivariate_normal(mean, covariance, SAMPLES, method="eigh")
    return float(draws.max(1).std())
