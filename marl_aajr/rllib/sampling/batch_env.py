"""Batched environments as RLlib sees them: the spaces of one copy, and each agent's module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gymnasium as gym

from marl_aajr.core.environment_values import joined_space, named
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.centralized_critic import CentralBatch, with_state


class BatchSpaces:
    """A batch as those parts of RLlib see it that ask an environment for nothing but its spaces."""

    def __init__(self, batch: BatchedEnv) -> None:
        self.batch = batch
        self.num_envs = batch.num_envs
        ids = {agent: batch.agent_ids.get(agent, agent) for agent in batch.possible_agents}
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


def module_of_agents(
    agents: Iterable[str],
    mapping: Mapping[Any, str] | Callable[..., str],
    *,
    ids: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The module of each agent, for good.

    Args:
        agents: the names of all of them.
        mapping: RLlib's `policy_mapping_fn`, or agent -> module.
        ids: the environment's own keys of the agents, which the function is asked with; None: their names.

    Raises:
        ValueError: a function that needs to know the episode, or a mapping without an agent.
    """
    if isinstance(mapping, Mapping):
        by_name = named(mapping)
        if missing := [agent for agent in agents if agent not in by_name]:
            raise ValueError(f"expected a module for each agent, got none for {', '.join(missing)}")
        return {agent: by_name[agent] for agent in agents}
    try:
        return {agent: str(mapping((ids or {}).get(agent, agent), None)) for agent in agents}
    except Exception as error:
        raise ValueError(
            "expected a policy_mapping_fn that maps each agent to one module whatever the episode, got one "
            f"that raised {type(error).__name__} ({error}) when it was called without an episode; use "
            "RLlib's env runner for agents that change modules"
        ) from error
