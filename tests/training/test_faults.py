"""What may go wrong in a run, done to it for real; tests/cluster has what takes several nodes."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.training.config import RunConfig
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.trainer import train
from tests.training.runs import assert_same_run, kill_a, numbers, tiny

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file exists, the environment of the runs here is in trouble."""
    return tmp_path_factory.mktemp("trouble") / "now"


@pytest.fixture(scope="module")
def config(trouble: Path) -> RunConfig:
    env = {"name": "tests.faulty:faulty", "kwargs": {"when": str(trouble), "how": "crashes"}}
    return tiny(env=env)


@pytest.fixture(scope="module")
def straight(config: RunConfig, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run to which nothing happens."""
    return train(config, tmp_path_factory.mktemp("runs") / "straight")


def test_an_environment_that_raises_now_and_then_costs_a_restart(
    config: RunConfig, straight: Path, trouble: Path, tmp_path: Path
) -> None:
    def now_and_then(record: dict[str, Any]) -> None:
        if record["iteration"] in due:
            due.remove(record["iteration"])
            trouble.touch()

    due = [1, 5]
    run = RunDirectory(train(config, tmp_path / "run", on_iteration=now_and_then, max_failures=2))
    assert run.status().state == "finished"
    assert_same_run(straight, run.path)
    fault = "EnvironmentFault: environment tests.faulty:faulty, "
    assert [(e["event"], e["iteration"], e["repeated"]) for e in run.events()] == [
        ("restarted", 0, 1),
        ("restarted", 4, 1),
    ]
    assert all(event["error"].startswith(fault) for event in run.events())


def test_one_failure_more_than_allowed_fails_the_run_which_can_be_resumed(
    config: RunConfig, straight: Path, trouble: Path, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentFault, match="ZeroDivisionError: the simulator has crashed"):
        train(config, tmp_path / "run", on_iteration=lambda _: trouble.touch(), max_failures=1)
    run = RunDirectory(tmp_path / "run")
    assert (run.status().state, len(run.events())) == ("failed", 1)
    trouble.unlink(missing_ok=True)
    train(config, run.path, resume=True)
    assert_same_run(straight, run.path)
    resumed = run.events()[-1]
    assert (resumed["event"], resumed["iteration"], resumed["after"]) == ("resumed", 0, "failed")
    assert "has crashed" in resumed["error"]


def test_no_room_for_a_checkpoint_names_the_folder_and_loses_nothing_before_it(
    config: RunConfig, straight: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(record: dict[str, Any]) -> None:
        if record["iteration"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))

    try:
        with pytest.raises(OSError, match=r"free some room, then resume the run.*'.*/run'"):
            train(config, run.path, on_iteration=fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.iterations() == [2]
    assert [path.name for path in run.checkpoints.iterdir()] == ["000002"]
    train(config, run.path, resume=True)
    assert_same_run(straight, run.path)


def test_killed_processes_of_environments_cost_a_restart(
    config: RunConfig, straight: Path, tmp_path: Path
) -> None:
    def kill_once(record: dict[str, Any]) -> None:
        if record["iteration"] == 3 and not run.events():
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            for child in children:
                if b"game_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

    run = RunDirectory(tmp_path / "run")
    divided = config.changed(resources=config.resources.changed(env_processes=2))
    train(divided, run.path, on_iteration=kill_once, max_failures=1)
    assert_same_run(straight, run.path)
    (event,) = run.events()
    assert (event["event"], event["iteration"]) == ("restarted", 2)
    assert "which plays them, was killed by SIGKILL" in event["error"]


def test_a_killed_learner_costs_a_restart(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    thirds = []

    def kill_once(record: dict[str, Any]) -> None:
        if record["iteration"] == 3:
            thirds.append(numbers(run.path)[-1])
            if not run.events():
                kill_a("_WrappedExecutable")

    config = tiny(env_steps=400, resources={"learners": 1})
    train(config, run.path, on_iteration=kill_once, max_failures=1)
    assert run.status().state == "finished"
    first, again = thirds
    assert first == again
    (event,) = run.events()
    assert (event["event"], event["iteration"]) == ("restarted", 2)
    assert "iteration 4: lost 1 of 1 learners" in event["error"]
