"""Frozen policies in one PettingZoo game, whose observations are arrays by agent instead of batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_aajr.core.checks import one_of
from marl_aajr.core.environment_values import (
    ACTION_MASK,
    agent_name,
    as_action,
    as_array,
    legal_actions,
    named,
)
from marl_aajr.core.flat_observations import FlatBox, own_part
from marl_aajr.victims.recurrent import Memory
from marl_aajr.victims.stepper import GeneratorSampler, Stepper
from marl_aajr.victims.victim import Victim


def act(
    victim: Victim,
    obs: Mapping[Any, Any],
    infos: Mapping[Any, Any],
    *,
    generator: torch.Generator | None,
    memory: Memory | None,
) -> dict[Any, Any]:
    """Actions for one step; see `Victim.act`."""
    if memory is None and victim.recurrent:
        raise ValueError(
            "expected a memory for a recurrent victim, got none; take memory = victim.memory() when an "
            "episode begins, and act(obs, memory=memory)"
        )
    own = {agent_name(agent): agent for agent in obs}
    for name in own:
        one_of("agents in obs", name, victim.action_spaces)
    # Each agent decides by itself, so that its action does not depend, to the last bit, on who else acts.
    stepper = Stepper(victim, memory or victim.memory(), groups=[[agent] for agent in own])
    kinds = {agent: victim.distribution(agent) for agent in own}
    sampler = None if generator is None else GeneratorSampler(kinds, 1, generator)
    seen, legal = one_copy(victim, named(obs), named(infos))
    actions = stepper.act(stepper.see(seen, action_mask=legal), sampler)
    return {own[a]: as_action(chosen[0].numpy(), victim.action_spaces[a]) for a, chosen in actions.items()}


def one_copy(
    victim: Victim, seen: Mapping[str, Any], infos: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """PettingZoo's observations of one game as observations `[1, *shape]` and action masks `[1, m]` by agent.

    Args:
        victim: plays the agents.
        seen: agent -> an array, or a dict of one and its `action_mask`.
        infos: agent -> what may hold an `action_mask`, too; that of an observation comes first.

    Raises:
        ValueError: an observation or a mask of another form.
    """
    obs: dict[str, Tensor] = {}
    legal: dict[str, Tensor | None] = {}
    for agent, given in seen.items():
        space = victim.observation_spaces[agent]
        own, mask = own_part(given)
        if mask is None and isinstance(info := infos.get(agent), Mapping):
            mask = info.get(ACTION_MASK)
        try:
            # An attack may have moved integers off their places.
            own = space.vector(own) if isinstance(space, FlatBox) else own
            array = as_array(own, space.shape or (), np.result_type(space.dtype or np.float32, np.float32))
            count = victim.distribution(agent).num_inputs
            legal[agent] = None if mask is None else torch.from_numpy(legal_actions(mask, count)).bool()[None]
        except ValueError as reason:
            raise ValueError(f"the observation of agent {agent!r} {reason}") from None
        obs[agent] = torch.from_numpy(array)[None]
    return obs, legal
