"""A matrix game as an environment: equilibria, best responses and ratings are known by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pettingzoo.utils.env import ParallelEnv
from torch import nn

from marl_aajr.rollout.environments import EnvironmentSpec, resolve
from marl_aajr.victims import Victim

ROCK_PAPER_SCISSORS = ((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))


class MatrixGame(ParallelEnv[str, Any, Any]):
    """Team `rows` is paid `payoffs[i][j]`, team `columns` minus that, in each of `steps` steps.

    The game is shown in a mirror half of the time: where the signal that all see is −1, action i counts as
    the one at place i from the end. A policy that is shown the wrong signal plays the wrong action.
    """

    metadata = {"name": "matrix_game_v0", "render_modes": []}  # noqa: RUF012
    render_mode = None

    def __init__(self, *, payoffs: Sequence[Sequence[float]] = ROCK_PAPER_SCISSORS, steps: int = 2) -> None:
        self.payoffs, self.steps = np.asarray(payoffs, np.float64), steps
        self.possible_agents = ["row", "column"]
        self.teams = {"row": "rows", "column": "columns"}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-9, 9, (1,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(self.payoffs.shape[self.possible_agents.index(agent)])

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.rng, self.t = np.random.default_rng(seed), 0
        self.agents = list(self.possible_agents)
        return self._look(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        mirrored = [
            actions[agent] if self.signal > 0 else count - 1 - actions[agent]
            for agent, count in zip(self.possible_agents, self.payoffs.shape, strict=True)
        ]
        paid = float(self.payoffs[tuple(mirrored)])
        self.t += 1
        told = self._look()
        infos: dict[str, Any] = {agent: {} for agent in self.agents}
        ends = dict.fromkeys(self.agents, self.t >= self.steps)
        never = dict.fromkeys(self.agents, False)
        self.agents = [] if self.t >= self.steps else self.agents
        return told, {"row": paid, "column": -paid}, ends, never, infos

    def _look(self) -> dict[str, Any]:
        self.signal = 2 * int(self.rng.integers(2)) - 1
        return {agent: np.array([self.signal], np.float32) for agent in self.possible_agents}


def matrix_game(payoffs: Sequence[Sequence[float]] = ROCK_PAPER_SCISSORS, steps: int = 2) -> EnvironmentSpec:
    """The game by its name."""
    return resolve(f"{__name__}:MatrixGame", {"payoffs": [list(row) for row in payoffs], "steps": steps})


def always(action: int, count: int) -> nn.Module:
    """A network that takes one action of `count`, in the mirror its image; ε > 1 turns one into the other."""
    layer = nn.Linear(1, count)
    chosen, image = torch.eye(count)[action], torch.eye(count)[count - 1 - action]
    layer.weight.data = (chosen - image)[:, None]
    layer.bias.data = 0.01 * chosen
    return layer


def players(row: int, column: int, spec: EnvironmentSpec | None = None) -> Victim:
    """Both teams by pure strategies."""
    spec = spec or matrix_game()
    game = MatrixGame(**spec.kwargs)
    counts = game.payoffs.shape
    return Victim(
        module_of={agent: agent for agent in game.possible_agents},
        modules={"row": always(row, counts[0]), "column": always(column, counts[1])},
        observation_spaces={agent: game.observation_space(agent) for agent in game.possible_agents},
        action_spaces={agent: game.action_space(agent) for agent in game.possible_agents},
        env_name=spec.name,
        env_kwargs=spec.kwargs,
    )
