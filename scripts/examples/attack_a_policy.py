"""Attack a policy that somebody else trained: any torch module from observations to logits.

python scripts/examples/attack_a_policy.py
"""

from __future__ import annotations

import torch
from marl_aajr.envs import simple_spread_v3
from torch import nn

from marl_aajr import Victim, evaluate, make_attack

network = nn.Sequential(nn.Linear(18, 64), nn.Tanh(), nn.Linear(64, 5))  # load your weights here
victim = Victim.from_policies(network, simple_spread_v3.parallel_env())

# A batch of observations, without an environment:
attack = make_attack("pgd", epsilon=0.1, steps=20)
obs = torch.randn(8, 18, generator=torch.Generator().manual_seed(0))
attacked = attack(victim.policy("agent_0"), obs, generator=torch.Generator().manual_seed(1))
print("greedy actions changed:", attacked.success.tolist())

# Whole episodes, over the same seeds with and without attacks:
result = evaluate(
    victim, "marl_aajr.envs.simple_spread_v3", attacks=[("noise", 0.1), ("pgd", 0.1)], episodes=10
)
print(f"clean return {result.clean_return:.1f}")
for row in result.attacks:
    print(f"{row.attack.name:>6}: {row.mean:.1f} ({row.success_rate:.0%} of the actions changed)")
