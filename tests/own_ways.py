"""An environment with ways of its own: agents of any kind, any types, starts of actions, masks in infos."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.wrappers import TerminateIllegalWrapper

NAME = "tests.own_ways:OwnWays"
STEPS = 10


class Side(enum.Enum):
    NORTH = 1
    SOUTH = 2


AGENTS: dict[str, list[Any]] = {
    "texts": ["a", "b"],
    "integers": [0, 1],
    "numpy": [np.int64(0), np.int64(1)],
    "tuples": [("red", 0), ("red", 1)],
    "enums": [Side.NORTH, Side.SOUTH],
}
ACTIONS = {"discrete": 3, "multi": 5}
PLAYED: list[tuple[int, ...]] = []
"""Actions of all copies in this process, counted from 0; the first of the three is illegal under masks."""


class OwnWays(ParallelEnv[Any, Any, Any]):
    """Each agent earns 1 in each of ten steps, in a form of choice; sees [0, 1, 2, 3] or random numbers."""

    metadata: dict[str, Any] = {"name": "own_ways_v0", "render_modes": []}  # noqa: RUF012
    render_mode = None

    def __init__(
        self,
        *,
        agents: str = "integers",
        dtype: str = "float32",
        given: str = "float64",
        start: int = 0,
        acts: str = "discrete",
        masks: bool = False,
        form: str = "number",
    ) -> None:
        self.possible_agents = AGENTS[agents]
        self.dtype, self.given, self.start, self.acts, self.masks = dtype, given, start, acts, masks
        self.form = {"number": lambda x: x, "array": lambda x: np.array([x]), "list": lambda x: [x]}[form]

    def observation_space(self, agent: Any) -> spaces.Space[Any]:
        return spaces.Box(-1, 9, (4,), np.dtype(self.dtype).type)

    def action_space(self, agent: Any) -> spaces.Space[Any]:
        if self.acts == "multi":
            return spaces.MultiDiscrete([3, 2], start=[self.start, self.start])
        return spaces.Discrete(3, start=self.start)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t, self.agents = 0, list(self.possible_agents)
        return self._obs(), self._infos()

    def step(self, actions: Any) -> Any:
        for agent, action in actions.items():
            assert self.action_space(agent).contains(action), (agent, action)
            PLAYED.append(tuple(np.atleast_1d(action) - self.start))
        self.t += 1
        obs, end, everybody = self._obs(), self.t == STEPS, self.possible_agents
        self.agents = [] if end else self.agents
        values = (1.0, False, end)
        rest = [dict.fromkeys(everybody, self.form(value)) for value in values]
        return obs, *rest, self._infos()

    def _obs(self) -> Any:
        return {agent: np.array([0, 1, 2, 3], self.given) for agent in self.agents}

    def _infos(self) -> Any:
        first, second = np.array([0, 1, 1], np.int8), np.array([1, 0], np.int8)
        mask = {"action_mask": (first, second) if self.acts == "multi" else first}
        return {agent: dict(mask) if self.masks else {} for agent in self.possible_agents}


class Turns(AECEnv[str, Any, Any]):
    """Two players in turn, both earn 1 a move; after t moves, action t mod 3 is illegal and ends the game."""

    metadata: dict[str, Any] = {"name": "turns_v0"}  # noqa: RUF012
    render_mode = None
    possible_agents = ["a", "b"]  # noqa: RUF012

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(0, 2, (4,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(3)

    def observe(self, agent: str) -> Any:
        return np.full(4, self.t % 3, np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents, self.agent_selection, self.t = ["a", "b"], "a", 0
        self.rewards, self._cumulative_rewards = dict.fromkeys("ab", 0.0), dict.fromkeys("ab", 0.0)
        self.terminations, self.truncations = dict.fromkeys("ab", False), dict.fromkeys("ab", False)
        self._tell()

    def step(self, action: Any) -> None:
        if self.terminations[self.agent_selection] or self.truncations[self.agent_selection]:
            self._was_dead_step(action)
            return
        self.t += 1
        self.rewards, self.truncations = dict.fromkeys("ab", 1.0), dict.fromkeys("ab", self.t == 20)
        self.agent_selection = "ab"[self.t % 2]
        self._tell()
        self._accumulate_rewards()

    def _tell(self) -> None:
        legal = (np.arange(3) != self.t % 3).astype(np.int8)
        self.infos = {agent: {"action_mask": legal} for agent in self.agents}


def turns() -> Any:
    """With PettingZoo's wrapper that ends a game at the first illegal move."""
    return TerminateIllegalWrapper(Turns(), illegal_reward=-1)
