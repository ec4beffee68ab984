"""Environments whose returns are known in advance, for every policy and every attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo.utils.env import AECEnv, ParallelEnv


class Signs(ParallelEnv[str, Any, Any]):
    """Name the sign of what you see: +1 for the right action, −1 for the wrong one, at every step.

    `agent_1` plays half as long as the others. Lengths and signs are random, per episode.
    """

    metadata = {"name": "signs_v0", "render_modes": []}  # noqa: RUF012
    render_mode = None

    def __init__(
        self,
        *,
        size: float = 1.0,
        longest: int = 6,
        teams: bool = False,
        dtype: str = "float32",
        broken_at: int | None = None,
        endless: bool = False,
    ) -> None:
        self.possible_agents = [f"agent_{i}" for i in range(3)]
        self.size, self.longest, self.dtype = size, longest, np.dtype(dtype)
        self.broken_at, self.endless = broken_at, endless
        self.observed, self.acts = spaces.Box(-100, 100, (2,), self.dtype.type), spaces.Discrete(2)
        if teams:
            self.teams = {"agent_0": "left", "agent_1": "right", "agent_2": "right"}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observed

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.acts

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.rng = np.random.default_rng(seed)
        self.t, self.length = 0, int(self.rng.integers(1, self.longest + 1))
        self.agents = list(self.possible_agents)
        return self._look(), {a: {} for a in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        self.t += 1
        rewards = {a: 1.0 if (actions[a] == 1) == (self.signs[a] > 0) else -1.0 for a in self.agents}
        if self.t == self.broken_at:
            rewards["agent_0"] = float("nan")
        over = self.t >= self.length and not self.endless
        ends = {a: over or (a == "agent_1" and self.t >= self.length / 2) for a in self.agents}
        told = self._look()
        infos: dict[str, Any] = {a: {} for a in self.agents}
        self.agents = [a for a in self.agents if not ends[a]]
        return told, rewards, ends, dict.fromkeys(ends, False), infos

    def _look(self) -> dict[str, Any]:
        self.signs = {a: 2 * int(self.rng.integers(2)) - 1 for a in self.agents}
        return {a: np.array([self.size * sign, 0], self.dtype) for a, sign in self.signs.items()}


class Moves(AECEnv[str, Any, Any]):
    """GameStep by turn, pick a legal number; it is paid to you, and taken from the other, at once.

    An illegal number is an error. Legal are zero and a random part of the others.
    """

    metadata = {"name": "moves_v0", "render_modes": [], "is_parallelizable": False}  # noqa: RUF012
    render_mode = None

    def __init__(self, *, longest: int = 9, sides: bool = True) -> None:
        super().__init__()
        self.possible_agents = ["first", "second"]
        self.longest = longest
        parts = {
            "observation": spaces.Box(-1.0, 1.0, (3,), np.float32),
            "action_mask": spaces.Box(0, 1, (4,), np.int8),
        }
        self.observed, self.acts = spaces.Dict(parts), spaces.Discrete(4)
        if sides:
            self.teams = {"first": "first", "second": "second"}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observed

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.acts

    def observe(self, agent: str) -> Any:
        return {"observation": self.seen, "action_mask": self.legal}

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.t, self.length = 0, int(self.rng.integers(2, self.longest + 1))
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos: dict[str, Any] = {a: {} for a in self.agents}
        self.agent_selection = "first"
        self._deal()

    def step(self, action: int | None) -> None:
        mover = self.agent_selection
        if self.terminations[mover]:
            self._was_dead_step(action)
            return
        assert action is not None
        assert self.legal[action], f"illegal move {action}"
        self.t += 1
        self._cumulative_rewards[mover] = 0.0
        other = "second" if mover == "first" else "first"
        self.rewards = {mover: float(action), other: -float(action)}
        self._accumulate_rewards()
        if self.t >= self.length:
            self.terminations = dict.fromkeys(self.agents, True)
        self.agent_selection = other
        self._deal()

    def _deal(self) -> None:
        self.seen = self.rng.uniform(-1, 1, 3).astype(np.float32)
        self.legal = np.array([1, *self.rng.integers(0, 2, 3)], np.int8)


class Stakes(ParallelEnv[str, Any, Any]):
    """Name the sign of what you see; a right answer earns an agent its worth, a wrong one costs it as much.

    Everybody plays `steps` steps. With `crucial` only one of them pays, at a random time, and it is
    louder than the others: the second feature is 3 there and 0.1 elsewhere.
    """

    metadata = {"name": "stakes_v0", "render_modes": []}  # noqa: RUF012
    render_mode = None

    def __init__(self, *, worth: Sequence[float] = (1.0, 1.0), steps: int = 4, crucial: bool = False) -> None:
        self.possible_agents = [f"agent_{i}" for i in range(len(worth))]
        self.worth, self.steps, self.crucial = (
            dict(zip(self.possible_agents, worth, strict=True)),
            steps,
            crucial,
        )
        self.observed, self.acts = spaces.Box(-100, 100, (2,), np.float32), spaces.Discrete(2)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observed

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.acts

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.rng = np.random.default_rng(seed)
        self.t, self.paid = 0, int(self.rng.integers(self.steps))
        self.agents = list(self.possible_agents)
        return self._look(), {a: {} for a in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        pays = self.t == self.paid or not self.crucial
        rewards = {
            a: pays * self.worth[a] * (1.0 if (actions[a] == 1) == (self.signs[a] > 0) else -1.0)
            for a in self.agents
        }
        self.t += 1
        told = self._look()
        infos: dict[str, Any] = {a: {} for a in self.agents}
        ends = dict.fromkeys(self.agents, self.t >= self.steps)
        self.agents = [a for a in self.agents if not ends[a]]
        return told, rewards, ends, dict.fromkeys(ends, False), infos

    def _look(self) -> dict[str, Any]:
        self.signs = {a: 2 * int(self.rng.integers(2)) - 1 for a in self.agents}
        loud = 3.0 if self.crucial and self.t == self.paid else 0.1
        return {a: np.array([sign, loud], np.float32) for a, sign in self.signs.items()}
