"""A study on several nodes, of which one is lost in the middle of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from marl_aajr.study.progress import GridProgress
from marl_aajr.study.study import StudyPlan, prepare
from marl_aajr.training.run_directory import RunDirectory, disturbed
from marl_aajr.training.trainer import train
from tests.study.files import TINY, do, write_study
from tests.training.runs import numbers

PATIENCE = 150.0
"""Seconds that Ray may take to start a process on a busy machine."""


@pytest.fixture
def address(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)


def done_without_the_node_of(
    process: str, cluster: Cluster, folder: Path, **resources: Any
) -> tuple[StudyPlan, GridProgress, RunDirectory]:
    """A study of one run that hangs in its third iteration; then the process's node is exchanged."""
    now = folder / "now"
    now.touch()
    environment = {"name": "tests.study.faulty:hung", "kwargs": {"marker": str(now)}}
    run = {**TINY["run"], "resources": {"envs_per_runner": 4, **resources}}
    file = write_study(
        folder, environments=[environment], run=run, evaluation={"suite": None}, address="auto"
    )
    plan = prepare(file, out=folder / "out")
    grid = do(plan, should_stop=once(lambda: not now.exists(), lambda: exchange_node_of(process, cluster)))
    return plan, grid, plan.folder.run(plan.runs[0].name)


def once(due: Callable[[], bool], act: Callable[[], None]) -> Callable[[], bool]:
    """Asked as `should_stop`: acts when it is due, and stops where that does not come to an end."""
    done: list[float] = []
    deadline = time.monotonic() + PATIENCE

    def ask() -> bool:
        if not done and due():
            done.append(time.monotonic())
            act()
        return time.monotonic() > deadline

    return ask


def exchange_node_of(process: str, cluster: Cluster) -> None:
    """Take away the node that a process is on, by a part of its actor's class name, and bring another."""
    actors = [a for a in ray._private.state.actors().values() if process in a["ActorClassName"]]
    places = [actor["Address"]["NodeID"] for actor in actors if actor["State"] == "ALIVE"]
    (node,) = (node for node in cluster.worker_nodes if node.node_id in places)
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)


@pytest.mark.usefixtures("address")
def test_a_run_over_two_nodes_that_loses_one_goes_on_to_the_numbers_of_one_that_is_alone(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Its main process is on one node, its env runner and its learner on the other."""
    halves = {"env_runners": 1, "cpus_per_env_runner": 0.5, "learners": 1, "cpus_per_learner": 0.5}
    plan, grid, run = done_without_the_node_of("ImplicitFunc", cluster, tmp_path, **halves)
    (progress,) = grid.nodes.values()
    assert (progress.state, progress.restarts) == ("finished", 1)
    (resumed,) = run.events()
    assert (resumed["event"], resumed["iteration"], resumed["after"]) == ("resumed", 2, "running")
    straight = train(plan.runs[0].config, tmp_path / "straight")
    assert numbers(straight) == numbers(run.path)


@pytest.mark.usefixtures("address")
def test_a_run_that_loses_the_node_of_its_only_env_runner_waits_for_another(
    cluster: Cluster, tmp_path: Path
) -> None:
    _, grid, run = done_without_the_node_of("EnvRunner", cluster, tmp_path, env_runners=1)
    (progress,) = grid.nodes.values()
    assert (progress.state, progress.restarts) == ("finished", 0)
    assert "env_runners_restarted" in [event["event"] for event in run.events()]
    assert disturbed(run.events())
