"""What a sealed test claims in words: of what it holds, what it assumes, and what its seeds cannot exclude."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research.contract.track import OPENINGS
from research.ledger.kinds import Futile
from research.text import count


def scope(test: Mapping[str, Any]) -> str:
    """A sentence or two about a comparison of the sealed test; nothing of a ledger of 0.2, which did not say."""
    if "unseen" not in test:
        return ""
    n, bad, most = test["n"], test["bad_seeds"], f"up to {test['unseen']:.0%} of seeds may be (95 %)"
    rank = f"the exact rank test, which needs symmetry alone, gives p = {test['rank_p']:.2g}"
    if bad:
        return (f"The claim is about most seeds: {bad} of {count(n, 'seed')} ended worse than the incumbent's median, "
                f"and {most}; {rank}.")
    return (f"The claim is about the mean over seeds and assumes that no rare seeds lose much: none of {n} ended worse "
            f"than the incumbent's median, and {most}; {rank}.")


def within(test: Mapping[str, Any], digits: int = 3) -> str:
    """The interval of a comparison."""
    if not test.get("interval"):
        return "too few seeds for an interval"
    low, high = test["interval"]
    return f"95 % interval {low:.{digits}f} to {high:.{digits}f}"


def books(row: Mapping[str, Any]) -> str:
    """Where an attempt's number comes from (a row of Facts.verifications), and what nobody can notice."""
    if not row["rule"]:
        return ""
    opened = f"the {row['split']} split had been opened {count(row['opened'], 'time')} before"
    if row["split"] != row["first"]:
        opened += f", in place of {row['first']}, which was opened {OPENINGS} times"
    if row["opened"] >= OPENINGS:
        opened += ": there is no other, and what was chosen on it for so long says less of unseen text"
    if not row["registry"]:
        return f"The session alone has counted its attempts; {opened}."
    return (f"Attempt {row['attempt']} of all that registry {row['registry']} knows of this track and data; {opened}. "
            "A registry that was deleted, or lies on another machine and was not joined, cannot be noticed.")


def spared(body: Futile, name: str) -> str:
    """Why no attempt was spent on a candidate."""
    on = f" (gains over the incumbent: {', '.join(f'{gain:+.4f}' for gain in body.gains)})" if body.gains else ""
    return f"no attempt was spent on {name}: {body.why}{on}"
