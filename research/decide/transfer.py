"""The transfer card: a champion beside the base where it was not made, and at home beside a preset; one seed each.

It decides nothing: its runs are no trials, so belief, prices and proof do not see them. All are on the seed whose
checkpoint ships, and on the search split of whatever text they are trained on. The held-out split was opened for the
champion when it was crowned; for the base it is afterwards, by training it once more on that seed, so that until then
nobody could know what it loses there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jaxnano.config.base import ConfigError, Node
from jaxnano.config.data import Data
from jaxnano.config.recipe import Recipe, recipe_id, stages, structure_id
from jaxnano.cost import preflight, tokens_per_step
from research.contract.track import Track
from research.contract.transfer import BESIDE, HELD_OUT, HOME, PRESET, TEXT, Setting, abroad, changed, preset, settings
from research.contract.trial import Trial
from research.decide.belief import Snapshot
from research.decide.book import Book
from research.decide.price import NEW, Prices
from research.decide.retry import DECIDED
from research.ledger.kinds import Transferred

SHARE = 0.1  # of a sitting's time, at most
NOT_RUN = "not run: `python -m research.transfer SESSION` would"


class Line(Node):
    """What the card says of a setting. base: its loss there, or the preset's, beside it. gain: that less the
    champion's. share: of the gain at home, on this seed. seconds: of devices. data: hash of another text. why: a loss
    is missing."""

    setting: str
    seed: int
    base: float | None = None
    champion: float | None = None
    gain: float | None = None
    share: float | None = None
    seconds: float | None = None
    data: str = ""
    why: str = ""


@dataclass(frozen=True)
class Trip:
    """One run of the card. track: as it is there. splits: tokens that it is evaluated on."""

    setting: Setting
    role: str
    recipe: Recipe
    track: Track
    seed: int
    splits: Mapping[str, int]

    @cached_property
    def trial(self) -> Trial:
        """What names it, below transfer/."""
        return Trial(recipe_id(self.recipe), self.setting.horizon, self.seed)

    @cached_property
    def steps(self) -> int:
        """Of the run, where no time decides them."""
        return self.track.steps(self.recipe, self.setting.horizon)

    @cached_property
    def flops(self) -> float:
        """Of training."""
        return self.steps * preflight(self.recipe).flops_per_step


class Errand(NamedTuple):
    """A run that is given out. champion: whose card. budget_s: of training, where time decides its steps. predicted_s:
    until it is over. ends_s: when it is cut off, on the monotonic clock."""

    champion: str
    trip: Trip
    budget_s: float | None
    predicted_s: float
    ends_s: float

    @property
    def told(self) -> str:
        """For people."""
        return f"{self.trip.role}, {self.trip.setting.name}"


class Card:
    """The last champion's card, as far as its ledger has it now.

    Args: text: another one than the track's own other text.
    """

    def __init__(self, snapshot: Snapshot, text: Data | None = None):
        self.snapshot, self.state, self.track, self.text = snapshot, snapshot.state, snapshot.track, text
        self.crown = self.state.crowned[-1]
        self.champion, self.seed = self.crown.subject, self.state.trials[self.crown.body.trial].seed
        self._trips: dict[str, list[Trip] | ConfigError] = {}

    @property
    def found(self) -> dict[tuple[str, str], Transferred]:
        """How runs ended, by setting and role; the last one counts."""
        return {(e.body.setting, e.body.role): e.body for e in self.state.transfers if e.subject == self.champion}

    @cached_property
    def settings(self) -> list[Setting]:
        """Those that need runs; of the texts, not the one that nobody has, where somebody brought another."""
        found = settings(self.track, self.text)
        brought = any(name.startswith("text: ") for name, _ in self.found)
        return [Setting(HELD_OUT), *(s for s in found if not (s.name == TEXT and brought)), Setting(BESIDE)]

    def trips(self, setting: Setting) -> list[Trip] | ConfigError:
        """The runs of a setting, the base's first; or why one of them cannot be."""
        if setting.name not in self._trips:
            try:
                self._trips[setting.name] = self._planned(setting)
            except ConfigError as error:
                self._trips[setting.name] = error
        return self._trips[setting.name]

    def _planned(self, setting: Setting) -> list[Trip]:
        track, own = abroad(self.track, setting), self.snapshot.by_id[self.champion].recipe
        splits = {track.splits.search: track.eval_tokens}
        if setting.name == BESIDE:
            return [Trip(setting, PRESET, preset(track), track, self.seed, splits)]
        if setting.name == HELD_OUT:  # which is known of the champion
            splits[track.splits.heldout] = track.proof_tokens
            return [Trip(setting, "base", track.base_recipe, track, self.seed, splits)]
        return [Trip(setting, role, recipe, track, self.seed, splits) for role, recipe in
                (("base", track.base_recipe), ("champion", changed(own, setting)))]

    def missing(self, setting: Setting) -> list[Trip]:
        """Its runs that have not come to an end which says something; none where one of them cannot be."""
        found, trips = self.found, self.trips(setting)
        ended = {role for (name, role), body in found.items() if name == setting.name and body.outcome in DECIDED}
        return [] if isinstance(trips, ConfigError) else [trip for trip in trips if trip.role not in ended]

    def budget_s(self, trip: Trip) -> float | None:
        """Seconds that a run may train for, where time decides its steps; of the base's, once that is measured."""
        if trip.role == PRESET:
            return self.track.seconds(1.0, Prices(self.snapshot).base_step_s)
        if not self.track.objective.waits_for_base:
            return self.track.seconds(trip.setting.horizon, None)
        made = self.found.get((trip.setting.name, "base"))
        if trip.role == "base" or made is None or not made.tokens_per_s:
            return None
        return trip.track.seconds(trip.setting.horizon, tokens_per_step(trip.track.base_recipe) / made.tokens_per_s)

    def lines(self) -> list[Line]:
        """The card: at home, on the held-out split, then wherever runs have been or may be."""
        found, search = self.found, self.track.splits.search
        losses = {where: body.loss.get(search) for where, body in found.items()}
        base, own = (self.state.losses(recipe_id, 1.0, search).get(self.seed)
                     for recipe_id in (self.snapshot.arms[0].recipe_id, self.champion))
        again = found[HELD_OUT, "base"].loss if (HELD_OUT, "base") in found else {}
        home = self._line(HOME, again.get(search) if base is None else base, own)
        lines = [home, self._line(HELD_OUT, again.get(self.track.splits.heldout), self.crown.body.heldout, home.gain)]
        for name in dict.fromkeys([*(setting.name for setting in self.settings), *(name for name, _ in found)]):
            if name != HELD_OUT:
                base, own = (losses.get((name, role)) for role in ("base", "champion"))
                if name == BESIDE:
                    base, own = losses.get((name, PRESET)), home.champion
                lines.append(self._line(name, base, own, home.gain))
        return lines

    def _line(self, name: str, base: float | None, own: float | None, home: float | None = None) -> Line:
        ran = [body for (setting, _), body in self.found.items() if setting == name]
        gain = None if base is None or own is None else base - own
        data = {str(body.fingerprint.get("data", "")) for body in ran} - {self.state.session.data_hash}
        return Line(setting=name, seed=self.seed, base=base, champion=own, gain=gain,
                    share=gain / home if gain is not None and home is not None and home > 0 else None,
                    seconds=sum(body.device_s or 0.0 for body in ran) if ran else None, data=max(data, default=""),
                    why=self._why(name, ran) if gain is None else "")

    def failed(self) -> list[str]:
        """What came to no end that says something."""
        return [f"{name}: {_ending(body)}" for (name, _), body in self.found.items() if body.outcome not in DECIDED]

    def _why(self, name: str, ran: list[Transferred]) -> str:
        """Why a loss is missing."""
        if bad := [_ending(body) for body in ran if body.outcome != "completed"]:
            return "; ".join(bad)
        for setting in self.settings:
            if setting.name == name and isinstance(error := self.trips(setting), ConfigError):
                return f"refused: {error.problems[0]}"
        return NOT_RUN


