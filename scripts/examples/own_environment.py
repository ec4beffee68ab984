"""Train and attack agents in an environment of your own: any PettingZoo ParallelEnv or AECEnv.

python scripts/examples/own_environment.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo.utils.env import ParallelEnv

from marl_aajr import evaluate, train


class Meeting(ParallelEnv[str, Any, Any]):
    """Two agents on a line earn minus their distance; each sees both positions."""

    metadata = {"name": "meeting_v0", "render_modes": []}  # noqa: RUF012
    render_mode = None
    possible_agents = ["left", "right"]  # noqa: RUF012

    def observation_space(self, agent: str) -> spaces.Box:
        return spaces.Box(-10.0, 10.0, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.agents, self.steps = list(self.possible_agents), 0
        self.place = self.random.uniform(-5, 5, 2)
        return self.seen(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.steps += 1
        self.place = np.clip(self.place + [int(actions[a]) - 1 for a in self.possible_agents], -10, 10)
        reward = -abs(float(self.place[0] - self.place[1]))
        over, everybody = self.steps == 20, list(self.agents)
        if over:
            self.agents = []
        return (
            self.seen(),
            dict.fromkeys(everybody, reward),
            dict.fromkeys(everybody, False),
            dict.fromkeys(everybody, over),
            {agent: {} for agent in everybody},
        )

    def seen(self) -> dict[str, Any]:
        own_first = (self.place, self.place[::-1])
        return {a: place.astype(np.float32) for a, place in zip(self.possible_agents, own_first, strict=True)}


def make(**kwargs: Any) -> Meeting:
    """The factory that the import path `own_environment:make` names."""
    return Meeting(**kwargs)


if __name__ == "__main__":
    settings = {"env": "own_environment:make", "env_steps": 8_000, "method": "aajr"}
    result = evaluate(train(settings, "runs/meeting", overwrite=True), attacks=[("pgd", 0.5)], episodes=20)
    print(f"clean {result.clean_return:.1f}, under PGD {result.attacks[0].mean:.1f}")
