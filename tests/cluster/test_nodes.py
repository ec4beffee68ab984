"""Runs on several nodes: what is refused before it starts, what every node knows, and what is lost.

All tests share one cluster, as building one takes seconds: a test replaces the nodes that it takes away.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from marl_aajr import register
from marl_aajr.rllib.internals.algorithms import registered_creator
from marl_aajr.study.driver import prepare
from marl_aajr.training.cluster import check_room, ray_for
from marl_aajr.training.resources import Resources
from marl_aajr.training.run_directory import RunDirectory, disturbed
from marl_aajr.training.trainer import train
from tests.cluster.conftest import add_node, add_odd_node, connect
from tests.patience import PATIENCE
from tests.study.files import TINY, do, write_study
from tests.training.runs import numbers, tiny

LOST, BACK = "env_runners_lost", "env_runners_restarted"


def test_a_process_that_no_node_has_room_for_is_refused_although_all_of_them_have(cluster: Cluster) -> None:
    started = time.monotonic()
    with (
        pytest.raises(ValueError, match=r"has 2 CPU .* on 3 .*\(1 with 0 CPU .*; 2 with 1 CPU .*needs 2"),
        ray_for(Resources(env_runners=1, cpus_per_env_runner=2)),
    ):
        pass
    assert time.monotonic() - started < 5


def test_processes_that_fit_one_by_one_but_not_together_are_refused(cluster: Cluster) -> None:
    resources = Resources(env_runners=2, cpus_per_env_runner=0.6, learners=1, cpus_per_learner=0.6)
    with pytest.raises(ValueError, match=r"it needs 1.8 CPU and 0 GPU \(2 env runner"), ray_for(resources):
        pass


def test_nodes_with_the_versions_of_this_process_are_used(cluster: Cluster) -> None:
    for _ in range(2):  # the second time nobody is left to ask
        with ray_for(Resources(env_runners=2)):
            pass


def in_a_group(given: list[dict[str, float]], resources: Resources) -> None:
    """Check the room for a run from within a placement group, as a trial of Tune does."""
    group = ray.util.placement_group([{k: amount for k, amount in each.items() if amount} for each in given])
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    try:
        ray.get(ray.remote(num_cpus=0)(check_room).options(scheduling_strategy=strategy).remote(resources))
    finally:
        ray.util.remove_placement_group(group)


def test_a_trial_has_what_its_placement_group_reserves(cluster: Cluster) -> None:
    resources = Resources(env_runners=1, cpus_per_env_runner=0.5, learners=1, cpus_per_learner=0.5)
    in_a_group(resources.bundles, resources)


def test_a_trial_whose_placement_group_is_too_small_is_refused(cluster: Cluster) -> None:
    """The cluster has room for it; RLlib would wait for a bundle that is not there."""
    with pytest.raises(
        ValueError, match=r"group with the bundles \[{'CPU': 1.0}, {'CPU': 1.0}\].*got \[{'CPU'"
    ):
        in_a_group([{"CPU": 1}], Resources(env_runners=1))


@pytest.fixture
def odd_node(cluster: Cluster, tmp_path: Path) -> Iterator[None]:
    node = add_odd_node(cluster, tmp_path)
    yield
    cluster.remove_node(node)


def test_a_node_with_another_torch_is_refused_by_name(cluster: Cluster, odd_node: None) -> None:
    with (
        pytest.raises(ValueError, match=r"node [\w.-]+ \(\w{8}\) has torch 1\.0, not \d+\.\d+"),
        ray_for(Resources(env_runners=1)),
    ):
        pass


@pytest.fixture
def other_ray(cluster: Cluster) -> Iterator[str]:
    """The address of the cluster, while it says that it was started with another Ray."""
    client, place = GcsClient(address=cluster.address), {"namespace": KV_NAMESPACE_CLUSTER}
    told = client.internal_kv_get(CLUSTER_METADATA_KEY, **place)
    other = json.dumps(json.loads(told) | {"ray_version": "2.9.3"}).encode()
    ray.shutdown()
    client.internal_kv_put(CLUSTER_METADATA_KEY, other, overwrite=True, **place)
    yield cluster.address
    client.internal_kv_put(CLUSTER_METADATA_KEY, told, overwrite=True, **place)
    connect(cluster)


def test_a_cluster_with_another_ray_is_refused_by_name(other_ray: str) -> None:
    expected = rf"cannot use Ray at .*was started with: Ray: 2\.9\.3 .*Ray: {ray.__version__}"
    with pytest.raises(ValueError, match=expected), ray_for(Resources(address=other_ray)):
        pass


def test_environments_are_known_on_the_nodes_after_a_second_connection(cluster: Cluster) -> None:
    """Ray itself goes on to register for the job of the first one."""
    known = ray.remote(registered_creator)
    assert ray.get(known.remote(register("simple_spread_v3")), timeout=PATIENCE) is not None
    ray.shutdown()
    connect(cluster)
    assert ray.get(known.remote(register("simple_spread_v3")), timeout=PATIENCE) is not None


def test_a_run_goes_on_without_a_runner_and_without_a_node_until_there_are_others_that_fit(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An env runner dies in the middle of sampling, then a node with one, and another node comes.

    What was done before stays as it was; the numbers that follow are marked as disturbed. The run ends once a
    node that a runner is back on does not match.
    """
    now = tmp_path / "now"
    env = {"name": "tests.faulty:faulty", "kwargs": {"when": str(now), "how": "dies"}}
    resources = {"env_runners": 2, "envs_per_runner": 2}
    run = RunDirectory(tmp_path / "run")
    undisturbed: list[dict[str, Any]] = []
    taken: list[int] = []
    asked: list[int] = []
    deadline = time.monotonic() + PATIENCE

    def events() -> list[str]:
        return [event["event"] for event in run.events()]

    def next_fault(record: dict[str, Any]) -> None:
        if record["iteration"] == 2:
            undisturbed.extend(numbers(run.path))
            now.touch()
        elif events() == [LOST, BACK] and not taken:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            taken.append(record["iteration"])
        elif events() == [LOST, BACK, LOST] and len(cluster.worker_nodes) == 1:
            add_node(cluster)

    def refused_at_last(*, all_answer: bool) -> None:
        asked.append(len(events()))
        if len(asked) == 2:
            raise ValueError("expected nodes with the versions of this process")

    monkeypatch.setattr("marl_aajr.training.loop.check_nodes_match", refused_at_last)
    with pytest.raises(ValueError, match="expected nodes with the versions of this process"):
        train(
            tiny(env=env, env_steps=1_000_000, resources=resources),
            run.path,
            on_iteration=next_fault,
            should_stop=lambda: time.monotonic() > deadline,
        )
    assert not now.exists()
    assert events() == [LOST, BACK] * 2
    assert asked == [2, 4]
    first, back, second, _ = (event["iteration"] for event in run.events())
    assert 2 < first <= back <= taken[0] < second
    assert disturbed(run.events())
    assert numbers(run.path)[:2] == undisturbed


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


