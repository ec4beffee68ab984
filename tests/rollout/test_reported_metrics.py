"""Metrics that environments report beside rewards: read from infos, and handed on by every batch."""

from __future__ import annotations

import math
from contextlib import closing
from typing import Any

import pytest
import torch
from marl_aajr.envs import pogema_v0

from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.env_checker import random_actions
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.rollout.fragments import Episodes
from marl_aajr.rollout.game_agents import reported
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch

GRID = {"num_agents": 2, "size": 3, "density": 0.1, "obs_radius": 1, "max_episode_steps": 6}


def test_agents_are_averaged_and_what_is_no_number_is_left_out() -> None:
    infos = {"a": {"metrics": {"success": True, "map": "x", "n": math.nan}}, "b": {"metrics": {"success": 0}}}
    assert reported({**infos, "c": {}, "d": None, "e": {"metrics": "none"}}) == {"success": 0.5}
    assert reported({}) == {}


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_of_games_hand_them_on(processes: int) -> None:
    """Also from other processes. An episode is as long as its luck, and agents report luck and luck + 1."""
    spec = resolve("tests.rollout.toy_games:Rolls")
    seen = 0
    with closing(PettingZooBatch(spec, 5, processes=processes)) as batch:
        batch.reset(seed=0)
        for t in range(20):
            step = batch.step(random_actions(batch, seed=t))
            over = step.episode_over
            seen += int(over.sum())
            if not over.any():
                assert step.metrics == {}
                continue
            luck = step.final_obs["a"][:, 0].double()
            assert torch.equal(step.metrics["luck"][over], luck[over] + 0.5)
            assert step.metrics.keys() <= {"luck", "rare"}
            if "rare" in step.metrics:
                assert torch.equal(~step.metrics["rare"][over].isnan(), luck[over] % 2 == 0)
    assert seen > 20


@pytest.mark.parametrize("make", [make_batch, PettingZooBatch])
@pytest.mark.parametrize("on_target", ["finish", "nothing"])
def test_success_of_the_grid_is_that_of_its_rewards(make: Any, on_target: str) -> None:
    """Whoever reaches a goal is paid 1 (all at once, with "nothing"); alone and through PettingZoo."""
    batch: BatchedEnv = make(resolve(pogema_v0, {**GRID, "on_target": on_target}), 40)
    batch.reset(seed=1)
    earned, episodes, solved = torch.zeros(40), 0, 0
    for t in range(18):
        step = batch.step(random_actions(batch, seed=t))
        earned += torch.stack(list(step.rewards.values())).sum(0)
        over = step.episode_over
        if over.any():
            success = step.metrics["success"][over]
            assert torch.equal(success == 1, earned[over] == 2)
            if on_target == "finish":
                assert torch.equal(step.metrics["individual_success"][over].float(), earned[over] / 2)
            episodes, solved = episodes + len(success), solved + int(success.sum())
        earned[over] = 0
    assert 0 < solved < episodes


def test_episodes_are_joined_and_chosen_with_their_metrics() -> None:
    def some(count: int, **metrics: torch.Tensor) -> Episodes:
        numbers = torch.arange(count)
        return Episodes(torch.ones(count, 2).double(), numbers, torch.ones(count, 2), numbers, metrics)

    both = Episodes.join([some(2), some(3, success=torch.tensor([1.0, 0.0, 1.0]).double())])
    assert both.lengths.tolist() == [0, 1, 0, 1, 2]
    chosen = both.select([1, 2, 4])
    assert chosen.lengths.tolist() == [1, 0, 2]
    assert str(chosen.metrics["success"].tolist()) == "[nan, 1.0, 1.0]"
    assert Episodes.join([some(1), some(1)]).metrics == {}
