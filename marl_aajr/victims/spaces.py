"""Victims and the agents and spaces of environments: plain torch policies as a victim, and who fits whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from torch import nn

from marl_aajr.victims.filters import ObservationFilter
from marl_aajr.victims.victim import Victim


class Spaces(Protocol):
    """An environment that declares its agents and spaces as PettingZoo does."""

    possible_agents: list[str]

    def observation_space(self, agent: str) -> gym.Space[Any]:
        """The space of an agent's observations."""

    def action_space(self, agent: str) -> gym.Space[Any]:
        """The space of an agent's actions."""


def victim_from_policies(
    policies: Mapping[str, nn.Module] | nn.Module,
    env: Spaces,
    *,
    critics: Mapping[str, nn.Module] | None = None,
    filters: Mapping[str, ObservationFilter | None] | None = None,
    normalize_actions: bool = False,
    clip_actions: bool = True,
    env_name: str = "",
    env_kwargs: Mapping[str, Any] | None = None,
) -> Victim:
    """A victim from torch modules and the PettingZoo environment that they play.

    Args:
        policies: agent -> its network, or one network that plays all agents. It maps observations
            `[B, *shape]` (float32) to the inputs of the action distribution `[B, m]`: logits for Discrete
            and MultiDiscrete actions (those of all parts, one after the other), mean and log σ for Box ones.
            A network with `initial_state(rows)` and `forward(obs, state)` has a memory
            (`is_recurrent`).
        env: declares the agents and their spaces; of Dict observations with an `action_mask`, networks read
            `observation`, and forbidden logits are masked for them.
        critics: agent -> a network of the return that it expects, `[B, 1]` or `[B]`; for the critic attack.
        filters: agent -> frozen observation filter in front of its network.
        normalize_actions: whether Box actions in [−1, 1] stand for their bounds.
        clip_actions: whether Box actions are clipped to their bounds where they are not normalised.
        env_name: name of the environment that `evaluate` builds where none is given.
        env_kwargs: arguments of that environment, JSON values.

    Raises:
        ValueError: an agent without a network, or a network that does not fit the spaces.

    Example:
        >>> net = nn.Sequential(nn.Linear(18, 64), nn.Tanh(), nn.Linear(64, 5))
        >>> victim = Victim.from_policies(net, simple_spread_v3.parallel_env())
        >>> evaluate(victim, "mpe2.simple_spread_v3", suite="quick").worst
    """
    if isinstance(env, gym.Env):
        raise ValueError(
            f"expected a PettingZoo environment, got {type(env).__name__} of Gymnasium or RLlib; give "
            "marl_aajr.rollout.adapters.to_pettingzoo(env)"
        )
    agents = list(env.possible_agents)
    if isinstance(policies, nn.Module):
        policies = dict.fromkeys(agents, policies)
    if missing := [agent for agent in agents if agent not in policies]:
        raise ValueError(f"expected a policy for each agent, got none for {', '.join(missing)}")
    if strangers := [agent for agent in policies if agent not in agents]:
        raise ValueError(f"expected policies of {', '.join(agents)}, got one of {', '.join(strangers)}")
    # Agents of one network are asked, and attacked, as one batch.
    first = {agent: next(a for a in agents if policies[a] is policies[agent]) for agent in agents}
    names = {agent: "policy" if len(set(first.values())) == 1 else first[agent] for agent in agents}
    return Victim(
        module_of=names,
        modules={names[agent]: policies[agent] for agent in agents},
        critics={names[agent]: critic for agent, critic in (critics or {}).items()},
        observation_spaces={agent: _observed(env.observation_space(agent)) for agent in agents},
        action_spaces={agent: env.action_space(agent) for agent in agents},
        filters=filters or {},
        normalize_actions=normalize_actions,
        clip_actions=clip_actions,
        env_name=env_name,
        env_kwargs=env_kwargs or {},
    )


def _observed(space: gym.Space[Any]) -> gym.Space[Any]:
    if isinstance(space, gym.spaces.Dict) and set(space.spaces) == {"observation", "action_mask"}:
        return space["observation"]
    return space


class HasAgents(Protocol):
    """Agents and their spaces, as a `BatchedEnv` has them."""

    @property
    def possible_agents(self) -> Sequence[str]: ...

    @property
    def observation_spaces(self) -> Mapping[str, gym.Space[Any]]: ...

    @property
    def action_spaces(self) -> Mapping[str, gym.Space[Any]]: ...


def check_victim(victim: Any, *, what: str = "a victim") -> None:
    """Raise `ValueError` unless it is a `Victim`: a network alone does not say who plays what with it."""
    if not isinstance(victim, Victim):
        raise ValueError(
            f"expected {what}, got a {type(victim).__name__}; make one with Victim.from_policies(network, "
            "env) or Victim.load(folder)"
        )


def check_match(
    victim: Victim, env: HasAgents, *, agents: Sequence[str] | None = None, what: str = "a victim"
) -> None:
    """Raise `ValueError` unless the victim can play these agents of the environment; None: all."""
    check_victim(victim, what=what)
    agents = env.possible_agents if agents is None else agents
    for agent in agents:
        if agent not in victim.module_of:
            raise ValueError(
                f"expected {what} that plays {', '.join(agents)}, got one for "
                f"{', '.join(victim.agents)}; evaluate it on the environment that it was trained on"
            )
        for kind, has, needs in (
            ("observations", victim.observation_spaces[agent], env.observation_spaces[agent]),
            ("actions", victim.action_spaces[agent], env.action_spaces[agent]),
        ):
            if not _fits(has, needs):
                raise ValueError(
                    f"expected {what} for the {kind} {needs} of {agent!r}, got one for {has}; evaluate it "
                    "with the environment arguments that it was trained with"
                )


def _fits(has: gym.Space[Any], needs: gym.Space[Any]) -> bool:
    # Bounds of observations may differ with the arguments; nothing depends on them.
    if isinstance(has, gym.spaces.Box) and isinstance(needs, gym.spaces.Box):
        same_bounds = np.array_equal(has.low, needs.low) and np.array_equal(has.high, needs.high)
        return has.shape == needs.shape and has.dtype == needs.dtype and same_bounds
    return has == needs
