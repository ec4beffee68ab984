"""The inputs of a centralised critic beside an agent's own observation.

    own     nothing: the critic reads what the actor reads
    joint   the observations of all agents, flattened side by side in the order of `possible_agents`;
            zeros for an agent that has none (it has left, or is yet to come)
    state   the environment's own global state, PettingZoo's `state()`

At the last step of an episode they are those of the episode's end, from which truncated values bootstrap.
Actors never see them: see `marl_aajr.rllib.networks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces import flatdim
from numpy.typing import NDArray
from torch import Tensor

from marl_aajr.core.checks import one_of
from marl_aajr.core.environment_values import STATE, split
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedEnvWrapper, BatchedStep
from marl_aajr.rollout.game import Game
from marl_aajr.rollout.game_agents import GameStep
from marl_aajr.rollout.pettingzoo_games import TurnBasedGame

Critic = Literal["own", "joint", "state"]
CRITICS: tuple[Critic, ...] = get_args(Critic)


class CentralView:
    """The central view of one environment, step by step.

    Args:
        game: The environment.
        critic: `"joint"` or `"state"`.

    Attributes:
        space: Of the view.

    Raises:
        ValueError: An environment without such a view.
    """

    def __init__(self, game: Game, critic: Critic) -> None:
        self._game = game
        turn_based = isinstance(game, TurnBasedGame)
        self.space = central_space(game, critic, name=game.name, turn_based=turn_based)
        self._boxes = own_boxes(game.observation_spaces) if critic == "joint" else None

    def __call__(self, turn: GameStep) -> NDArray[Any]:
        """The view after a turn.

        Raises:
            EnvironmentFault: A state that is not in its space.
        """
        if self._boxes is not None:
            return np.concatenate([_part(turn.obs.get(agent), box) for agent, box in self._boxes.items()])
        state: NDArray[Any] = self._game.state()
        return state


class CentralBatch(BatchedEnvWrapper):
    """A batch whose observations are followed, flattened, by the central view.

    `obs[agent]` is `[E, d + c]` float32: its own d numbers, then the c of the central view (also where
    the agent is not active). Modules take them apart again; until then they travel like any observation.

    Args:
        env: The batch.
        critic: `"joint"` or `"state"`.

    Attributes:
        own_spaces: The spaces of the agents' own observations.
        central_space: The space of the central view.

    Raises:
        ValueError: A batch without such a view.
    """

    def __init__(self, env: BatchedEnv, critic: Critic) -> None:
        super().__init__(env)
        self._joint = critic == "joint"
        self.own_spaces = env.observation_spaces
        self.central_space = central_space(env, critic, name=type(env).__name__, turn_based=env.turn_based)
        env.keeps_final_states |= not self._joint
        width = flatdim(self.central_space)
        self.observation_spaces = {
            agent: _unbounded(flatdim(box) + width) for agent, box in own_boxes(self.own_spaces).items()
        }

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        obs = self.env.reset(seed=seed)
        return _beside(obs, self._view(obs))

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        step = self.env.step(actions)
        ended = {agent: step.terminations[agent] | step.truncations[agent] for agent in step.obs}
        if self.device.type == "cpu" and not any(bool(end.any()) for end in ended.values()):
            obs = _beside(step.obs, self._view(step.obs))
            return step._replace(obs=obs, final_obs=obs)  # nobody's last observation is asked for
        if self._joint:
            now, last = _joint_after(step, ended)
        else:
            now = self._view(step.obs)
            last = torch.where(step.episode_over.unsqueeze(1), _flat(self.env.final_state()), now)
        return step._replace(obs=_beside(step.obs, now), final_obs=_beside(step.final_obs, last))

    def _view(self, obs: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([*map(_flat, obs.values())], 1) if self._joint else _flat(self.env.state())


def _joint_after(step: BatchedStep, ended: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The joint observation after a step, and the last one of the agents that ended in it, `[E, c]`.

    An agent that has just ended is still seen by the others, as it was last; a new episode shows no agent of
    the old one.
    """
    over = step.episode_over.unsqueeze(1)
    now, last = [], []
    for agent, obs in step.obs.items():
        end, new = ended[agent].unsqueeze(1), _flat(obs)
        seen = torch.where(end, _flat(step.final_obs[agent]), new)
        now.append(torch.where(over, new, seen))
        last.append(seen.masked_fill(over & ~end, 0.0))
    return torch.cat(now, 1), torch.cat(last, 1)


def _beside(obs: Mapping[str, Tensor], central: Tensor) -> dict[str, Tensor]:
    return {agent: torch.cat([_flat(part), central], 1) for agent, part in obs.items()}


def _flat(rows: Tensor) -> Tensor:
    return rows.flatten(1).float()


def with_state(space: spaces.Space[Any], central: spaces.Space[Any]) -> spaces.Dict:
    """The space of observations with the central view, beside any action mask."""
    return spaces.Dict(beside(space, central))


def beside(obs: Any, central: Any) -> dict[str, Any]:
    """An observation (or its space) with the central view, beside any action mask."""
    return {**(obs if isinstance(obs, Mapping) else {"observation": obs}), STATE: central}


def own_boxes(by_agent: Mapping[str, spaces.Space[Any]]) -> dict[str, spaces.Box]:
    """The arrays that the agents see, without their action masks.

    Raises:
        ValueError: An observation is something else.
    """
    boxes = {}
    for agent, space in by_agent.items():
        inner = split(space)[0]
        if not isinstance(inner, spaces.Box):
            raise ValueError(
                "expected Box observations (or a Dict of observation and action_mask) for a centralised "
                f"critic, got {space} for agent {agent!r}; wrap the environment, or use critic 'own'"
            )
        boxes[agent] = inner
    return boxes


def central_space(env: Game | BatchedEnv, critic: Critic, *, name: str, turn_based: bool) -> spaces.Box:
    """The space of the central view of an environment.

    Raises:
        ValueError: Another critic; `"joint"` in a turn-based environment, where only the agent to move sees
            something; `"state"` in one that declares no space of arrays for its state.
    """
    one_of("critic", critic, CRITICS[1:])
    if critic == "joint":
        if turn_based:
            raise ValueError(
                "expected an environment whose agents all see something at every step for critic 'joint', "
                f"got the turn-based {name}; use 'state' if it has one, else 'own'"
            )
        return _unbounded(sum(map(flatdim, own_boxes(env.observation_spaces).values())))
    if not isinstance(env.state_space, spaces.Box):
        raise ValueError(
            f"expected {name} to declare a state_space (a Box) beside its state() for critic 'state', got "
            f"{'none' if env.state_space is None else env.state_space}; use 'joint' or 'own'"
        )
    return env.state_space


def _part(seen: Any, box: spaces.Box) -> NDArray[np.float32]:
    """The numbers that an agent sees; zeros for an agent that sees nothing."""
    if seen is None:
        return np.zeros(flatdim(box), np.float32)
    return np.asarray(split(seen)[0], np.float32).ravel()


def _unbounded(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)
