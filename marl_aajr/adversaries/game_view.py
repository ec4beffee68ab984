"""One copy of a game with victims as a PettingZoo environment: from it a run learns who plays, and what.

Training and evaluation play the game as arrays (`batched_env`); this is for whoever knows PettingZoo only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pettingzoo.utils.env import ParallelEnv

from marl_aajr.adversaries.game import VictimGame


class GameView(ParallelEnv[str, Any, Any]):
    """All players act at every step; what those do who need not act makes no difference.

    Args:
        game: one copy; the view steps it alone.
        name: what the environment calls itself.

    Attributes:
        teams: team of each player.

    Raises:
        ValueError: more than one copy.
    """

    def __init__(self, game: VictimGame, *, name: str) -> None:
        if game.num_envs != 1:
            raise ValueError(f"expected a game of one copy, got {game.num_envs}; build it with num_envs=1")
        self.metadata: dict[str, Any] = {"name": name, "render_modes": [], "is_parallelizable": True}
        self.render_mode = None
        self.game = game
        self.possible_agents = list(game.possible_agents)
        self.agents: list[str] = []
        self.teams = game.teams
        self.action_spaces: dict[str, spaces.Space[Any]] = game.action_spaces
        self.observation_spaces: dict[str, spaces.Space[Any]] = {
            player: self._with_mask(player, space) for player, space in game.observation_spaces.items()
        }
        if game.state_space is not None:
            self.state_space = game.state_space
        self._seeds: np.random.Generator | None = None

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """What a player sees."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """What a player can do."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begins an episode; `options` are not used."""
        if seed is not None or self._seeds is None:
            self._seeds = np.random.default_rng(seed)
        obs = self.game.reset(seed=int(self._seeds.integers(2**31)))
        self.agents = list(self.possible_agents)
        return self._seen(obs), {player: {} for player in self.agents}

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Plays one step of the episode."""
        given = {player: torch.from_numpy(np.asarray(action)[None]) for player, action in actions.items()}
        step = self.game.step(given)
        over = bool(step.episode_over)
        players, self.agents = self.agents, [] if over else self.agents
        cut = {player: bool(step.truncations[player]) for player in players}
        return (
            self._seen(step.final_obs if over else step.obs),
            {player: float(step.rewards[player]) for player in players},
            {player: over and not cut[player] for player in players},
            cut,
            {player: {} for player in players},
        )

    def state(self) -> Any:
        """That of the victims' environment."""
        return self.game.state()[0].cpu().numpy()

    def render(self) -> None:
        """Nothing: films show games."""

    def close(self) -> None:
        """Frees what the copy holds."""
        self.game.close()

    def _with_mask(self, player: str, space: spaces.Space[Any]) -> spaces.Space[Any]:
        mask = self.game.action_mask[player]
        if mask is None:
            return space
        return spaces.Dict({"observation": space, "action_mask": spaces.Box(0, 1, mask.shape[1:], np.int8)})

    def _seen(self, obs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        masks, seen = self.game.action_mask, {}
        for player, rows in obs.items():
            mask = masks[player]
            own = rows[0].cpu().numpy()
            seen[player] = (
                own
                if mask is None
                else {"observation": own, "action_mask": mask[0].cpu().numpy().astype(np.int8)}
            )
        return seen
