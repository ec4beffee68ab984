"""The agents and spaces of victims and of environments: which are possible, and which fit together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from torch import nn

from marl_aajr.core.distributions import from_space
from marl_aajr.core.environment_values import agent_name, named, single_precision, zero_based
from marl_aajr.core.flat_observations import FlatBox, check_mask_is_named, vector_space
from marl_aajr.victims.filters import ObservationFilter
from marl_aajr.victims.victim_policy import ELSEWHERE


def by_network(policies: Any, agents: Sequence[str]) -> tuple[dict[str, str], dict[str, nn.Module]]:
    """The module of each agent and the modules: agents of one network are asked, and attacked, as one batch.

    Raises:
        ValueError: an agent without a network, or a network of nobody.
    """
    if isinstance(policies, nn.Module):
        policies = dict.fromkeys(agents, policies)
    if not isinstance(policies, Mapping) or not all(isinstance(p, nn.Module) for p in policies.values()):
        found = next(iter(policies.values())) if isinstance(policies, Mapping) else policies
        raise ValueError(
            f"expected a torch network, or one by agent, got a {type(found).__name__}; {ELSEWHERE}"
        )
    policies = named(policies)
    if missing := [agent for agent in agents if agent not in policies]:
        raise ValueError(f"expected a policy for each agent, got none for {', '.join(missing)}")
    if strangers := [agent for agent in policies if agent not in agents]:
        raise ValueError(f"expected policies of {', '.join(agents)}, got one of {', '.join(strangers)}")
    first = {agent: next(a for a in agents if policies[a] is policies[agent]) for agent in agents}
    names = {agent: "policy" if len(set(first.values())) == 1 else first[agent] for agent in agents}
    return names, {names[agent]: policies[agent] for agent in agents}


class HasAgents(Protocol):
    """The spaces of agents by name, as a `BatchedEnv` has them."""

    @property
    def observation_spaces(self) -> Mapping[str, gym.Space[Any]]: ...

    @property
    def action_spaces(self) -> Mapping[str, gym.Space[Any]]: ...


@dataclass(frozen=True)
class AgentSpaces:
    """Some agents of a PettingZoo environment by name, and their spaces; of a Dict with a mask, its array."""

    observation_spaces: Mapping[str, gym.Space[Any]]
    action_spaces: Mapping[str, gym.Space[Any]]

    @classmethod
    def of(cls, env: Any, agents: Iterable[str] | None = None) -> AgentSpaces:
        """The agents' spaces, as the environment declares them; None: of all agents."""
        if isinstance(env, gym.Env) or not hasattr(env, "possible_agents"):
            raise ValueError(
                f"expected a PettingZoo environment with possible_agents, got {type(env).__name__}; "
                "those of Gymnasium and RLlib become one by marl_aajr.rollout.adapters.to_pettingzoo(env)"
            )
        own = {agent_name(agent): agent for agent in env.possible_agents}
        if agents is not None:
            own = {agent: own[agent] for agent in agents}
        seen = {agent: vector_space(env.observation_space(key))[0] for agent, key in own.items()}
        return cls(seen, {agent: env.action_space(key) for agent, key in own.items()})


def check_masks_are_named(spaces: AgentSpaces) -> None:
    """Raise `ValueError` where the legal actions may have another name: nobody would keep to them."""
    for agent, seen in spaces.observation_spaces.items():
        if isinstance(seen, FlatBox):
            acts, instead = spaces.action_spaces[agent], "flatten the observation in the environment"
            check_mask_is_named(seen.structure, acts, instead=instead, agent=agent, integers=True)


def check_victim(victim: Any, *, what: str = "a victim") -> None:
    """Raise `ValueError` unless it is a `Victim`: a network alone does not say who plays what with it."""
    if not hasattr(victim, "module_of"):
        raise ValueError(
            f"expected {what}, got a {type(victim).__name__}; make one with Victim.from_policies(network, "
            "env), Victim.from_sb3(model, env) or Victim.load(folder)"
        )


