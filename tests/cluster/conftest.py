"""Clusters of several nodes on this machine; their processors are only counted, not there."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.cluster_utils import Cluster

from tests.conftest import QUOTED_PYTHON, start_ray

SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
"""A node that does not answer is given up after seconds; Ray waits longer."""

FEW_PROCESSES = {"include_log_monitor": False, "no_monitor": True}
"""Two less for the head: nobody reads what the one would pass on, and the other has nothing to scale."""


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A head without processors and two nodes with one each, and this process connected to it."""
    with nodes_with_one_processor(2, include_dashboard=False) as nodes:
        connect(nodes)
        yield nodes


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """This virtual environment by a path without spaces: from others Ray starts neither jobs nor a head."""
    link = tmp_path / "environment"
    link.symlink_to(sys.prefix)
    return link


@contextmanager
def nodes_with_one_processor(count: int, **head: Any) -> Iterator[Cluster]:
    """A cluster of so many nodes and a head, in place of the Ray that this process is connected to."""
    ours = ray.is_initialized()
    ray.shutdown()
    # As `ray start` does: where there is a token, the nodes and all who join them have it.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    # Elsewhere than other tests' Ray, which would find this one; and short, for the names of its sockets.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        # A port of its own for the head's agent, which takes jobs: the package's cluster may be up as well.
        head |= {"num_cpus": 0, "_system_config": SOON, "dashboard_agent_listen_port": None, **FEW_PROCESSES}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        try:
            for i in range(count):
                # A folder each, as on machines of their own, for what jobs bring.
                add_node(nodes, runtime_env_dir_name=f"runtime{i}")
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    if ours:
        start_ray()


def add_node(cluster: Cluster, **settings: Any) -> Any:
    """One with a processor."""
    return cluster.add_node(num_cpus=1, include_log_monitor=False, **settings)


def connect(cluster: Cluster) -> None:
    """Make this process the cluster's driver."""
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", runtime_env=QUOTED_PYTHON)


def add_odd_node(cluster: Cluster, folder: Path) -> Any:
    """One more node, where Python finds another torch installed."""
    info = folder / "torch-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        return add_node(cluster)
