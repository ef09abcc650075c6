"""What a recipe is called where it is shown: by what it adds to the recipe that it was put on.

`base`; a champion by a handle of two words; every other by its number and what separates its parts from its parent's:
`#57 = base + rotary`, `#61 = amber-heron + output-gate - smear`, `#70 = #61 ~ warmup` (~: a part of that name, but
otherwise).
The full list of a recipe's parts stands in one place, where its diff is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from research.contract.part import BASE, FROM, Part, Proposal
from research.ledger.state import State
from research.text import clean, cut

NAMED, PART = 3, 28  # changes told by name; characters of one
ADJECTIVES = """
amber ashen azure bold brave brisk bronze calm clear cobalt coral crisp dapple deft dusky eager early ember fair
fleet frosty gentle gilded glad golden grand green hardy hazel humble indigo ivory jade jolly keen kind lilac lively
lucid lunar mellow merry misty mossy nimble noble ochre olive pearl plain plum proud quick quiet rapid ruby rustic
sable sage scarlet sharp silent silver sleek"""
ANIMALS = """
adder badger beaver bison bittern bobcat buzzard caribou cicada condor cougar coyote crane curlew dingo dipper dolphin
eagle egret falcon ferret finch fox gannet gecko gull hare harrier hawk heron hornet ibex ibis jackal jay kestrel kite
koala lark lemur linnet lizard lynx magpie marmot marten merlin mink moose newt ocelot orca osprey otter owl panther
petrel pika plover puffin puma raven robin seal"""
FIRST, SECOND = ADJECTIVES.split(), ANIMALS.split()


def handle(recipe_id: str) -> str:
    """Two words for a recipe id: always the same ones."""
    number = int(recipe_id[:8], 16)
    return f"{FIRST[number % len(FIRST)]}-{SECOND[number // len(FIRST) % len(SECOND)]}"


def changes(parts: Sequence[Part], parents: Sequence[Part]) -> str:
    """What separates parts from a parent's: + what was added, - what was taken, ~ what is otherwise; empty if nothing.
    """
    own, old = set(parts), set(parents)
    added, gone = [p.name for p in parts if p not in old], [p.name for p in parents if p not in own]
    other = [name for name in added if name in gone]
    told = [*(("~", name) for name in other), *(("+", name) for name in added if name not in other),
            *(("-", name) for name in gone if name not in other)]
    if len(told) <= NAMED:
        return " ".join(f"{sign} {cut(name, PART)}" for sign, name in told)
    named, rest = told[:NAMED - 1], [sign for sign, _ in told[NAMED - 1:]]
    more = [f"{sign} {rest.count(sign)} more" for sign in dict.fromkeys(rest)]
    return " ".join([*(f"{sign} {cut(name, PART)}" for sign, name in named), *more])


class Names:
    """The names of a state's recipes."""

    def __init__(self, state: State):
        self._proposals = state.proposals
        self._champions = {event.subject for event in state.crowned}

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {recipe_id: number for number, recipe_id in enumerate(self._proposals)}

    def brief(self, recipe_id: str) -> str:
        """The shortest that tells it from all others: `base`, a handle, or its number."""
        if (proposal := self._proposal(recipe_id)) is None:
            return clean(recipe_id[:8])
        if proposal.lane == BASE:
            return BASE
        crowned = recipe_id in self._champions or proposal.lane == FROM
        return handle(recipe_id) if crowned else f"#{self._numbers[recipe_id]}"

    def __call__(self, recipe_id: str) -> str:
        """What it is called."""
        brief, proposal = self.brief(recipe_id), self._proposal(recipe_id)
        if proposal is None or not brief.startswith("#"):
            return brief
        parent = self.parent(recipe_id)
        if parent is None:
            return f"{brief} = {BASE} {changes(proposal.parts, ())}".rstrip()
        put_on = self._proposals[parent].proposal.parts
        return f"{brief} = {self.brief(parent)} {changes(proposal.parts, put_on)}".rstrip()

    def parent(self, recipe_id: str) -> str | None:
        """The recipe that it was put on, if that is known."""
        proposal = self._proposal(recipe_id)
        return next((p for p in proposal.parents if p in self._proposals), None) if proposal else None

    def _proposal(self, recipe_id: str) -> Proposal | None:
        return self._proposals[recipe_id].proposal if recipe_id in self._proposals else None
