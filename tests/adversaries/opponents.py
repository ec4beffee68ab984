"""Every registered attack, made ready against small policies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from marl_aajr.adversaries.action_value import ActionValue
from marl_aajr.adversaries.robust_sarsa import RobustSarsa
from marl_aajr.attacks import ATTACKS, Attack, make_attack
from marl_aajr.core.distributions import ActionDistribution, DiagGaussian
from marl_aajr.core.policy import ModulePolicy
from tests.networks import generator, tanh_policy

FEATURES = 6
DISCRETE_ONLY = {"pgd-margin", "pgd-strong-margin", "pgd-targeted"}
ON_WORDS = {name for name, cls in ATTACKS.items() if cls.norms == ("words",)}
ELSEWHERE = {"transfer", "sa-rl", "pa-ad", "delay", "freeze", "message-random", "message-worst"} | ON_WORDS
"""Need a whole victim, a past, or words: see test_transfer.py, test_learned.py, test_sensor_faults.py,
test_messages.py and test_substitution.py."""
NAMES = [name for name in ATTACKS if name not in ELSEWHERE]


def against(distribution: ActionDistribution, **settings: Any) -> list[Attack]:
    """Every attack that is defined for a policy of this kind."""
    gaussian = isinstance(distribution, DiagGaussian)
    names = [name for name in NAMES if not (gaussian and name in DISCRETE_ONLY)]
    return [ready(name, distribution, **({"epsilon": 0.1} | settings)) for name in names]


def ready(
    name: str, distribution: ActionDistribution, *, dtype: torch.dtype = torch.float64, **settings: Any
) -> Attack:
    """An attack that has learned what it needs; Robust Sarsa gets a random Q."""
    attack = named(name, **settings)
    if isinstance(attack, RobustSarsa):
        k = distribution.k if isinstance(distribution, DiagGaussian) else distribution.num_inputs
        return replace(attack, _q=ActionValue(FEATURES, k, generator=generator(5)).to(dtype))
    return attack


def named(name: str, **settings: Any) -> Attack:
    """An attack by name; one that has no size, without size and norm; on words of one word."""
    if name in ON_WORDS:
        settings = {**settings, "epsilon": 1.0, "norm": "words"}
    nothing = set() if ATTACKS[name].sized else {"epsilon", "norm"}
    return make_attack(name, **{key: value for key, value in settings.items() if key not in nothing})


def policy_with_critic(distribution: ActionDistribution, *, seed: int = 0) -> ModulePolicy:
    policy, other = tanh_policy(distribution, seed=seed), tanh_policy(distribution, seed=seed + 100)
    policy.critic = lambda obs: other(obs)[..., 0]
    return policy
