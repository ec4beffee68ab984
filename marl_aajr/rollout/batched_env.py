"""Many copies of one environment as arrays: the contract of every batched environment.

Evaluation, attacks and the fast runner collect experience from E copies at once, in tensors `[E, ...]`.
Copies end their episodes at different times, agents end at different times within an episode, and in
turn-based games most agents wait; the contract says what the tensors hold in each case.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from marl_aajr.core.channels import Channels
from marl_aajr.core.words import Words


class BatchedStep(NamedTuple):
    """The answer of E copies to actions. All tensors are fresh: they may be kept.

    Attributes:
        obs: `[E, ...]` by agent: what it sees next. Zero where it is not active. Where the episode is
            over, the first observation of the next episode.
        rewards: `[E]` float32 by agent; 0 where it is told nothing. In turn-based games, everything
            since its last observation.
        terminations: `[E]` bool by agent: reached a terminal state in this step.
        truncations: `[E]` bool by agent: was cut off in this step; its value bootstraps from
            `final_obs`.
        episode_over: `[E]` bool: the last step of an episode; the copy has been reset.
        final_obs: `[E, ...]` by agent: the last observation of the old episode, valid where the agent
            was terminated or truncated in this step. Read-only where nobody was.
        infos: One dict by agent for each copy, from this step (not from the reset that may follow it).
        metrics: `[E]` float by name, of the episodes that are over, where the environment reports some (see
            `marl_aajr.rollout.reported_metrics`); NaN or anything where none is over.
    """

    obs: dict[str, Tensor]
    rewards: dict[str, Tensor]
    terminations: dict[str, Tensor]
    truncations: dict[str, Tensor]
    episode_over: Tensor
    final_obs: dict[str, Tensor]
    infos: tuple[dict[str, Any], ...]
    metrics: Mapping[str, Tensor] = {}


class BatchedEnv(ABC):
    """E copies of an environment in lockstep, each reset by itself when its episode is over.

    Attributes:
        num_envs: E, the number of copies.
        possible_agents: Every agent that may appear, in a fixed order.
        observation_spaces: Space of each agent's `obs` (without the action mask, see `action_mask`).
        action_spaces: Space of each agent's actions, which count from 0.
        observation_keys: The key of an agent's array, where the environment gives it in a Dict.
        agent_ids: The environment's own keys of the agents; where absent, their names.
        teams: Team of each agent.
        channels: By agent, what its observation's features are about, where that is known.
        words: The words that observations consist of, `[E, L]` tokens; None where they are numbers.
        device: Device of the tensors.
        state_space: Space of the global states of one copy; None where there are none.
        turn_based: Whether agents wait for one another.
        phases: Number of steps that make one step of the environment: 2 where adversaries answer before
            agents do. Episodes begin with the first of them.
        keeps_final_states: To be set before playing, if `final_state` is going to be asked. Some environments
            have no state when they are over.
        may_idle: Whether there are steps at which no agent of a copy must act, because the environment has
            players of its own.
    """

    num_envs: int
    possible_agents: tuple[str, ...]
    observation_spaces: dict[str, spaces.Space[Any]]
    action_spaces: dict[str, spaces.Space[Any]]
    teams: dict[str, str]
    device: torch.device
    state_space: spaces.Space[Any] | None = None
    observation_keys: Mapping[str, str] = {}  # nobody writes into it
    agent_ids: Mapping[str, Hashable] = {}
    channels: Mapping[str, Channels] = {}
    words: Words | None = None
    turn_based: bool = False
    phases: int = 1
    keeps_final_states: bool = False
    may_idle: bool = False

    @abstractmethod
    def reset(self, *, seed: int) -> dict[str, Tensor]:
        """Starts the first episode of every copy; later ones follow from the same seed.

        Args:
            seed: Everything random follows from it.

        Returns:
            The first observations `[E, ...]` by agent.
        """

    @abstractmethod
    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        """Plays one step in every copy.

        Args:
            actions: `[E, ...]` by agent, as the action spaces define them. Rows of inactive agents are
                ignored; an agent that is active nowhere may be left out.

        Raises:
            ValueError: If an active agent has no action, or actions have the wrong shape or kind.
        """

    @property
    @abstractmethod
    def active(self) -> dict[str, Tensor]:
        """`[E]` bool by agent: must act now (present, not ended, and its turn)."""

    @property
    @abstractmethod
    def action_mask(self) -> dict[str, Tensor | None]:
        """`[E, n]` bool by agent: legal actions; None where the game has no masks.

        Rows of inactive agents are all True, so that a policy may be evaluated on every row.
        """

    @abstractmethod
    def state(self) -> Tensor:
        """The global states `[E, ...]`, for centralised critics (where the environment has one)."""

    def final_state(self) -> Tensor:
        """The global states `[E, ...]` that episodes ended in, valid where the last step was their last."""
        raise NotImplementedError(f"{type(self).__name__} keeps no final states")

    def draw(self, copy: int = 0) -> NDArray[np.uint8]:
        """A picture of one copy `[height, width, 3]`, where the environment can draw itself."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing")

    def text(self, copy: int = 0) -> str:
        """What the agents of one copy read, where observations are `words`."""
        raise NotImplementedError(f"{type(self).__name__} has no words")

    @abstractmethod
    def get_state(self) -> Mapping[str, Any]:
        """Everything that the future depends on: a value that later steps do not change and pickle takes.

        Raises:
            ValueError: Before the first reset; or where an environment cannot be saved, with its name.
        """

    @abstractmethod
    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `get_state` was asked, in this batch or in one that was built alike.

        Raises:
            ValueError: A state of other environments, or of another number of copies.
        """

    @abstractmethod
    def close(self) -> None:
        """Frees what the copies hold."""


class BatchedEnvWrapper(BatchedEnv):
    """A batch around another one: every member is the inner batch's, unless a subclass overrides it.

    Args:
        env: The inner batch. Its attributes are copied; a subclass sets those that differ after
            `super().__init__(env)`.
    """

    def __init__(self, env: BatchedEnv) -> None:
        self.env = env
        for name in BatchedEnv.__annotations__.keys() - {"keeps_final_states"}:
            setattr(self, name, getattr(env, name))

    @property
    def keeps_final_states(self) -> bool:
        """See `BatchedEnv`."""
        return self.env.keeps_final_states

    @keeps_final_states.setter
    def keeps_final_states(self, keeps: bool) -> None:
        self.env.keeps_final_states = keeps

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        return self.env.reset(seed=seed)

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        return self.env.step(actions)

    @property
    def active(self) -> dict[str, Tensor]:
        return self.env.active

    @property
    def action_mask(self) -> dict[str, Tensor | None]:
        return self.env.action_mask

    def state(self) -> Tensor:
        return self.env.state()

    def final_state(self) -> Tensor:
        return self.env.final_state()

    def draw(self, copy: int = 0) -> NDArray[np.uint8]:
        return self.env.draw(copy)

    def text(self, copy: int = 0) -> str:
        return self.env.text(copy)

    def get_state(self) -> Mapping[str, Any]:
        return self.env.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.env.set_state(state)

    def close(self) -> None:
        self.env.close()


def gather_actions(
    actions: Mapping[str, Tensor], action_spaces: Mapping[str, spaces.Space[Any]], num_envs: int
) -> list[Tensor]:
    """The actions of all agents, in order.

    Raises:
        ValueError: If some are missing, or of the wrong shape or kind.
    """
    if missing := [agent for agent in action_spaces if agent not in actions]:
        raise ValueError(f"expected actions of {list(action_spaces)}, got none of {missing}; add them")
    for agent, space in action_spaces.items():
        check_action(agent, actions[agent], space, num_envs)
    return [actions[agent] for agent in action_spaces]


def check_action(agent: str, action: Tensor, space: spaces.Space[Any], num_envs: int) -> None:
    """Raise `ValueError` for actions of the wrong shape or kind."""
    shape, whole = (num_envs, *(space.shape or ())), not isinstance(space, spaces.Box)
    if tuple(action.shape) != shape or (whole and action.is_floating_point()):
        raise ValueError(
            f"expected actions of {agent!r} as {'integers' if whole else 'numbers'} of shape {shape}, "
            f"got {action.dtype} of shape {tuple(action.shape)}"
        )
