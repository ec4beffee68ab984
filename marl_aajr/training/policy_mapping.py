"""Who plays in a run's environment, and which module for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import gymnasium as gym

from marl_aajr.rollout.centralized_critic import CentralView, with_state
from marl_aajr.rollout.environments import resolve
from marl_aajr.training.config import RunConfig


@dataclass(frozen=True)
class Roster:
    """Who plays in an environment, and which module plays for whom.

    Attributes:
        observation_spaces: of each agent, in the environment's order.
        action_spaces: of each agent.
        teams: the team of each agent.
        module_of: the module of each agent.
        central: space of what a centralised critic reads beside an agent's observation; None: there is none.
    """

    observation_spaces: Mapping[str, gym.Space[Any]]
    action_spaces: Mapping[str, gym.Space[Any]]
    teams: Mapping[str, str]
    module_of: Mapping[str, str]
    central: gym.spaces.Box | None = None

    @property
    def modules(self) -> dict[str, str]:
        """Each module with the first agent that it plays for."""
        first: dict[str, str] = {}
        for agent, module in self.module_of.items():
            first.setdefault(module, agent)
        return first

    def module_space(self, agent: str) -> gym.Space[Any]:
        """What the module of an agent finds in its batches."""
        own = self.observation_spaces[agent]
        return own if self.central is None else with_state(own, self.central)


def roster_of(config: RunConfig) -> Roster:
    """Who plays, and which module for whom.

    `shared` policies: one module for all agents of a team that have the same spaces, named after what
    their names have in common (`agent_0`, `agent_1` → `agent`), or else after the team; where two
    modules would get one name, each after its first agent. `independent`: each agent its own, named
    after it.
    """
    game = resolve(config.env.name, config.env.kwargs).make()
    try:
        agents = game.possible_agents
        observation_spaces, action_spaces = dict(game.observation_spaces), dict(game.action_spaces)
        teams = dict(game.teams)
        critic = config.model.critic
        central = None if critic == "own" else CentralView(game, critic).space
    finally:
        game.close()
    if config.policies == "independent":
        module_of = {agent: agent for agent in agents}
    else:
        alike = [(teams[a], observation_spaces[a], action_spaces[a]) for a in agents]
        groups = [[b for b, other in zip(agents, alike, strict=True) if other == own] for own in alike]
        module_of = dict(zip(agents, _names(groups, teams), strict=True))
    return Roster(observation_spaces, action_spaces, teams, module_of, central)


def _names(groups: list[list[str]], teams: Mapping[str, str]) -> list[str]:
    """A name for the group of each agent; agents of one group get the same."""
    wanted = {tuple(group): _common_name(group) or teams[group[0]] for group in groups}
    taken = list(wanted.values())
    names = {group: name if taken.count(name) == 1 else group[0] for group, name in wanted.items()}
    return [names[tuple(group)] for group in groups]


def _common_name(agents: Sequence[str]) -> str:
    # What the first and the last of them in the alphabet share, all share.
    pairs = zip(min(agents), max(agents), strict=False)
    prefix = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return prefix.rstrip("0123456789").rstrip("_-")
