"""The made-up table, built once."""

import pytest
from made_up import PLAN, Mortal, recorded
from sitting import created


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A whole table of track micro."""
    with created(tmp_path_factory.mktemp("table") / "s", recorded=PLAN) as session:
        return recorded(session, Mortal())
