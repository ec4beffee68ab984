"""Noise: attacks that do not look at the policy. Every other attack must beat them, or something is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from marl_aajr.attacks.base import Access, Attack
from marl_aajr.core.policy import Policy
from marl_aajr.core.values import whole


@dataclass(frozen=True, kw_only=True)
class UniformNoise(Attack):
    """δ uniform in the set."""

    name: ClassVar[str] = "noise"
    summary: ClassVar[str] = "uniform noise in the perturbation set (a control, not an adversary)"
    access: ClassVar[Access] = "none"

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.perturbations.sample(obs, generator=generator)


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Attack):
    """δ = Π_Δ(σ ε M z), z ~ N(0, I): a noisy sensor, cut off at the set.

    Attributes:
        sigma: σ > 0, a fraction of ε.

    Raises:
        ValueError: σ ≤ 0.
    """

    name: ClassVar[str] = "noise-gaussian"
    summary: ClassVar[str] = "Gaussian noise projected onto the perturbation set (a control)"
    access: ClassVar[Access] = "none"

    sigma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma > 0:
            raise ValueError(f"expected sigma > 0 (a fraction of epsilon), got {self.sigma!r}")

    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        noise = torch.empty_like(obs).normal_(generator=generator)
        preconditioner = self.perturbations.preconditioner(obs)
        if preconditioner is not None:
            noise = noise * preconditioner
        return self.perturbations.project(self.sigma * self.perturbations.epsilon * noise, obs)


@dataclass(frozen=True, kw_only=True)
class WorstNoise(Attack):
    """The worst of n uniform δ, by the objective: random search, which needs no gradient.

    Attributes:
        samples: n ≥ 1.

    Raises:
        ValueError: n < 1.
    """

    name: ClassVar[str] = "noise-worst"
    summary: ClassVar[str] = "the worst of 20 uniform noises, by the objective"
    access: ClassVar[Access] = "queries"

    samples: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("samples", self.samples)

    @torch.no_grad()
    def run(self, policy: Policy, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        objective = self.objective_for(policy.distribution)
        g = objective.bind(policy, self.clean(policy, obs, policy(obs)))
        worst = torch.zeros_like(obs)
        value = g(obs)
        for _ in range(self.samples):
            delta = self.perturbations.sample(obs, generator=generator)
            tried = g(obs + delta)
            worse = tried > value
            worst = torch.where(worse.unsqueeze(-1), delta, worst)
            value = torch.where(worse, tried, value)
        return worst
