"""A job for a worker of any executor."""

import pytest

from research.execute import Job


@pytest.fixture
def job(tmp_path):
    def build(target, key="trial", attempt=1, **args):
        return Job(id=key, attempt=attempt, dir=str(tmp_path / key), target=f"worker_targets:{target}", args=args)

    return build
