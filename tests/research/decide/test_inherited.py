"""A session that starts from an earlier one's champion: that is what has to be beaten."""

import pytest
from sitting import created, run_out
from stand_in import MICRO, StandIn, base_id, completed

from jaxnano.config.base import validate
from jaxnano.config.recipe import Recipe, recipe_id
from research.decide.claims import violations
from research.ledger.session import Session
from research.ledger.state import fold
from research.loop import inherit

pytestmark = pytest.mark.usefixtures("crowns")


def _inherited(path, known):
    """What a session that starts from a champion says of it."""
    found = inherit(path, known.model_copy(update={"source": MICRO}))
    return {name: getattr(found, name) for name in ("incumbent", "inherited")}


@pytest.fixture(scope="module")
def heir(whole, track, crowns, tmp_path_factory):
    """A session that starts from the champion of `whole`, at its end: its scheduler and what it inherited."""
    path, _ = whole
    with Session.open(path) as old:
        known = fold(old.ledger.events()).session
    inherited = _inherited(path, known)
    with created(tmp_path_factory.mktemp("heir") / "s", **inherited) as session:
        found, _ = run_out(session, track, max_trials=8)
        assert list(violations(session.ledger, session.path)) == []
        return found, inherited


def test_an_inherited_champion_is_what_has_to_be_beaten_and_the_base_stays_the_base(whole, heir):
    found, inherited = heir
    champion = fold(whole[1]).champion
    assert inherited["incumbent"] == champion
    arms = found.snapshot.arms
    assert arms[0].recipe_id == base_id() and arms[1].recipe_id == champion and not arms[0].parts
    assert found.state.sealed[0].body.incumbent == champion
    first = [t for t in found.state.trials.values() if t.decisions[0].body.purpose == "search"][0]
    assert first.recipe_id == champion  # before anything is compared with it
    assert found.state.decisions[0].body.purpose == "base"


def test_a_recipe_that_is_worse_than_the_inherited_champion_is_not_nominated(whole, track, tmp_path):
    path, _ = whole
    with Session.open(path) as old:
        known = fold(old.ledger.events()).session
    inherited = _inherited(path, known)

    def outcomes(job):
        """The champion gains 0.5, all others something above the base."""
        best = recipe_id(validate(Recipe, job["args"]["recipe"])) == inherited["incumbent"]
        found = completed(job)
        return found | {"loss": {name: loss - 0.5 * best for name, loss in found["loss"].items()}}

    with created(tmp_path / "s", **inherited) as session:
        found, reason = run_out(session, track, StandIn(outcomes=outcomes), max_trials=8)
    assert reason == "finished" and not found.state.nominated and found.snapshot.incumbent == inherited["incumbent"]
