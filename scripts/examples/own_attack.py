"""Write an attack of your own: it proposes perturbations; projecting and judging them is done for it.

python scripts/examples/own_attack.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from marl_aajr.envs import simple_spread_v3
from torch import Tensor, nn

from marl_aajr import Attack, Victim, evaluate
from marl_aajr.core.policy import Policy
from marl_aajr.core.threat import PerturbationSet


@dataclass(frozen=True, kw_only=True)
class WorstCorner(Attack):
    """δ is the worst, by the objective, of n random corners of the set.

    Attributes:
        corners: how many corners are tried, at least 1.
    """

    name: ClassVar[str] = "worst-corner"
    summary: ClassVar[str] = "the worst of n random corners of the perturbation set"
    access: ClassVar = "queries"

    corners: int = 20

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        g = self.objective_for(policy.distribution).bind(policy, self.clean(policy, obs, policy(obs)))
        best, value = torch.zeros_like(obs), g(obs)
        for _ in range(self.corners):
            corner = self.perturbations.sample(obs, generator=generator).sign() * self.perturbations.epsilon
            delta = self.perturbations.project(corner, obs)
            reached = g(obs + delta)
            best = torch.where((reached > value).unsqueeze(-1), delta, best)
            value = torch.maximum(value, reached)
        return best


network = nn.Sequential(nn.Linear(18, 64), nn.Tanh(), nn.Linear(64, 5))
victim = Victim.from_policies(network, simple_spread_v3.parallel_env())
mine = WorstCorner(perturbations=PerturbationSet(epsilon=0.2), corners=50)
attacks = [("noise", 0.2), (mine, 0.2), ("pgd-margin", 0.2)]
for row in evaluate(victim, "marl_aajr.envs.simple_spread_v3", attacks=attacks, episodes=10).attacks:
    print(f"{row.attack.name:>12}: objective +{row.objective_gain:.3f}, return {row.mean:.1f}")
