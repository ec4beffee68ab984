from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from marl_aajr.core.checks import NonFiniteError
from marl_aajr.core.environment_values import EnvironmentFault
from marl_aajr.training import checkpoint
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.run_record import load_iterations
from marl_aajr.training.trainer import train
from marl_aajr.victims import Victim
from tests.training.runs import numbers, tiny

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    out = tmp_path_factory.mktemp("runs") / "finished"
    method = {"name": "aajr", "adversarial_weight": 0.5, "ramp": None}
    return RunDirectory(train(tiny(method=method, ppo={"kl_coeff": 0.1, "grad_clip": 1.0}), out))


def test_a_run_leaves_everything_behind(finished: RunDirectory) -> None:
    assert sorted(path.name for path in finished.path.iterdir() if path.name != ".lock") == [
        "checkpoints", "config.yaml", "metrics.jsonl", "status.json",
        "tensorboard", "versions.json", "victim",
    ]  # fmt: skip
    status = finished.status()
    assert (status.state, status.iteration, status.env_steps) == ("finished", 6, 600)
    assert finished.iterations() == [4, 6]
    assert Victim.load(finished.victim).agents == ("agent_0", "agent_1")


def test_a_line_of_metrics_has_what_reports_need(finished: RunDirectory) -> None:
    lines = finished.metrics()
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["env_steps"] for line in lines] == [100, 200, 300, 400, 500, 600]
    assert sorted(lines, key=lambda line: line["seconds"]) == lines
    last = lines[-1]
    assert last["episode_length"] == 25
    assert last["return_mean"] == last["team_returns"]["team"] < 0
    assert {
        "policy_loss", "vf_loss", "entropy", "vf_explained_var", "mean_kl", "kl_coeff", "lr", "grad_norm",
        "aajr/penalty", "aajr/loss_share", "aajr/gain_mean", "aajr/gain_max", "aajr/objective_gain",
        "aajr/monotone_fraction", "aajr/no_direction_fraction", "aajr/nonfinite", "aajr/seconds",
    } <= set(last["modules"]["agent"])  # fmt: skip


@pytest.mark.parametrize("runner", ["stock", "fast"])
def test_the_returns_of_a_zero_sum_game_add_up_to_zero(runner: str, tmp_path: Path) -> None:
    """In Leduc, a player whose opponent folds at once earns without ever acting."""
    leduc = {"name": "pettingzoo.classic.leduc_holdem_v4"}
    run = train(tiny(env=leduc, env_steps=100, resources={"runner": runner}), tmp_path / "run")
    (line,) = RunDirectory(run).metrics()
    assert line["return_mean"] == pytest.approx(0, abs=1e-12)
    assert line["team_returns"]["player_0"] != 0


@pytest.mark.parametrize("runner", ["stock", "fast"])
def test_metrics_of_the_environment_are_in_the_record_of_each_iteration(runner: str, tmp_path: Path) -> None:
    """In this game the individual success is the return of an agent, which is paid 1 at its goal."""
    options = {"num_agents": 2, "size": 3, "density": 0.1, "obs_radius": 1, "max_episode_steps": 8}
    grid = {"name": "marl_aajr.envs.pogema_v0", "kwargs": options}
    run = train(tiny(env=grid, env_steps=300, resources={"runner": runner}), tmp_path / "run")
    lines = RunDirectory(run).metrics()
    assert len(lines) == 3
    for line in lines:
        assert set(line["metrics"]) == {"success", "individual_success"}
        assert line["metrics"]["individual_success"] == pytest.approx(line["return_mean"] / 2)
        assert 0 <= line["metrics"]["success"] <= line["metrics"]["individual_success"]
    assert load_iterations(run)[-1].return_mean == lines[-1]["return_mean"]


def test_tensorboard_shows_the_same_numbers(finished: RunDirectory) -> None:
    events = EventAccumulator(str(finished.tensorboard)).Reload()
    for tag, read in {
        "return_mean": lambda line: line["return_mean"],
        "team_returns/team": lambda line: line["team_returns"]["team"],
        "modules/agent/aajr/penalty": lambda line: line["modules"]["agent"]["aajr/penalty"],
    }.items():
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        lines = finished.metrics()
        assert [step for step, _ in shown] == [line["env_steps"] for line in lines]
        assert [value for _, value in shown] == pytest.approx([read(line) for line in lines])


def test_a_finished_run_is_not_resumed(finished: RunDirectory) -> None:
    with pytest.raises(ValueError, match="which finished after 600 environment steps"):
        train(finished.config(), finished.path, resume=True)


