"""Any PettingZoo environment as a `BatchedEnv`: E games in one process, gathered into arrays."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.core.environment_values import choices, own_key, to_vector
from marl_aajr.core.flat_observations import FlatBox, own_part
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep, check_action
from marl_aajr.rollout.environments import EnvironmentSpec
from marl_aajr.rollout.game import Game
from marl_aajr.rollout.game_agents import GameStep
from marl_aajr.rollout.pettingzoo_games import TurnBasedGame

_Array = np.ndarray[Any, np.dtype[Any]]
_KEPT = ("seed", "episodes", "acting", "active", "masks")
_INTEGER = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class PettingZooBatch(BatchedEnv):
    """E copies of a PettingZoo environment, stepped one after the other.

    Episode k of copy e is seeded from `SeedSequence(seed, spawn_key=(e, k))`: what a copy plays depends
    neither on how many others there are nor on how long their episodes last.

    Args:
        spec: The environment.
        num_envs: E, at least 1.
        device: Device of the tensors.
        flat: Make one vector of observations that are no Box (`FlatBox`).

    Raises:
        ValueError: If the environment cannot be built, or an agent's observations or actions are no
            arrays (a Dict observation must consist of `observation` and `action_mask`).
    """

    _acting: list[tuple[str, ...]]
    _active: _Array
    _masks: dict[str, _Array | None]

    def __init__(
        self,
        spec: EnvironmentSpec,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        flat: bool = False,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"expected at least 1 environment, got {num_envs}")
        self._games = [spec.make() for _ in range(num_envs)]
        for e, game in enumerate(self._games):
            game.copy = e
        game = self._games[0]
        self.num_envs = num_envs
        self.possible_agents, self.agent_ids, self.teams = game.possible_agents, game.agent_ids, game.teams
        self.action_spaces, self.state_space = game.action_spaces, game.state_space
        self.turn_based = isinstance(game, TurnBasedGame)
        self._final_states: _Array | None = None
        if isinstance(game.state_space, spaces.Box):
            self._final_states = np.zeros((num_envs, *game.state_space.shape), game.state_space.dtype)
        self.device = torch.device(device)
        self._rank = {agent: i for i, agent in enumerate(self.possible_agents)}
        self.observation_spaces, self._mask_shapes = {}, {}
        for agent in self.possible_agents:
            self.observation_spaces[agent], self._mask_shapes[agent] = _array_spaces(game, agent, flat)
        self.observation_keys = {
            agent: own_key(space)
            for agent, space in game.observation_spaces.items()
            if isinstance(space, spaces.Dict) and not isinstance(self.observation_spaces[agent], FlatBox)
        }
        self._clear()
        self._no_final = self._tensors(self._blank())
        self._episodes = [0] * num_envs
        self._seed = 0

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        self._seed, self._episodes = seed, [0] * self.num_envs
        self._clear()
        obs = self._blank()
        for e in range(self.num_envs):
            self._start(e, obs)
        return self._tensors(obs)

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        rows = {agent: self._rows(agent, given) for agent, given in actions.items()}
        agents, copies = len(self.possible_agents), self.num_envs
        rewards = np.zeros((agents, copies), np.float32)
        ends = np.zeros((2, agents, copies), np.bool_)
        over = np.zeros(copies, np.bool_)
        obs, final = self._blank(), None
        acting = self._acting
        self._clear()
        infos = []
        for e, game in enumerate(self._games):
            turn = game.step({agent: self._row(rows, agent, e) for agent in acting[e]})
            for agent, reward in turn.rewards.items():
                rank = self._rank[agent]
                rewards[rank, e] = reward
                ends[0, rank, e] = turn.terminations[agent]
                ends[1, rank, e] = turn.truncations[agent]
            if ends[:, :, e].any():
                final = final or self._blank()
                for agent, seen in turn.obs.items():
                    if turn.terminations[agent] or turn.truncations[agent]:
                        final[agent][e], _ = self._split(agent, seen)
            infos.append(turn.infos)
            if turn.over:
                over[e] = True
                if self.keeps_final_states and self._final_states is not None:
                    self._final_states[e] = game.state()
                self._start(e, obs)
            else:
                self._show(e, turn, obs)
        return BatchedStep(
            obs=self._tensors(obs),
            rewards=self._by_agent(rewards),
            terminations=self._by_agent(ends[0]),
            truncations=self._by_agent(ends[1]),
            episode_over=torch.from_numpy(over).to(self.device),
            final_obs=self._no_final if final is None else self._tensors(final),
            infos=tuple(infos),
        )

    @property
    def active(self) -> dict[str, Tensor]:
        return self._by_agent(self._active)

    @property
    def action_mask(self) -> dict[str, Tensor | None]:
        return {
            agent: None if mask is None else torch.from_numpy(mask).to(self.device)
            for agent, mask in self._masks.items()
        }

    def state(self) -> Tensor:
        return torch.from_numpy(np.stack([game.state() for game in self._games])).to(self.device)

    def final_state(self) -> Tensor:
        if self._final_states is None or not self.keeps_final_states:
            return super().final_state()
        return torch.from_numpy(self._final_states.copy()).to(self.device)

    def draw(self, copy: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """See `BatchedEnv.draw`.

        Raises:
            ValueError: The environment draws no picture; it must be built with `render_mode="rgb_array"`.
        """
        game = self._games[copy]
        picture = game.render()
        if not (isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] >= 3):
            raise ValueError(
                f"expected {game.name} to draw a picture [height, width, 3], got {type(picture).__name__}; "
                f"build it with render_mode='rgb_array' (it has {game.metadata.get('render_modes', [])})"
            )
        return picture[..., :3]

    def get_state(self) -> dict[str, Any]:
        """The state of all games; `marl_aajr.rollout.game` says what it can hold."""
        if not any(self._episodes):
            raise ValueError("expected reset before get_state; call reset(seed=...)")
        own = {name: deepcopy(getattr(self, f"_{name}")) for name in _KEPT}
        return {"games": [game.get_state() for game in self._games], **own}

    def set_state(self, state: Mapping[str, Any]) -> None:
        active, games = state["active"], state["games"]
        if active.shape != self._active.shape or tuple(state["masks"]) != self.possible_agents:
            raise ValueError(
                f"expected a state of {self.num_envs} copies with {list(self.possible_agents)}, got one of "
                f"{len(games)} with {list(state['masks'])}; build the same environment"
            )
        for game, saved in zip(self._games, games, strict=True):
            game.set_state(saved)
        for name in _KEPT:
            setattr(self, f"_{name}", deepcopy(state[name]))

    def close(self) -> None:
        for game in self._games:
            game.close()

    def _start(self, e: int, obs: dict[str, _Array]) -> None:
        sequence = np.random.SeedSequence(self._seed, spawn_key=(e, self._episodes[e]))
        self._episodes[e] += 1
        # Environments hand seeds to generators that take 31 bits.
        self._show(e, self._games[e].reset(seed=int(sequence.generate_state(1)[0] >> 1)), obs)

    def _show(self, e: int, turn: GameStep, obs: dict[str, _Array]) -> None:
        self._acting[e] = turn.acting
        for agent in self._acting[e]:
            obs[agent][e], legal = self._split(agent, turn.obs[agent])
            mask = self._masks[agent]
            if mask is not None:
                mask[e] = legal
            self._active[self._rank[agent], e] = True

    def _split(self, agent: str, seen: Any) -> tuple[Any, Any]:
        """An observation as an array, and its mask."""
        (own, mask), space = own_part(seen), self.observation_spaces[agent]
        return space.vector(own) if isinstance(space, FlatBox) else own, mask

    def _clear(self) -> None:
        copies = self.num_envs
        self._acting = [()] * copies
        self._active = np.zeros((len(self.possible_agents), copies), np.bool_)
        self._masks = {
            agent: None if shape is None else np.ones((copies, *shape), np.bool_)
            for agent, shape in self._mask_shapes.items()
        }

    def _blank(self) -> dict[str, _Array]:
        return {
            agent: np.zeros((self.num_envs, *(space.shape or ())), space.dtype)
            for agent, space in self.observation_spaces.items()
        }

    def _tensors(self, arrays: dict[str, _Array]) -> dict[str, Tensor]:
        return {agent: torch.from_numpy(a).to(self.device) for agent, a in arrays.items()}

    def _by_agent(self, array: _Array) -> dict[str, Tensor]:
        return dict(zip(self.possible_agents, torch.from_numpy(array).to(self.device), strict=True))

    def _rows(self, agent: str, actions: Tensor) -> Any:
        """One action for each copy: Python integers or arrays."""
        space = self.action_spaces.get(agent)
        if space is None:
            raise ValueError(f"expected actions of {list(self.possible_agents)}, got some of {agent!r}")
        check_action(agent, actions, space, self.num_envs)
        return actions.tolist() if isinstance(space, spaces.Discrete) else actions.detach().cpu().numpy()

    def _row(self, rows: Mapping[str, Any], agent: str, e: int) -> Any:
        try:
            return rows[agent][e]
        except KeyError:
            raise ValueError(f"expected actions of {agent!r}, which is active; add them") from None


def _array_spaces(game: Game, agent: str, flat: bool) -> tuple[spaces.Space[Any], tuple[int, ...] | None]:
    """The space of the array that an agent sees, and the shape of its mask; None where it has none."""
    space, acts = game.observation_spaces[agent], game.action_spaces[agent]
    own, mask = own_part(space)
    if flat and not isinstance(own, spaces.Box):
        own = FlatBox(own)
    if not isinstance(own, (spaces.Box, *_INTEGER)):
        raise ValueError(
            f"expected {game.name} to give agent {agent!r} an array (or a Dict of one and its action_mask), "
            f"got {space}; {to_vector(space)}"
        )
    if not isinstance(acts, (spaces.Box, *_INTEGER)):
        raise ValueError(
            f"expected agent {agent!r} of {game.name} to act with an array or a number, got {acts}; "
            "change it: gymnasium.wrappers.TransformAction, or for PettingZoo supersuit.action_lambda_v1"
        )
    if mask is not None and mask.shape != (choices(acts),):
        raise ValueError(
            f"expected the action_mask of agent {agent!r} of {game.name} to have one entry for each of its "
            f"{choices(acts)} actions, got {mask} for {acts}; repair the mask"
        )
    return own, None if mask is None else mask.shape
