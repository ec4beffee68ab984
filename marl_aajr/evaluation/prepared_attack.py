"""An attack as it meets one agent: on the channels that it names, in the units of the agent's network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from gymnasium.spaces import flatdim

from marl_aajr.attacks import Attack
from marl_aajr.core.channels import NO_CHANNELS, Channels
from marl_aajr.evaluation.outcomes import Units
from marl_aajr.victims import Victim
from marl_aajr.victims.filters import at_network


def prepare(
    attack: Attack,
    victim: Victim,
    agent: str,
    *,
    units: Units,
    channels: Mapping[str, Channels] = NO_CHANNELS,
) -> Attack:
    """The attack on one agent's policy, in its network's units, on the channels of the agent that it names.

    Raises:
        ValueError: the victim, or the agent's observation, lacks something.
    """
    space, observed = victim.observation_spaces[agent], victim.filters.get(agent)
    own = held_attack(attack, victim, agent, channels)
    if own is None:
        raise ValueError(f"expected an agent with the channels of {attack.perturbations}, got {agent!r}")
    inside = at_network(own.perturbations, space, observed, units=units)
    return replace(own, perturbations=inside).against(victim, agent)


def reachable(
    attack: Attack, victim: Victim, agents: Iterable[str], channels: Mapping[str, Channels]
) -> tuple[str, ...]:
    """The agents that observe some of the channels that an attack is held to."""
    return tuple(agent for agent in agents if held_attack(attack, victim, agent, channels) is not None)


def held_attack(
    attack: Attack, victim: Victim, agent: str, channels: Mapping[str, Channels]
) -> Attack | None:
    """The attack on what an agent observes; None: it observes none of the channels that it is held to."""
    return attack.held_to(channels.get(agent, {}), flatdim(victim.observation_spaces[agent]))
