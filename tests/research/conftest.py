"""What tests of the scheduler share: track micro, and a champion's folder that is not there."""

import pytest
from stand_in import MICRO

from research.contract.track import load_track


@pytest.fixture(scope="module")
def track():
    return load_track(MICRO)


@pytest.fixture(scope="module")
def crowns():
    """Where runs are made up there is no checkpoint, so none is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("research.decide.prove.crown",
                      lambda session, track, arm, key: {"trial": key, "name": arm.name})
        yield
