"""Two small PettingZoo environments whose every ending is scripted by the test."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo.utils.env import AECEnv, ParallelEnv

Endings = dict[str, tuple[int, str]]
"""Agent -> (step at which it ends, "terminated" or "truncated" or "both")."""


class Scripted(ParallelEnv[str, Any, Any]):
    """Everybody sees [step, own number] and earns 1 + own number at each step."""

    metadata = {"name": "scripted_v0", "render_modes": []}  # noqa: RUF012
    render_mode = None

    def __init__(
        self,
        endings: Endings,
        *,
        arrivals: dict[str, int] | None = None,
        agents: str = "abc",
        broken_at: int | None = None,
    ) -> None:
        self.possible_agents = list(agents)
        self.broken_at = broken_at
        self.endings, self.arrivals = endings, arrivals or {}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-1.0, 99.0, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(3)

    def _obs(self, agent: str) -> Any:
        return np.array([self.t, self.possible_agents.index(agent)], np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        self.agents = [a for a in self.possible_agents if a not in self.arrivals]
        return {a: self._obs(a) for a in self.agents}, {a: {"first": True} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        assert list(actions) == self.agents, "acting agents only, in their order"
        self.t += 1
        ends = {a: how for a in self.agents for at, how in [self.endings[a]] if self.t >= at}
        terminations = {a: ends.get(a) in ("terminated", "both") for a in self.agents}
        truncations = {a: ends.get(a) in ("truncated", "both") for a in self.agents}
        rewards = {a: 1.0 + self.possible_agents.index(a) for a in self.agents}
        if self.t == self.broken_at:
            rewards["b"] = float("nan")
        told = [*self.agents, *(a for a, at in self.arrivals.items() if at == self.t)]
        self.agents = [a for a in told if a not in ends]
        obs = {a: self._obs(a) for a in told}
        return obs, rewards, terminations, truncations, {a: {"t": self.t} for a in told}


class Circle(AECEnv[str, Any, Any]):
    """RolloutPolicies act in turn; each action pays 1 to everybody else; endings are scripted by turn."""

    metadata = {"name": "circle_v0", "render_modes": [], "is_parallelizable": False}  # noqa: RUF012
    render_mode = None

    def __init__(self, endings: Endings, *, agents: str = "abc") -> None:
        super().__init__()
        self.possible_agents = list(agents)
        self.endings = endings

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-1.0, 99.0, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(3)

    def observe(self, agent: str) -> Any:
        return np.array([self.t, self.possible_agents.index(agent)], np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.t = 0
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {a: {"first": True} for a in self.agents}
        self.agent_selection = self.agents[0]

    def step(self, action: Any) -> None:
        mover = self.agent_selection
        if self.terminations[mover] or self.truncations[mover]:
            self._was_dead_step(action)
            return
        self.t += 1
        self._cumulative_rewards[mover] = 0.0
        self.rewards = {a: float(a != mover) for a in self.agents}
        self._accumulate_rewards()
        for agent in self.agents:
            at, how = self.endings[agent]
            self.terminations[agent] |= self.t >= at and how == "terminated"
            self.truncations[agent] |= self.t >= at and how == "truncated"
        alive = [a for a in self.agents if not (self.terminations[a] or self.truncations[a])]
        turn = self.possible_agents.index(mover)
        later = [a for a in alive if self.possible_agents.index(a) > turn]
        self.agent_selection = (later or alive or self.agents)[0]
        self._deads_step_first()


class Rolls(ParallelEnv[str, Any, Any]):
    """Reports a roll of dice as `luck`, and, in episodes of even luck, how `rare` they are."""

    metadata: dict[str, Any] = {"name": "rolls"}  # noqa: RUF012
    possible_agents = ["a", "b"]  # noqa: RUF012

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-np.inf, np.inf, (1,))

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.agents, self._t = list(self.possible_agents), 0
        self._luck = int(np.random.default_rng(seed).integers(1, 7))
        return self._seen(), {a: {} for a in self.agents}

    def step(self, actions: Any) -> tuple[dict[str, Any], ...]:
        self._t += 1
        agents, over = self.agents, self._t >= self._luck
        self.agents = [] if over else agents
        told: Any = {a: {} for a in agents}
        if over:
            told["a"] = {"metrics": {"luck": self._luck, "label": "dice", "unknown": math.nan}}
            told["b"] = {"metrics": {"luck": self._luck + 1} | ({"rare": 1} if self._luck % 2 == 0 else {})}
        flags = dict.fromkeys(agents, over)
        return self._seen(), dict.fromkeys(agents, 1.0), flags, dict.fromkeys(agents, False), told

    def _seen(self) -> dict[str, Any]:
        return {a: np.full(1, self._luck, np.float32) for a in self.possible_agents}
