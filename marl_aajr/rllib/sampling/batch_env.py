"""Batched environments as RLlib sees them: the spaces of one copy, and each agent's module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.centralized_critic import CentralBatch, with_state


class BatchSpaces:
    """A batch as those parts of RLlib see it that ask an environment for nothing but its spaces."""

    def __init__(self, batch: BatchedEnv) -> None:
        self.batch = batch
        self.num_envs = batch.num_envs
        self.possible_agents = list(batch.possible_agents)
        masks = batch.action_mask
        spaces = batch.own_spaces if isinstance(batch, CentralBatch) else batch.observation_spaces
        self._observation = {agent: with_mask(space, masks[agent]) for agent, space in spaces.items()}
        if isinstance(batch, CentralBatch):
            for agent, space in self._observation.items():
                self._observation[agent] = with_state(space, batch.central_space)
        self.single_observation_space = self.observation_space = gym.spaces.Dict(self._observation)
        self.single_action_space = self.action_space = gym.spaces.Dict(batch.action_spaces)

    @property
    def unwrapped(self) -> BatchSpaces:
        return self

    @property
    def envs(self) -> list[BatchSpaces]:
        return [self]

    def get_observation_space(self, agent: str) -> gym.Space[Any]:
        return self._observation[agent]

    def get_action_space(self, agent: str) -> gym.Space[Any]:
        return self.batch.action_spaces[agent]

    def close(self) -> None:
        self.batch.close()


def with_mask(space: gym.Space[Any], mask: torch.Tensor | None) -> gym.Space[Any]:
    """The space of observations with their action mask, in PettingZoo's form."""
    if mask is None:
        return space
    legal = gym.spaces.Box(0, 1, tuple(mask.shape[1:]), np.int8)
    return gym.spaces.Dict({"observation": space, "action_mask": legal})


def module_of_agents(
    agents: Iterable[str], mapping: Mapping[str, str] | Callable[..., str]
) -> dict[str, str]:
    """The module of each agent, for good.

    Args:
        agents: all of them.
        mapping: RLlib's `policy_mapping_fn`, or agent -> module.

    Raises:
        ValueError: a function that needs to know the episode, or a mapping without an agent.
    """
    if isinstance(mapping, Mapping):
        if missing := [agent for agent in agents if agent not in mapping]:
            raise ValueError(f"expected a module for each agent, got none for {', '.join(missing)}")
        return {agent: mapping[agent] for agent in agents}
    try:
        return {agent: str(mapping(agent, None)) for agent in agents}
    except Exception as error:
        raise ValueError(
            "expected a policy_mapping_fn that maps each agent to one module whatever the episode, got one "
            f"that raised {type(error).__name__} ({error}) when it was called without an episode; use "
            "RLlib's env runner for agents that change modules"
        ) from error
