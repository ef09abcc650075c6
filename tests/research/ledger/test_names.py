"""Recipes are called by what they add; no two of a session are called alike."""

import pytest

from research.contract.part import Part, Proposal
from research.ledger.events import Event
from research.ledger.kinds import Crowned, Proposed
from research.ledger.names import FIRST, SECOND, Names, changes, handle
from research.ledger.state import State


def part(name, new=1):
    return Part(name=name, edits=({"path": "model.depth", "new": new},))


A, B, C, D, E = map(part, "abcde")


@pytest.mark.parametrize(("own", "parent", "told"), [
    ((), (), ""), ((A,), (), "+ a"), ((A, B), (A,), "+ b"), ((A,), (A, B), "- b"), ((A, C), (A, B), "+ c - b"),
    ((part("a", 2), B), (A, B), "~ a"), ((A, B, C), (), "+ a + b + c"), ((A, B, C, D), (), "+ a + b + 2 more"),
    ((A,), (B, C, D, E), "+ a - b - 3 more"), ((part("y" * 90),), (), "+ " + "y" * 25 + "...")])
def test_changes(own, parent, told):
    assert changes(own, parent) == told


def state(*proposals):
    """A state of proposals: (id, parts, parents, lane)."""
    found = State()
    for recipe_id, parts, parents, lane in proposals:
        found.proposals[recipe_id] = Proposed(recipe={}, proposal=Proposal(
            name="+".join(p.name for p in parts), parts=parts, hypothesis="", lane=lane, parents=parents))
    return found


def test_names():
    made = state(("0" * 16, (), (), "base"), ("1" * 16, (A,), (), "catalogue"),
                 ("2" * 16, (A, B), ("1" * 16,), "tuner"), ("3" * 16, (A,), ("2" * 16,), "simplify"),
                 ("4" * 16, (C,), ("f" * 16,), "inbox"), ("5" * 16, (D,), ("0" * 16,), "from"))
    names = Names(made)
    inherited = handle("5" * 16)
    assert [names(recipe_id) for recipe_id in made.proposals] == [
        "base", "#1 = base + a", "#2 = #1 + b", "#3 = #2 - b", "#4 = base + c", inherited]
    assert names("abcdef0123456789") == "abcdef01"  # nobody proposed it
    made.crowned.append(Event(1, 0.0, "crowned", "2" * 16, Crowned(trial="t", name="a+b")))
    names = Names(made)
    assert names("2" * 16) == handle("2" * 16) and names("3" * 16) == f"#3 = {handle('2' * 16)} - b"
    assert names.parent("3" * 16) == "2" * 16 and names.parent("4" * 16) is None


def test_handles_are_spread():
    assert len({handle(f"{i * 2654435761 % 2**32:08x}") for i in range(200)}) > 185
    assert len(set(FIRST)) == len(set(SECOND)) == 64
