"""RLlib's own runner on real environments and scripted ones, with a policy that draws no random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner

from marl_aajr.rllib.sampling.env import register
from marl_aajr.rollout.environments import resolve
from tests.rollout.toy_games import Circle, Endings, Scripted


def scripted(
    *, endings: Endings, arrivals: dict[str, int] | None = None, broken_at: int | None = None
) -> Scripted:
    """By import path."""
    return Scripted(endings, arrivals=arrivals, broken_at=broken_at)


def circle(*, endings: Endings) -> Circle:
    """By import path."""
    return Circle(endings)


class Scrambled(RLModule):
    """Picks among the legal actions by a fixed function of the observation: no generator at all."""

    framework = "torch"

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        obs = batch[Columns.OBS]
        features = obs["observation"] if isinstance(obs, dict) else obs
        pick = (features.float().abs().flatten(1).sum(1) * 997).long()
        if isinstance(self.action_space, spaces.Box):
            size = self.action_space.shape[0]
            actions = torch.nn.functional.one_hot(pick % size, size).float()
        else:
            assert isinstance(self.action_space, spaces.Discrete)
            everything = torch.ones(len(pick), int(self.action_space.n))
            mask = obs["action_mask"] if isinstance(obs, dict) else everything
            legal = [torch.nonzero(row)[:, 0] for row in mask]
            actions = torch.stack([a[p % len(a)] for a, p in zip(legal, pick, strict=True)])
        return {Columns.ACTIONS: actions}

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        raise NotImplementedError


def config_for(env: str, agents: Sequence[str], *, envs: int = 1) -> PPOConfig:
    """Every agent has a module of its own."""
    modules = {agent: RLModuleSpec(module_class=Scrambled) for agent in agents}
    return (
        PPOConfig()
        .environment(env)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=envs)
        .multi_agent(policies=set(agents), policy_mapping_fn=lambda agent, *_, **__: agent)
        .rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=modules))
        .debugging(seed=1)
    )


def runner(
    name: str, kwargs: Mapping[str, Any] | None = None, *, time_limits_terminate: bool = False, envs: int = 1
) -> MultiAgentEnvRunner:
    """A runner in this process, without Ray."""
    spec = resolve(name, kwargs)
    env = register(spec, time_limits_terminate=time_limits_terminate)
    return MultiAgentEnvRunner(config_for(env, spec.make().possible_agents, envs=envs))


class Masked(gym.Env[Any, Any]):
    """Two actions, of which the first alone is legal."""

    observation_space = spaces.Dict(
        {"action_mask": spaces.Box(0, 1, (2,)), "observations": spaces.Box(-1, 1, (3,))}
    )
    action_space = spaces.Discrete(2)

    def __init__(self, _: Any = None) -> None:
        self._steps = 0

    def reset(self, **_: Any) -> Any:
        self._steps = 0
        return self._obs(), {}

    def step(self, action: int) -> Any:
        self._steps += 1
        return self._obs(), 1.0, False, self._steps == 5, {}

    def _obs(self) -> Any:
        mask, seen = np.array([1, 0], np.float32), np.array([0.1, 0.2, 0.3], np.float32)
        return {"action_mask": mask, "observations": seen}
