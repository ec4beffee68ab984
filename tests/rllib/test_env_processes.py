"""The processes behind a fast runner: what is sampled does not depend on them."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

import pytest
import ray
import torch

from marl_aajr.rllib.internals.cores import own_cores
from marl_aajr.rllib.sampling.env_runners import FastEnvRunner
from marl_aajr.rllib.sampling.fast import fast
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import resolve
from marl_aajr.rollout.game_process import GameProcess
from marl_aajr.rollout.perturbed import PerturbedGame
from marl_aajr.training.config import make_config
from tests.rllib.fast_runs import SPREAD, TAG, TICTACTOE, config, fragment, masked, runner

COLUMNS = ("obs", "mask", "actions", "log_probs", "rewards", "terminated", "truncated", "final_obs")


def others(subject: FastEnvRunner) -> list[GameProcess]:
    """The processes that play for a runner."""
    batch: Any = batch_of(subject)
    return (batch if hasattr(batch, "_shares") else batch.env)._shares._others


def batch_of(subject: FastEnvRunner) -> BatchedEnv:
    assert subject.env is not None
    return subject.env.batch


@pytest.mark.parametrize(
    ("environment", "modules", "settings"),
    [
        (SPREAD, ("agent",), {"critic": "joint"}),
        (TAG, ("adversary", "agent"), {}),
        (TICTACTOE, ("player",), {}),
    ],
)
def test_what_a_runner_samples_does_not_depend_on_them(
    environment: str, modules: tuple[str, ...], settings: dict[str, Any]
) -> None:
    sampled = []
    for processes in (1, 2, "auto"):
        made = config(*modules, copies=5)
        subject = runner(masked(made), environment, env_processes=processes, **settings)
        with closing(batch_of(subject)):
            assert len(others(subject)) == (processes == 2)  # 5 copies are no work for two
            parts = [fragment(subject) for _ in range(2)]
            subject.start_afresh(seed=8)
            sampled.append([*parts, fragment(subject)])
    for first, *same in zip(*sampled, strict=True):
        for module, part in first.modules.items():
            for name in (
                "obs",
                "mask",
                "actions",
                "log_probs",
                "rewards",
                "terminated",
                "truncated",
                "final_obs",
            ):
                for other in same:
                    ours, theirs = getattr(part, name), getattr(other.modules[module], name)
                    assert ours is theirs or torch.equal(ours, theirs), name


def test_environments_within_other_games_have_them_too() -> None:
    made = config("agent", "adversary", copies=4)
    subject = runner(made, PerturbedGame(resolve(SPREAD)), env_processes=2)
    with closing(batch_of(subject)):
        assert len(others(subject)) == 1


def test_auto_is_one_for_each_core_of_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marl_aajr.rllib.sampling.env.own_cores", lambda: 3)
    for copies, processes in ((7, 1), (16, 2), (40, 3)):
        subject = runner(config(copies=copies))
        with closing(batch_of(subject)):
            assert len(others(subject)) == processes - 1


@pytest.mark.usefixtures("ray_session")
def test_the_cores_of_a_process_are_those_that_ray_gave_it() -> None:
    asked = ray.remote(own_cores)
    assert ray.get(asked.options(num_cpus=1).remote()) == 1
    assert ray.get(asked.options(num_cpus=0).remote()) == 1
    here = len(os.sched_getaffinity(0))
    assert own_cores() == min(here, int(ray.cluster_resources()["CPU"]))


@pytest.mark.parametrize("wrong", [0, "all", 1.5, None])
def test_what_is_no_number_of_processes_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"env_processes.*auto or an integer ≥ 1, got"):
        fast(config(), SPREAD, env_processes=wrong)
    with pytest.raises(ValueError, match=r"env_processes.*auto or an integer ≥ 1, got"):
        make_config({"env": SPREAD, "resources": {"env_processes": wrong}})
