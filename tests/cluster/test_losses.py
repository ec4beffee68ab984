"""Runs and studies that lose processes and nodes for real; a test replaces the nodes that it takes away."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from marl_aajr.study.driver import prepare
from marl_aajr.study.progress import GridProgress, StudyPlan
from marl_aajr.training.run_directory import RunDirectory, disturbed
from marl_aajr.training.trainer import train
from tests.cluster.conftest import add_odd_node
from tests.patience import PATIENCE
from tests.study.files import TINY, do, write_study
from tests.training.runs import numbers, tiny

LOST, BACK = "env_runners_lost", "env_runners_restarted"


def test_a_run_goes_on_without_a_runner_and_without_a_node_until_there_are_others_that_fit(
    cluster: Cluster, tmp_path: Path
) -> None:
    """An env runner dies in the middle of sampling, then a node with one, and another node comes.

    What was done before stays as it was; the numbers that follow are marked as disturbed. At last a node with
    another torch takes the place of one that is lost, and the run ends.
    """
    now = tmp_path / "now"
    env = {"name": "tests.faulty:faulty", "kwargs": {"when": str(now), "how": "dies"}}
    resources = {"env_runners": 2, "envs_per_runner": 2}
    run = RunDirectory(tmp_path / "run")
    undisturbed: list[dict[str, Any]] = []
    taken: list[int] = []
    odd: list[Any] = []
    deadline = time.monotonic() + PATIENCE

    def events() -> list[str]:
        return [event["event"] for event in run.events()]

    def take_a_node(iteration: int) -> None:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        taken.append(iteration)

    def next_fault(record: dict[str, Any]) -> None:
        if record["iteration"] == 2:
            undisturbed.extend(numbers(run.path))
            now.touch()
        elif events() == [LOST, BACK] and not taken:
            take_a_node(record["iteration"])
        elif events() == [LOST, BACK, LOST] and len(cluster.worker_nodes) == 1:
            cluster.add_node(num_cpus=1)
        elif events() == [LOST, BACK] * 2 and not odd:
            take_a_node(record["iteration"])
            odd.append(add_odd_node(cluster, tmp_path))

    try:
        with pytest.raises(ValueError, match=r"node [\w.-]+ \(\w{8}\) has torch 1\.0, not \d+\.\d+"):
            train(
                tiny(env=env, env_steps=1_000_000, resources=resources),
                run.path,
                on_iteration=next_fault,
                should_stop=lambda: time.monotonic() > deadline,
            )
    finally:
        for node in odd:
            cluster.remove_node(node)
            cluster.add_node(num_cpus=1)
    assert not now.exists()
    assert events() == [LOST, BACK] * 3
    first, back, second, _, third, _ = (event["iteration"] for event in run.events())
    assert 2 < first <= back <= taken[0] < second <= taken[1] < third
    assert disturbed(run.events())
    assert numbers(run.path)[:2] == undisturbed


@pytest.fixture
def address(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)


def done_without_the_node_of(
    process: str, cluster: Cluster, folder: Path, **resources: Any
) -> tuple[StudyPlan, GridProgress, RunDirectory]:
    """A study of one run that hangs in its third iteration; then the process's node is exchanged."""
    now = folder / "now"
    now.touch()
    environment = {
        "name": "tests.faulty:faulty",
        "kwargs": {"when": str(now), "how": "hangs", "after": 250},
    }
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
