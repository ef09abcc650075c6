"""Which lane is asked for the next proposals: by what its runs added to the best, by the second."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

HALF_LIFE, RECENT = 30.0, 10.0  # runs, and proposals, after which one counts half


class Reward(NamedTuple):
    """What one of a lane's runs brought: the rise of the best full-horizon mean (nats, >= 0), and what it cost."""

    lane: str
    gain: float
    device_s: float


def fading(count: int, half_life: float) -> np.ndarray:
    """What each of so many things, oldest first, still counts."""
    return 0.5 ** (np.arange(count)[::-1] / half_life)


def share(lanes: Sequence[str], rewards: Sequence[Reward], exploration: float = 0.3) -> Mapping[str, float]:
    """Share of the next proposals each lane is asked for; sums to 1.

    `exploration` is split evenly whatever happened; the rest goes by an upper confidence bound of the gain per
    device-second, so that a lane not tried yet is not starved; merits and costs fade.
    Args: rewards: oldest first. Raises: ValueError without a lane, or if exploration is outside [0, 1].
    """
    if not lanes or not 0.0 <= exploration <= 1.0:
        raise ValueError(f"a share needs at least one lane and exploration in [0, 1], got {list(lanes)}, {exploration}")
    rewards = [r for r in rewards if r.lane in lanes]
    told = np.array([(1.0, r.gain, r.device_s) for r in rewards]).reshape(-1, 3)
    told *= fading(len(rewards), HALF_LIFE)[:, None]
    runs, gain, spent_s = told.sum(0)
    typical_s, overall = (max(spent_s, 1e-9) / runs, gain / max(spent_s, 1e-9)) if len(rewards) else (1.0, 0.0)
    bounds = []
    for lane in lanes:
        n, own, own_s = told[[r.lane == lane for r in rewards]].sum(0)
        # two typical runs at the overall rate are what a lane is credited with before it has done anything
        rate = (own + 2 * typical_s * overall) / (own_s + 2 * typical_s)
        bounds.append(rate + overall * np.sqrt(np.log1p(runs) / (n + 1)))
    total, even = sum(bounds), 1.0 / len(lanes)
    bandit = [b / total if total > 0 else even for b in bounds]
    return {lane: float(exploration * even + (1 - exploration) * b) for lane, b in zip(lanes, bandit, strict=True)}


def asked_by(lanes: Sequence[str]) -> dict[str, float]:
    """How often each lane was asked, older times counting less. lanes: of every proposal, oldest first."""
    found: dict[str, float] = {}
    for lane, weight in zip(lanes, fading(len(lanes), RECENT), strict=True):
        found[lane] = found.get(lane, 0.0) + float(weight)
    return found


def next_lane(shares: Mapping[str, float], asked: Mapping[str, float]) -> str:
    """The lane furthest behind its share, given how often each was asked so far; ties by order."""
    total = sum(asked.get(lane, 0) for lane in shares) + 1
    return max(shares, key=lambda lane: shares[lane] * total - asked.get(lane, 0))
