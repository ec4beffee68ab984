"""Studies small enough for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from ray import tune

from marl_aajr.study import driver
from marl_aajr.study.driver import on_cluster, progress_of, run_study
from marl_aajr.study.execution import GraphSearch
from marl_aajr.study.folder import StudyFolder
from marl_aajr.study.graph import Node
from marl_aajr.study.progress import GridProgress, StudyPlan
from marl_aajr.study.worker import StopFlag, StudyLocation, do_node
from marl_aajr.training.run_record import software

SUITE = {
    "summary": "two attacks",
    "episodes": 2,
    "selection_episodes": 2,
    "actions": ["greedy"],
    "units": "raw",
    "epsilons": [0.1],
    "attacks": ["noise", "pgd"],
    "controls": ["idle"],
}

TINY: dict[str, Any] = {
    "run": {
        "env_steps": 400,
        "checkpoint_every": 2,
        "model": {"hidden": [8]},
        "ppo": {"train_batch_size": 100, "minibatch_size": 50, "epochs": 1},
        "resources": {"envs_per_runner": 4},
    },
    "environments": [{"name": "marl_aajr.envs.simple_spread_v3", "kwargs": {"N": 2}}],
    "methods": [{"name": "none"}],
    "evaluation": {"suite": "suite.yaml"},
    "film": False,
}


def write_study(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    """A study's file, `TINY` but for some keys, with its suite beside it."""
    (folder / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return file


def do(
    plan: StudyPlan, *, should_stop: Callable[[], bool] = lambda: False, again: bool = False
) -> GridProgress:
    """Run a study that has been prepared."""
    with on_cluster(plan) as nodes:
        grid = progress_of(plan, nodes, lambda event: None)
        run_study(plan, grid, should_stop=should_stop, again=again)
    return grid


def do_here(plan: StudyPlan, *, should_stop: Callable[[], bool] = lambda: False) -> GridProgress:
    """`do` without processes of Tune's, which take seconds to start: each node in this process."""
    with patch.object(driver, "execute", _execute_here):
        return do(plan, should_stop=should_stop)


def _execute_here(
    nodes: Mapping[str, Node],
    folder: StudyFolder,
    progress: GridProgress,
    *,
    should_stop: Callable[[], bool],
    **_: Any,
) -> None:
    """`marl_aajr.study.execution.execute`, one node after the other."""
    search = GraphSearch(nodes, progress, should_stop)
    location, flag = StudyLocation(str(folder.path), folder.identity), StopFlag.remote()  # type: ignore[attr-defined]
    reports: list[dict[str, Any]] = []
    with patch.object(tune, "report", reports.append):
        while isinstance(task := search.suggest("the only one"), dict):
            progress.started(task["node"])
            do_node(task, nodes=nodes, location=location, flag=flag, expected=software())
            last = reports[-1]
            progress.ended(
                task["node"], last["outcome"], seconds=last["seconds"], error=last.get("error", "")
            )
            search.on_trial_complete("the only one", last)
