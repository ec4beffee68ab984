"""Games with victims, small enough to know what must come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from marl_aajr.adversaries.victim_game import VictimGame
from marl_aajr.rollout.batched_env import BatchedEnv
from marl_aajr.rollout.environments import EnvironmentSpec, make_batch
from marl_aajr.victims import Victim


class Replaced(VictimGame):
    """Some agents of the environment play against the others, on what they see themselves."""

    def __init__(self, env: BatchedEnv, victim: Victim, agents: Sequence[str], **settings: Any) -> None:
        super().__init__(
            env,
            victim,
            agents_of={agent: (agent,) for agent in agents},
            observation_spaces={agent: env.observation_spaces[agent] for agent in agents},
            action_spaces={agent: env.action_spaces[agent] for agent in agents},
            replaced=agents,
            **settings,
        )

    def observe(self, obs: Mapping[str, Tensor], active: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {player: obs[player].clone() for player in self.possible_agents}

    def play(self, own: dict[str, Tensor], actions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**own, **actions}


def replaced(
    spec: EnvironmentSpec, victim: Victim, num_envs: int, agents: Sequence[str], **settings: Any
) -> Replaced:
    """The game on an environment by name."""
    return Replaced(make_batch(spec, num_envs), victim, agents, **settings)
