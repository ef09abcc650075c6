"""Ray nodes of this machine, for tests."""

from contextlib import contextmanager
from pathlib import Path

import pytest

# Ray starts its processes by fork, at once followed by exec; JAX, which other tests have used here, warns of the fork.
FORKS = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning", "ignore:Exception ignored in. <function _at_fork")
HERE = Path(__file__).parent.parent
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200}  # a node that is gone is missed at once


@contextmanager
def head(cpus):
    """A cluster of one node, which is the head too; its workers find the test targets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={
            "num_cpus": cpus, "include_dashboard": False, "_system_config": SOON})
        yield nodes
        nodes.shutdown()
