"""Clusters of several nodes on this machine; their processors are only counted, not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.conftest import start_ray

SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
"""A node that does not answer is given up after seconds; Ray waits longer."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without processors and two nodes with one each, and this process connected to it."""
    ours = ray.is_initialized()
    ray.shutdown()
    # Elsewhere than other tests' Ray, which would find this one; and short, for the names of its sockets.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    os.environ["RAY_TMPDIR"] = folder
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": SOON},
    )
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        connect(nodes)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()
        del os.environ["RAY_TMPDIR"]
        shutil.rmtree(folder, ignore_errors=True)
        if ours:
            start_ray()


def connect(cluster: Cluster) -> None:
    """Make this process the cluster's driver."""
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