def places_of(process: str) -> set[str]:
    """The nodes of processes, by a part of their actors' class names."""
    actors = [a for a in ray._private.state.actors().values() if process in a["ActorClassName"]]
    return {actor["Address"]["NodeID"] for actor in actors if actor["State"] == "ALIVE"}


def exchange_node_of_the_main_process(cluster: Cluster) -> None:
    """Take it away while the env runner is on the other, and bring another."""
    (place,), (other,) = places_of("ImplicitFunc"), places_of("EnvRunner")
    assert place != other
    (node,) = (node for node in cluster.worker_nodes if node.node_id == place)
    cluster.remove_node(node, allow_graceful=False)
    add_node(cluster)


def test_a_run_over_two_nodes_that_loses_one_goes_on_to_the_numbers_of_one_that_is_alone(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study's, which hangs in its third iteration; then the node of its main process is exchanged.

    Its env runner is on the other.
    """
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    now = tmp_path / "now"
    now.touch()
    kwargs = {"when": str(now), "how": "hangs", "after": 250}
    changes: dict[str, Any] = {
        "environments": [{"name": "tests.faulty:faulty", "kwargs": kwargs}],
        "run": {**TINY["run"], "resources": {"envs_per_runner": 4, "env_runners": 1}},
        "evaluation": {"suite": None},
    }
    plan = prepare(write_study(tmp_path, address="auto", **changes), out=tmp_path / "out")
    exchange = once(lambda: not now.exists(), lambda: exchange_node_of_the_main_process(cluster))
    grid = do(plan, should_stop=exchange)
    (progress,) = grid.nodes.values()
    assert (progress.state, progress.restarts) == ("finished", 1)
    run = plan.folder.run(plan.runs[0].name)
    (resumed,) = run.events()
    assert (resumed["event"], resumed["iteration"], resumed["after"]) == ("resumed", 2, "running")
    straight = train(plan.runs[0].config, tmp_path / "straight")
    assert numbers(straight) == numbers(run.path)