def test_a_changed_configuration_is_refused_by_its_key(finished: RunDirectory) -> None:
    changed = finished.config().model_copy(update={"seed": 9})
    with pytest.raises(ValueError, match="seed: 3 → 9"):
        train(changed, finished.path, resume=True)


def test_a_run_is_not_overwritten_unless_asked(finished: RunDirectory) -> None:
    before = finished.metrics()
    with pytest.raises(ValueError, match=r"holds a run \(finished\); resume it, overwrite it"):
        train(tiny(), finished.path)
    assert finished.metrics() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": {"name": "simple_spraed_v3"}}, "unknown environment"),
        ({"resources": {"env_runners": 3}}, "needs 3 CPU"),
        ({"resources": {"address": "127.0.0.1:1"}}, "no Ray cluster answers"),
    ],
)
def test_nothing_is_written_for_a_run_that_cannot_be(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(tiny(**changes), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_resuming_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the folder of a run"):
        train(tiny(), tmp_path / "run", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_nan_stops_the_run_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    config = tiny(ppo={"lr": [[0, 1e-3], [299, 1e-3], [300, 1e30]]})
    with pytest.raises(NonFiniteError, match=r"iteration 4: .*(NaN|nan|inf)"):
        train(config, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    assert run.status().state == "failed"
    assert "iteration 4" in str(run.status().error)
    assert [line["iteration"] for line in run.metrics()] == [1, 2, 3]
    assert run.iterations() == [2]
    assert json.loads(run.status_file.read_text())["env_steps"] == 300


CRASH = "raised ZeroDivisionError: the simulator has crashed"


@pytest.mark.parametrize(
    ("how", "says", "resources"),
    [
        ("raises", CRASH, {"runner": "stock", "env_runners": 1}),
        ("raises", f"copy 0, step 1: {CRASH}", {}),
        ("nan", "'agent_1' is nan, which is no number of float32 (in env runner 1)", {"env_runners": 1}),
    ],
    ids=["raises-stock-remote", "raises", "nan-remote"],
)
def test_a_broken_environment_stops_the_run_by_its_name_and_keeps_what_was_done(
    how: str, says: str, resources: dict[str, Any], tmp_path: Path
) -> None:
    when = tmp_path / "now"
    env = {"name": "tests.faulty:faulty", "kwargs": {"when": str(when), "how": how}}
    config = tiny(env=env, env_steps=300, resources=resources)

    def break_it(record: dict[str, Any]) -> None:
        if record["iteration"] == 2:
            when.touch()

    with pytest.raises(EnvironmentFault, match=f"environment {env['name']}, .*{re.escape(says)}"):
        train(config, tmp_path / "run", on_iteration=break_it)
    run = RunDirectory(tmp_path / "run")
    assert (run.status().state, run.iterations(), len(run.metrics())) == ("failed", [2], 2)
    assert says in str(run.status().error)

    if not config.resources.env_runners:  # which would only start another process
        when.unlink()
        train(config, run.path, resume=True)
        assert (run.status().state, run.status().env_steps) == ("finished", 300)


@pytest.mark.parametrize(("threads", "expected"), [("auto", 3), (2, 2)])
def test_torch_takes_the_threads_of_the_configuration_or_one_a_core(
    threads: Any, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checkpoint, "own_cores", lambda: 3)
    before, seen = torch.get_num_threads(), []
    config = tiny(env_steps=100, resources={"torch_threads": threads})
    train(config, tmp_path / "run", on_iteration=lambda _: seen.append(torch.get_num_threads()))
    assert (seen, torch.get_num_threads()) == ([expected], before)


def test_episodes_may_last_longer_than_iterations(tmp_path: Path) -> None:
    """Forty steps each, in iterations of 25."""
    run = train(
        tiny(env={"name": "simple_spread_v3", "kwargs": {"N": 2, "max_cycles": 40}}, env_steps=400),
        tmp_path / "run",
    )
    assert [line["return_mean"] is None for line in numbers(run)] == [True, False, True, False]


def test_a_run_is_not_lost_when_its_only_env_runner_is_killed(tmp_path: Path) -> None:
    """One of two is lost in tests/cluster."""
    killed: list[int] = []

    def kill(record: dict[str, Any]) -> None:
        if record["iteration"] == 2:
            actors = ray._private.state.actors().values()
            alive = [actor for actor in actors if actor["State"] == "ALIVE"]
            killed.extend(a["Pid"] for a in alive if "EnvRunner" in a["ActorClassName"])
            for process in killed:
                os.kill(process, signal.SIGKILL)

    config = tiny(env_steps=1000, resources={"env_runners": 1})
    run = RunDirectory(train(config, tmp_path / "run", on_iteration=kill))
    assert len(killed) == 1
    assert run.status().state == "finished"
    assert run.status().env_steps >= 1000
