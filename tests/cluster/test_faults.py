"""Processes and nodes that a run loses, taken from it for real."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from marl_aajr.training.run_directory import RunDirectory, disturbed
from marl_aajr.training.trainer import train
from tests.training.runs import numbers, tiny

PATIENCE = 150.0
"""Seconds that Ray may take to start a process on a busy machine."""


LOST, BACK = "env_runners_lost", "env_runners_restarted"


def test_a_run_goes_on_without_a_runner_and_without_a_node_until_there_are_others(
    cluster: Cluster, tmp_path: Path
) -> None:
    """First an env runner dies in the middle of sampling, then a node with one, and another node comes.

    What was done before stays as it was; the numbers that follow are marked as disturbed.
    """
    now = tmp_path / "now"
    env = {"name": "tests.training.fragile_env:fragile", "kwargs": {"when": str(now), "how": "dies"}}
    resources = {"env_runners": 2, "envs_per_runner": 2}
    run = RunDirectory(tmp_path / "run")
    undisturbed: list[dict[str, Any]] = []
    taken: list[int] = []
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
            cluster.add_node(num_cpus=1)

    train(
        tiny(env=env, env_steps=1_000_000, resources=resources),
        run.path,
        on_iteration=next_fault,
        should_stop=lambda: len(run.events()) == 4 or time.monotonic() > deadline,
    )
    assert not now.exists()
    assert events() == [LOST, BACK] * 2
    first, back, second, _ = (event["iteration"] for event in run.events())
    assert 2 < first <= back <= taken[0] < second
    assert disturbed(run.events())
    assert numbers(run.path)[:2] == undisturbed
