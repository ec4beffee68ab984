"""A job with our own code, submitted to a cluster of a head and a node."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.ray_constants import KV_NAMESPACE_DASHBOARD
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster
from ray.dashboard.consts import DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX

from marl_aajr.training.run_directory import RunDirectory
from tests.cluster.conftest import nodes_with_one_processor
from tests.patience import PATIENCE

SCRIPTS = Path(__file__).parents[2] / "scripts" / "cluster"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, SCRIPTS / "wheel.py", folder], capture_output=True, text=True, check=True
    )
    return zipfile.ZipFile(done.stdout.strip())


def test_the_wheel_brings_the_package_and_no_dependencies(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {"marl_aajr/cli/app.py", "marl_aajr/envs/simple_spread_v3.py", "marl_aajr/report/report.css"} <= {
        *names
    }
    assert Path(str(wheel.filename)).name.split("-")[2].startswith("0")  # Ray takes one name for one content
    (info,) = (name for name in names if name.endswith("/METADATA"))
    assert b"Requires-Dist" not in wheel.read(info)
    (points,) = (name for name in names if name.endswith("/entry_points.txt"))
    assert b"congestion_v0 = marl_aajr.envs.congestion_v0" in wheel.read(points)


def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [SCRIPTS / "submit", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_an_address_that_is_none_is_refused() -> None:
    done = submit("train", "--env", "simple_spread_v3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected the address of a dashboard" in done.stderr


@pytest.fixture
def cluster(environment: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Started where our working copy is not at hand."""
    python = environment / Path(sys.executable).relative_to(sys.prefix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        patch.setenv("PATH", str(python.parent), prepend=os.pathsep)
        patch.chdir(tmp_path)
        with nodes_with_one_processor(1, include_dashboard=True, dashboard_port=0) as nodes:
            yield nodes


def wait_for_agent(cluster: Cluster) -> None:
    """A node's agent, which takes jobs, starts after the node."""
    client, deadline = GcsClient(address=cluster.address), time.monotonic() + PATIENCE
    key = f"{DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX}{cluster.head_node.node_id}".encode()
    while client.internal_kv_get(key, namespace=KV_NAMESPACE_DASHBOARD) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.skipif(
    importlib.util.find_spec("aiohttp") is None or importlib.util.find_spec("opencensus") is None,
    reason="job submission needs ray[default]",
)
def test_a_submitted_job_trains_on_another_node(cluster: Cluster, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    settings = ("env_steps=200", "ppo.train_batch_size=100", "ppo.minibatch_size=50", "model.hidden=[8]")
    changes = [word for setting in settings for word in ("--set", setting)]
    words = ("train", "--env", "simple_spread_v3", "--env-runners", "1", "--out", str(run.path))
    wait_for_agent(cluster)
    done = submit(f"http://{cluster.webui_url}", *words, "--set", "resources.envs_per_runner=2", *changes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert (run.status().state, run.status().env_steps) == ("finished", 200)
