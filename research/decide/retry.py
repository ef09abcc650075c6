"""Runs that the machine ended: they say nothing of what was run, and are run again, a bounded number of times.

A search run that takes its worker along every time has failed. A verification is decided by none of that: where its
run cannot be had, or one run after another fails, the loop has to stop, and the attempt stays open for `--resume`.
"""

from __future__ import annotations

from research.ledger.kinds import Result
from research.ledger.state import FINAL, State

TRIES = 3  # attempts at a trial in one sitting of the loop, and such ends in a row that it bears
DECIDED = frozenset({"completed", "diverged"})  # how a verification run ends that the verdict may rest on


class Retries:
    """What the machine did in this sitting of the loop. trouble: why it cannot go on; empty while it can."""

    def __init__(self) -> None:
        self.trouble = ""
        self._in_a_row = self._unmeasured = 0

    def judge(self, state: State, key: str, purpose: str, result: Result) -> Result:
        """The `result` event of a trial's attempt that has just ended; sets `trouble` if it has to.

        Args: state: with the attempt open. purpose: of the attempt. result: how it ended.
        """
        body = unless_undecided(purpose, result)
        self._in_a_row = self._in_a_row + 1 if body.machine else 0
        if not body.says_nothing:
            return body
        sitting, reason = state.stretches[-1].start, body.reason or "no reason given"
        tries = 1 + sum(a.lost and not a.excused and a.started >= sitting for a in state.trials[key].attempts)
        if self._in_a_row >= TRIES:
            self.trouble = f"{TRIES} runs in a row: {reason}"
        elif tries >= TRIES and purpose == "verify":
            self.trouble = f"{TRIES} attempts at verification run {key}: {reason}"
        elif tries >= TRIES:
            return body.model_copy(update={"outcome": "failed"})
        return body

    def unmeasured(self, key: str, reason: str) -> None:
        """A held-out loss could not be had: that too ends the sitting after so many tries."""
        self._unmeasured += 1
        if self._unmeasured >= TRIES:
            self.trouble = f"{TRIES} attempts at the held-out loss of {key}: {reason}"


def unless_undecided(purpose: str, result: Result) -> Result:
    """The result, as the machine's doing if it is a verification run's that neither completed nor diverged.

    What ran in the search and does not run here (its data is not there, say, or the processor is taken) has shown no
    effect.
    """
    if purpose != "verify" or result.outcome not in FINAL - DECIDED:
        return result
    reason = f"{result.outcome}: {result.reason or 'no reason given'}"
    return result.model_copy(update={"outcome": "interrupted", "machine": True, "reason": reason})
