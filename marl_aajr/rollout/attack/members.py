"""Whom an attack is on: the agents that it names, or that are trained, and that observe its channels."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from marl_aajr.core.channels import NO_CHANNELS, Channels, check_channels, who_observes
from marl_aajr.rollout.attack.rollout_attack import RolloutAttack
from marl_aajr.rollout.attack.worst_agents import check_worst_agents


def attacked_members(
    attack: RolloutAttack,
    groups: Mapping[str, tuple[str, ...]],
    channels: Mapping[str, Channels] = NO_CHANNELS,
    *,
    trained: Collection[str] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Of each module that has some, the places of the attacked agents among its agents.

    Where the attack names nobody, these are the agents of the modules in `trained` (None: all).

    Raises:
        ValueError: Unknown agents, channels that none of them observes, or too few for the worst k of them.
    """
    known = [agent for agents in groups.values() for agent in agents]
    if unknown := [agent for agent in attack.agents or () if agent not in known]:
        raise ValueError(
            f"expected agents out of {', '.join(known)} to attack in the rollouts, got {', '.join(unknown)}"
        )
    learners = known if trained is None else [a for m in groups if m in trained for a in groups[m]]
    chosen: Collection[str] = learners if attack.agents is None else attack.agents
    if attack.channels is not None:
        check_channels(attack.channels, channels, chosen, env="the rollouts")
        chosen = who_observes(attack.channels, channels, chosen)
    members = {
        module: tuple(i for i, agent in enumerate(agents) if agent in chosen)
        for module, agents in groups.items()
    }
    members = {module: places for module, places in members.items() if places}
    check_worst_agents(attack, {m: [groups[m][i] for i in places] for m, places in members.items()})
    return members
