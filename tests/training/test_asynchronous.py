"""IMPALA and APPO as runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.algorithms.impala import IMPALAConfig

from marl_aajr.training.algorithm import build_config
from marl_aajr.training.config import make_config
from marl_aajr.training.run_directory import RunDirectory
from marl_aajr.training.trainer import train
from marl_aajr.victims import Victim
from tests.patience import PATIENCE
from tests.training.runs import TINY, kill_a, tiny

STOCK = {"runner": "stock", "env_runners": 1, "envs_per_runner": 2}


@pytest.fixture
def unhurried(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """RLlib would ask for samples without a pause, also while the env runner starts."""
    original = IMPALAConfig.__init__

    def with_a_pause(self: IMPALAConfig, algo_class: Any = None) -> None:
        original(self, algo_class=algo_class)
        self.timeout_s_sampler_manager = 0.05

    monkeypatch.setattr(IMPALAConfig, "__init__", with_a_pause)


@pytest.mark.usefixtures("unhurried")
def test_an_appo_run_goes_on_without_its_only_env_runner_and_is_resumed_and_exported(tmp_path: Path) -> None:
    """Its numbers are not repeatable; what it leaves is as complete."""
    config = tiny(
        algorithm="appo",
        env_steps=1_000_000,
        checkpoint_every=1,
        method={"name": "aajr", "ramp": None},
        ppo={"kl_coeff": 0.1},
        resources=STOCK,
    )
    run, deadline = RunDirectory(tmp_path / "run"), time.monotonic() + PATIENCE

    def kill_once(record: dict[str, Any]) -> None:
        if record["iteration"] == 1:
            kill_a("RunEnvRunner")

    def events() -> list[str]:
        return [event["event"] for event in run.events()]

    def replaced() -> bool:
        return "env_runners_restarted" in events() or time.monotonic() > deadline

    train(config, run.path, on_iteration=kill_once, should_stop=replaced)
    assert "env_runners_restarted" in events()
    assert (run.status().state, config.repeatable) == ("interrupted", False)
    done = run.status().iteration
    train(config, run.path, resume=True, should_stop=lambda: True)
    assert run.status().iteration == done + 1
    learned = run.metrics()[-1]["modules"]["agent"]
    assert {"policy_loss", "vf_loss", "entropy", "mean_kl", "aajr/penalty"} <= set(learned)
    assert learned["aajr/penalty"] > 0
    assert Victim.load(run.victim).agents == ("agent_0", "agent_1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resources": {"env_runners": 1}}, "expected resources.runner stock for algorithm impala, got fast"),
        ({"resources": {"runner": "stock"}}, "expected resources.env_runners ≥ 1"),
        ({"resources": STOCK, "observation_filter": "mean_std"}, "expected observation_filter none"),
        ({"resources": STOCK, "model": {"critic": "joint"}}, "expected model.critic own"),
    ],
)
def test_what_needs_synchronous_sampling_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(TINY | {"algorithm": "impala"} | changes)


@pytest.mark.parametrize("algorithm", ["appo", "impala"])
@pytest.mark.parametrize(
    "method", [{"name": "aajr", "adversarial_weight": 0.5}, {"name": "off_policy_adversarial_training"}]
)
def test_methods_that_need_the_policy_loss_of_ppo_are_refused_before_anything_starts(
    algorithm: str, method: dict[str, Any]
) -> None:
    refused = rf"method {method['name']}, .*expected a module and learner with (policy loss|advantages)"
    with pytest.raises(ValueError, match=refused):
        build_config(tiny(algorithm=algorithm, method=method, resources=STOCK))
    build_config(tiny(algorithm=algorithm, method={"name": "aajr"}, resources=STOCK))