class Carrier:
    """Gives the runs of the last champion's card out, the cheapest setting first, each once, while they fit.

    Args: most_s: seconds from the first one on. text: see Card.
    """

    def __init__(self, book: Book, most_s: float = math.inf, text: Data | None = None):
        self.book, self.most_s, self.text = book, most_s, text
        self._ends_s: float | None = None
        self._given: set[tuple[str, str, str]] = set()
        self._card: Card | None = None

    @property
    def card(self) -> Card | None:
        """The last champion's, if there is one."""
        crowned = self.book.state.crowned
        if crowned and (self._card is None or self._card.crown is not crowned[-1]):
            self._card = Card(self.book.snapshot, self.text)
        return self._card

    def _open(self, card: Card) -> list[tuple[float, list[Trip]]]:
        """The runs that are not given out yet, by setting, with their predicted seconds; the cheapest first."""
        left = ([trip for trip in card.missing(setting) if (card.champion, setting.name, trip.role) not in self._given]
                for setting in card.settings)
        priced = [(sum(self._price_s(card, trip) for trip in trips), trips) for trips in left if trips]
        return sorted(priced, key=lambda row: row[0])

    def _price_s(self, card: Card, trip: Trip) -> float:
        """Predicted seconds until a run begun now is over."""
        prices: Prices = self.book.prices
        trained_s = card.budget_s(trip) or trip.flops * prices.flop_s
        programs = {structure_id(part.recipe) for part in stages(trip.recipe)}
        return prices.slowdown * (trained_s + prices.begins_s(structure_id(trip.recipe), len(programs), NEW))

    def next(self, workers: int, left_s: float = math.inf) -> Errand | None:
        """The next run, if its setting is begun or fits. left_s: of the session."""
        now_s = time.monotonic()
        left_s = min(left_s, self.most_s if self._ends_s is None else self._ends_s - now_s)
        if (card := self.card) is None or left_s <= 0:
            return None
        for price_s, (trip, *others) in self._open(card):
            budget_s = card.budget_s(trip)
            waits = card.track.objective.waits_for_base and trip.role == "champion" and budget_s is None
            begun = (card.champion, trip.setting.name, "base") in self._given
            if waits or not begun and price_s / min(workers, 1 + len(others)) > left_s:
                continue
            self._given.add((card.champion, trip.setting.name, trip.role))
            self._ends_s = now_s + self.most_s if self._ends_s is None else self._ends_s
            return Errand(card.champion, trip, budget_s, self._price_s(card, trip), now_s + left_s)
        return None


def _ending(body: Transferred) -> str:
    return f"{body.role}: {body.outcome}: {body.reason or 'no reason given'}"
