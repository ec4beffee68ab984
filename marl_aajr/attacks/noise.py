"""Noise: the adversary who does not look. Every other attack must beat it, or something is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.attacks.base import Attack
from marl_aajr.policy import Policy


@dataclass(frozen=True, kw_only=True)
class UniformNoise(Attack):
    """δ uniform in the set."""

    name: ClassVar[str] = "noise"
    summary: ClassVar[str] = "uniform noise in the perturbation set (a control, not an adversary)"

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.perturbations.sample(obs, generator=generator)
