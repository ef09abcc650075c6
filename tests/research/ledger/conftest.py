"""What tests of the ledger share."""

import pytest

from research.ledger.session import Session


@pytest.fixture
def session(tmp_path):
    with Session.create(tmp_path / "s") as made:
        yield made
