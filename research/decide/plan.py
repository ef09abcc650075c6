"""The session's time: how much is left, how long a proof takes, and when it must begin."""

from __future__ import annotations

import time

from jaxnano.config.base import dump
from jaxnano.config.recipe import recipe_id
from research.contract.track import Track
from research.decide import ablation, futility
from research.decide.belief import Belief, Snapshot
from research.decide.choose import fitting, untimed
from research.decide.intake import base_proposal
from research.decide.price import Prices
from research.ledger.kinds import Begun, Proposed
from research.ledger.state import State

REPORT_S = 15.0  # kept back for the champion's folder and the report
EXPECTED = 9  # fresh seeds of a verification: six show a large effect, and a small one needs more
RUNS_A_PART = 2.5  # of an ablation, by docs/bench.md
MARGIN = 1.15  # on the predicted time of an ablation
LEAST_PROOF = 0.5  # share of a verification's predicted time under which it is not begun
MOST_PROOF = 0.75  # share of a round that the proof may keep from the search: without one there is nothing to prove
ROUND_MINUTES = 20.0  # a longer session proves a candidate about so often
LEAST_RUNS = 3.0  # of the shortest, one after the other, that fit into a round's search
TENTHS = 10  # of a minute, in which the least time is told


def unbegun(track: Track, session: Begun) -> Snapshot:
    """The belief of a session, its event's body given, that knows the base and nothing else."""
    base, state = recipe_id(track.base_recipe), State(begun=session)
    state.proposals[base] = Proposed(proposal=base_proposal(track), recipe=dump(track.base_recipe))
    state.accepted.add(base)
    return Belief(track).at(state)


def pruning_runs(parts: int) -> float:
    """Full runs from a nomination until it can be said whether what an ablation leaves is worth an attempt."""
    return RUNS_A_PART * parts + 2 * ablation.LEAST + 2 * futility.LEAST


def minutes_left(state: State) -> float:
    """What a session that is resumed without --minutes has left."""
    return max(0.0, state.session.minutes + (state.granted_s - state.wall_s) / 60)


def least_minutes(snapshot: Snapshot, workers: int, minutes: float) -> float:
    """`minutes` if a run fits into them beside proof and report, after the base's own, else the next that would do.

    In tenths.

    The one that is told has a tenth to spare, for what comes before the first run.
    """
    prices = Prices(snapshot if snapshot.arms else unbegun(snapshot.track, snapshot.state.session))

    runs = 1 if prices.snapshot.over.get(prices.snapshot.arms[0].recipe_id) else 2  # the base goes first

    def fits(minutes: float) -> bool:
        plan = Plan(snapshot.track, workers, 60 * minutes)
        left_s = plan.search_left_s(prices, 1)
        return left_s > 0 and (untimed(prices) or bool(fitting(prices, 0, left_s / runs)))

    if fits(minutes):
        return minutes
    tenths = int(TENTHS * minutes)
    while not (fits(tenths / TENTHS) and fits((tenths + 1) / TENTHS)):  # where a proof begins to fit, search shrinks
        tenths += max(1, tenths // 100)  # a hundredth more than the least does no harm to somebody's hours
    return (tenths + 1) / TENTHS


def resuming(snapshot: Snapshot, session: object = "SESSION") -> str:
    """The command that goes on with a session, with the time that it has to be given where too little is left."""
    left = minutes_left(snapshot.state)
    least = least_minutes(snapshot, snapshot.state.session.workers, left)
    return f"python -m research.loop --resume --session {session}" + (f" --minutes {least:g}" if least > left else "")


class Plan:
    """Time from now until the report must be there.

    Args: workers: how many run at once. budget_s: seconds, report included.
    """

    def __init__(self, track: Track, workers: int, budget_s: float):
        self.track, self.workers = track, workers
        self.start_s, self.end_s = time.monotonic(), budget_s - REPORT_S
        self.rounds = max(1, round(budget_s / 60 / ROUND_MINUTES))
        self._granted_s = 0.0  # of what people have added, taken in already

    def grant(self, state: State, before_s: float, now: float) -> None:
        """Take in the time that people have added in this sitting; a pause that is not over goes on.

        Args: before_s: what they had added before it. now: Unix seconds.
        """
        granted_s = state.granted_s - before_s + (now - state.paused.time if state.paused else 0.0)
        self.end_s, self._granted_s = self.end_s + granted_s - self._granted_s, granted_s

    @property
    def left_s(self) -> float:
        """Seconds until the report must begin."""
        return self.end_s - (time.monotonic() - self.start_s)

    def search_left_s(self, prices: Prices, round_: int) -> float:
        """Seconds of search left in a round (1, 2, ...), less the proof's share; all there are if no proof fits."""
        if self.too_late(prices):
            return self.left_s
        rounds = self._rounds(prices)
        after_s = self.end_s * (1.0 - min(1.0, round_ / rounds))
        return self.left_s - after_s - min(self.proof_s(prices), MOST_PROOF * self.end_s / rounds)

    def _rounds(self, prices: Prices) -> int:
        """No round is shorter than two verifications, or what leaves the search some runs: those of a large model take
        hours."""
        shortest_s = prices.wall_s(prices.snapshot.arms[0], min(self.track.horizons), 0)
        least_s = max(2 * self.verification_s(prices), LEAST_RUNS * shortest_s / (1 - MOST_PROOF))
        return max(1, min(self.rounds, int(self.end_s / least_s)))

    def too_late(self, prices: Prices) -> bool:
        """Whether a verification begun now would far outlast the session."""
        return self.left_s < LEAST_PROOF * self.verification_s(prices)

    def proof_s(self, prices: Prices) -> float:
        """Predicted seconds from nomination to verdict for the present best."""
        best = prices.snapshot.best
        parts, programs = (len(best.parts), best.programs) if best else (0, 1)
        ablation_s = pruning_runs(parts) * prices.full_run_s + (parts + 2) * programs * prices.compile_s
        return MARGIN * prices.slowdown * ablation_s / self.workers + self.verification_s(prices)

    def kept_s(self, prices: Prices, programs: int, seeds: int) -> float:
        """Seconds that an ablation leaves: to tell whether an attempt is worth it, and for a verification.

        Args: programs: of a recipe that the ablation will yet have tried, 0 where none is to come. seeds: that the
            verification takes.
        """
        runs = 2 * futility.LEAST + self.workers + ablation.LEAST * bool(programs)
        runs_s = runs * prices.full_run_s / self.workers + programs * prices.compile_s  # one worker compiles
        return prices.slowdown * runs_s + self.verification_s(prices, seeds)

    def verification_s(self, prices: Prices, seeds: int = EXPECTED) -> float:
        """Predicted seconds of a verification: incumbent and candidate on as many seeds as it may well take."""
        runs = 2 * min(self.track.significance.n, seeds) + self.workers
        return prices.slowdown * runs * prices.full_run_s / self.workers