def check_match(
    victim: Any, env: HasAgents, *, agents: Sequence[str] | None = None, what: str = "a victim"
) -> None:
    """Raise `ValueError` unless it is a `Victim` that can play these agents of the environment; None: all."""
    check_victim(victim, what=what)
    agents = list(env.observation_spaces) if agents is None else agents
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
        _check_vocabulary(victim.modules[victim.module_of[agent]], env, what=what)


def _check_vocabulary(network: Any, env: HasAgents, *, what: str) -> None:
    """Raise `ValueError` where tokens stand for other words than those that a network has learned."""
    known, said = getattr(network, "vocabulary", None), getattr(env, "words", None)
    if known is None or said is None or tuple(known) == said.vocabulary:
        return
    pairs = zip_longest(known, said.vocabulary, fillvalue="nothing")
    token, (mine, theirs) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise ValueError(
        f"expected {what} that reads the environment's words, got one to whom token {token} is {mine!r}, "
        f"which stands for {theirs!r} there; train one with this vocabulary"
    )


def _fits(has: gym.Space[Any], needs: gym.Space[Any]) -> bool:
    if isinstance(has, FlatBox) or isinstance(needs, FlatBox):
        return bool(has == needs)
    if isinstance(has, gym.spaces.Box) and isinstance(needs, gym.spaces.Box):
        same_bounds = np.array_equal(has.low, needs.low) and np.array_equal(has.high, needs.high)
        same_types = single_precision(has).dtype == single_precision(needs).dtype
        return has.shape == needs.shape and same_types and same_bounds
    # A batch counts actions from 0, whatever its environment does, and so does who was trained in one.
    return zero_based(has) == zero_based(needs)


def check_agents(
    module_of: Mapping[str, str],
    observation_spaces: Mapping[str, gym.Space[Any]],
    action_spaces: Mapping[str, gym.Space[Any]],
    *,
    modules: Collection[str],
    critics: Collection[str],
    filters: Mapping[str, ObservationFilter | None],
) -> None:
    """Every agent has a module and spaces that fit; every module, critic and filter has an agent."""
    if not module_of:
        raise ValueError("expected at least one agent in module_of, got none")
    first: dict[str, str] = {}
    for agent, module_id in module_of.items():
        if module_id not in modules:
            raise ValueError(
                f"expected a module for {agent!r} out of {', '.join(modules)}, got {module_id!r}"
            )
        for kind, spaces in (("observation", observation_spaces), ("action", action_spaces)):
            if agent not in spaces:
                raise ValueError(f"expected the {kind} space of {agent!r}, got none; add it to {kind}_spaces")
            other = first.setdefault(module_id, agent)
            if zero_based(spaces[agent]) != zero_based(spaces[other]):
                raise ValueError(
                    f"expected one {kind} space for the agents of module {module_id!r}, got "
                    f"{spaces[other]} for {other!r} and {spaces[agent]} for {agent!r}; give them two modules"
                )
        observed, acts = observation_spaces[agent], action_spaces[agent]
        if not isinstance(observed, gym.spaces.Box):
            raise ValueError(
                f"expected a Box observation space for {agent!r}, got {observed}; flatten it, and split "
                "action masks off"
            )
        if isinstance(acts, gym.spaces.Box) and not np.issubdtype(acts.dtype, np.floating):
            raise ValueError(f"expected float Box actions for {agent!r}, got {acts}; use MultiDiscrete")
        from_space(acts)
        if (seen := filters.get(agent)) is not None and seen.mean.shape != observed.shape:
            raise ValueError(
                f"expected a filter of shape {observed.shape} for {agent!r}, got {tuple(seen.mean.shape)}"
            )
    for what, given, present in (
        ("an agent for each module, got none for", modules, module_of.values()),
        ("critics of known modules, got one for", critics, modules),
        ("filters of known agents, got one for", filters, module_of),
    ):
        if strangers := sorted(set(given) - set(present)):
            raise ValueError(f"expected {what} {', '.join(strangers)}")
