"""One copy of a batch as a PettingZoo environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo.utils.env import ParallelEnv
from torch import Tensor

from .batch import TensorBatch


class SingleCopy(ParallelEnv[str, NDArray[Any], Any]):
    """A batch of one copy, played episode by episode.

    `reset(seed=s)` begins the episode that copy 0 of the batch begins with seed s. Later resets without a
    seed continue the sequence that s began; without any seed it comes from the operating system.

    Args:
        batch: The batch; the view steps it alone.
        name: What the environment calls itself.
        render_mode: `"rgb_array"`, or None for no drawing.

    Attributes:
        batch: As given, for what PettingZoo has no words for (its saved state, its curriculum).
        teams: Team of each agent.

    Raises:
        ValueError: If the batch has more than one copy, or the render mode is another.
    """

    def __init__(self, batch: TensorBatch, *, name: str, render_mode: str | None = None) -> None:
        if batch.num_envs != 1:
            raise ValueError(f"expected a batch of one copy, got {batch.num_envs}; build it with num_envs=1")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"expected render_mode 'rgb_array' or None, got {render_mode!r}")
        self.metadata: dict[str, Any] = {
            "name": name,
            "render_modes": ["rgb_array"],
            "render_fps": 10,
            "is_parallelizable": True,
        }
        self.batch = batch
        self.render_mode = render_mode
        self.possible_agents = list(batch.possible_agents)
        self.agents: list[str] = []
        self.observation_spaces: dict[str, spaces.Space[Any]] = batch.observation_spaces
        self.action_spaces: dict[str, spaces.Space[Any]] = batch.action_spaces
        self.state_space = batch.state_space
        self.teams = batch.teams
        self._seeds: np.random.Generator | None = None

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """What an agent sees."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """What an agent can do."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, dict[str, Any]]]:
        """Begins an episode; `options` are not used."""
        if seed is not None or self._seeds is None:
            self._seeds = np.random.default_rng(seed)
        first = seed if seed is not None else int(self._seeds.integers(2**63))
        self.agents = list(self.possible_agents)
        return self._seen(self.batch.reset(seed=first)), {agent: {} for agent in self.agents}

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[
        dict[str, NDArray[Any]], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]
    ]:
        """Plays one step of the episode.

        Raises:
            ValueError: If no episode runs, or an action is missing or not in its space. Continuous actions
                out of bounds are clipped.
        """
        if not self.agents:
            raise ValueError("expected an episode to be running; call reset first")
        after = self.batch.step({agent: self._action(agent, actions) for agent in self.agents})
        over = bool(after.episode_over)
        agents, info = self.agents, after.infos[0]
        if over:
            self.agents = []
        return (
            self._seen(after.final_obs if over else after.obs),
            {agent: float(after.rewards[agent]) for agent in agents},
            {agent: bool(after.terminations[agent]) for agent in agents},
            {agent: bool(after.truncations[agent]) for agent in agents},
            {agent: info.get(agent, {}) for agent in agents},
        )

    def state(self) -> NDArray[Any]:
        """All agents' observations; after the last step, those of the episode's end."""
        return self._state

    def render(self) -> NDArray[np.uint8] | None:
        """The picture `[height, width, 3]`, or None without a render mode."""
        return self.batch.draw(0) if self.render_mode else None

    def close(self) -> None:
        """Frees what the copy holds."""
        self.batch.close()

    def _seen(self, obs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        seen = {agent: value[0].cpu().numpy() for agent, value in obs.items()}
        self._state = np.concatenate([value.ravel() for value in seen.values()])
        return seen

    def _action(self, agent: str, actions: Mapping[str, Any]) -> Tensor:
        if agent not in actions:
            raise ValueError(f"expected actions of {self.agents}, got none of {agent!r}; add it")
        space, action = self.action_spaces[agent], np.asarray(actions[agent])
        if isinstance(space, spaces.Discrete) and not space.contains(action[()]):
            raise ValueError(f"expected an action of {agent!r} in {space}, got {actions[agent]!r}")
        return torch.from_numpy(action[None]).to(self.batch.device)
