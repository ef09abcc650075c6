"""What a long session costs to think about: a made-up ledger of thousands of runs, and the time of each step.

    python -m research.check.bench scale runs/long                    # 10,000 trials, 500,000 points of curves
    python -m research.check.bench scale runs/long --only status      # of the ledger that is there

Recipes are the catalogue's ideas put together and tuned, losses are made up: a sum over a recipe's leaves, pairs of
leaves, a level of each cell and noise. The folder is a session; it is made anew only where there is none.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxnano.cli import Command, UserError, positive, seed_number
from jaxnano.config.base import dump, dump_full, leaves
from jaxnano.config.recipe import Recipe, recipe_id
from research.contract.idea import ideas, part
from research.contract.part import BASE, IdeaEdit, Part, Proposal, conflict, title
from research.contract.proposal import build
from research.contract.track import Track, load_track
from research.contract.trial import Trial
from research.decide.belief import SEEDS, Belief, sketched
from research.decide.book import track_of
from research.decide.choose import decide
from research.decide.intake import base_proposal
from research.decide.price import Prices
from research.lanes.catalogue import alone
from research.lanes.tuner import moved
from research.learn.kernel import Features
from research.ledger.events import Event, encode
from research.ledger.kinds import Body, Proposed, Result, Sketch, Started
from research.ledger.session import Session
from research.ledger.state import fold

TRIALS_A_RECIPE = 2.5
STEPS = ("belief", "status")

PARSER = Command("research.check.bench scale", __doc__)
PARSER.description, PARSER.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
PARSER.add_argument("folder", type=Path)
PARSER.add_argument("--track", default="tiny", help="a name below configs/tracks, or a YAML file")
PARSER.add_argument("--trials", type=positive, default=10_000)
PARSER.add_argument("--points", type=positive, default=50, help="of each run's curve")
PARSER.add_argument("--seed", type=seed_number, default=0)
PARSER.add_argument("--runs", type=positive, default=80, help="that are added, one at a time")
PARSER.add_argument("--only", choices=STEPS)
PARSER.add_argument("--json", action="store_true")


def recipes(track: Track, count: int,
            rng: np.random.Generator) -> Iterator[tuple[Recipe, tuple[Part, ...], Sketch]]:
    """Different recipes: up to six ideas that go together, most of them tuned."""
    base, known, seen = track.base_recipe, [*alone(track)], set()  # type: ignore[arg-type]  # frozen, so it hashes
    while len(seen) < count:
        parts: tuple[Part, ...] = ()
        for name in rng.choice(known, rng.integers(1, 7), replace=False):
            new = part(ideas()[str(name)], base, track.epsilon)
            parts += () if any(conflict(new, old) for old in parts) else (new,)
        try:
            recipe = build(base, parts)
            able = [leaf for leaf in leaves(recipe) if leaf.path.startswith("optimizer")]
            chosen = [able[i] for i in rng.choice(len(able), rng.integers(0, 4), replace=False)]
            edits = tuple(IdeaEdit(path=leaf.path, new=moved(leaf, rng)) for leaf in chosen)
            parts += (Part(name=f"tune {len(edits)} numbers", edits=edits),) if edits else ()
            recipe = build(base, parts)
            found = sketched(base, recipe)
        except UserError:
            continue
        if recipe_id(recipe) not in seen:
            seen.add(recipe_id(recipe))
            yield recipe, parts, found


class World:
    """Made-up losses: what leaves, and pairs of them, are worth follows from their names."""

    def __init__(self, seed: int):
        self.seed, self._draws = seed, {}

    def draw(self, *name: object) -> float:
        """A standard normal number that goes with a name."""
        if name not in self._draws:
            self._draws[name] = np.random.default_rng([self.seed, *repr(name).encode()]).standard_normal()
        return self._draws[name]

    def effect(self, found: Features) -> float:
        """Of a recipe, nats."""
        worth = {p: self.draw(p) * (1.0 if isinstance(v, str) else math.tanh(v)) for p, v in found.items()}
        pairs = sum(self.draw(p, q) * worth[p] * worth[q] for p in worth for q in worth if p < q)
        return 0.02 * sum(worth.values()) + 0.005 * pairs

    def loss(self, effect: float, trial: Trial) -> float:
        """Of a run."""
        luck = 0.02 * self.draw(trial.seed, trial.horizon) + 0.01 * self.draw(trial.recipe_id, trial.seed)
        return 2.0 + 0.2 * math.log2(1 / trial.horizon) - effect + luck + 0.005 * self.draw(trial.key)


def events(track: Track, trials: int, points: int, seed: int) -> Iterator[tuple[str, str, Body | dict[str, Any]]]:
    """A session of so many trials: kind, subject, body."""
    rng, world = np.random.default_rng(seed), World(seed)
    yield "session", "", {
        "track": track.name, "contract": dump_full(track), "track_hash": track.identity, "data_hash": "d" * 64,
        "seed": seed, "workers": 2, "minutes": 1e6, "lanes": ["catalogue"], "versions": {}, "argv": []}
    base = track.base_recipe
    whole = [(base, (), sketched(base, base)), *recipes(track, max(1, int(trials / TRIALS_A_RECIPE)), rng)]
    effects, cells = {}, [(h, s) for s in range(SEEDS) for h in track.horizons]
    for recipe, parts, found in whole:
        rid = recipe_id(recipe)
        proposal = base_proposal(track) if not parts else Proposal(
            name=title(parts), parts=parts, hypothesis="It may help.", lane="catalogue", origin="made up")
        yield "proposal", rid, Proposed(proposal=proposal, recipe=dump(recipe))
        yield "verdict", rid, {"accepted": True, "ms": 10.0, "sketch": found}
        effects[rid] = world.effect(found.features)
    first, *others = effects
    cells_of_base = [Trial(first, *cell) for cell in cells]
    drawn = (Trial(others[i % len(others)], *cells[rng.integers(len(cells))]) for i in range(10 * trials))
    for trial in list(dict.fromkeys([*cells_of_base, *drawn]))[:trials]:
        scored = [{"trial": trial.key, "name": "made up", "eig": 0.1, "improvement": 0.001, "cost_s": 2.0}] * 6
        yield "decision", trial.key, {"purpose": BASE if trial.recipe_id == first else "search", "worker": 0,
                                      "eig": 0.1, "why": "made up", "winner": scored[0], "runners_up": scored[1:]}
        yield "attempt", trial.key, {"attempt": 1, "worker": 0, "pid": 1, "purpose": "search", "steps": 640,
                                     **trial._asdict()}
        yield "result", trial.key, result(world.loss(effects[trial.recipe_id], trial), points)


def result(loss: float, points: int = 1) -> Result:
    """Of a run that ended so."""
    curve = tuple((round(i / points, 4), round(loss + 2.0 * (1 - i / points), 6)) for i in range(1, points + 1))
    return Result(attempt=1, outcome="completed", loss={"search": loss}, curve=curve, steps=640, device_s=5.0,
                  compile_s=2.0, wall_s=5.5, tokens_per_s=5e4, fingerprint={"backend": "cpu"})


def written(folder: Path, found: Iterator[tuple[str, str, Body | dict[str, Any]]]) -> None:
    """A new session of these events, in one transaction: one by one, each would wait for the disk."""
    with Session.create(folder) as session, session.ledger._transaction() as db:
        db.executemany("INSERT INTO events (time, kind, subject, body, fence) VALUES (?, ?, ?, ?, ?)", (
            (1e9 + number, kind, subject, encode(body), session.ledger.fence)
            for number, (kind, subject, body) in enumerate(found)))


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that it takes, and what comes of it."""
    start = time.perf_counter()
    found = what()
    return time.perf_counter() - start, found


