"""Metrics that environments report beside rewards: read from infos, and handed on by every batch."""

from __future__ import annotations

import math
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from marl_aajr.envs import pogema_v0
from pettingzoo import ParallelEnv

from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.env_checker import random_actions
from marl_aajr.rollout.environments import make_batch, resolve
from marl_aajr.rollout.fragments import Episodes
from marl_aajr.rollout.game_agents import reported
from marl_aajr.rollout.pettingzoo_batch import PettingZooBatch

GRID = {"num_agents": 2, "size": 3, "density": 0.1, "obs_radius": 1, "max_episode_steps": 6}


class Rolls(ParallelEnv[str, Any, Any]):
    """Reports a roll of dice as `luck`, and, in episodes of even luck, how `rare` they are."""

    metadata: dict[str, Any] = {"name": "rolls"}  # noqa: RUF012
    possible_agents = ["a", "b"]  # noqa: RUF012

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-np.inf, np.inf, (1,))

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.agents, self._t = list(self.possible_agents), 0
        self._luck = int(np.random.default_rng(seed).integers(1, 7))
        return self._seen(), {a: {} for a in self.agents}

    def step(self, actions: Any) -> tuple[dict[str, Any], ...]:
        self._t += 1
        agents, over = self.agents, self._t >= self._luck
        self.agents = [] if over else agents
        told: Any = {a: {} for a in agents}
        if over:
            told["a"] = {"metrics": {"luck": self._luck, "label": "dice", "unknown": math.nan}}
            told["b"] = {"metrics": {"luck": self._luck + 1} | ({"rare": 1} if self._luck % 2 == 0 else {})}
        flags = dict.fromkeys(agents, over)
        return self._seen(), dict.fromkeys(agents, 1.0), flags, dict.fromkeys(agents, False), told

    def _seen(self) -> dict[str, Any]:
        return {a: np.full(1, self._luck, np.float32) for a in self.possible_agents}


def test_agents_are_averaged_and_what_is_no_number_is_left_out() -> None:
    infos = {"a": {"metrics": {"success": True, "map": "x", "n": math.nan}}, "b": {"metrics": {"success": 0}}}
    assert reported({**infos, "c": {}, "d": None, "e": {"metrics": "none"}}) == {"success": 0.5}
    assert reported({}) == {}


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_of_games_hand_them_on(processes: int) -> None:
    """Also from other processes. An episode is as long as its luck, and agents report luck and luck + 1."""
    spec = resolve(f"{__name__}:Rolls")
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
