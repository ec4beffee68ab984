"""Any PettingZoo environment as a `BatchedEnv`: E games in one process or several, gathered into arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from marl_aajr.core.environment_values import choices, own_key, to_vector
from marl_aajr.core.flat_observations import FlatBox, own_part
from marl_aajr.core.words import Words
from marl_aajr.rollout.batched_env import BatchedEnv, BatchedStep, check_action
from marl_aajr.rollout.environments import EnvironmentSpec
from marl_aajr.rollout.game import Game
from marl_aajr.rollout.game_copies import CopySpaces
from marl_aajr.rollout.game_shares import GameShares, Processes
from marl_aajr.rollout.pettingzoo_games import TurnBasedGame
from marl_aajr.rollout.reported_metrics import by_copy
from marl_aajr.rollout.teams import outermost

_Array = np.ndarray[Any, np.dtype[Any]]
_INTEGER = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class PettingZooBatch(BatchedEnv):
    """E copies of a PettingZoo environment, stepped one after the other, by one process or several.

    Episode k of copy e is seeded from `SeedSequence(seed, spawn_key=(e, k))`: what a copy plays depends
    neither on how many others there are nor on how long their episodes last nor on who steps them. (An
    environment that draws from the global generators of `random`, NumPy or torch repeats itself only with the
    same number of processes.)

    Args:
        spec: The environment.
        num_envs: E, at least 1.
        device: Device of the tensors.
        flat: Make one vector of observations that are no Box (`FlatBox`).
        processes: Processes that play, at most E, this one among them; None: those of
            `marl_aajr.rollout.game_shares.in_processes`, this one alone outside of it. The infos of copies
            in other processes stay there, but for metrics of episodes.

    Raises:
        ValueError: If the environment cannot be built, here or in another process, or an agent's observations
            or actions are no arrays (a Dict observation must consist of `observation` and `action_mask`).
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        flat: bool = False,
        processes: int | None = None,
    ) -> None:
        if num_envs < 1 or (processes is not None and processes < 1):
            what, got = ("environment", num_envs) if num_envs < 1 else ("process", processes)
            raise ValueError(f"expected at least 1 {what}, got {got}")
        game = spec.make()
        self.num_envs = num_envs
        self.possible_agents, self.agent_ids, self.teams = game.possible_agents, game.agent_ids, game.teams
        self.action_spaces, self.state_space = game.action_spaces, game.state_space
        self.turn_based = isinstance(game, TurnBasedGame)
        self.device = torch.device(device)
        self.observation_spaces, masks = {}, {}
        for agent in self.possible_agents:
            self.observation_spaces[agent], masks[agent] = _array_spaces(game, agent, flat)
        self.channels = game.channels
        self.words = words if isinstance(words := outermost(game.env, "words"), Words) else None
        self.observation_keys = {
            agent: own_key(space)
            for agent, space in game.observation_spaces.items()
            if isinstance(space, spaces.Dict) and not isinstance(self.observation_spaces[agent], FlatBox)
        }
        state = game.state_space if isinstance(game.state_space, spaces.Box) else None
        arrays = CopySpaces(self.observation_spaces, self.action_spaces, masks, state)
        chosen = None if processes is None else Processes(processes)
        self._shares = GameShares(spec, arrays, game, num_envs, chosen)
        self._records = self._shares.records
        self._masked = {agent: count is not None for agent, count in masks.items()}
        self._look()
        self._no_final = {agent: torch.zeros_like(seen) for agent, seen in self._by_agent("obs").items()}
        self._seed: int | None = None

    def reset(self, *, seed: int) -> dict[str, Tensor]:
        self._seed = seed
        self._shares.reset(seed)
        self._look()
        return self._by_agent("obs")

    def step(self, actions: Mapping[str, Tensor]) -> BatchedStep:
        for agent, given in actions.items():
            space = self.action_spaces.get(agent)
            if space is None:
                raise ValueError(f"expected actions of {list(self.possible_agents)}, got some of {agent!r}")
            check_action(agent, given, space, self.num_envs)
            self._records["actions"][agent][...] = given.detach().cpu().numpy()
        infos = self._shares.step((*actions,), self.keeps_final_states)
        self._look()
        rewards, ends = self._tensor(self._records["rewards"].T), self._tensor(self._records["ends"].T)
        over = self._tensor(self._records["over"])
        return BatchedStep(
            obs=self._by_agent("obs"),
            rewards=self._zipped(rewards),
            terminations=self._zipped(ends[:, 0]),
            truncations=self._zipped(ends[:, 1]),
            episode_over=over,
            final_obs=self._by_agent("final_obs") if self._records["ends"].any() else self._no_final,
            infos=tuple(infos),
            metrics=by_copy(infos, over) if self._records["over"].any() else {},
        )

    @property
    def active(self) -> dict[str, Tensor]:
        return self._active

    @property
    def action_mask(self) -> dict[str, Tensor | None]:
        return self._masks

    def state(self) -> Tensor:
        return self._tensor(np.concatenate(self._shares.each("states")))

    def final_state(self) -> Tensor:
        if not self.keeps_final_states or "final_state" not in (self._records.dtype.names or ()):
            return super().final_state()
        return self._tensor(self._records["final_state"])

    def draw(self, copy: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """See `BatchedEnv.draw`.

        Raises:
            ValueError: The environment draws no picture; it must be built with `render_mode="rgb_array"`.
        """
        picture: np.ndarray[Any, np.dtype[np.uint8]] = self._shares.at(copy, "draw", copy)
        return picture

    def get_state(self) -> dict[str, Any]:
        """The state of all games; `marl_aajr.rollout.game` says what it can hold."""
        if self._seed is None:
            raise ValueError("expected reset before get_state; call reset(seed=...)")
        parts = self._shares.each("get_state")
        joined = {name: [value for part in parts for value in part[name]] for name in parts[0]}
        seen = {name: self._records[name].copy() for name in ("active", "masks")}
        return {**joined, **seen, "agents": self.possible_agents, "seed": self._seed}

    def set_state(self, state: Mapping[str, Any]) -> None:
        games, agents = state["games"], state["agents"]
        if len(games) != self.num_envs or agents != self.possible_agents:
            raise ValueError(
                f"expected a state of {self.num_envs} copies with {list(self.possible_agents)}, got one of "
                f"{len(games)} with {list(agents)}; build the same environment"
            )
        self._shares.each("set_state", state)
        self._seed = state["seed"]
        for name in ("active", "masks"):
            self._records[name][...] = state[name]
        self._look()

    def close(self) -> None:
        self._shares.close()

    def _look(self) -> None:
        """Take who must act, and what they may do, out of the records."""
        self._active = self._zipped(self._tensor(self._records["active"].T))
        masks = self._records["masks"]
        self._masks: dict[str, Tensor | None] = {
            agent: self._tensor(masks[agent]) if masked else None for agent, masked in self._masked.items()
        }

    def _by_agent(self, part: str) -> dict[str, Tensor]:
        return {agent: self._tensor(self._records[part][agent]) for agent in self.possible_agents}

    def _tensor(self, array: _Array) -> Tensor:
        """A copy: the records change with every step."""
        return torch.from_numpy(array.copy()).to(self.device)

    def _zipped(self, tensor: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.possible_agents, tensor, strict=True))


def _array_spaces(game: Game, agent: str, flat: bool) -> tuple[spaces.Space[Any], int | None]:
    """The space of the array that an agent sees, and the length of its mask; None where it has none."""
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
    return own, None if mask is None else choices(acts)
