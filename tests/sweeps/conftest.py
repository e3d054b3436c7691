"""A Ray cluster for the tests of its engine, which `make ray` runs: Ray is an extra."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(scope="module")
def ray_cluster():
    """One node with two cores, to which RAY_ADDRESS leads. It has the environment of the module's
    tests, and ignores SIGINT as if a script had started it in the background."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # not 15: other processes would starve the tests
        # Jobs have the environment of the cluster, not that of the command that submits them.
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        signal.signal(signal.SIGINT, before)
        patch.setenv("RAY_ADDRESS", cluster.address)
        try:
            yield
        finally:
            cluster.shutdown()
