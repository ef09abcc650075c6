"""What tests of the scheduler share: a whole session."""

import pytest
from sitting import created, run_out


@pytest.fixture(scope="module")
def whole(track, crowns, tmp_path_factory):
    """A whole session, closed, and its events."""
    with created(tmp_path_factory.mktemp("whole") / "s") as session:
        run_out(session, track)
        return session.path, session.ledger.events()
