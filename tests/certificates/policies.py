"""Decisions of small policies, whose margins are known."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from mpe2 import simple_spread_v3
from torch import Tensor, nn

from marl_aajr.certificates.decisions import Decisions
from marl_aajr.core.distributions import from_space
from marl_aajr.victims import Victim, VictimPolicy


def network(outputs: int, *, features: int = 18, hidden: int = 32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(features, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, outputs),
        )


def team(policy: nn.Module | None = None, **settings: Any) -> Victim:
    """Three agents of simple_spread with one network."""
    env = simple_spread_v3.parallel_env(**settings.get("env_kwargs", {}))
    return Victim.from_policies(policy or network(5), env, env_name="simple_spread_v3", **settings)


def decisions(
    module: nn.Module, space: gym.Space[Any], inputs: Tensor, *, legal: Tensor | None = None
) -> Decisions:
    """Decisions of one agent, one a step."""
    policy = VictimPolicy(module, from_space(space), shape=inputs.shape[1:], action_mask=legal)
    with torch.no_grad():
        outputs = policy(inputs)
    places = torch.stack([torch.zeros(len(inputs)), torch.zeros(len(inputs)), torch.arange(len(inputs))], -1)
    return Decisions(policy, inputs, outputs, ["agent_0"], places.long())
