"""Batched environments as RLlib sees them: the spaces of one copy, and each agent's module."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode

from marl_aajr.core.environment_values import joined_space, named
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.centralized_critic import CentralBatch, with_state


class BatchSpaces:
    """A batch as those parts of RLlib see it that ask an environment for nothing but its spaces."""

    def __init__(self, batch: BatchedEnv) -> None:
        self.batch = batch
        self.num_envs = batch.num_envs
        self.ids = ids = {agent: batch.agent_ids.get(agent, agent) for agent in batch.possible_agents}
        self.possible_agents = list(ids.values())
        spaces = batch.own_spaces if isinstance(batch, CentralBatch) else batch.observation_spaces
        self._observation = {ids[agent]: _as_given(space, agent, batch) for agent, space in spaces.items()}
        if isinstance(batch, CentralBatch):
            for agent, space in self._observation.items():
                self._observation[agent] = with_state(space, batch.central_space)
        self.single_observation_space = self.observation_space = gym.spaces.Dict(self._observation)
        self._action = {ids[agent]: space for agent, space in batch.action_spaces.items()}
        self.single_action_space = self.action_space = gym.spaces.Dict(self._action)

    @property
    def unwrapped(self) -> BatchSpaces:
        return self

    @property
    def envs(self) -> list[BatchSpaces]:
        return [self]

    def get_observation_space(self, agent: Any) -> gym.Space[Any]:
        return self._observation[agent]

    def get_action_space(self, agent: Any) -> gym.Space[Any]:
        return self._action[agent]

    def close(self) -> None:
        self.batch.close()


def _as_given(space: gym.Space[Any], agent: str, batch: BatchedEnv) -> gym.Space[Any]:
    """The space of an agent's observations as the environment gives them, with any action mask."""
    key, mask = batch.observation_keys.get(agent), batch.action_mask[agent]
    if mask is not None:
        return joined_space(space, mask.shape[1], key=key or "observation")
    return space if key is None else gym.spaces.Dict({key: space})


WITHOUT_FAST = "train without fast(...): RLlib's env runner asks it for every episode"
"""What to do where agents change modules in training."""

_EPISODES = 1000
"""The episodes for which a mapping is asked, to find out whether agents keep their modules."""


def module_of_agents(
    ids: Mapping[str, Any],
    mapping: Mapping[Any, str] | Callable[..., str],
    *,
    instead: str = "give agent -> module as policy_mapping_fn",
) -> dict[str, str]:
    """The module of each agent, for good.

    Args:
        ids: the environment's own keys of all agents, which a function is asked with, by their names.
        mapping: RLlib's `policy_mapping_fn`, asked as RLlib asks it, for many episodes; or agent -> module.
        instead: what to do where agents change modules, for the error.

    Raises:
        ValueError: a function that draws, or answers by the episode; or a mapping without an agent.
    """
    if isinstance(mapping, Mapping):
        by_name = named(mapping)
        if missing := [agent for agent in ids if agent not in by_name]:
            raise ValueError(f"expected a module for each agent, got none for {', '.join(missing)}")
        return {agent: by_name[agent] for agent in ids}
    expected = "expected a policy_mapping_fn that maps each agent to one module whatever the episode"
    before = _global_generators()
    try:
        first, *others = [ask(ids, mapping) for _ in range(_EPISODES)]
    except Exception as error:
        raise ValueError(
            f"{expected}, got one that raised {type(error).__name__} ({error}) when it was asked for an "
            f"episode that has not begun; {instead}"
        ) from error
    for agent, module in first.items():
        if other := next((answer[agent] for answer in others if answer[agent] != module), None):
            raise ValueError(f"{expected}, got one that gives {agent!r} now {module}, now {other}; {instead}")
    if before != _global_generators():
        raise ValueError(f"{expected}, got one that draws random numbers; {instead}")
    return first


def ask(ids: Mapping[str, Any], mapping: Callable[..., str]) -> dict[str, str]:
    """The modules that RLlib's `policy_mapping_fn` gives the agents of one new episode, by their names."""
    episode = MultiAgentEpisode(agent_to_module_mapping_fn=mapping)
    return {agent: str(episode.module_for(key)) for agent, key in ids.items()}


def _global_generators() -> bytes:
    """The states of the random generators that functions draw from without being handed one."""
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()))  # noqa: NPY002
