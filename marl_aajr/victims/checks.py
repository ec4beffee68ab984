"""What must hold of a victim before it may play: checked once, at construction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from marl_aajr.core.distributions import DiagGaussian, from_space
from marl_aajr.victims.recurrent import initial_state, is_recurrent, leaves

if TYPE_CHECKING:
    from marl_aajr.victims.victim import Victim


def check_agents(victim: Victim) -> None:
    """Every agent has a module and spaces that fit; every module and filter has an agent."""
    if not victim.module_of:
        raise ValueError("expected at least one agent in module_of, got none")
    first: dict[str, str] = {}
    for agent, module_id in victim.module_of.items():
        if module_id not in victim.modules:
            raise ValueError(
                f"expected a module for {agent!r} out of {', '.join(victim.modules)}, got {module_id!r}"
            )
        for kind, spaces in (
            ("observation", victim.observation_spaces),
            ("action", victim.action_spaces),
        ):
            if agent not in spaces:
                raise ValueError(f"expected the {kind} space of {agent!r}, got none; add it to {kind}_spaces")
            other = first.setdefault(module_id, agent)
            if spaces[agent] != spaces[other]:
                raise ValueError(
                    f"expected one {kind} space for the agents of module {module_id!r}, got "
                    f"{spaces[other]} for {other!r} and {spaces[agent]} for {agent!r}; give them two modules"
                )
        _check_spaces(victim, agent)
    if idle := sorted(set(victim.modules) - set(victim.module_of.values())):
        raise ValueError(f"expected an agent for each module, got none for {', '.join(idle)}")
    if unknown := sorted(set(victim.critics) - set(victim.modules)):
        raise ValueError(f"expected critics of known modules, got one for {', '.join(unknown)}")
    if strangers := sorted(set(victim.filters) - set(victim.module_of)):
        raise ValueError(f"expected filters of known agents, got one for {', '.join(strangers)}")


def _check_spaces(victim: Victim, agent: str) -> None:
    observed, acts = victim.observation_spaces[agent], victim.action_spaces[agent]
    if not isinstance(observed, gym.spaces.Box):
        raise ValueError(
            f"expected a Box observation space for {agent!r}, got {observed}; flatten it, and split action "
            "masks off"
        )
    if isinstance(acts, gym.spaces.Box) and not np.issubdtype(acts.dtype, np.floating):
        raise ValueError(f"expected float Box actions for {agent!r}, got {acts}; use MultiDiscrete")
    from_space(acts)
    seen = victim.filters.get(agent)
    if seen is not None and seen.mean.shape != observed.shape:
        raise ValueError(
            f"expected a filter of shape {observed.shape} for {agent!r}, got {tuple(seen.mean.shape)}"
        )


@torch.no_grad()
def check_network(victim: Victim, module_id: str) -> None:
    """The module takes its agents' observations and gives what their action distribution needs."""
    agent = victim.agents_of(module_id)[0]
    shape, expected = victim.observation_spaces[agent].shape, victim.distributions[module_id].num_inputs
    assert shape is not None
    module = victim.modules[module_id]
    try:
        if is_recurrent(module):
            outputs = _first_step(module, module_id, torch.zeros(2, *shape))
        else:
            outputs = module(torch.zeros(2, *shape))
    except RuntimeError as error:
        raise ValueError(f"expected module {module_id!r} to take observations {shape}, got {error}") from None
    if outputs.shape != (2, expected):
        hint = " (mean and log σ)" if isinstance(victim.distributions[module_id], DiagGaussian) else ""
        raise ValueError(
            f"expected module {module_id!r} to give {expected} outputs{hint} for "
            f"{victim.action_spaces[agent]}, got {tuple(outputs.shape[1:])}"
        )
    critic = victim.critics.get(module_id)
    if critic is not None and (values := critic(torch.zeros(2, *shape))).shape not in ((2,), (2, 1)):
        raise ValueError(
            f"expected the critic of {module_id!r} to give one value a row, got {tuple(values.shape)} for 2"
        )


def _first_step(module: nn.Module, module_id: str, obs: Tensor) -> Tensor:
    """The outputs of a recurrent module at the beginning of an episode."""
    state = initial_state(module, len(obs))
    result = module(obs, state)
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ValueError(
            f"expected recurrent module {module_id!r} to return (outputs, state), got {type(result).__name__}"
        )
    outputs: Tensor = result[0]
    before, after = ([tuple(x.shape) for x in leaves(part)] for part in (state, result[1]))
    if before != after or any(shape[:1] != (len(obs),) for shape in before):
        raise ValueError(
            f"expected states [B, ...] of fixed shapes from recurrent module {module_id!r}, got {before} at "
            f"the beginning and {after} after a step, for B = {len(obs)}; put the batch first"
        )
    return outputs