def belief(folder: Path, runs: int, seed: int) -> dict[str, float]:
    """Seconds of thinking: from nothing, and with one run more each time, which is the one that was decided on."""
    found: dict[str, float] = {}
    with Session.open(folder) as session:
        found["ledger read, s"], state = timed(lambda: fold(session.ledger.events()))
    track, world = track_of(state), World(seed)
    book, adding, deciding = Belief(track), [], []
    found["recipes looked at, s"], now = timed(lambda: book.at(state))
    found["first fit, s"], _ = timed(lambda: now.fitted)
    found["first effects, s"], _ = timed(lambda: now.effects)
    for _ in range(runs):
        seconds, chosen = timed(lambda: decide(Prices(now), seed, 0, math.inf))  # noqa: B023
        deciding.append(seconds)
        if chosen is None:
            break
        trial, effect = chosen[0], world.effect(now.by_id[chosen[0].recipe_id].candidate.features)
        for kind, body in (("attempt", Started(attempt=1, worker=0, purpose="search", **trial._asdict())),
                           ("result", result(world.loss(effect, trial)))):
            state.apply(Event(state.seq + 1, 2e9 + state.seq, kind, trial.key, body))
        now = book.at(state)
        adding.append(timed(lambda: (now.fitted, now.effects))[0])  # noqa: B023
    found["one more run, median s"], found["one more run, longest s"] = float(np.median(adding)), max(adding)
    found["first decision, s"], found["decision, median s"] = deciding[0], float(np.median(deciding[1:]))
    return found | {"memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def status(folder: Path) -> dict[str, float]:
    """Seconds of the command, the first time and again."""
    command = [sys.executable, "-m", "research.status", str(folder), "--json"]
    seconds = [timed(lambda: subprocess.run(command, check=True, capture_output=True))[0] for _ in range(3)]
    return {"status, first, s": seconds[0], "status, again, s": min(seconds[1:])}


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = PARSER.options(argv)
    found: dict[str, float] = {}
    if not options.folder.exists():
        track = load_track(options.track)
        found["ledger made, s"], _ = timed(lambda: written(options.folder, events(
            track, options.trials, options.points, options.seed)))
    if options.only != "belief":
        found |= status(options.folder)
    if options.only != "status":
        found |= belief(options.folder, options.runs, options.seed)
    print(json.dumps(found) if options.json else "\n".join(
        ["| what | |", "|---|---|", *(f"| {what} | {value:.2f} |" for what, value in found.items())]))
    return 0
